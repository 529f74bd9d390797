"""Checkpoint files from anywhere: training files are read, and what would run code or take memory is refused."""

import argparse
import collections
import sys
import types
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from layouts import EMBED, fresh, mmseg, official, ours, prefixed
from safetensors.torch import save_file
from test_checkpoints_whole import KEY, refused
from torch import nn

import swinx
from swinx.checkpoint_files import read_checkpoint


def rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Change the pickles of a file, of either format of torch's."""
    if not zipfile.is_zipfile(path):
        path.write_bytes(change(path.read_bytes()))
        return
    with zipfile.ZipFile(path) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w") as changed:
        for name, content in records.items():
            changed.writestr(name, change(content) if name.endswith("data.pkl") else content)


def yacs_options() -> Any:
    """What yacs' CfgNode is: a dict with a state, in a module of its own."""
    module = types.ModuleType("yacs.config")
    module.CfgNode = type("CfgNode", (dict,), {"__module__": "yacs.config"})
    node = module.CfgNode(MODEL=module.CfgNode(TYPE="swin"), AMP=True)
    node.__dict__["__immutable__"] = True
    return module, node


@pytest.mark.parametrize("legacy", [False, True])
def test_an_official_training_file_is_read_without_its_classes(
    legacy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, node = yacs_options()
    monkeypatch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
    monkeypatch.setitem(sys.modules, "yacs.config", module)
    encoder = fresh()
    content = {
        "model": official(),
        "optimizer": torch.optim.AdamW(encoder.parameters()).state_dict(),
        "lr_scheduler": {"base_values": [0.1], "t_in_epochs": False},
        "config": node,
        "args": argparse.Namespace(lr=0.1, nested=argparse.Namespace(opts=["a", None])),
        "ordered": collections.OrderedDict(a=1),
    }
    torch.save(content, tmp_path / "ckpt.pth", _use_new_zipfile_serialization=not legacy)
    monkeypatch.delitem(sys.modules, "yacs.config")
    monkeypatch.delitem(sys.modules, "yacs")
    before = set(torch.serialization.get_safe_globals())
    swinx.load_checkpoint(encoder, tmp_path / "ckpt.pth")
    assert "yacs" not in sys.modules
    assert set(torch.serialization.get_safe_globals()) == before
    assert torch.equal(encoder.state_dict()[KEY], official()[KEY])


class Loud(argparse.Namespace):
    """A class that no file may choose."""


def test_other_classes_are_still_refused(tmp_path: Path) -> None:
    torch.save({"model": official(), "args": Loud(lr=0.1)}, tmp_path / "ckpt.pth")
    encoder = fresh()
    refused(encoder, lambda: swinx.load_checkpoint(encoder, tmp_path / "ckpt.pth"), "Loud", "save its state dict alone")


def test_compressed_records_are_refused(tmp_path: Path) -> None:
    """A megabyte of them can claim a gigabyte."""
    torch.save(ours(), tmp_path / "weights.pth")
    packed = zipfile.ZipFile(tmp_path / "small.pth", "w", zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(tmp_path / "weights.pth") as plain, packed:
        for info in plain.infolist():
            packed.writestr(info.filename, plain.read(info))
    encoder = fresh()
    refused(encoder, lambda: swinx.load_checkpoint(encoder, tmp_path / "small.pth"), "must not hold compressed records")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("elements", [2_000_000_321, -7])
def test_storages_that_a_file_does_not_hold_take_no_memory(elements: int, legacy: bool, tmp_path: Path) -> None:
    """The number of elements in the pickle is made another one."""
    path = tmp_path / "weights.pth"
    marked = torch.zeros(70001)
    torch.save({"model": ours() | {KEY: marked}}, path, _use_new_zipfile_serialization=not legacy)
    honest, claimed = (70001).to_bytes(4, "little"), elements.to_bytes(4, "little", signed=True)

    def lie(content: bytes) -> bytes:
        assert content.count(b"J" + honest) > 0  # BININT
        return content.replace(b"J" + honest, b"J" + claimed)

    rewrite(path, lie)
    encoder = fresh()
    refused(encoder, lambda: swinx.load_checkpoint(encoder, path), str(path), "damaged or no checkpoint")


class Called:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("call", "saying"),
    [
        (Called(bytearray, 2_000_000_000), "holds more than tensors (__builtin__.bytearray)"),
        (Called(torch.FloatTensor, [[0.5] * 1000] * 1000), "holds more than tensors (torch.FloatTensor)"),
        (Called(torch.FloatStorage, 2_000_000_000), "makes a FloatStorage"),
    ],
    ids=["bytes", "tensor", "storage"],
)
def test_calls_that_only_take_memory_are_refused(call: Called, saying: str, legacy: bool, tmp_path: Path) -> None:
    path, encoder = tmp_path / "weights.pth", fresh()
    torch.save({"model": ours(), "args": call}, path, _use_new_zipfile_serialization=not legacy)
    refused(encoder, lambda: swinx.load_checkpoint(encoder, path), str(path), saying)


def test_zip_files_that_two_readers_read_differently_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(ours(), path)
    content = path.read_bytes()
    encoder = fresh()
    for changed in (content + b"PK\5\6", content + bytes(22), b"PK\3\4" + content, content[:-2] + b"\1\0x"):
        path.write_bytes(changed)
        refused(encoder, lambda: swinx.load_checkpoint(encoder, path), "damaged or no checkpoint")
    with zipfile.ZipFile(path, "w") as twice:
        twice.writestr("archive/data.pkl", b"x")
        with pytest.warns(UserWarning, match="Duplicate name"):
            twice.writestr("archive/data.pkl", b"y")
    refused(encoder, lambda: swinx.load_checkpoint(encoder, path), "two records of one name")
    path.write_bytes(content)
    swinx.load_checkpoint(encoder, path)


@pytest.mark.parametrize("legacy", [False, True])
def test_entries_that_share_one_storage_load(legacy: bool, tmp_path: Path) -> None:
    source = fresh()
    flat = nn.utils.parameters_to_vector(source.parameters()).detach()
    nn.utils.vector_to_parameters(flat, source.parameters())
    torch.save(source.state_dict(), tmp_path / "weights.pth", _use_new_zipfile_serialization=not legacy)
    encoder = fresh()
    nn.init.zeros_(encoder.norms[0].bias)
    swinx.load_checkpoint(encoder, tmp_path / "weights.pth")
    assert torch.equal(encoder.norms[0].bias, source.norms[0].bias)


def test_options_that_the_user_allowed_stay_allowed(tmp_path: Path) -> None:
    torch.save({"model": official(), "args": argparse.Namespace(lr=0.1)}, tmp_path / "weights.pth")
    entry = (collections.OrderedDict, "argparse.Namespace")
    with torch.serialization.safe_globals([entry]):
        swinx.load_checkpoint(fresh(), tmp_path / "weights.pth")
        assert entry in torch.serialization.get_safe_globals()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: swinx.load_checkpoint(fresh(), tmp_path / "weights.pth"), range(12)))


