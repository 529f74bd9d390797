"""Accuracy from one confusion matrix per split.

Shapes: B images, K classes, H W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix

from experiments.data import Split
from experiments.evaluation.cost import autocast


@dataclass(frozen=True)
class Scores:
    """Percentages over all pixels of a split that are not ignored.

    class_iou has K entries; None stands for an absent class, one that is neither in the truth nor predicted. miou and
    thin_miou are means over the classes that are not absent, None where there is none.
    """

    miou: float | None
    thin_miou: float | None
    class_iou: tuple[float | None, ...]
    pixel_accuracy: float | None


def scores(confusion: Tensor, thin_classes: Sequence[int] = ()) -> Scores:
    """Scores of a confusion matrix (K, K) of pixel counts, rows truth, columns prediction."""
    counts = confusion.double().cpu()
    hits = counts.diagonal()
    union = counts.sum(0) + counts.sum(1) - hits
    class_iou = tuple(100 * (hit / all_).item() if all_ > 0 else None for hit, all_ in zip(hits, union, strict=True))
    total = counts.sum()
    accuracy = 100 * (hits.sum() / total).item() if total > 0 else None
    return Scores(_mean(class_iou), _mean([class_iou[i] for i in thin_classes]), class_iou, accuracy)


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
) -> Scores:
    """Scores of model, images (B, 3, H, W) uint8 to logits (B, K, H, W), on a split. Leaves the model in eval mode."""
    model.eval()
    metric = MulticlassConfusionMatrix(classes, ignore_index=ignore_index, validate_args=False).to(device)
    for images, masks in zip(split.images.split(batch_size), split.masks.split(batch_size), strict=True):
        with autocast(device, precision):
            logits = model(images.to(device))
        metric.update(logits.argmax(1), masks.to(device).long())
    return scores(metric.compute(), thin_classes)


def _mean(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None
