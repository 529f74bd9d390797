"""What happens between the steps of training: the clock, validation, checkpoints, logs."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
from torch import nn

from experiments.training.budget import Budget
from experiments.training.module import SegmentationModule
from experiments.training.recipe import Recipe

# A run that is killed loses at most the steps since its last checkpoint: one is written after each validation, and
# when the last one is this many seconds old.
CHECKPOINT_SECONDS = 60.0


class Progress(lightning.Callback):
    """Keeps learning rate, validation, checkpoints, logs and the stop in step with the budget.

    validate: mean IoU in percent of a model, on the validation split. on_best: called with a model that beats all
    before it, the step and its mean IoU. on_step: called with the share of the budget used and the latest loss. The
    state, which goes into checkpoints, holds everything that a continued run needs to end like an uninterrupted one;
    seconds are those of training, without validation and checkpoints.
    """

    def __init__(
        self,
        budget: Budget,
        recipe: Recipe,
        checkpoint: Path,
        *,
        validate: Callable[[nn.Module], float | None],
        on_best: Callable[[nn.Module, int, float], None],
        on_step: Callable[[float, float], None],
    ) -> None:
        self.budget, self.recipe, self.checkpoint = budget, recipe, checkpoint
        self.validate, self.on_best, self.on_step = validate, on_best, on_step
        self.seconds = 0.0
        self.rates: list[float] = []
        self.losses: list[float] = []
        self.validations: list[tuple[int, float | None]] = []
        self.ended = False
        self._share = self._rate = self._since = self._saved = 0.0
        self._logged = 0

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("seconds", "rates", "losses", "validations", "ended")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, value in state_dict.items():
            setattr(self, name, value)

    def best(self) -> tuple[int, float] | None:
        """Step and mean IoU of the best validation, the first among equals; None without one."""
        scored = [(step, miou) for step, miou in self.validations if miou is not None]
        return max(scored, key=lambda item: item[1], default=None)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        module: SegmentationModule = pl_module
        self._share = self._agreed(trainer, self.budget.progress(trainer.global_step, self.seconds))
        module.losses = self.losses
        trainer.should_stop = self.ended
        # A checkpoint that this process does not see would leave it behind the others, or in another cell.
        here = (self.checkpoint.parent.name, trainer.global_step)
        if (first := self._agreed(trainer, here)) != here:
            raise RuntimeError(
                f"processes disagree, {first} in the first and {here} in this one: all must see the folder of --output"
            )
        self._logged = 0
        self._log_read(trainer, module)
        self._keep_best(trainer, module)
        self._since = self._saved = time.perf_counter()

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._rate = pl_module.set_progress(self._share)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        module: SegmentationModule = pl_module
        if not module.finish_batch():
            return
        now = time.perf_counter()
        self.seconds += now - self._since
        self._since = now
        self.rates.append(self._rate)
        step = trainer.global_step
        due = now - self._saved > CHECKPOINT_SECONDS
        self._share, due = self._agreed(trainer, (self.budget.progress(step, self.seconds), due))
        self.on_step(self._share, module.losses[-1] if module.losses else float("nan"))
        self.ended = self._share >= 1
        if self.ended or step % self.budget.validation_interval(self.recipe.validate_every) == 0:
            module.read_losses()
            self._validate(trainer, module, step)
            due = True
        if due:
            module.read_losses()
        self._log_read(trainer, module)
        if due:
            for logger in trainer.loggers:
                logger.save()
            trainer.save_checkpoint(self.checkpoint)
            self._keep_best(trainer, module)
            self._saved = time.perf_counter()
        trainer.should_stop = self.ended
        self._since = time.perf_counter()

    def _validate(self, trainer: lightning.Trainer, module: SegmentationModule, step: int) -> None:
        model = module.average.module
        miou: float | None = self._agreed(trainer, self.validate(model) if trainer.is_global_zero else None)
        self.validations.append((step, miou))
        best = self.best()
        if self.recipe.patience is not None and best is not None:
            since = sum(step > best[0] for step, _ in self.validations)
            self.ended = self.ended or since >= self.recipe.patience

    def _keep_best(self, trainer: lightning.Trainer, module: SegmentationModule) -> None:
        """Hand the model on where it is the best so far. It follows the checkpoint that says so, and is done again by a
        run that starts from that: a kill between the two must not leave the one with the other's weights."""
        best = self.best()
        if best is not None and best[0] == trainer.global_step and trainer.is_global_zero:
            self.on_best(module.average.module, *best)

    @staticmethod
    def _agreed(trainer: lightning.Trainer, value: Any) -> Any:
        """The value that the first process has: what steers training must be the same in all."""
        return trainer.strategy.broadcast(value) if trainer.world_size > 1 else value

    def _log_read(self, trainer: lightning.Trainer, module: SegmentationModule) -> None:
        """Log the steps whose losses were read since the last call: on a GPU they are read several at a time."""
        validated = dict(self.validations)
        for step in range(self._logged + 1, len(module.losses) + 1):
            values = {"loss": module.losses[step - 1], "learning_rate": self.rates[step - 1]}
            miou = validated.get(step)
            for logger in trainer.loggers:
                logger.log_metrics(values if miou is None else {**values, "val_miou": miou}, step)
        self._logged = len(module.losses)
