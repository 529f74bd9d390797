"""One training run: the budget, the trainer, and what comes out."""

import logging
import signal
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import nn
from torch.utils.data import DataLoader

from experiments.data import SegmentationData
from experiments.training.batches import Batches
from experiments.training.module import NonFiniteLossError, SegmentationModule
from experiments.training.optim import class_weights, update_average

__all__ = ["Budget", "NonFiniteLossError", "Training", "fit"]

GRADIENT_CLIP = 5.0
PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}
# More steps than any budget of minutes reaches.
UNBOUNDED = 10**9


@dataclass(frozen=True)
class Budget:
    """How long to train: steps, or minutes of wall time; exactly one of them.

    Steps give every decoder the same images, minutes give every decoder the same time.

    Raises:
        ValueError: both or neither, or a value that is not positive.
    """

    steps: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise ValueError(f"give either steps or minutes as the budget, got {self.steps} and {self.minutes}")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if self.minutes is not None and not 0 < self.minutes < float("inf"):
            raise ValueError(f"minutes must be positive and finite, got {self.minutes}")

    def progress(self, steps: int, seconds: float) -> float:
        """Share of the budget, 0..1, that steps or seconds of training have used."""
        if self.steps is not None:
            return min(1.0, steps / self.steps)
        assert self.minutes is not None
        return min(1.0, seconds / (60 * self.minutes))


@dataclass(frozen=True)
class Training:
    """What a run did: the loss of each step, steps, images seen (repeats counted), wall time in minutes."""

    losses: list[float]
    steps: int
    images_seen: int
    minutes: float


class _Clock(lightning.Callback):
    """Keeps the learning rate, the stop and the caller's progress display in step with the budget."""

    def __init__(self, budget: Budget, on_step: Callable[[float, float], None]) -> None:
        self.budget, self.on_step = budget, on_step
        self.start = 0.0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self.start = time.perf_counter()

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        pl_module.set_progress(self._progress(trainer))

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        progress = self._progress(trainer)
        self.on_step(progress, pl_module.losses[-1] if pl_module.losses else float("nan"))
        if progress >= 1:
            trainer.should_stop = True

    def _progress(self, trainer: lightning.Trainer) -> float:
        return self.budget.progress(trainer.global_step, time.perf_counter() - self.start)


def fit(
    model: nn.Module,
    data: SegmentationData,
    budget: Budget,
    *,
    batch_size: int,
    seed: int,
    device: torch.device,
    precision: str,
    on_step: Callable[[float, float], None] = lambda progress, loss: None,
) -> Training:
    """Train model in place on the train split; it ends with the moving average of its weights, on the CPU or device.

    model: images (B, 3, H, W) uint8 to logits (B, K, H, W). seed fixes the batches and the model's own randomness.
    precision: a key of PRECISIONS. on_step receives the share of the budget used and the latest loss, after each step.

    Raises:
        NonFiniteLossError: the loss became infinite or not a number.
        ValueError: a batch size or masks that cannot be trained on.
    """
    steps = budget.steps or UNBOUNDED
    batches = Batches(data.train, batch_size, seed, steps)
    weights = class_weights(data.train.masks, len(data.class_names), data.ignore_index)
    module = SegmentationModule(model, weights, data.ignore_index)
    clock = _Clock(budget, on_step)
    with tempfile.TemporaryDirectory() as scratch, _quiet_lightning():
        trainer = lightning.Trainer(
            accelerator="gpu" if device.type == "cuda" else "cpu",
            devices=[device.index or 0] if device.type == "cuda" else 1,
            precision=PRECISIONS[precision],  # type: ignore[arg-type]  # Lightning wants literals
            max_steps=steps,
            max_epochs=1,
            gradient_clip_val=GRADIENT_CLIP,
            callbacks=[clock, WeightAveraging(multi_avg_fn=update_average)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=scratch,
        )
        torch.manual_seed(seed)
        try:
            trainer.fit(module, DataLoader(batches, batch_size=None))
        except SystemExit as error:
            # Lightning turns Ctrl-C into an exit, and no longer listens to it.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt from error
        module.read_losses()
    taken = trainer.global_step
    minutes = (time.perf_counter() - clock.start) / 60
    return Training(module.losses, taken, taken * batch_size, minutes)


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Silences what Lightning says about hardware, workers and missing loggers, which are all chosen here."""
    loggers = [logging.getLogger(f"lightning.{name}") for name in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
