"""Exported models compute what eager code computes at sizes that were not traced: in ONNX Runtime, and compiled ahead
of time by AOTInductor.

A few models are tried here, and all with SWINX_EXPORT_SWEEP=1 in the environment. The table of the largest differences
is made, in half an hour on one core, by

    PYTHONPATH=. python tests/test_export.py docs/benchmarks/export-sweep-DATE.md
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from decoders import build, image
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

import swinx

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

TOLERANCE = 1e-4
SWEEP = bool(os.environ.get("SWINX_EXPORT_SWEEP"))
# Small, for the exporters' sake: shifted blocks in stages 3 and 4, merges and dilation as everywhere.
for _version, _window in (("v1", 7), ("v2", 8)):
    swinx.register_encoder(
        f"swinx_export_{_version}",
        base="swinx_n",
        embed_dim=16,
        depths=(1, 1, 2, 2),
        window_size=_window,
        version=_version,
        stem="shared",
    )

Size = tuple[int, int, int]
# (B, H, W); the first is traced. Stage 4 of the smallest ones has fewer tokens than a window.
DIVISIBLE: list[Size] = [(2, 96, 128), (1, 64, 224), (3, 160, 96), (1, 64, 32)]
ANY: list[Size] = [(2, 96, 128), (1, 67, 101), (3, 64, 53), (1, 17, 11)]
LARGE: list[Size] = [(2, 256, 320), (1, 320, 288), (3, 256, 256)]  # PAN pools three times more
SIZES = {"Unet": ANY, "PAN": LARGE}
STRIDES = {
    "Unet": (8, 16, 32),
    "FPN": (32,),
    "PAN": (16, 32),
    "DeepLabV3Plus": (8, 16),
    "UPerNet": (8, 16, 32),
    "Segformer": (8, 16, 32),
}
VERSIONS = ("v1", "v2")
# (decoder, output stride, version, depth). The few lack the last stage, to be quick, and their stage 3 is dilated.
ALL = [(name, stride, version, 5) for name, strides in STRIDES.items() for stride in strides for version in VERSIONS]
FEW = [("Unet", 8, "v2", 4), ("DeepLabV3Plus", 8, "v1", 4)]


def built(name: str, stride: int, version: str, depth: int = 5) -> nn.Module:
    """A model whose every parameter counts: V2's blocks are made as identities."""
    model = build(name, stride, depth, encoder=f"swinx_export_{version}").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def dynamic_shapes(name: str) -> tuple[dict[int, Any]]:
    """Any batch and any size, in steps of 32 pixels where the decoder wants them."""
    if SIZES.get(name) is ANY:
        return ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},)
    return ({0: Dim("batch", max=64), 2: 32 * Dim("height", max=64), 3: 32 * Dim("width", max=64)},)


def exported(name: str, model: nn.Module) -> ExportedProgram:
    batch, height, width = SIZES.get(name, DIVISIBLE)[0]
    return torch.export.export(model, (image(batch, 3, height, width),), dynamic_shapes=dynamic_shapes(name))


def adaptive_average(x: Tensor, bins: list[int]) -> Tensor:
    """torch's adaptive average pooling as two matrix products: its own ONNX form holds the bins of the traced size."""
    for axis, count in ((2, bins[0]), (3, bins[1])):
        size = x.shape[axis]
        number = torch.arange(count, device=x.device)
        start, end = number * size // count, ((number + 1) * size + count - 1) // count
        position = torch.arange(size, device=x.device)
        inside = (position >= start[:, None]) & (position < end[:, None])
        weights = inside.to(x.dtype) / (end - start)[:, None]
        x = (x.transpose(axis, 3) @ weights.t()).transpose(axis, 3)
    return x


def in_onnxruntime(program: ExportedProgram) -> Callable[[Tensor], Tensor]:
    pooling = torch.ops.aten.adaptive_avg_pool2d.default
    if any(node.target is pooling and max(node.args[1]) > 1 for node in program.graph.nodes):
        program = program.run_decompositions({pooling: adaptive_average})
    proto = torch.onnx.export(program, dynamo=True, verbose=False).model_proto
    assert {node.domain for node in proto.graph.node} == {""}  # runs without swinx
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


def in_aotinductor(program: ExportedProgram, path: Path) -> Callable[[Tensor], Tensor]:
    torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    return torch._inductor.aoti_load_package(str(path))


@torch.no_grad()
def largest_difference(model: nn.Module, run: Callable[[Tensor], Tensor], sizes: list[Size]) -> float:
    """From eager, over all sizes."""
    differences = []
    for batch, height, width in sizes:
        x = image(batch, 3, height, width)
        got, expected = run(x), model(x)
        assert got.shape == expected.shape
        assert expected.abs().max() > 0.1  # of a network that computes something
        differences.append(float((got - expected).abs().max()))
    return max(differences)


@pytest.mark.parametrize(("name", "stride", "version", "depth"), ALL if SWEEP else FEW)
def test_onnxruntime_equals_eager(name: str, stride: int, version: str, depth: int) -> None:
    model = built(name, stride, version, depth)
    program = exported(name, model)
    sizes = SIZES.get(name, DIVISIBLE)
    assert largest_difference(model, in_onnxruntime(program), sizes) < TOLERANCE


@pytest.mark.skipif(not SWEEP, reason="a minute of C++ compilation: set SWINX_EXPORT_SWEEP=1")
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("name", "stride"), [("Unet", 32), ("DeepLabV3Plus", 8)])
def test_aotinductor_equals_eager(name: str, stride: int, version: str, tmp_path: Path) -> None:
    model = built(name, stride, version)
    run = in_aotinductor(exported(name, model), tmp_path / "model.pt2")
    assert largest_difference(model, run, SIZES.get(name, DIVISIBLE)) < TOLERANCE


def sweep(path: Path) -> None:
    """Write the table of largest differences in ONNX Runtime."""
    lines = [
        "| decoder | output stride | encoder | sizes, the first traced | largest difference | export, s |",
        "|---|---:|---|---|---:|---:|",
    ]
    for name, stride, version, depth in ALL:
        model, sizes = built(name, stride, version, depth), SIZES.get(name, DIVISIBLE)
        start = time.perf_counter()
        run = in_onnxruntime(exported(name, model))
        seconds = time.perf_counter() - start
        difference = largest_difference(model, run, sizes)
        shown = ", ".join("×".join(map(str, size)) for size in sizes)
        lines.append(f"| {name} | {stride} | {version} | {shown} | {difference:.1e} | {seconds:.0f} |")
        print(lines[-1], flush=True)
    path.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    sweep(Path(sys.argv[1]))
