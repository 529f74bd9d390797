"""Optimiser groups, learning rate, weight average and class weights."""

import functools
import math
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import swinx
from experiments.training.recipe import Recipe

MAX_CLASS_WEIGHT = 4.0


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, object]]:
    """AdamW groups, each with its weight_decay and its lr_scale, the factor of the learning rate.

    Matrices and kernels are decayed; norms, biases and relative position bias tables are not. With a layer_decay below
    1, the learning rate of a swinx encoder falls by that factor from each block to the one before it, as in BEiT (Bao
    et al. 2021, https://arxiv.org/abs/2106.08254); the decoder has the full rate.

    Raises:
        ValueError: layer_decay below 1 for an encoder that is not swinx's.
    """
    steps_below = _steps_below(model) if recipe.layer_decay < 1 else {}
    groups: dict[tuple[bool, int], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            exempt = parameter.ndim < 2 or name.endswith("relative_position_bias_table")
            groups.setdefault((exempt, steps_below.get(id(parameter), 0)), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": 0.0 if exempt else recipe.weight_decay,
            "lr_scale": recipe.layer_decay**steps,
        }
        for (exempt, steps), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def _steps_below(model: nn.Module) -> dict[int, int]:
    """How many blocks each parameter of the encoder is away from the decoder, by id of the parameter."""
    encoders = [module for module in model.modules() if isinstance(module, swinx.SwinXEncoder)]
    if not encoders:
        raise ValueError("--layer-decay is for encoders of swinx: other encoders have no order of blocks known here")
    (encoder,) = encoders
    layers: list[nn.Module] = [encoder.patch_embed]
    for stage in encoder.layers:
        layers += [nn.ModuleList([stage.downsample, stage.blocks[0]]), *list(stage.blocks)[1:]]
    steps = {
        id(parameter): len(layers) - number for number, layer in enumerate(layers) for parameter in layer.parameters()
    }
    for number, norm in enumerate(encoder.norms):  # each with the last block of its stage
        last = next(encoder.layers[number].blocks[-1].parameters())
        steps |= {id(parameter): steps[id(last)] for parameter in norm.parameters()}
    return steps


def learning_rate_factor(progress: float, warmup: float) -> float:
    """Share of the peak learning rate at progress 0..1 through the budget: linear warmup, then a cosine to zero."""
    if progress < warmup:
        return (progress + 1e-3) / (warmup + 1e-3)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warmup) / (1 - warmup))))


class Average(AveragedModel):
    """Exponential moving average of a model's weights and buffers, in evaluation mode.

    The decay is min(decay, (1 + n) / (10 + n)) after n updates, so that short runs forget their random start. Whole
    numbers, such as the index tables among the buffers, are copied: torch's own average rounds them down.
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
