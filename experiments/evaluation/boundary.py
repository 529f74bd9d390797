"""Boundary F-score: how near the predicted outlines of each class are to the true ones.

Shapes: B images, K classes, H W pixels, R bands; P pixels of a boundary, G groups of them.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy
import torch
from numpy.typing import NDArray
from scipy.spatial import KDTree
from torch import Tensor

from experiments.records.counts import Floats

# How far apart two outlines may be: so many pixels, or a share of the diagonal of the map, as `radius` reads it.
BANDS = ("1", "2", "3", "4", "5", "0.75%")
Pixels = NDArray[Any]


def radius(band: str, height: int, width: int) -> int:
    """Pixels of a band in maps of height x width pixels.

    0.75 % is the distance of the Berkeley benchmark of boundaries (Martin et al., PAMI 2004). It becomes whole pixels,
    at least one, as the distance of Boundary IoU does (Cheng et al., CVPR 2021).
    """
    if band.endswith("%"):
        return max(1, round(float(band[:-1]) / 100 * math.hypot(height, width)))
    return int(band)


def boundary_f1(predicted: Tensor, truth: Tensor, classes: int, ignore_index: int) -> Tensor:
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
    unscored = ignored | _differs(ignored)
    maps = [ids.to(torch.int16).masked_fill(ignored, -1) for ids in (predicted, truth)]  # -1 is no class
    (ours, ours_scored), (theirs, theirs_scored) = (_outline(ids, unscored, classes) for ids in maps)
    radii, groups = [radius(band, *truth.shape[-2:]) for band in BANDS], len(truth) * classes
    precision, some_predicted = _shares(ours[ours_scored], theirs, radii, groups)
    recall, some_true = _shares(theirs[theirs_scored], ours, radii, groups)
    f1 = 2 * precision * recall / numpy.maximum(precision + recall, numpy.finfo(float).tiny)
    f1[~(some_predicted | some_true)] = math.nan
    return torch.from_numpy(f1).view(len(truth), classes, len(BANDS))


def _differs(values: Tensor) -> Tensor:
    """Which pixels (B, H, W) have another value among their 4 neighbours, bool."""
    differs = torch.zeros(values.shape, dtype=torch.bool, device=values.device)
    for axis in (1, 2):
        count = values.shape[axis] - 1
        step = values.narrow(axis, 0, count) != values.narrow(axis, 1, count)
        differs.narrow(axis, 0, count).logical_or_(step)
        differs.narrow(axis, 1, count).logical_or_(step)
    return differs


def _outline(ids: Tensor, unscored: Tensor, classes: int) -> tuple[Pixels, Pixels]:
    """Boundary pixels (P, 3) of maps (B, H, W) of ids, -1 where ignored: group, y and x; and which are scored (P,).

    A group is an image and a class of it, image * K + class.
    """
    edge = _differs(ids) & (ids >= 0)
    image, y, x = edge.nonzero(as_tuple=True)
    pixels = torch.stack([image * classes + ids[edge], y, x], 1)
    return pixels.cpu().numpy(), (~unscored[edge]).cpu().numpy()


def _shares(pixels: Pixels, others: Pixels, radii: Sequence[int], groups: int) -> tuple[Floats, Pixels]:
    """Share (G, R) of the pixels of each group that have one of the others of it within each radius, and whether there
    are any pixels of it (G,)."""
    apart = [max(radii) + 1, 1, 1]  # so far that no pixel finds one of another group
    distances, _ = KDTree(others * apart).query(pixels * apart, distance_upper_bound=max(radii) + 0.5)
    found = [numpy.bincount(pixels[:, 0], distances <= pixel, minlength=groups) for pixel in radii]
    total = numpy.bincount(pixels[:, 0], minlength=groups)[:, None]
    shares = numpy.divide(numpy.stack(found, 1), total, out=numpy.ones((groups, len(radii))), where=total > 0)
    return shares, total[:, 0] > 0
