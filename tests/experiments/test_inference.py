"""Tiles, flips and scales: what they leave as it is, and their averages spelled out in float64."""

import itertools

import numpy
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from experiments.evaluation.inference import probabilities, tile_shares, tile_starts
from experiments.records.options import Inference

CLASSES = 3


class Pixelwise(nn.Module):
    """Logits of a pixel from its own colours alone; keeps the images that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.calls.append(images.clone())
        x = images.float() / 64
        return torch.stack((x[:, 0] - x[:, 1], x[:, 1] * x[:, 2] / 3, x[:, 2] - 1), dim=1)


class Context(Pixelwise):
    """Logits that depend on neighbours and on the place in the image, unlike in mirrored images and in tiles."""

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        place = torch.linspace(0, 1, width) + 2 * torch.linspace(0, 1, height)[:, None]
        return super().forward(images).cumsum(-1) / 9 * place


def pictures(height: int = 23, width: int = 37, count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, height, width), generator=generator).to(torch.uint8)


def predict(model: nn.Module, images: Tensor, *, precision: str = "32", **options: object) -> Tensor:
    return probabilities(model, images, Inference(**options), precision=precision)


def softmax(model: nn.Module, images: Tensor) -> Tensor:
    return model(images).softmax(1)


@pytest.mark.parametrize("overlap", [0.0, 0.6])
@pytest.mark.parametrize("tile", [(7, 9), (11, 64), (64, 13), (1, 1), (22, 36)])
def test_a_pixelwise_model_is_not_changed_by_tiles_and_flips(tile: tuple[int, int], overlap: float) -> None:
    images = pictures() if tile != (1, 1) else pictures(5, 7)
    found = predict(Pixelwise(), images, tile=tile, overlap=overlap, flip=True)
    torch.testing.assert_close(found, softmax(Pixelwise(), images), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"tile": (23, 37)}, {"tile": (29, 41), "overlap": 0.0}])
def test_where_nothing_is_to_be_averaged_the_result_is_the_plain_one_bit_for_bit(options: dict[str, object]) -> None:
    model = Context()
    assert torch.equal(predict(model, pictures(), **options), softmax(Context(), pictures()))
    assert len(model.calls) == 1


def test_tiles_blend_by_their_weights() -> None:
    """Against the sum over tiles of weight × softmax, divided by the sum of weights, in float64."""
    images, tile = pictures(), (11, 13)
    total = torch.zeros(2, CLASSES, 23, 37, dtype=torch.float64)
    weights = torch.zeros(23, 37, dtype=torch.float64)
    # At most half of a tile further each time, so at multiples of 12 / 3 and of 24 / 4 pixels.
    for top in (0, 4, 8, 12):
        for left in (0, 6, 12, 18, 24):
            window = (..., slice(top, top + 11), slice(left, left + 13))
            sides = [numpy.sin(numpy.pi * (numpy.arange(n) + 0.5) / n) ** 2 for n in tile]
            weight = torch.from_numpy(numpy.outer(*sides))
            total[window] += weight * softmax(Context(), images[window]).double()
            weights[window] += weight
    found = predict(Context(), images, tile=tile, overlap=0.5)
    torch.testing.assert_close(found.double(), total / weights, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.75, 0.99])
def test_tiles_cover_an_axis_evenly_and_overlap_enough(overlap: float) -> None:
    for length in (1, 2, 7, 53, 97, 256):
        for tile in {min(length, size) for size in (1, 2, 5, 32, length)}:
            starts = tile_starts(length, tile, overlap)
            steps = [b - a for a, b in itertools.pairwise(starts)]
            assert (starts[0], starts[-1]) == (0, length - tile)
            assert all(step == 1 or tile - step >= overlap * tile for step in steps)
            assert not steps or 1 <= min(steps) >= max(steps) - 1
            shares = tile_shares(starts, tile)
            total = torch.zeros(length, dtype=torch.float64)
            for start, share in zip(starts, shares.double(), strict=True):
                total[start : start + tile] += share
            torch.testing.assert_close(total, torch.ones(length, dtype=torch.float64), rtol=0, atol=1e-6)
            assert shares.min() > 0


def test_the_model_sees_tiles_of_one_size_and_a_batch_at_a_time() -> None:
    model = Pixelwise()
    predict(model, pictures(23, 37, 3), tile=(11, 64), overlap=0.5, flip=True)
    assert {tuple(call.shape) for call in model.calls} == {(3, 3, 11, 37)}
    assert len(model.calls) == 2 * 4
    small = Pixelwise()
    predict(small, pictures(5, 7), tile=(11, 13), scales=(1.0, 2.0, 0.01))
    assert [tuple(call.shape[-2:]) for call in small.calls] == [(5, 7), (10, 13), (10, 13), (1, 1)]


@pytest.mark.parametrize("scale", [0.5, 1.5, 2.3])
def test_scales_equal_pillows_resizing(scale: float) -> None:
    """Images within one grey level (Pillow computes bytes in fixed point), probabilities within float tolerance."""
    images, model = pictures(count=1), Pixelwise()
    found = predict(model, images, scales=(scale,))
    size = (round(37 * scale), round(23 * scale))
    seen = model.calls[0]
    assert seen.dtype == torch.uint8
    resized = Image.fromarray(images[0].permute(1, 2, 0).numpy()).resize(size, Image.Resampling.BILINEAR)
    assert (seen[0].permute(1, 2, 0).int() - torch.from_numpy(numpy.array(resized)).int()).abs().max() <= 1
    at_scale = softmax(Pixelwise(), seen)
    for k in range(CLASSES):
        plane = Image.fromarray(at_scale[0, k].numpy()).resize((37, 23), Image.Resampling.BILINEAR)
        torch.testing.assert_close(found[0, k], torch.from_numpy(numpy.array(plane)), rtol=1e-4, atol=1e-5)


def test_views_count_alike() -> None:
    """The mean over scales of the mean over flips."""
    images, scales = pictures(), (1.0, 0.5, 2.0)
    views = [predict(Context(), images, scales=(scale,), flip=True).double() for scale in scales]
    found = predict(Context(), images, scales=scales, flip=True).double()
    torch.testing.assert_close(found, sum(views) / 3, rtol=1e-5, atol=1e-6)
    both = (softmax(Context(), images) + softmax(Context(), images.flip(-1)).flip(-1)) / 2
    torch.testing.assert_close(predict(Context(), images, flip=True), both, rtol=1e-6, atol=1e-7)
    assert (both - softmax(Context(), images)).abs().max() > 0.05  # the model does tell left from right


@pytest.mark.parametrize(("precision", "dtype"), [("32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_model_runs_in_the_precision_and_the_rest_in_float32(precision: str, dtype: torch.dtype) -> None:
    class Product(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            logits = torch.einsum("kc,bchw->bkhw", torch.eye(3), images.float() / 64)
            assert logits.dtype == dtype
            return logits

    found = predict(Product(), pictures(), precision=precision, tile=(11, 13))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.sum(1), torch.ones(2, 23, 37), rtol=0, atol=1e-6)
