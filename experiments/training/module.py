"""The Lightning module: weighted cross-entropy, AdamW, and a learning rate that follows the budget."""

import lightning
import torch
from torch import Tensor, nn
from torch.nn import functional

from experiments.training.optim import LEARNING_RATE, learning_rate_factor, parameter_groups


class NonFiniteLossError(FloatingPointError):
    """The loss became infinite or not a number; the message names the step."""


class SegmentationModule(lightning.LightningModule):
    """Trains a model that maps images (B, 3, H, W) uint8 to logits (B, K, H, W) on masks (B, H, W) of class ids.

    class_weights: (K,) float32. losses holds the loss of each step so far, checked to be finite.
    set_progress, called by the training loop before each step, moves the learning rate.
    """

    class_weights: Tensor

    # Reading the loss waits for the GPU, so it is read in chunks.
    CHECK_EVERY = 20

    def __init__(self, model: nn.Module, class_weights: Tensor, ignore_index: int) -> None:
        super().__init__()
        self.model = model
        self.ignore_index = ignore_index
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.losses: list[float] = []
        self._unread: list[Tensor] = []

    def training_step(self, batch: tuple[Tensor, Tensor], step: int) -> Tensor:
        images, masks = batch
        loss = self.loss(self.model(images), masks)
        self._unread.append(loss.detach())
        if len(self._unread) >= (1 if loss.device.type == "cpu" else self.CHECK_EVERY):
            self.read_losses()
        return loss

    def loss(self, logits: Tensor, masks: Tensor) -> Tensor:
        """Mean cross-entropy weighted by class over the pixels that are not ignored; 0 where all are ignored."""
        target = masks.long()
        total = functional.cross_entropy(
            logits.float(), target, weight=self.class_weights, ignore_index=self.ignore_index, reduction="sum"
        )
        # An ignore_index beyond the classes must not be looked up.
        kept = target != self.ignore_index
        weight = self.class_weights[target.where(kept, 0)].mul(kept).sum()
        return total / weight.clamp_min(1e-6)

    def read_losses(self) -> None:
        """Move the losses of the last steps into losses.

        Raises:
            NonFiniteLossError: one of them is infinite or not a number.
        """
        losses = [loss.item() for loss in self._unread]
        self._unread.clear()
        for loss in losses:
            if not torch.isfinite(torch.tensor(loss)):
                step = len(self.losses) + 1
                raise NonFiniteLossError(f"the loss became {loss} at step {step}, training stopped")
            self.losses.append(loss)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameter_groups(self.model), lr=LEARNING_RATE)

    def set_progress(self, progress: float) -> None:
        """Set the learning rate for progress 0..1 through the budget."""
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = LEARNING_RATE * learning_rate_factor(progress)
