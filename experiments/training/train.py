"""Training one model on data held in memory, under a budget of steps or minutes: one plain loop.

Under torchrun its processes train together (DistributedDataParallel, Li et al. 2020), each on its share of every batch.
"""

import atexit
import io
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.utils.data import DataLoader

from experiments.data import SegmentationData
from experiments.records.files import write_whole
from experiments.records.options import Settings
from experiments.training.batches import Batches, augmentation, mixed_seed
from experiments.training.losses import Objective, class_weights
from experiments.training.models import Segmenter
from experiments.training.optim import Learner, learning_rate_factor

CHECKPOINT = "training.ckpt"
# A run that is killed loses at most the steps since its last checkpoint: one is written after each validation, and
# when the last one is this many seconds old.
CHECKPOINT_SECONDS = 60.0
# A finite loss this many times the first one, or 1, is no longer training.
DIVERGED = 100.0
# Reading the loss waits for a GPU, so it is read in chunks.
READ_EVERY = 20
# More batches than any budget of minutes reaches.
UNBOUNDED = 10**9
# How long processes wait for the first one, which evaluates.
WAIT = timedelta(hours=6)


class DivergedError(FloatingPointError):
    """The loss became infinite, not a number, or far greater than at the start; the message names the step."""


@dataclass(frozen=True)
class Processes:
    """This process among all: its rank, its rank on its machine, their number, and their number on this machine."""

    rank: int
    local_rank: int
    world: int
    local_world: int


