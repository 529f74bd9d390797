"""Paired bootstrap over test images: every model is scored on the same resamples of the images.

A resample draws N of the N images with replacement; an image that is drawn twice counts twice in the sums behind IoU.
Because all models share the draws, the difference of two models over the resamples is a paired bootstrap, and the part
of the variance that both share (hard images are hard for both) cancels in it. scipy.stats.bootstrap would draw anew for
every pair and sum the counts of each pair anew; the tests hold it against this. Intervals are percentile intervals:
Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 6 and 13.

A rare class may be missing from a resample; it is then absent from the mean, as it is in the definition of mIoU. So
scores vary more where a class occurs in few images only.

Shapes: N images, K classes, R resamples.
"""

from collections.abc import Iterator, Mapping

import numpy

from experiments.statistics.counts import Counts, Floats, check_same_images, miou

# With 10 000 resamples the ends of a 95 % interval vary by about 2 % of its width between seeds of the draws.
RESAMPLES = 10_000
SEED = 0
LEVEL = 0.95
# Entries of one block of weights, 32 MB: draws for large test splits come in several blocks.
BLOCK = 4_000_000


def weights(images: int, resamples: int = RESAMPLES, seed: int = SEED) -> Iterator[Floats]:
    """How often each image is drawn, as blocks (r, N) that hold R resamples in all; each line sums to N."""
    generator = numpy.random.default_rng(seed)
    size = max(1, BLOCK // images)
    for start in range(0, resamples, size):
        lines = min(size, resamples - start)
        drawn = generator.integers(images, size=(lines, images)) + images * numpy.arange(lines)[:, None]
        yield numpy.bincount(drawn.ravel(), minlength=lines * images).reshape(lines, images).astype(numpy.float64)


def resampled_miou(cells: Mapping[str, Counts], resamples: int = RESAMPLES) -> dict[str, Floats]:
    """mIoU in percent of every cell on every resample, (R,) each; the same draws for all cells.

    NaN where no class is present in a resample.

    Raises:
        ValueError: the cells were not evaluated on the same images, or on fewer than two.
    """
    check_same_images(cells)
    images = len(next(iter(cells.values())).names)
    if images < 2:
        raise ValueError(f"a bootstrap needs at least 2 test images, got {images}")
    scores: dict[str, list[Floats]] = {cell: [] for cell in cells}
    for block in weights(images, resamples):
        for cell, count in cells.items():
            scores[cell].append(miou(block @ count.hits, block @ count.union))
    return {cell: numpy.concatenate(parts) for cell, parts in scores.items()}


def percentile_interval(values: Floats, level: float = LEVEL) -> tuple[float, float]:
    """The interval that leaves (1 - level) / 2 of the resampled values (R,) below it and as many above."""
    low, high = numpy.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
