"""Per-image pixel counts of one trained model on the test split, and mIoU from sums of them.

Shapes: N images, K classes, R sets of images. Counts are float64, exact up to 2^53 pixels.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[numpy.float64]


@dataclass(frozen=True, eq=False)
class Counts:
    """Pixels per image and class: right ones (hits), and those of the union of truth and prediction.

    names has N entries, in ascending order, and class_names K; hits and union are (N, K). Ignored pixels count nowhere.
    """

    names: tuple[str, ...]
    class_names: tuple[str, ...]
    hits: Floats
    union: Floats

    def miou(self) -> float:
        """mIoU over all images in percent; NaN where no class is present."""
        return float(miou(self.hits.sum(0), self.union.sum(0)))


def read_counts(path: Path) -> Counts:
    """The counts in cells/ID/images.json: names, class_names, and hits, truth, predicted as (N, K) lists.

    Raises:
        ValueError: a name stands twice, or the sizes do not fit; the message names the file.
    """
    content = json.loads(path.read_text())
    try:
        return counts(*(content[key] for key in ("names", "class_names", "hits", "truth", "predicted")))
    except KeyError as error:
        raise ValueError(f"{path}: the field {error} is missing") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def counts(names: list[str], class_names: list[str], hits: ArrayLike, truth: ArrayLike, predicted: ArrayLike) -> Counts:
    """Counts from pixels that are right, of the truth and predicted, each (N, K) in the order of names.

    Raises:
        ValueError: a name stands twice, a size does not fit, or a class has more hits than truth or predicted pixels.
    """
    repeated = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if repeated:
        raise ValueError(f"names of images must differ, {', '.join(repeated[:5])} stands more than once")
    arrays = [numpy.asarray(array, dtype=numpy.float64) for array in (hits, truth, predicted)]
    expected = (len(names), len(class_names))
    for key, array in zip(("hits", "truth", "predicted"), arrays, strict=True):
        if array.shape != expected:
            raise ValueError(
                f"{key} must have one row per name and one column per class, {expected}, got {array.shape}"
            )
    if (arrays[0] > numpy.minimum(arrays[1], arrays[2])).any() or (arrays[0] < 0).any():
        raise ValueError("hits must lie between 0 and both truth and predicted")
    order = numpy.argsort(numpy.array(names), kind="stable")
    right, true, predicted_ = (array[order] for array in arrays)
    return Counts(tuple(names[i] for i in order), tuple(class_names), right, true + predicted_ - right)


def miou(hits: Floats, union: Floats) -> Floats:
    """mIoU in percent, (R,), of summed counts (R, K); also () of (K,).

    A class whose union is 0 is absent and left out of the mean; NaN where all are.
    """
    present = union > 0
    iou = numpy.divide(hits, union, out=numpy.zeros_like(hits), where=present)
    number = present.sum(-1)
    mean: Floats = numpy.divide(100 * iou.sum(-1), number, out=numpy.full(number.shape, numpy.nan), where=number > 0)
    return mean


def check_same_images(cells: Mapping[str, Counts]) -> None:
    """Raise ValueError, naming images or classes, unless all cells were counted on the same ones."""
    (first, reference), *others = cells.items()
    for cell, other in others:
        if other.class_names != reference.class_names:
            raise ValueError(f"classes differ: {first} has {reference.class_names}, {cell} has {other.class_names}")
        if other.names != reference.names:
            lacking = sorted(set(reference.names) - set(other.names))
            added = sorted(set(other.names) - set(reference.names))
            parts = [f"{cell} lacks {_few(lacking)}"] if lacking else []
            parts += [f"{first} lacks {_few(added)}"] if added else []
            raise ValueError(f"cells must be evaluated on the same test images: {'; '.join(parts)}")


def _few(names: list[str]) -> str:
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
