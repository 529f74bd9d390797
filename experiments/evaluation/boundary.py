"""Boundary F-score: how near the predicted outlines of each class are to the true ones.

Shapes: B images, K classes, H W pixels, R bands.
"""

import math
from itertools import product

import torch
from torch import Tensor

# Tolerance bands in pixels: 1 to R.
BANDS = (1, 2, 3, 4, 5)
# The id of pixels that are on no class's boundary: ignored ones, and those inside a class.
NONE = -1


class BoundaryF1:
    """Mean boundary F-score per class and band over images that come batch by batch."""

    def __init__(self, classes: int, ignore_index: int, device: torch.device) -> None:
        self.classes, self.ignore_index = classes, ignore_index
        self.total = torch.zeros(classes, len(BANDS), dtype=torch.float64, device=device)
        self.images = torch.zeros(classes, 1, dtype=torch.int64, device=device)

    def update(self, predicted: Tensor, truth: Tensor) -> None:
        """Add images, as `image_boundary_f1` takes them."""
        f1 = image_boundary_f1(predicted, truth, self.classes, self.ignore_index)
        self.total += f1.nansum(0)
        self.images += f1[..., :1].isfinite().sum(0)

    def percent(self) -> dict[int, tuple[float | None, ...]]:
        """By band, the K classes' means over the images in which they have a boundary; None where there is none."""
        means = (100 * self.total / self.images).T.tolist()
        classes = [tuple(None if math.isnan(mean) else mean for mean in row) for row in means]
        return dict(zip(BANDS, classes, strict=True))


def image_boundary_f1(predicted: Tensor, truth: Tensor, classes: int, ignore_index: int) -> Tensor:
    """Boundary F-score (B, K, R) float64, 0..1, of every image, class and band; NaN where there is nothing to score.

    predicted, truth: class ids (B, H, W) of any integer type, truth with ignore_index where ignored.

    Precision of a band of r pixels is the share of the predicted boundary that has a pixel of the true boundary within
    a Euclidean distance of r, recall the share of the true boundary that has one of the predicted within r, and F their
    harmonic mean (Csurka et al., What is a good evaluation measure for semantic segmentation?, BMVC 2013).

    The boundary of a class is those of its pixels that have a pixel outside the class among their 4 neighbours. Beyond
    the edge of the image there are no neighbours: an object that the edge cuts has no boundary along the cut. Ignored
    pixels are outside every class in both maps, so what is predicted there has no influence. A boundary pixel beside an
    ignored one is not scored, since the outline may run anywhere among the ignored pixels; for the same reason it may
    be what a boundary pixel of the other map finds.

    The share of an empty set is 1. Hence F is 0 where one map has boundary to score and the other has no boundary at
    all. It is NaN where neither has boundary to score: an absent class, or one that fills the image or meets ignored
    pixels only in both.
    """
    ignored = truth == ignore_index
    predicted_edge, predicted_scored = _boundary(predicted, ignored)
    truth_edge, truth_scored = _boundary(truth, ignored)
    near_truth, near_predicted = _closeness(predicted_edge, truth_edge)
    precision, predicted_any = _shares(predicted_edge, predicted_scored, near_truth, classes)
    recall, truth_any = _shares(truth_edge, truth_scored, near_predicted, classes)
    f1 = 2 * precision * recall / (precision + recall).clamp_min(torch.finfo(torch.float64).tiny)
    return f1.masked_fill(~(predicted_any | truth_any), math.nan)


def _boundary(ids: Tensor, ignored: Tensor) -> tuple[Tensor, Tensor]:
    """Ids (B, H, W) int16 of the boundary pixels, NONE elsewhere, and which of them are scored, bool."""
    ids = ids.to(torch.int16).masked_fill(ignored, NONE)
    edge, beside = torch.zeros_like(ignored), ignored.clone()
    for axis in (1, 2):
        count = ids.shape[axis] - 1
        here, there = (ids.narrow(axis, start, count) for start in (0, 1))
        differs = here != there
        edge.narrow(axis, 0, count).logical_or_(differs)
        edge.narrow(axis, 1, count).logical_or_(differs)
        beside.narrow(axis, 0, count).logical_or_(there == NONE)
        beside.narrow(axis, 1, count).logical_or_(here == NONE)
    return ids.where(edge, NONE), edge & ~beside


def _closeness(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """For each pixel of two maps (B, H, W), how close the other map has the same id, uint8.

    1 + R - r for the nearest one above r - 1 and up to r pixels away, 0 for none within R. All classes share one
    comparison per offset: only distances up to the last band matter, and a distance transform per class costs far more.
    What NONE finds means nothing.
    """
    height, width = one.shape[-2:]
    reach = len(BANDS)
    near_other, near_one = (torch.zeros(one.shape, dtype=torch.uint8, device=one.device) for _ in range(2))
    for dy, dx in product(range(-reach, reach + 1), repeat=2):
        band = math.ceil(math.hypot(dy, dx))
        if band > reach or abs(dy) >= height or abs(dx) >= width:
            continue
        here = (..., slice(max(0, -dy), height - max(0, dy)), slice(max(0, -dx), width - max(0, dx)))
        there = (..., slice(max(0, dy), height - max(0, -dy)), slice(max(0, dx), width - max(0, -dx)))
        close = (one[here] == other[there]).to(torch.uint8).mul_(1 + reach - band)
        for near in (near_other[here], near_one[there]):
            torch.maximum(near, close, out=near)
    return near_other, near_one


def _shares(edge: Tensor, scored: Tensor, closeness: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Share (B, K, R) of the scored pixels that are close enough, by band, and whether there are any (B, K, 1)."""
    levels = len(BANDS) + 2  # 0..1 + R
    images = torch.arange(len(edge), device=edge.device).view(-1, 1, 1)
    bins = ((images * classes + edge) * levels + closeness)[scored]
    counts = bins.bincount(minlength=len(edge) * classes * levels).view(len(edge), classes, levels)
    # From the closest level on, so that entry r counts the pixels with a match within r, and the last one all pixels.
    within = counts.flip(-1).cumsum(-1)
    total = within[..., -1:]
    return torch.where(total > 0, within[..., 1:-1].double() / total, 1.0), total > 0
