"""Learning rate, weight average and class weights."""

import functools
import math
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

MAX_CLASS_WEIGHT = 4.0


def learning_rate_factor(progress: float, warmup: float) -> float:
    """Share of the peak learning rate at progress 0..1 through the budget: linear warmup, then a cosine to zero."""
    if progress < warmup:
        return (progress + 1e-3) / (warmup + 1e-3)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warmup) / (1 - warmup))))


class Average(AveragedModel):
    """Exponential moving average of a model's weights and buffers, in evaluation mode.

    The decay is min(decay, (1 + n) / (10 + n)) after n updates, so that short runs forget their random start. Whole
    numbers among the buffers, such as BatchNorm's count of batches, are copied: torch's own average rounds them down.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, multi_avg_fn=functools.partial(update_average, decay), use_buffers=True)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        return super().train(False)


@torch.no_grad()
def update_average(decay: float, averaged: Sequence[Tensor], current: Sequence[Tensor], updates: Tensor | int) -> None:
    """One step of an exponential moving average, in place, over tensors of one dtype (a multi_avg_fn of AveragedModel).

    decay: see Average.
    """
    if not torch.is_floating_point(averaged[0]):
        for target, source in zip(averaged, current, strict=True):
            target.copy_(source)
        return
    count = int(updates)
    get_ema_multi_avg_fn(min(decay, (1 + count) / (10 + count)))(tuple(averaged), tuple(current), updates)


def class_weights(masks: Tensor, classes: int, ignore_index: int, weighting: str = "sqrt") -> Tensor:
    """Cross-entropy weights (classes,) float32 from pixel counts: square root of median over own frequency, capped.

    masks: (N, H, W) uint8. Classes without a pixel get weight 1; no weight exceeds MAX_CLASS_WEIGHT. The weighting
    "none" gives every class 1.

    Raises:
        ValueError: every pixel is ignored, or fewer than two classes occur.
    """
    counts = torch.bincount(masks.flatten(), minlength=256)
    counts[ignore_index] = 0
    counts = counts[:classes].double()
    present = counts > 0
    if present.sum() < 2:
        found = present.nonzero().flatten().tolist()
        raise ValueError(f"training masks must show at least two classes besides the ignored pixels, got ids {found}")
    weights = torch.ones(classes, dtype=torch.float64)
    if weighting == "sqrt":
        weights[present] = (counts[present].median() / counts[present]).sqrt().clamp(max=MAX_CLASS_WEIGHT)
    return weights.float()
