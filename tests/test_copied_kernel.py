"""The kernel as others publish it: copied out of swinx by the command in its documentation, under another name.

In processes of their own, which load a copy as the library `kernels` of Hugging Face does: from its path, under a name
that no other version has.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from releases import KERNELS

pytestmark = KERNELS

ROOT = Path(__file__).parent.parent
LOAD = """
import importlib.util, sys
import torch
device = "cuda" if torch.cuda.is_available() else "cpu"

def load(name):
    spec = importlib.util.spec_from_file_location(name, "torch-ext/swinx_window_attention/__init__.py")
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]

def results(attention, impl="triton", compiled=False):
    inputs = [torch.randn(shape, generator=torch.Generator().manual_seed(1)) for shape in SHAPES]
    qkv, bias, pad = [tensor.to(device).requires_grad_() for tensor in inputs]
    call = lambda *given: attention(*given[:2], window_size=(3, 4), shift=(1, 2), pad_qkv=given[2], impl=impl)
    if compiled:
        call = torch.compile(call, backend="aot_eager", fullgraph=True)
    out = call(qkv, bias, pad)
    return [out, *torch.autograd.grad(out.square().sum(), (qkv, bias, pad))]

SHAPES = (1, 3, 5, 3, 1, 16), (1, 12, 12), (3, 1, 16)
"""
ALONE = """
sys.modules["swinx"] = None  # to import it is an error
copy = load("_swinx_window_attention_1a2b3c")
for one, other in zip(results(copy.window_attention), results(copy.window_attention, "reference"), strict=True):
    torch.testing.assert_close(one, other)
results(copy.window_attention, "auto", compiled=True)
assert copy.__all__ == ["window_attention"]
foreign = ("swinx", "timm", "segmentation_models_pytorch", "torchvision", "experiments")
assert not [name for name, module in sys.modules.items() if name.split(".")[0] in foreign and module is not None]
"""
BESIDE = """
from torch.utils.flop_counter import FlopCounterMode
import swinx
copies = {name: load(name) for name in ("_swinx_window_attention_1a2b3c", "_swinx_window_attention_4d5e6f")}
expected = results(swinx.window_attention)
for name, copy in copies.items():
    operators = getattr(torch.ops, name)
    assert operators.window_attention.default is not torch.ops.swinx.window_attention.default
    for operator in ("window_attention", "window_attention_backward", "window_indices"):
        assert getattr(operators, operator).default.name() == f"{name}::{operator}"
    for compiled in (False, True):
        torch._dynamo.reset()
        found = results(copy.window_attention, compiled=compiled)
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    with FlopCounterMode(display=False) as counter:
        results(copy.window_attention)
    counted = {str(operator) for operator in counter.get_flop_counts()["Global"]}
    assert counted == {f"{name}.window_attention", f"{name}.window_attention_backward"}, counted
    with torch.autocast(device, torch.float16):
        assert results(copy.window_attention)[0].dtype == torch.float16
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the command of docs/kernel.md has made a copy."""
    (tmp_path / "swinx").symlink_to(ROOT / "swinx")
    commands = re.search(r"```\n(mkdir -p torch-ext/.*?)```", (ROOT / "docs" / "kernel.md").read_text(), re.DOTALL)
    subprocess.run(["bash", "-euc", commands[1]], cwd=tmp_path, check=True)
    (tmp_path / "swinx").unlink()
    return tmp_path


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-P", *arguments]
    return subprocess.run(
        command, cwd=folder, env=os.environ | environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("code", [ALONE, BESIDE], ids=["alone", "beside swinx"])
def test_a_copy_computes_the_same_under_its_own_name(folder: Path, code: str) -> None:
    result = run(folder, "-c", LOAD + code)
    assert result.returncode == 0, result.stderr


def test_the_check_runs_in_a_copy(folder: Path) -> None:
    module = "swinx_window_attention.attention.check"
    result = run(folder, "-m", module, "--output", "missing/record.json", PYTHONPATH=str(folder / "torch-ext"))
    assert result.returncode != 0
    assert "--output missing/record.json cannot be written: No such file or directory" in result.stderr