def processes() -> Processes:
    """The processes that torchrun started, by its environment variables; one where it did not, whatever else is set."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return Processes(0, 0, 1, 1)
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    return Processes(*(int(os.environ[name]) for name in names))


@dataclass(frozen=True)
class Training:
    """What a run did.

    losses: of each step. steps: taken. images_seen: repeats counted, by all processes. minutes: wall time of training
    without validation. validations: (step, mean IoU in percent or None) of each. best: the one with the highest.
    """

    losses: list[float]
    steps: int
    images_seen: int
    minutes: float
    validations: list[tuple[int, float | None]]
    best: tuple[int, float] | None


def fit(
    model: Segmenter,
    data: SegmentationData,
    settings: Settings,
    *,
    seed: int,
    folder: Path,
    device: torch.device,
    validate: Callable[[nn.Module], float | None],
    on_best: Callable[[nn.Module, int, float], None],
    evaluate: Callable[[nn.Module, int], None],
    on_step: Callable[[float, float], None],
) -> Training:
    """Train model in place on the train split; it ends with the moving average of its weights.

    Goes on from folder/training.ckpt where there is one, and keeps that file up to date; the caller removes it when the
    results are safe. Logs go to folder/log. Among processes the first one alone validates, evaluates and writes.

    Args:
        model: on device; images (B, 3, H, W) uint8 to logits (B, K, H, W).
        seed: fixes the batches and, for each batch anew, the model's own randomness, such as stochastic depth.
        validate: mean IoU in percent of a model on the validation split.
        on_best: called with a model that beats all before it, the step and its mean IoU. It follows the checkpoint that
            says so, and is done again by a run that starts from that: a kill between the two must not leave the one
            with the other's weights.
        evaluate: called with the model and the step, after each of settings.evaluate_at (0: before the first one). It
            comes before the checkpoint of that step: after a kill it may be called for the same step again.
        on_step: called in each process after each step with the share of the budget used and the latest loss read.

    Raises:
        DivergedError: the loss is no longer finite, or far greater than at the start.
        ValueError: a batch size or masks that cannot be trained on.
        RuntimeError: processes that do not see the same folder; a worker that died; a checkpoint of another network.
    """
    recipe, together = settings.recipe, processes()
    size = recipe.crop or (data.train.images.shape[-2], data.train.images.shape[-1])
    augment = augmentation(size, recipe.zoom, recipe.color)
    batches = Batches(data.train, settings.batch_size, seed, augment, rank=together.rank, world=together.world)
    weights = class_weights(data.train.masks, len(data.class_names), data.ignore_index, recipe.class_weighting)
    objective = Objective(recipe.losses, weights, data.ignore_index).to(device)
    checkpoint = folder / CHECKPOINT
    state = torch.load(checkpoint, map_location="cpu", weights_only=True) if checkpoint.exists() else {"history": {}}
    history = _History(**state["history"])
    _connect(together, device, (folder.name, history.steps))
    learner = Learner(model, objective, settings, data.train.images[:2, :, : size[0], : size[1]].to(device))
    if history.steps:
        learner.load_state_dict(state.pop("learner"))

    def keep_best() -> None:
        if together.rank == 0 and history.best is not None and history.best[0] == history.steps:
            on_best(learner.average, *history.best)

    keep_best()
    if history.steps == 0 and 0 in settings.evaluate_at:
        agreed(evaluate, learner.average, 0)
    interval = recipe.validate_every or (200 if settings.steps is None else max(1, settings.steps // 5))
    stream = _stream(batches, settings, history.steps * recipe.accumulate, device)
    unread: list[Tensor] = []
    share, _ = agreed(_pace, settings, history, 0.0)
    since = saved = time.perf_counter()
    loggers = settings.loggers if together.rank == 0 and not history.ended else ()
    with closing(_Logs(loggers, folder / "log", history.steps)) as logs:
        while not history.ended:
            rate = recipe.learning_rate * learning_rate_factor(share, recipe.warmup)
            unread.append(learner.step(islice(stream, recipe.accumulate), rate, history.steps))
            history.rates.append(rate)
            if len(unread) >= (READ_EVERY if device.type == "cuda" else 1):
                history.read(unread)
            now = time.perf_counter()
            history.seconds += now - since
            share, due = agreed(_pace, settings, history, now - saved)
            on_step(share, history.losses[-1] if history.losses else math.nan)
            history.ended = share >= 1
            validating = history.ended or history.steps % interval == 0
            evaluating = history.steps in settings.evaluate_at
            if due or validating or evaluating:
                history.read(unread)
                if validating:
                    history.validations.append((history.steps, agreed(validate, learner.average)))
                    history.ended = history.ended or history.stale(recipe.patience)
                if evaluating:
                    agreed(evaluate, learner.average, history.steps)
                if together.rank == 0:
                    logs.write(history)
                    content = io.BytesIO()
                    torch.save({"learner": learner.state_dict(), "history": vars(history)}, content)
                    write_whole(checkpoint, content.getvalue())
                    keep_best()
                saved = time.perf_counter()
            since = time.perf_counter()
    model.load_state_dict(learner.average.state_dict())
    images, minutes = history.steps * recipe.accumulate * settings.batch_size, history.seconds / 60
    return Training(history.losses, history.steps, images, minutes, history.validations, history.best)


@dataclass
class _History:
    """What has happened so far: with it and the learner's state, a resumed run ends like one that was left alone.

    seconds: of training alone. rates: learning rate of each step. losses: those read. ended: nothing is left to do.
    """

    seconds: float = 0.0
    rates: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    validations: list[tuple[int, float | None]] = field(default_factory=list)
    ended: bool = False

    @property
    def steps(self) -> int:
        return len(self.rates)

    @property
    def best(self) -> tuple[int, float] | None:
        """Step and mean IoU of the best validation, the first among equals; None without one."""
        scored = [(step, miou) for step, miou in self.validations if miou is not None]
        return max(scored, key=lambda item: item[1], default=None)

    def stale(self, patience: int | None) -> bool:
        """Whether as many validations as patience followed the best one."""
        if patience is None or self.best is None:
            return False
        return sum(step > self.best[0] for step, _ in self.validations) >= patience

    def read(self, unread: list[Tensor]) -> None:
        """Move the losses of the last steps into losses, or raise DivergedError."""
        for loss in [tensor.item() for tensor in unread]:
            step = len(self.losses) + 1
            if not math.isfinite(loss):
                raise DivergedError(f"the loss became {loss} at step {step}, training stopped")
            if self.losses and loss > DIVERGED * max(1.0, self.losses[0]):
                raise DivergedError(f"the loss grew from {self.losses[0]:.3g} to {loss:.3g} at step {step}, stopped")
            self.losses.append(loss)
        unread.clear()


def _pace(settings: Settings, history: _History, waited: float) -> tuple[float, bool]:
    """Share of the budget, 0..1, that was used; and whether the last checkpoint, waited seconds old, is too old."""
    steps, minutes = settings.steps, settings.minutes
    share = history.steps / steps if steps is not None else history.seconds / 60 / minutes  # exactly one is given
    return min(1.0, share), waited > CHECKPOINT_SECONDS


def _stream(
    batches: Batches, settings: Settings, first: int, device: torch.device
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Batches from number first on: a seed for the model's own randomness, images and masks."""
    count = UNBOUNDED if settings.steps is None else settings.steps * settings.recipe.accumulate
    numbers, pinned = range(first, count), device.type == "cuda"
    loader = DataLoader(batches, None, sampler=numbers, num_workers=settings.workers, pin_memory=pinned)
    for number, (images, masks) in zip(numbers, loader, strict=True):
        yield mixed_seed(batches.seed, 2, number, batches.rank), images, masks


