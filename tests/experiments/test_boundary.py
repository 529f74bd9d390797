"""The boundary score against its definition spelled out in float64, against scipy's distances, and in closed form."""

import math

import pytest
import torch
from scipy.ndimage import binary_erosion, distance_transform_edt
from torch import Tensor

from experiments.evaluation.boundary import BANDS, BoundaryF1, image_boundary_f1

CPU = torch.device("cpu")
IGNORE = 255


def blobs(
    seed: int, size: tuple[int, int], classes: int, ignored: float, speckle: float = 0.05
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

    def share(scored: list[tuple[int, int]], targets: list[tuple[int, int]], band: int) -> float:
        if not scored:
            return 1.0
        found = sum(any(math.dist(pixel, target) <= band for target in targets) for pixel in scored)
        return found / len(scored)

    result = []
    for k in range(classes):
        boundaries, scored = [], []
        for ids in (said, true):
            members = {(y, x) for y, x in pixels if ids[y][x] == k}
            boundary = [pixel for pixel in members if any(n not in members for n in neighbours(*pixel))]
            boundaries.append(boundary)
            scored.append([p for p in boundary if all(true[y][x] != IGNORE for y, x in neighbours(*p))])
        row = []
        for band in BANDS:
            precision, recall = share(scored[0], boundaries[1], band), share(scored[1], boundaries[0], band)
            f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
            row.append(f1 if scored[0] or scored[1] else math.nan)
        result.append(row)
    return result


@pytest.mark.parametrize("size", [(13, 17), (1, 19), (23, 3), (2, 2)])
@pytest.mark.parametrize("ignored", [0.0, 0.03, 0.3])
def test_equals_the_definition(size: tuple[int, int], ignored: float) -> None:
    """Five classes of which the last never occurs; images too narrow for the bands among the sizes."""
    pairs = [blobs(seed, size, 4, ignored) for seed in range(4)]
    predicted, truth = (torch.stack(maps) for maps in zip(*pairs, strict=True))
    found = image_boundary_f1(predicted, truth.to(torch.uint8), 5, IGNORE)
    expected = [by_definition(*pair, 5) for pair in pairs]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), equal_nan=True, rtol=1e-12, atol=0)
    assert found[:, 4].isnan().all()
    assert not found[:, :4].isnan().all()


def test_equals_scipys_distances_at_a_picture_s_size() -> None:
    predicted, truth = blobs(3, (128, 160), 11, 0.0, speckle=0.01)
    found = image_boundary_f1(predicted[None], truth[None], 11, IGNORE)[0]
    for k in range(11):
        edges = []
        for ids in (predicted.numpy(), truth.numpy()):
            mask = ids == k
            edges.append(mask & ~binary_erosion(mask, border_value=1))  # its default neighbours are the 4 nearest
        distance = [distance_transform_edt(~edge) for edge in edges]
        for r, band in enumerate(BANDS):
            precision, recall = (distance[1][edges[0]] <= band).mean(), (distance[0][edges[1]] <= band).mean()
            assert found[k, r].item() == pytest.approx(2 * precision * recall / (precision + recall), rel=1e-12)


@pytest.mark.parametrize("shift", [0, 1, 2, 3, 5, 6])
def test_a_straight_outline_that_is_off_by_some_pixels(shift: int) -> None:
    """Found by every band that is as wide as the error, by no narrower one; the edge of the image is no outline."""
    truth = torch.zeros(1, 11, 29, dtype=torch.uint8)
    predicted = truth.clone()
    truth[:, :, 13:] = 1
    predicted[:, :, 13 + shift :] = 1
    found = image_boundary_f1(predicted, truth, 3, IGNORE)[0]
    expected = torch.tensor([float(band >= shift) for band in BANDS], dtype=torch.float64)
    assert torch.equal(found[:2], expected.expand(2, -1))
    assert found[2].isnan().all()


