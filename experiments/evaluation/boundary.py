"""Boundary F-score: how near the predicted outlines of each class are to the true ones.

Shapes: B images, K classes, H W pixels, R bands; S radii, the different ones among the bands'.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

# How far apart two outlines may be: so many pixels, or a share of the diagonal of the map, as `radius` reads it.
BANDS = ("1", "2", "3", "4", "5", "0.75%")
# Classes whose outlines are widened at once: each has its own bit of a byte.
BITS = 8


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
    maps = [ids.to(torch.int16).masked_fill(ignored, -1) for ids in (predicted, truth)]  # -1 is in no group of classes
    edges = [_differs(ids) for ids in maps]
    reach = [radius(band, *truth.shape[-2:]) for band in BANDS]
    radii = sorted(set(reach))
    (precision, some_predicted), (recall, some_true) = (
        _shares(ids, edge & ~unscored, other, other_edge, radii, classes)
        for ids, edge, other, other_edge in zip(maps, edges, maps[::-1], edges[::-1], strict=True)
    )
    f1 = 2 * precision * recall / (precision + recall).clamp_min(torch.finfo(torch.float64).tiny)
    return f1.masked_fill(~(some_predicted | some_true), math.nan)[..., [radii.index(pixels) for pixels in reach]]


def _differs(values: Tensor) -> Tensor:
    """Which pixels (B, H, W) have another value among their 4 neighbours, bool."""
    differs = torch.zeros(values.shape, dtype=torch.bool, device=values.device)
    for axis in (1, 2):
        count = values.shape[axis] - 1
        step = values.narrow(axis, 0, count) != values.narrow(axis, 1, count)
        differs.narrow(axis, 0, count).logical_or_(step)
        differs.narrow(axis, 1, count).logical_or_(step)
    return differs


def _shares(
    ids: Tensor, scored: Tensor, other: Tensor, other_edge: Tensor, radii: Sequence[int], classes: int
) -> tuple[Tensor, Tensor]:
    """Share (B, K, S) of the scored pixels that have one of other_edge of their class within each radius, and whether
    there are any scored (B, K, 1)."""
    levels = len(radii) + 1
    counts = torch.zeros(len(ids) * classes * levels, dtype=torch.int64, device=ids.device)
    places, edges = (mask.flatten().nonzero().squeeze(1) for mask in (scored, other_edge))
    own, others = ids.flatten()[places], other.flatten()[edges]
    image = places // ids[0].numel()
    for group in range(-(-classes // BITS)):
        bits = torch.zeros(ids.numel(), dtype=torch.uint8, device=ids.device)
        theirs, mine = others // BITS == group, own // BITS == group
        bits[edges[theirs]] = (1 << others[theirs] % BITS).to(torch.uint8)
        here, k = places[mine], own[mine]
        misses = torch.zeros(len(k), dtype=torch.int64, device=ids.device)
        for widened in _widened(bits.view(ids.shape), radii):
            misses += (widened.flatten()[here] >> k % BITS) & 1 == 0
        counts += ((image[mine] * classes + k) * levels + misses).bincount(minlength=len(counts))
    # Radii rise, so those that miss a pixel are the first ones: radius r finds the pixels with up to r misses.
    within = counts.view(len(ids), classes, levels).cumsum(-1)
    total = within[..., -1:]
    return torch.where(total > 0, within[..., :-1].double() / total, 1.0), total > 0


def _widened(bits: Tensor, radii: Sequence[int]) -> list[Tensor]:
    """For each radius the bits (B, H, W) uint8 that are set anywhere within it.

    A disc is a pile of rows, so bits spread along rows first, and a spread of each width then goes to the rows of each
    disc that are so wide: the work grows with the radius, not with its square, and is the same for eight classes as for
    one. Margins of zeros as wide as the largest radius make every shift one of flat memory.
    """
    batch, height, width = bits.shape
    margin = radii[-1]
    flat = functional.pad(bits, (0, margin, 0, margin)).flatten()
    stride = width + margin
    row = flat.clone()
    discs = [torch.zeros_like(flat) for _ in radii]
    for half in range(margin + 1):
        if half:
            _spread(row, flat, half)
        for pixels, disc in zip(radii, discs, strict=True):
            for dy in range(pixels + 1):
                if math.isqrt(pixels**2 - dy**2) == half:
                    _spread(disc, row, dy * stride)
    return [disc.view(batch, height + margin, stride)[:, :height, :width] for disc in discs]


def _spread(target: Tensor, source: Tensor, shift: int) -> None:
    """Add the bits of source to target, shift elements to the right and to the left."""
    count = max(0, len(source) - shift)
    target[shift:].bitwise_or_(source[:count])
    target[:count].bitwise_or_(source[shift:])
