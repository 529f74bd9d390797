"""Accuracy of a model on a split: counts of every image, and the measures that follow from them.

Shapes: N images of a split, B of a batch, K classes, R bands of the boundary F-score, H W pixels, h w of one image at
its own resolution.
"""

from collections.abc import Iterator
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from experiments.data.dataset import SegmentationData, Split
from experiments.evaluation.boundary import BANDS, boundary_f1
from experiments.evaluation.corruptions import corrupted
from experiments.evaluation.inference import probabilities, resized
from experiments.records import counts
from experiments.records.counts import ImageCounts
from experiments.records.options import PLAIN, Corruption, Inference

# Bins of confidence for the calibration error, as many as in its paper.
BINS = 15
NOT_FINITE = "the model's predictions are not finite in places, so they cannot be scored"


def predictions(
    model: nn.Module,
    split: Split,
    *,
    batch_size: int,
    device: torch.device,
    precision: str,
    inference: Inference = PLAIN,
    native: bool = False,
    corruption: Corruption | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Probabilities (B, K, H, W) of the images of a split, and the masks (B, H, W) that they are held against.

    model: images (B, 3, H, W) uint8 to logits (B, K, H, W), at any size that inference asks for. It is left in eval
    mode. native: probabilities without the padding, at the resolution of each image's own mask, one image at a time
    (where a split has no native_masks, its masks have that resolution). corruption: what images go through first, at
    the size and with the padding that the model gets.
    """
    model.eval()
    for start in range(0, len(split.images), batch_size):
        images = split.images[start : start + batch_size]
        if corruption is not None:
            images = torch.stack([corrupted(image, corruption, start + i) for i, image in enumerate(images)])
        found = probabilities(model, images.to(device), inference, precision=precision)
        if not native or split.native_masks is None or split.shown is None:
            yield found, split.masks[start : start + len(found)].to(device)
            continue
        for i, one in enumerate(found, start):
            (height, width), mask = split.shown[i], split.native_masks[i].to(device)
            yield resized(one[None, :, :height, :width], (mask.shape[0], mask.shape[1])), mask[None]


def miou(model: nn.Module, split: Split, data: SegmentationData, **how: Any) -> float | None:
    """Mean IoU as `evaluate` has it, and nothing else, in a part of the time. how, and what it raises: as there."""
    total = numpy.zeros((len(data.class_names),) * 2, dtype=numpy.int64)
    for scores, truth in predictions(model, split, **how):
        confidence, predicted = scores.max(1)
        if not (confidence.isfinite() | (truth == data.ignore_index)).all():
            raise FloatingPointError(NOT_FINITE)
        total += image_confusion(predicted, truth, len(total), data.ignore_index).sum(0).cpu().numpy()
    hits = total.diagonal()
    return _mean_share(hits, total.sum(0) + total.sum(1) - hits)


def evaluate(model: nn.Module, split: Split, data: SegmentationData, **how: Any) -> tuple[dict[str, Any], ImageCounts]:
    """Every measure of a model on a split of data, in one pass; and the counts of its images. how: see `predictions`.

    All are in percent, None where there is nothing to measure, over all pixels that are not ignored. class_iou: by name
    of the class (None: it is neither in the truth nor predicted). miou, thin_miou and f1: means over the classes, or
    the thin ones, that are not absent. pixel_accuracy. ece: expected calibration error. boundary_f1, thin_boundary_f1:
    by band, means over images for each class, then over classes.

    Raises:
        FloatingPointError: a prediction outside the ignored pixels is not a number.
    """
    classes, ignore_index = len(data.class_names), data.ignore_index
    confusions, boundaries = [], []
    # Of the calibration error (Guo et al., ICML 2017, arXiv:1706.04599) a sum per bin of hits - confidence is enough.
    # torchmetrics keeps two float32 of every pixel instead, and counts pixels in float32, which ends at 2^24 of them.
    gaps = torch.zeros(BINS, dtype=torch.float64)
    for scores, truth in predictions(model, split, **how):
        confidence, predicted = scores.max(1)
        gaps += calibration_gaps(confidence, predicted == truth, truth == ignore_index).cpu()
        confusions.append(image_confusion(predicted, truth, classes, ignore_index).cpu())
        boundaries.append(boundary_f1(predicted, truth, classes, ignore_index))
    if not gaps.isfinite().all():
        raise FloatingPointError(NOT_FINITE)
    confusion = torch.cat(confusions).numpy()
    image_counts = ImageCounts(
        names=split.names,
        groups=split.groups or split.names,
        class_names=data.class_names,
        hits=confusion.diagonal(axis1=1, axis2=2),
        truth=confusion.sum(2),
        predicted=confusion.sum(1),
        confusion=confusion,
        boundary=torch.cat(boundaries).numpy(),
        bands=BANDS,
    )
    return _measured(image_counts, list(data.thin_classes), gaps.abs().sum().item()), image_counts


def calibration_gaps(confidence: Tensor, hit: Tensor, ignored: Tensor) -> Tensor:
    """Sum (BINS,) float64 of hits - confidence over the pixels of each bin, all tensors of one shape.

    Bins have equal widths; a confidence between two belongs to the upper one, 1 to the last.
    """
    edges = torch.linspace(0, 1, BINS + 1, device=confidence.device)[1:-1]
    bins = torch.bucketize(confidence, edges, right=True).masked_fill_(ignored, BINS).flatten()
    return bins.bincount((hit.double() - confidence).flatten(), minlength=BINS + 1)[:BINS]


def image_confusion(predicted: Tensor, truth: Tensor, classes: int, ignore_index: int) -> Tensor:
    """Confusion matrix (B, K, K) int64 of every image, rows truth, columns prediction; ignored pixels left out.

    predicted, truth: class ids (B, H, W) of any integer type. (torchmetrics does the same for one image at a time; its
    import takes seconds.)
    """
    images = torch.arange(len(truth), device=truth.device).view(-1, 1, 1)
    entries = ((images * classes + truth) * classes + predicted)[truth != ignore_index]
    return entries.bincount(minlength=len(truth) * classes**2).view(len(truth), classes, classes)


def _measured(images: ImageCounts, thin: list[int], gap: float) -> dict[str, Any]:
    """The measures of counts. gap: sum over bins of |hits - confidence| in pixels."""
    hits, truth, union = (array.sum(0) for array in (images.hits, images.truth, images.union))
    by_class = numpy.ma.masked_invalid(images.boundary).mean(0)  # (K, R); masked entries become None in lists
    pixels, iou = truth.sum(), 100 * hits / numpy.ma.masked_equal(union, 0)
    return {
        "miou": _mean_share(hits, union),
        "thin_miou": _mean_share(hits[thin], union[thin]),
        "f1": _mean_share(2 * hits, union + hits),
        "pixel_accuracy": float(100 * hits.sum() / pixels) if pixels else None,
        "ece": 100 * gap / pixels if pixels else None,
        "class_iou": dict(zip(images.class_names, iou.tolist(), strict=True)),
        "boundary_f1": dict(zip(BANDS, (100 * by_class.mean(0)).tolist(), strict=True)),
        "thin_boundary_f1": dict(zip(BANDS, (100 * by_class[thin].mean(0)).tolist(), strict=True)),
    }


def _mean_share(part: counts.Counts, whole: counts.Counts) -> float | None:
    """Mean of part / whole (K,) in percent over the classes whose whole is not 0; None where there is none."""
    mean = float(counts.miou(part, whole))
    return None if numpy.isnan(mean) else mean
