"""What a step of training changes: weights, their moving average, the optimiser and the scale of 16-bit losses.

Shapes: B images of a batch in one process, K classes, H W pixels.
"""

import copy
import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from itertools import chain
from typing import Any, Generic, TypeVar

import torch
from timm.layers import convert_sync_batchnorm
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import get_ema_multi_avg_fn

import swinx
from experiments.evaluation.cost import autocast
from experiments.records.settings import Settings

Model = TypeVar("Model", bound=nn.Module)
Loss = Callable[[Tensor, Tensor], Tensor]  # of what a model gives and masks (B, H, W) uint8: a scalar


def learning_rate_factor(share: float, warmup: float) -> float:
    """Part of the peak learning rate at a share 0..1 of the budget: linear warmup, then a cosine to zero."""
    if share < warmup:
        return (share + 1e-3) / (warmup + 1e-3)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (share - warmup) / (1 - warmup))))


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float, updates: int) -> None:
    """One step of an exponential moving average of parameters and buffers, in place.

    The decay is min(decay, (1 + n) / (10 + n)) after n updates, and 0 at the first one, so that short runs forget their
    random start. Whole numbers among the buffers, such as BatchNorm's count of batches, are copied.
    """
    own, current = (chain(module.parameters(), module.buffers()) for module in (average, model))
    pairs = list(zip(own, current, strict=True))
    for target, source in pairs:
        if not target.is_floating_point():
            target.copy_(source)
    targets, sources = zip(*(pair for pair in pairs if pair[0].is_floating_point()), strict=True)
    get_ema_multi_avg_fn(min(decay, (1 + updates) / (10 + updates)) if updates else 0.0)(targets, sources, updates)


class Learner(Generic[Model]):
    """A model in training: AdamW, clipped gradients, mixed precision, and the average of its weights.

    Where processes train together, gradients are means over them, and so are the statistics of BatchNorm on GPUs. On
    CPUs each process normalises over its own images.

    model is trained in place, or, where BatchNorm is synchronised, in a copy; average is in evaluation mode. A frozen
    encoder stays in evaluation mode too: neither its weights nor its statistics change, and nothing in it is dropped.
    images: (B, 3, H, W) uint8 on the device to train on, which the model is tried on where processes train together.
    """

    def __init__(self, model: Model, loss: Loss, settings: Settings, images: Tensor) -> None:
        recipe = self.recipe = settings.recipe
        self.loss, self.precision, self.device = loss, settings.precision, images.device
        self.together = distributed.is_initialized()
        self.average = copy.deepcopy(model).requires_grad_(False).eval()
        synchronised = self.together and self.device.type == "cuda"
        self.model = convert_sync_batchnorm(copy.deepcopy(model)) if synchronised else model
        self.model.train()
        if recipe.freeze == "encoder":
            self.model.model.encoder.requires_grad_(False).eval()
        groups = swinx.parameter_groups(self.model, recipe.learning_rate, recipe.layer_decay, recipe.weight_decay)
        for group in groups:
            group["lr_scale"] = group["lr"] / recipe.learning_rate
        self.optimizer = torch.optim.AdamW(groups, fused=True)
        self.trained = [parameter for group in groups for parameter in group["params"]]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "16")
        self.network = self._parallel(images) if self.together else self.model

    def _parallel(self, images: Tensor) -> DistributedDataParallel:
        """The model as one that trains together with those of the other processes.

        It looks for parameters without a gradient, such as the norms of levels that a decoder does not read, only where
        the model has some: looking costs a pass over the graph in each step.
        """
        twin = copy.deepcopy(self.model)
        twin(images).float().sum().backward()
        unused = any(parameter.requires_grad and parameter.grad is None for parameter in twin.parameters())
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(self.model, devices, find_unused_parameters=unused)

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed training needs: tensors in plain containers."""
        return {name: getattr(self, name).state_dict() for name in ("model", "average", "optimizer", "scaler")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in ("model", "average", "optimizer", "scaler"):
            getattr(self, name).load_state_dict(state[name])

    def step(self, batches: Iterable[tuple[int, Tensor, Tensor]], rate: float, updates: int) -> Tensor:
        """Change the weights and their average once, and return the loss, a scalar.

        batches: recipe.accumulate of them, each a seed for the model's own randomness, images (B, 3, H, W) uint8 and
        masks (B, H, W) uint8. rate: learning rate, of what has no layer decay. updates: steps before this one. The loss
        is the mean over batches and processes.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        losses = []
        for seed, images, masks in batches:
            torch.manual_seed(seed)
            more = len(losses) + 1 < self.recipe.accumulate
            with self.network.no_sync() if self.together and more else nullcontext():
                with autocast(self.device, self.precision):
                    given = self.network(images.to(self.device, non_blocking=True))
                    loss = self.loss(given, masks.to(self.device, non_blocking=True))
                self.scaler.scale(loss / self.recipe.accumulate).backward()
            losses.append(loss.detach())
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.trained, self.recipe.gradient_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        update_average(self.average, self.model, self.recipe.ema_decay, updates)
        loss = torch.stack(losses).mean()
        if self.together:  # all processes must agree on whether it diverged
            distributed.all_reduce(loss)
            loss /= distributed.get_world_size()
        return loss
