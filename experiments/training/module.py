"""The Lightning module: objective, AdamW, moving average of weights, and a learning rate that follows the budget."""

import math

import lightning
import torch
from torch import Tensor, nn

import swinx
from experiments.training.batches import mixed_seed
from experiments.training.losses import Objective
from experiments.training.optim import Average, learning_rate_factor
from experiments.training.recipe import Recipe

# A finite loss this many times the first one, or 1, is no longer training.
DIVERGED = 100.0


class DivergedError(FloatingPointError):
    """The loss became infinite, not a number, or far greater than at the start; the message names the step."""


class SegmentationModule(lightning.LightningModule):
    """Trains a model that maps images (B, 3, H, W) uint8 to logits (B, K, H, W) on masks (B, H, W) of class ids.

    average is the moving average of the model, updated after each step. losses holds the mean loss of each step so far,
    over accumulated batches and over processes, and is checked. seed fixes the randomness inside the model, such as
    stochastic depth, for each batch anew: a continued run draws what an uninterrupted one would.
    """

    # Reading the loss waits for the GPU, so it is read in chunks.
    CHECK_EVERY = 20

    def __init__(self, model: nn.Module, objective: Objective, recipe: Recipe, seed: int) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.average = Average(model, recipe.ema_decay)
        self.recipe = recipe
        self.seed = seed
        self.losses: list[float] = []
        self._unread: list[Tensor] = []
        self._batch_losses: list[Tensor] = []

    def on_train_batch_start(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        torch.manual_seed(mixed_seed(self.seed, 2, batch_idx, self.global_rank))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, masks = batch
        loss: Tensor = self.objective(self.model(images), masks)
        self._batch_losses.append(loss.detach())
        return loss

    def finish_batch(self) -> bool:
        """To be called after each batch: whether it completed a step of the optimiser; if so, what follows a step."""
        if len(self._batch_losses) < self.recipe.accumulate:
            return False
        self.average.update_parameters(self.model)
        loss = torch.stack(self._batch_losses).mean()
        self._batch_losses.clear()
        if self.trainer.world_size > 1:  # all processes must agree on whether it diverged
            loss = self.trainer.strategy.reduce(loss, reduce_op="mean")  # type: ignore[assignment]  # a tensor, as given
        self._unread.append(loss)
        if len(self._unread) >= (1 if loss.device.type == "cpu" else self.CHECK_EVERY):
            self.read_losses()
        return True

    def read_losses(self) -> None:
        """Move the losses of the last steps into losses.

        Raises:
            DivergedError: one of them is not finite, or beyond DIVERGED times the first.
        """
        losses = [loss.item() for loss in self._unread]
        self._unread.clear()
        for loss in losses:
            step = len(self.losses) + 1
            if not math.isfinite(loss):
                raise DivergedError(f"the loss became {loss} at step {step}, training stopped")
            if self.losses and loss > DIVERGED * max(1.0, self.losses[0]):
                raise DivergedError(f"the loss grew from {self.losses[0]:.3g} to {loss:.3g} at step {step}, stopped")
            self.losses.append(loss)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        recipe = self.recipe
        rate, decay = recipe.learning_rate, recipe.weight_decay
        groups = swinx.parameter_groups(self.model, rate, recipe.layer_decay, decay)
        for group in groups:
            group["lr_scale"] = group["lr"] / rate
        return torch.optim.AdamW(groups)

    def set_progress(self, progress: float) -> float:
        """Set the learning rate for progress 0..1 through the budget, and return it (before layer-wise decay)."""
        rate = self.recipe.learning_rate * learning_rate_factor(progress, self.recipe.warmup)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = rate * group["lr_scale"]
        return rate
