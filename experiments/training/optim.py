"""Optimiser groups, learning rate, weight average and class weights."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.05
WARMUP = 0.05
EMA_DECAY = 0.999
MAX_CLASS_WEIGHT = 4.0


def parameter_groups(model: nn.Module, weight_decay: float = WEIGHT_DECAY) -> list[dict[str, object]]:
    """Two AdamW groups: matrices and kernels, decayed; norms, biases and relative position bias tables, not decayed."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            exempt = parameter.ndim < 2 or name.endswith("relative_position_bias_table")
            (plain if exempt else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def learning_rate_factor(progress: float) -> float:
    """Share of the peak learning rate at progress 0..1 through the budget: linear warmup, then a cosine to zero."""
    if progress < WARMUP:
        return (progress + 1e-3) / (WARMUP + 1e-3)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - WARMUP) / (1 - WARMUP))))


@torch.no_grad()
def update_average(averaged: Sequence[Tensor], current: Sequence[Tensor], updates: Tensor | int) -> None:
    """One step of an exponential moving average, in place, over tensors of one dtype (a multi_avg_fn of AveragedModel).

    The decay is min(EMA_DECAY, (1 + n) / (10 + n)) after n updates, so that short runs forget their random start.
    Whole numbers, such as the index tables among the buffers, are copied: torch's own average rounds them down.
    """
    if not torch.is_floating_point(averaged[0]):
        for target, source in zip(averaged, current, strict=True):
            target.copy_(source)
        return
    count = int(updates)
    get_ema_multi_avg_fn(min(EMA_DECAY, (1 + count) / (10 + count)))(tuple(averaged), tuple(current), updates)


def class_weights(masks: Tensor, classes: int, ignore_index: int) -> Tensor:
    """Cross-entropy weights (classes,) float32 from pixel counts: square root of median over own frequency, capped.

    masks: (N, H, W) uint8. Classes without a pixel get weight 1; no weight exceeds MAX_CLASS_WEIGHT.

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
    weights[present] = (counts[present].median() / counts[present]).sqrt().clamp(max=MAX_CLASS_WEIGHT)
    return weights.float()
