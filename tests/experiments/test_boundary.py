"""The boundary score against its definition spelled out in float64, against scipy's distances, and in closed form."""

import math

import pytest
import torch
from scipy.ndimage import binary_erosion, distance_transform_edt
from torch import Tensor

from experiments.evaluation.boundary import BANDS, boundary_f1, radius

IGNORE = 255
PIXELS = torch.arange(1, 6)  # of all bands but the last


def blobs(
    seed: int, size: tuple[int, int], classes: int, ignored: float = 0, speckle: float = 0.05
) -> tuple[Tensor, Tensor]:
    """Prediction and truth (H, W): coarse regions, the one a shifted copy of the other, with specks in both."""
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    coarse = torch.randint(0, classes, (height // 5 + 2, width // 5 + 2), generator=generator)
    fine = coarse.repeat_interleave(5, 0).repeat_interleave(5, 1)
    dy, dx = torch.randint(0, 4, (2,), generator=generator).tolist()
    maps = []
    for shifted in (fine[dy : dy + height, dx : dx + width], fine[:height, :width]):
        noise = torch.randint(0, classes, size, generator=generator)
        maps.append(torch.where(torch.rand(size, generator=generator) < speckle, noise, shifted))
    predicted, truth = maps
    corner = torch.randint(0, 3, (2,), generator=generator)
    hidden = torch.rand(size, generator=generator) < ignored
    if ignored:
        hidden[corner[0] : corner[0] + 3, corner[1] : corner[1] + 7] = True
    return predicted, truth.masked_fill(hidden, IGNORE)


def by_definition(predicted: Tensor, truth: Tensor, classes: int) -> list[list[float]]:
    """F of one image by class and band, every pixel held against every other."""
    height, width = truth.shape
    said, true = predicted.tolist(), truth.tolist()
    pixels = [(y, x) for y in range(height) for x in range(width) if true[y][x] != IGNORE]

    def neighbours(y: int, x: int) -> list[tuple[int, int]]:
        around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
        return [(v, u) for v, u in around if 0 <= v < height and 0 <= u < width]

    def share(scored: list[tuple[int, int]], targets: list[tuple[int, int]], reach: int) -> float:
        found = sum(any(math.dist(pixel, target) <= reach for target in targets) for pixel in scored)
        return found / len(scored) if scored else 1.0

    result = []
    for k in range(classes):
        boundaries, scored = [], []
        for ids in (said, true):
            members = {(y, x) for y, x in pixels if ids[y][x] == k}
            boundary = [pixel for pixel in members if any(n not in members for n in neighbours(*pixel))]
            boundaries.append(boundary)
            scored.append([p for p in boundary if all(true[y][x] != IGNORE for y, x in neighbours(*p))])
        row = []
        for reach in (1, 2, 3, 4, 5, max(1, round(0.0075 * math.hypot(height, width)))):
            precision, recall = share(scored[0], boundaries[1], reach), share(scored[1], boundaries[0], reach)
            f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
            row.append(f1 if scored[0] or scored[1] else math.nan)
        result.append(row)
    return result


@pytest.mark.parametrize("size", [(13, 17), (1, 19), (23, 3), (2, 2)])
@pytest.mark.parametrize("ignored", [0.0, 0.03, 0.3])
def test_equals_the_definition(size: tuple[int, int], ignored: float) -> None:
    """Nine classes, more than the bits of a byte, of which the last never occurs; some images narrower than a band."""
    pairs = [blobs(seed, size, 8, ignored) for seed in range(3)]
    predicted, truth = (torch.stack(maps) for maps in zip(*pairs, strict=True))
    found = boundary_f1(predicted, truth.to(torch.uint8), 9, IGNORE)
    expected = [by_definition(*pair, 9) for pair in pairs]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), equal_nan=True, rtol=1e-12, atol=0)
    assert found[:, 8].isnan().all()
    assert not found[:, :8].isnan().all()


@pytest.mark.parametrize(("size", "classes", "relative"), [((128, 160), 11, 2), ((13, 1201), 10, 9)])
def test_equals_scipys_distances_at_a_picture_s_size(size: tuple[int, int], classes: int, relative: int) -> None:
    """The relative band may be wider than the others."""
    predicted, truth = blobs(3, size, classes, speckle=0.01)
    found = boundary_f1(predicted[None], truth[None], classes, IGNORE)[0]
    for k in range(classes):
        edges = []
        for ids in (predicted.numpy(), truth.numpy()):
            mask = ids == k
            edges.append(mask & ~binary_erosion(mask, border_value=1))  # its default neighbours are the 4 nearest
        distance = [distance_transform_edt(~edge) for edge in edges]
        for band, reach in enumerate((1, 2, 3, 4, 5, relative)):
            precision, recall = (distance[1][edges[0]] <= reach).mean(), (distance[0][edges[1]] <= reach).mean()
            assert found[k, band].item() == pytest.approx(2 * precision * recall / (precision + recall), rel=1e-12)


def test_bands_in_pixels() -> None:
    assert [radius(band, 720, 960) for band in BANDS] == [1, 2, 3, 4, 5, 9]
    assert [radius("0.75%", *size) for size in ((2, 2), (128, 160), (1024, 2048))] == [1, 2, 17]


@pytest.mark.parametrize("shift", [0, 1, 2, 3, 5, 6])
def test_a_straight_outline_that_is_off_by_some_pixels(shift: int) -> None:
    """Found by every band that is as wide as the error, by no narrower one; the edge of the image is no outline."""
    truth = torch.zeros(1, 11, 29, dtype=torch.uint8)
    predicted = truth.clone()
    truth[:, :, 13:] = 1
    predicted[:, :, 13 + shift :] = 1
    found = boundary_f1(predicted, truth, 3, IGNORE)[0, :, :5]
    assert torch.equal(found[:2], (shift <= PIXELS).double().expand(2, -1))
    assert found[2].isnan().all()


def test_ignored_pixels() -> None:
    """An outline under them is not scored, but may be found."""
    truth = torch.zeros(1, 9, 25, dtype=torch.uint8)
    truth[:, :, 12:] = 1
    predicted = truth.clone()
    truth[:, :, 12:15] = IGNORE
    assert boundary_f1(predicted, truth, 2, IGNORE).isnan().all()
    predicted[:, :, 10:] = 1
    # Class 0 ends at column 9 instead of 11; class 1 starts at 10 instead of somewhere from 12 to 15.
    assert boundary_f1(predicted, truth, 2, IGNORE)[0, :, :5].tolist() == [[0, 1, 1, 1, 1], [0, 0, 0, 0, 1]]