def test_precision_and_recall_by_hand() -> None:
    """A pole of one column is half found, and a false one 8 columns further doubles the predicted boundary."""
    truth = torch.zeros(1, 22, 31, dtype=torch.uint8)
    truth[:, :, 7] = 1
    predicted = torch.zeros_like(truth)
    predicted[:, :11, 7] = 1
    predicted[:, :11, 15] = 1
    found = image_boundary_f1(predicted, truth, 2, IGNORE)[0, 1]
    # Recall: 11 rows and as many below as the band is wide. Precision: 11 of 22 pixels.
    recall = [(11 + band) / 22 for band in BANDS]
    assert found.tolist() == pytest.approx([2 * r * 0.5 / (r + 0.5) for r in recall])


def test_a_class_in_one_map_only_scores_nothing_and_one_that_fills_both_is_not_scored() -> None:
    truth = torch.zeros(3, 7, 11, dtype=torch.uint8)
    predicted = truth.clone()
    predicted[1, 2:5, 3:6] = 1
    truth[2, 2:5, 3:6] = 1
    found = image_boundary_f1(predicted, truth, 2, IGNORE)
    assert found[0].isnan().all()
    assert (found[1:] == 0).all()


def test_what_is_predicted_on_ignored_pixels_has_no_influence() -> None:
    predicted, truth = blobs(5, (17, 23), 4, 0.2)
    other = torch.randint(0, 4, truth.shape, generator=torch.Generator().manual_seed(0))
    changed = torch.where(truth == IGNORE, other, predicted)
    assert not torch.equal(changed, predicted)
    found = [image_boundary_f1(p[None], truth[None], 4, IGNORE) for p in (predicted, changed)]
    torch.testing.assert_close(*found, equal_nan=True, rtol=0, atol=0)


def test_an_outline_under_ignored_pixels_is_not_scored_but_may_be_found() -> None:
    """Truth: class 0, three ignored columns, class 1. The prediction changes class two columns before those."""
    truth = torch.zeros(1, 9, 25, dtype=torch.uint8)
    truth[:, :, 12:] = 1
    predicted = truth.clone()
    truth[:, :, 12:15] = IGNORE
    assert image_boundary_f1(predicted, truth, 2, IGNORE).isnan().all()
    predicted[:, :, 10:] = 1
    found = image_boundary_f1(predicted, truth, 2, IGNORE)[0]
    # Class 0 ends at column 9 instead of 11; class 1 starts at 10 instead of somewhere from 12 to 15.
    assert found[0].tolist() == [0, 1, 1, 1, 1]
    assert found[1].tolist() == [0, 0, 0, 0, 1]


def test_invariants() -> None:
    """Wider bands never score less; the maps may be swapped, mirrored or renamed together; a copy scores 1."""
    predicted, truth = blobs(7, (19, 31), 4, 0.0)
    p, t = predicted[None], truth[None]
    found = image_boundary_f1(p, t, 4, IGNORE)
    assert (found.diff(dim=-1) >= 0).all()
    assert found.min() < found.max()
    for a, b in ((t, p), (p.flip(1), t.flip(1)), (p.mT, t.mT)):
        torch.testing.assert_close(image_boundary_f1(a, b, 4, IGNORE), found, rtol=1e-12, atol=0)
    order = torch.tensor([2, 0, 3, 1])
    renamed = image_boundary_f1(order[p], order[t], 4, IGNORE)
    torch.testing.assert_close(renamed[:, order], found, rtol=0, atol=0)
    assert (image_boundary_f1(t, t, 4, IGNORE) == 1).all()


def test_means_are_over_the_images_that_have_the_class() -> None:
    """Class 1 is right in one image, missed in another and absent from the third; class 2 never occurs."""
    truth = torch.zeros(3, 9, 13, dtype=torch.uint8)
    truth[:2, 3:6, 4:8] = 1
    predicted = truth.clone()
    predicted[1] = 0
    predicted[2, 0, 0] = IGNORE  # an id that is no class must not be looked up
    truth[2, 0, 0] = IGNORE
    metric = BoundaryF1(3, IGNORE, CPU)
    for part in (slice(0, 2), slice(2, 3)):
        metric.update(predicted[part], truth[part])
    percent = metric.percent()
    assert list(percent) == list(BANDS)
    assert all(row == (50.0, 50.0, None) for row in percent.values())
