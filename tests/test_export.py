"""Exported models compute what eager code computes at sizes that were not traced, small ones too.

The table of every decoder, stride and version is made by tests/benchmarks/export_sweep.py.
"""

from collections.abc import Callable

import pytest
import torch
from releases import DYNAMIC_EXPORT
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from swinx import exports, plans
from swinx.stage import SwinStage
from swinx.windows import WindowGeometry
from tests import export_models as models


@pytest.fixture
def onnxruntime() -> None:
    """Skips where the packages are missing."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)


def dilated_stage(version: str, impl: str) -> SwinStage:
    """A dense merge, a plain and a shifted block; every parameter counts."""
    torch.manual_seed(0)
    stage = SwinStage(models.CONFIGS[version].stages[2], merge=True).eval()
    stage.set_period(1, 2)
    stage.impl = impl
    with torch.no_grad():
        for parameter in stage.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return stage


def export_stage(stage: SwinStage, grid: Tensor, strict: bool = False) -> ExportedProgram:
    """With every size that is not 1 dynamic."""
    dynamic = {axis: Dim.DYNAMIC for axis in range(3) if grid.shape[axis] > 1}
    return torch.export.export(stage, (grid,), dynamic_shapes=(dynamic,), strict=strict)


def assert_same(run: Callable[[Tensor], Tensor], stage: SwinStage, sizes: list[tuple[int, int, int]]) -> None:
    for batch, height, width in sizes:
        grid = torch.randn(batch, height, width, 32)
        with torch.no_grad():
            torch.testing.assert_close(run(grid), stage(grid), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("onnxruntime")
def test_a_whole_model_in_onnxruntime_equals_eager() -> None:
    model = models.build_model("Unet", 32, "v1", depth=3)
    run = models.in_onnxruntime(models.export("Unet", model))
    assert models.largest_difference(model, run, models.sizes("Unet")) < models.TOLERANCE


@pytest.mark.usefixtures("onnxruntime")
@pytest.mark.parametrize(("version", "impl"), [("v2", "auto"), ("v1", "sdpa")])
def test_a_dilated_stage_in_onnxruntime_equals_eager(version: str, impl: str) -> None:
    stage = dilated_stage(version, impl)
    run = models.in_onnxruntime(export_stage(stage, torch.randn(2, 31, 43, 32)))
    assert_same(run, stage, [(2, 31, 43), (1, 29, 17), (3, 5, 23), (1, 1, 2), (1, 32, 32)])


@pytest.mark.usefixtures("onnxruntime")
def test_the_adaptive_pooling_of_the_guide_is_that_of_torch() -> None:
    pool = nn.AdaptiveAvgPool2d((3, 6)).eval()
    dynamic = {2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    program = torch.export.export(pool, (torch.randn(2, 5, 12, 17),), dynamic_shapes=(dynamic,))
    run = models.in_onnxruntime(program)
    for height, width in [(12, 17), (3, 6), (2, 5), (1, 1), (19, 7)]:
        x = torch.randn(2, 5, height, width)
        torch.testing.assert_close(run(x), pool(x))


@DYNAMIC_EXPORT
@pytest.mark.parametrize("strict", [True, False])
def test_a_program_for_a_batch_of_one_takes_grids_of_one_window(strict: bool) -> None:
    stage = dilated_stage("v1", "auto")
    program = export_stage(stage, torch.randn(1, 31, 43, 32), strict).module()  # several windows along both axes
    assert_same(program, stage, [(1, 31, 43), (1, 29, 13), (1, 11, 29), (1, 5, 7)])


class Depthwise(nn.Module):
    """What a user may put around an MLP: it needs grids."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.mix = nn.Conv2d(64, 64, 3, padding=1, groups=64)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + self.mix(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


@DYNAMIC_EXPORT
@pytest.mark.parametrize("modified", [False, True])
def test_tokens_of_unmodified_stages_alone_become_rows_in_exports(modified: bool) -> None:
    stage = dilated_stage("v1", "auto")
    if modified:
        stage.blocks[1].mlp = Depthwise(stage.blocks[1].mlp)
    program = export_stage(stage, torch.randn(2, 31, 43, 32))
    linear = [node for node in program.graph.nodes if node.target is torch.ops.aten.linear.default]
    ranks = {node.args[0].meta["val"].ndim for node in linear[1:]}  # after the merge
    assert ranks == ({2, 4} if modified else {2})
    assert_same(program.module(), stage, [(2, 31, 43), (1, 29, 13), (3, 5, 7)])


GEOMETRIES = [
    WindowGeometry(2, 11, 23, (5, 3), (2, 1), 1),
    WindowGeometry(3, 13, 17, (3, 2), (1, 1), 2),
    WindowGeometry(1, 29, 7, (2, 3), (0, 1), 4),
    WindowGeometry(2, 3, 2, (5, 7), (0, 0), 1),
]


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("shifted", [True, False])
def test_head_indices_find_what_window_indices_find(geometry: WindowGeometry, shifted: bool) -> None:
    heads, device = 3, torch.device("cpu")
    tokens, area = geometry.batch * geometry.height * geometry.width, geometry.window_size[0] * geometry.window_size[1]
    qkv = torch.arange((tokens + 1) * 3 * heads).view(tokens + 1, 3, heads)
    gather, scatter, visible = plans.window_indices(geometry, shifted, True, device)
    indices, visible_by_head = exports.head_indices(geometry, heads, shifted, device)
    expected = qkv[gather].view(-1, area, 3, heads).permute(2, 0, 3, 1)
    for index, want in zip(indices[:3], expected, strict=True):
        assert torch.equal(qkv.flatten()[index].view(want.shape), want)
    slots = torch.arange(len(gather) * heads).view(-1, heads, area)
    got = slots.flatten()[indices.results].view(tokens, heads)
    assert torch.equal(got, slots.transpose(1, 2).reshape(-1, heads)[scatter])
    assert (visible is None) == (visible_by_head is None)
    if visible is not None:
        assert torch.equal(visible, visible_by_head)