class _Logs:
    """Loss, learning rate and validation of each step, in folder: metrics.csv, and events for TensorBoard.

    steps: how many an earlier start has logged. What its events hold beyond them is hidden.
    """

    def __init__(self, loggers: Sequence[str], folder: Path, steps: int) -> None:
        self.table = folder / "metrics.csv" if "csv" in loggers else None
        self.events, self.steps = None, steps
        if "tensorboard" in loggers:
            from torch.utils.tensorboard import SummaryWriter  # slow to import

            self.events = SummaryWriter(folder, purge_step=steps + 1)

    def write(self, history: _History) -> None:
        """Bring the files up to date; the table is written whole."""
        validated, lines = dict(history.validations), ["step,loss,learning_rate,val_miou"]
        for step, (loss, rate) in enumerate(zip(history.losses, history.rates, strict=True), start=1):
            values = {"loss": loss, "learning_rate": rate, "val_miou": validated.get(step)}
            lines.append(",".join(["" if value is None else repr(value) for value in (step, *values.values())]))
            if self.events and step > self.steps:
                for name, value in values.items():
                    if value is not None:
                        self.events.add_scalar(name, value, step)
        self.steps = history.steps
        if self.events:
            self.events.flush()
        if self.table:
            write_whole(self.table, "\n".join(lines) + "\n")

    def close(self) -> None:
        if self.events:
            self.events.close()


def _connect(together: Processes, device: torch.device, here: tuple[str, int]) -> None:
    """Let the processes speak to one another, until they end; here: name of the folder and step to go on from."""
    if together.world == 1:
        return
    if not distributed.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=WAIT)
        atexit.register(distributed.destroy_process_group)
    states: list[Any] = [None] * together.world
    distributed.all_gather_object(states, here)
    if len(set(states)) > 1:
        raise RuntimeError(f"processes disagree, they are at {states}: all must see the folder of --output")


def agreed(compute: Callable[..., Any], *arguments: Any) -> Any:
    """What the first process computes of the arguments, in all; a FloatingPointError there is raised in all."""
    if not distributed.is_initialized():
        return compute(*arguments)
    answer: list[Any] = [None, None]
    if distributed.get_rank() == 0:
        try:
            answer[0] = compute(*arguments)
        except FloatingPointError as error:
            answer[1] = str(error)
    distributed.broadcast_object_list(answer)
    if answer[1] is not None:
        raise FloatingPointError(answer[1])
    return answer[0]
