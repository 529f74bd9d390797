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
        validated = dict(self.validations)
        for step, (loss, rate) in enumerate(zip(self.losses, self.rates, strict=True), start=1):
            self._log(trainer, step, loss=loss, learning_rate=rate, val_miou=validated.get(step))
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
        latest = module.losses[-1] if module.losses else float("nan")
        self.on_step(self._share, latest)
        self.ended = self._share >= 1
        miou = None
        if self.ended or step % self.budget.validation_interval(self.recipe.validate_every) == 0:
            module.read_losses()
            miou = self._validate(trainer, module, step)
            due = True
        self._log(trainer, step, loss=latest, learning_rate=self._rate, val_miou=miou)
        if due:
            module.read_losses()
            trainer.save_checkpoint(self.checkpoint)
            self._saved = time.perf_counter()
        trainer.should_stop = self.ended
        self._since = time.perf_counter()

    def _validate(self, trainer: lightning.Trainer, module: SegmentationModule, step: int) -> float | None:
        model = module.average.module
        miou: float | None = self._agreed(trainer, self.validate(model) if trainer.is_global_zero else None)
        best = self.best()
        self.validations.append((step, miou))
        if miou is not None and (best is None or miou > best[1]) and trainer.is_global_zero:
            self.on_best(model, step, miou)
        best = self.best()
        if self.recipe.patience is not None and best is not None:
            since = sum(step > best[0] for step, _ in self.validations)
            self.ended = self.ended or since >= self.recipe.patience
        return miou

    @staticmethod
    def _agreed(trainer: lightning.Trainer, value: Any) -> Any:
        """The value that the first process has: what steers training must be the same in all."""
        return trainer.strategy.broadcast(value) if trainer.world_size > 1 else value

    @staticmethod
    def _log(trainer: lightning.Trainer, step: int, **values: float | None) -> None:
        for logger in trainer.loggers:
            logger.log_metrics({name: value for name, value in values.items() if value is not None}, step)
