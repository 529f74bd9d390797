"""Exported models compute what eager code computes at sizes that were not traced, small ones too.

The table of every decoder, stride and version is made by tests/benchmarks/export_sweep.py.
"""

import export_models as models
import pytest
import torch
from torch import nn

import swinx
from swinx import exports, plans
from swinx.windows import WindowGeometry


@pytest.fixture
def onnxruntime() -> None:
    """Skips where the packages are missing."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)


# The stages that these lack are in the sweep.
@pytest.mark.usefixtures("onnxruntime")
@pytest.mark.parametrize(
    ("name", "stride", "version", "impl"),
    [("Unet", 8, "v2", "auto"), ("DeepLabV3Plus", 8, "v1", "auto"), ("DeepLabV3Plus", 8, "v1", "sdpa")],
)
def test_onnxruntime_equals_eager(name: str, stride: int, version: str, impl: str) -> None:
    model = models.build_model(name, stride, version, depth=4)
    swinx.set_attention(model, impl)
    run = models.in_onnxruntime(models.export(name, model))
    assert models.largest_difference(model, run, models.sizes(name)) < models.TOLERANCE


@pytest.mark.usefixtures("onnxruntime")
def test_the_adaptive_pooling_of_the_guide_is_that_of_torch() -> None:
    pool = nn.AdaptiveAvgPool2d((3, 6)).eval()
    dynamic = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    program = torch.export.export(pool, (torch.randn(2, 5, 12, 17),), dynamic_shapes=(dynamic,))
    run = models.in_onnxruntime(program)
    for height, width in [(12, 17), (3, 6), (2, 5), (1, 1), (19, 7)]:
        x = torch.randn(2, 5, height, width)
        torch.testing.assert_close(run(x), pool(x))


@pytest.mark.parametrize("strict", [True, False])
@torch.no_grad()
def test_a_batch_of_one_and_images_of_one_window_need_no_export_of_their_own(strict: bool) -> None:
    model = swinx.SwinXEncoder(models.CONFIGS["v1"], depth=3).eval()
    dynamic = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    image = torch.randn(1, 3, 160, 224)  # several windows along both axes of every grid
    program = torch.export.export(model, (image,), dynamic_shapes=(dynamic,), strict=strict).module()
    for height, width in [(160, 224), (56, 101), (28, 29), (19, 23)]:
        x = torch.randn(1, 3, height, width)
        for got, expected in zip(program(x), model(x), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


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
