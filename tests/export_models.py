"""Small whole models for exports, and ways to run what was exported."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

import swinx
from swinx.config import VARIANTS
from tests.decoders import build, image

TOLERANCE = 1e-4
# Small, for the exporters' sake: shifted blocks in stages 3 and 4, merges and dilation as everywhere.
FIELDS: dict[str, Any] = {"embed_dim": 16, "depths": (1, 1, 2, 2), "stem": "shared"}
CONFIGS = {
    version: replace(VARIANTS["swinx_n"], **FIELDS, window_size=window, version=version)
    for version, window in (("v1", 7), ("v2", 8))
}

Size = tuple[int, int, int]
# (B, H, W); the first is traced. Stage 4 of the smallest ones has fewer tokens than a window.
DIVISIBLE: list[Size] = [(2, 96, 128), (1, 64, 224), (3, 160, 96), (1, 64, 32)]
ANY: list[Size] = [(2, 96, 128), (1, 67, 101), (3, 64, 53), (1, 17, 11)]
LARGE: list[Size] = [(2, 256, 320), (1, 320, 288), (3, 256, 256)]  # PAN pools three times more


def sizes(name: str) -> list[Size]:
    """The sizes of a decoder's images; the first is traced."""
    return {"Unet": ANY, "PAN": LARGE}.get(name, DIVISIBLE)


def build_model(name: str, stride: int, version: str, depth: int = 5) -> nn.Module:
    """A model whose every parameter counts: V2's blocks are made as identities."""
    encoder = f"swinx_export_{version}"
    swinx.register_encoder(encoder, base="swinx_n", **FIELDS, window_size=CONFIGS[version].window_size, version=version)
    model = build(name, stride, depth, encoder=encoder).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def export(name: str, model: nn.Module, strict: bool = False) -> ExportedProgram:
    """For any batch and any size, in steps of 32 pixels where the decoder wants them."""
    if sizes(name) is ANY:
        dynamic: dict[int, Any] = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    else:
        dynamic = {0: Dim("batch", max=64), 2: 32 * Dim("height", max=64), 3: 32 * Dim("width", max=64)}
    batch, height, width = sizes(name)[0]
    return torch.export.export(model, (image(batch, 3, height, width),), dynamic_shapes=(dynamic,), strict=strict)


def adaptive_average(x: Tensor, bins: list[int]) -> Tensor:
    """torch's adaptive average pooling as two matrix products.

    Its own ONNX form holds the bins of the traced size, and AOTInductor takes all sizes for those of the traced image.
    """
    for axis, count in ((2, bins[0]), (3, bins[1])):
        size = x.shape[axis]
        number = torch.arange(count, device=x.device)
        start, end = number * size // count, ((number + 1) * size + count - 1) // count
        position = torch.arange(size, device=x.device)
        inside = (position >= start[:, None]) & (position < end[:, None])
        weights = inside.to(x.dtype) / (end - start)[:, None]
        x = (x.transpose(axis, 3) @ weights.t()).transpose(axis, 3)
    return x


def with_dynamic_pooling(program: ExportedProgram) -> ExportedProgram:
    """The program with `adaptive_average` in place of pooling to more than one bin."""
    pooling = torch.ops.aten.adaptive_avg_pool2d.default
    if any(node.target is pooling and max(node.args[1]) > 1 for node in program.graph.nodes):
        return program.run_decompositions({pooling: adaptive_average})
    return program


def in_onnxruntime(program: ExportedProgram) -> Callable[[Tensor], Tensor]:
    """The program's ONNX file, run on the CPU."""
    import onnxruntime

    proto = torch.onnx.export(with_dynamic_pooling(program), dynamo=True, verbose=False).model_proto
    assert {node.domain for node in proto.graph.node} == {""}  # runs without swinx
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def in_aotinductor(program: ExportedProgram, path: Path) -> Callable[[Tensor], Tensor]:
    """The program compiled ahead of time to a package at path."""
    torch._inductor.aoti_compile_and_package(with_dynamic_pooling(program), package_path=str(path))
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