@pytest.mark.parametrize("name", ["WEIGHTS.SAFETENSORS", "weights.Safetensors"])
def test_capitals_in_a_suffix_mean_the_same(name: str, tmp_path: Path) -> None:
    encoder = fresh()
    save_file(ours(), tmp_path / name)
    swinx.load_checkpoint(encoder, tmp_path / name)
    assert all(torch.equal(encoder.state_dict()[key], value) for key, value in ours().items())


def test_a_loaded_encoder_does_not_depend_on_its_file(tmp_path: Path) -> None:
    path, encoder = tmp_path / "weights.pth", fresh()
    torch.save(ours(), path)
    swinx.load_checkpoint(encoder, path)
    size = path.stat().st_size
    path.write_bytes(bytes(size))
    assert torch.equal(encoder.state_dict()[KEY], ours()[KEY])
    assert encoder.patch_embed.proj.weight.shape[0] == EMBED


def training_file_of_mmengine(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What mmengine's runner saves; its buffers hold arrays, and their own methods, which pickles name by getattr."""
    module = types.ModuleType("mmengine.logging.history_buffer")
    code = (
        "class HistoryBuffer:\n    def mean(self): pass\n    def __init__(self, **state): self.__dict__.update(state)"
    )
    exec(code, module.__dict__)
    for name in ("mmengine", "mmengine.logging"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    buffer = module.HistoryBuffer(
        max_length=1000000,
        _log_history=np.array([0.5, 0.25]),
        _count_history=np.array([1, 1]),
        statistics_methods={"mean": module.HistoryBuffer.mean},
    )
    hub = {"log_scalars": {"train/loss": buffer}, "runtime_info": {"best": np.float64(81.5), "epoch": 3}}
    state_dict = prefixed("backbone.", mmseg())
    return {"meta": {"classes": {"sky"}, "best": np.float32(0.5)}, "message_hub": hub, "state_dict": state_dict}


@pytest.mark.parametrize("core", [b"numpy.core", b"numpy._core"])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_training_file_of_mmengine_is_read_without_its_classes(
    legacy: bool, core: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the user allowed torch to make arrays: none is made."""
    path, encoder = tmp_path / "epoch_3.pth", fresh()
    torch.save(training_file_of_mmengine(monkeypatch), path, _use_new_zipfile_serialization=not legacy)
    monkeypatch.undo()

    def renamed(content: bytes) -> bytes:
        content = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
        return content.replace(b"numpy.core.multiarray", core + b".multiarray")

    rewrite(path, renamed)

    def never(*_: Any) -> None:
        raise AssertionError("something of the file was made")

    allowed = [(never, name) for name in ("numpy.dtype", "numpy.ndarray", f"{core.decode()}.multiarray._reconstruct")]
    with torch.serialization.safe_globals(allowed):
        swinx.load_checkpoint(encoder, path)
        assert set(allowed) <= set(torch.serialization.get_safe_globals())
    assert "mmengine" not in sys.modules
    assert torch.equal(encoder.state_dict()[KEY], ours()[KEY])
    assert torch.equal(encoder.state_dict()["norms.0.bias"], ours()["norms.0.bias"])


def test_the_names_of_training_files_stay_dead(tmp_path: Path) -> None:
    """getattr gives nothing, arrays take no memory, and neither leaves anything behind."""
    path, encoder = tmp_path / "weights.pth", fresh()
    before = set(torch.serialization.get_safe_globals())
    calls = (Called(getattr, torch.Size, "__subclasses__"), Called(np.ndarray, (10**12,)), Called(np.dtype, "f8"))
    for call in calls:
        torch.save({"model": ours() | {KEY: call}}, path)
        refused(encoder, lambda: swinx.load_checkpoint(encoder, path), str(path), f"missing {KEY}")
        torch.save({"model": ours(), "meta": Called(Called, call)}, path)
        refused(encoder, lambda: swinx.load_checkpoint(encoder, path), str(path), "holds more than tensors")
    assert set(torch.serialization.get_safe_globals()) == before


def test_one_value_under_many_names_is_copied_once(tmp_path: Path) -> None:
    path, encoder = tmp_path / "weights.pth", fresh()
    options = dict.fromkeys(range(2000), 0)
    torch.save({"model": official(), **{f"options {index}": options for index in range(2000)}}, path)
    content = read_checkpoint(path)
    assert len({id(value) for name, value in content.items() if name != "model"}) == 1
    swinx.load_checkpoint(encoder, path)


@pytest.mark.parametrize("name", ["0123abcd", "a.bin", "a.pth"])
def test_a_safetensors_file_without_its_suffix_is_read(name: str, tmp_path: Path) -> None:
    """As the hub's cache stores them."""
    path, encoder = tmp_path / name, fresh()
    save_file(ours(), path)
    swinx.load_checkpoint(encoder, path)
    assert all(torch.equal(encoder.state_dict()[key], value) for key, value in ours().items())
    content = path.read_bytes()
    header = int.from_bytes(content[:8], "little")
    longer = content[:8] + content[8:].replace(b'"F32"', b'"F64"', 1)
    for broken in (content[:-1], content[: header // 2], (2**40).to_bytes(8, "little") + content[8:], longer):
        path.write_bytes(broken)
        refused(encoder, lambda: swinx.load_checkpoint(encoder, path), str(path), "damaged or no checkpoint")
