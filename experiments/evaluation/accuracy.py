"""Accuracy on a split: scores from a confusion matrix, and all measures in one pass.

Shapes: N images of a split, B of a batch, K classes, H W pixels.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from experiments.data import Split
from experiments.evaluation.boundary import BoundaryF1
from experiments.evaluation.calibration import CalibrationError
from experiments.evaluation.cost import autocast
from experiments.evaluation.inference import PLAIN, Inference, probabilities


@dataclass(frozen=True)
class Scores:
    """Percentages over all pixels of a split that are not ignored.

    class_iou and class_f1 have K entries; None stands for an absent class, one that is neither in the truth nor
    predicted. miou, thin_miou and f1 are means over the classes that are not absent, None where there is none.
    pixel_accuracy is None where all pixels are ignored.
    """

    miou: float | None
    thin_miou: float | None
    f1: float | None
    class_iou: tuple[float | None, ...]
    class_f1: tuple[float | None, ...]
    pixel_accuracy: float | None


@dataclass(frozen=True, eq=False)
class ImageCounts:
    """Pixels per image and class, (N, K) int64, ignored ones left out: any score of any set of images follows from it.

    hits are right, truth are of the class, predicted are said to be. IoU = hits / (truth + predicted - hits).
    """

    names: tuple[str, ...]
    hits: Tensor
    truth: Tensor
    predicted: Tensor

    def as_json(self, class_names: Sequence[str]) -> str:
        """The counts as text: an object of names, class_names, hits, truth and predicted."""
        if len(class_names) != self.hits.shape[1]:
            raise ValueError(f"class_names must have one entry per class, {self.hits.shape[1]}, got {len(class_names)}")
        counts = {"hits": self.hits.tolist(), "truth": self.truth.tolist(), "predicted": self.predicted.tolist()}
        return json.dumps({"names": list(self.names), "class_names": list(class_names), **counts})


@dataclass(frozen=True, eq=False)
class Evaluation:
    """All that is measured of a model on a split.

    boundary_f1 and thin_boundary_f1 map a band in pixels to the mean in percent over all classes or the thin ones that
    have a boundary, None where there is none. ece is the expected calibration error in percent, None where all pixels
    are ignored.
    """

    scores: Scores
    boundary_f1: dict[int, float | None]
    thin_boundary_f1: dict[int, float | None]
    ece: float | None
    images: ImageCounts


def scores(confusion: Tensor, thin_classes: Sequence[int] = ()) -> Scores:
    """Scores of a confusion matrix (K, K) of pixel counts, rows truth, columns prediction."""
    counts = confusion.double().cpu()
    hits = counts.diagonal()
    sides = counts.sum(0) + counts.sum(1)
    class_iou = tuple(_percent(hit, side - hit) for hit, side in zip(hits.tolist(), sides.tolist(), strict=True))
    class_f1 = tuple(_percent(2 * hit, side) for hit, side in zip(hits.tolist(), sides.tolist(), strict=True))
    return Scores(
        miou=mean(class_iou),
        thin_miou=mean([class_iou[i] for i in thin_classes]),
        f1=mean(class_f1),
        class_iou=class_iou,
        class_f1=class_f1,
        pixel_accuracy=_percent(hits.sum().item(), counts.sum().item()),
    )


@torch.inference_mode()
def miou(
    model: nn.Module,
    split: Split,
    classes: int,
    ignore_index: int,
    *,
    batch_size: int,
    device: torch.device,
    precision: str,
) -> float | None:
    """Mean IoU in percent of plain inference, as in `Scores`, and nothing else: for validation during training.

    model: images (B, 3, H, W) uint8 to logits (B, K, H, W). It is left in eval mode.
    """
    model.eval()
    confusion = torch.zeros(classes, classes, dtype=torch.int64, device=device)
    for images, truth in _batches(split, batch_size, device):
        with autocast(device, precision):
            logits = model(images)
        confusion += image_confusion(logits.argmax(1), truth, classes, ignore_index).sum(0)
    return scores(confusion).miou


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    split: Split,
    classes: int,
    ignore_index: int,
    *,
    thin_classes: Sequence[int] = (),
    batch_size: int,
    device: torch.device,
    precision: str,
    inference: Inference = PLAIN,
) -> Evaluation:
    """Every measure of a model on a split, in one pass.

    model: images (B, 3, H, W) uint8 to logits (B, K, H, W), at any size that inference asks for. It is left in eval
    mode.

    Raises:
        FloatingPointError: a prediction outside the ignored pixels is infinite or not a number.
    """
    model.eval()
    boundary = BoundaryF1(classes, ignore_index, device)
    calibration = CalibrationError(ignore_index, device)
    confusion = torch.zeros(classes, classes, dtype=torch.int64, device=device)
    counts = []
    for images, truth in _batches(split, batch_size, device):
        confidence, predicted = probabilities(model, images, inference, precision=precision).max(1)
        boundary.update(predicted, truth)
        calibration.update(confidence, predicted, truth)
        batch = image_confusion(predicted, truth, classes, ignore_index)
        confusion += batch.sum(0)
        counts.append(torch.stack((batch.diagonal(dim1=1, dim2=2), batch.sum(2), batch.sum(1))).cpu())
    ece = calibration.percent()
    if ece is not None and not math.isfinite(ece):
        raise FloatingPointError("the model's predictions are not finite in places, so they cannot be scored")
    by_band = boundary.percent()
    return Evaluation(
        scores=scores(confusion, thin_classes),
        boundary_f1={band: mean(by_class) for band, by_class in by_band.items()},
        thin_boundary_f1={band: mean([by_class[i] for i in thin_classes]) for band, by_class in by_band.items()},
        ece=ece,
        images=ImageCounts(split.names, *torch.cat(counts, dim=1)),
    )


def image_confusion(predicted: Tensor, truth: Tensor, classes: int, ignore_index: int) -> Tensor:
    """Confusion matrix (B, K, K) int64 of every image, rows truth, columns prediction; ignored pixels left out.

    predicted, truth: class ids (B, H, W) of any integer type.
    """
    images = torch.arange(len(truth), device=truth.device).view(-1, 1, 1)
    cells = ((images * classes + truth) * classes + predicted)[truth != ignore_index]
    return cells.bincount(minlength=len(truth) * classes**2).view(len(truth), classes, classes)


def mean(values: Sequence[float | None]) -> float | None:
    """Mean of the values that are not None, None where all are."""
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None


def _batches(split: Split, batch_size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    for images, masks in zip(split.images.split(batch_size), split.masks.split(batch_size), strict=True):
        yield images.to(device), masks.to(device)


def _percent(part: float, whole: float) -> float | None:
    return 100 * part / whole if whole > 0 else None
