"""Training one model on data held in memory: one plain loop.

Under torchrun its processes train together (DistributedDataParallel, Li et al. 2020), each on its share of every batch.
"""

import atexit
import io
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed
from torch.utils.data import DataLoader

from experiments.data import SegmentationData
from experiments.records.files import write_whole
from experiments.records.settings import Settings
from experiments.training.batches import Batches, augmentation, mixed_seed
from experiments.training.optim import Learner, Loss, Model, learning_rate_factor

CHECKPOINT = "training.ckpt"
# A run that is killed loses at most the steps since its last checkpoint: one is written after each validation, and
# when the last one is this many seconds old.
CHECKPOINT_SECONDS = 60.0
# A finite loss this many times the first one, or 1, is no longer training.
DIVERGED = 100.0
# Reading the loss waits for a GPU, so it is read in chunks.
READ_EVERY = 20
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


@dataclass
class Training:
    """What a run did so far: with it and the learner's state, a resumed run ends like one that was left alone.

    losses: of each step. validations: (step, mean IoU in percent or None) of each. seconds: wall time of training
    without validation.
    """

    losses: list[float] = field(default_factory=list)
    validations: list[tuple[int, float | None]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def steps(self) -> int:
        """Steps taken."""
        return len(self.losses)

    def read(self, unread: list[Tensor]) -> None:
        """Move the losses of the last steps into losses, or raise DivergedError."""
        for loss in [tensor.item() for tensor in unread]:
            step = self.steps + 1
            if not math.isfinite(loss):
                raise DivergedError(f"the loss became {loss} at step {step}, training stopped")
            if self.losses and loss > DIVERGED * max(1.0, self.losses[0]):
                raise DivergedError(f"the loss grew from {self.losses[0]:.3g} to {loss:.3g} at step {step}, stopped")
            self.losses.append(loss)
        unread.clear()


def fit(
    model: Model,
    loss: Loss,
    data: SegmentationData,
    settings: Settings,
    *,
    seed: int,
    folder: Path,
    device: torch.device,
    validate: Callable[[Model], float | None],
    evaluate: Callable[[Model, int], None],
    on_step: Callable[[float, float], None],
) -> Training:
    """Train model in place on the train split; it ends with the moving average of its weights.

    Goes on from folder/training.ckpt where there is one, and keeps that file up to date; the caller removes it when the
    results are safe. Among processes the first one alone validates, evaluates and writes.

    Args:
        model: on device; takes images (B, 3, H, W) uint8, after a crop.
        loss: of what model gives and the masks (B, H, W) uint8, a scalar.
        seed: fixes the batches and, for each batch anew, the model's own randomness, such as stochastic depth.
        validate: mean IoU in percent of a model on the validation split; None where it has none.
        evaluate: called with the model and the step, after each of settings.evaluate_at (0: before the first one). It
            comes before the checkpoint of that step: after a kill it may be called for the same step again.
        on_step: called in each process after each step with the share of the budget used and the latest loss read.

    Raises:
        DivergedError: the loss is no longer finite, or far greater than at the start.
        RuntimeError: processes that do not see the same folder; a worker that died; a checkpoint of another network.
    """
    recipe, together = settings.recipe, processes()
    size = recipe.crop or (data.train.images.shape[-2], data.train.images.shape[-1])
    augment = augmentation(size, recipe.zoom, recipe.color)
    batches = Batches(data.train, settings.batch_size, seed, augment, rank=together.rank, world=together.world)
    checkpoint = folder / CHECKPOINT
    state = torch.load(checkpoint, map_location="cpu", weights_only=True) if checkpoint.exists() else {"history": {}}
    history = Training(**state["history"])
    _connect(together, device, (folder.name, history.steps))
    learner = Learner(model, loss, settings, data.train.images[:2, :, : size[0], : size[1]].to(device))
    if history.steps:
        learner.load_state_dict(state.pop("learner"))

    if history.steps == 0 and 0 in settings.evaluate_at:
        agreed(evaluate, learner.average, 0)
    last, every = settings.steps, recipe.validate_every
    validated = {round(last * k / 5) for k in range(1, 6)} if every is None else {*range(every, last, every), last}
    stream = _stream(batches, settings, history.steps * recipe.accumulate, device)
    unread: list[Tensor] = []
    since = saved = time.perf_counter()
    for step in range(history.steps + 1, settings.steps + 1):
        rate = recipe.learning_rate * learning_rate_factor((step - 1) / settings.steps, recipe.warmup)
        unread.append(learner.step(islice(stream, recipe.accumulate), rate, step - 1))
        validating, evaluating = step in validated, step in settings.evaluate_at
        if validating or evaluating or len(unread) >= (READ_EVERY if device.type == "cuda" else 1):
            history.read(unread)
        now = time.perf_counter()
        history.seconds += now - since
        on_step(step / settings.steps, history.losses[-1] if history.losses else math.nan)
        if validating:
            history.validations.append((step, agreed(validate, learner.average)))
        if evaluating:
            agreed(evaluate, learner.average, step)
        due = now - saved > CHECKPOINT_SECONDS and not unread
        if together.rank == 0 and (validating or evaluating or due):
            content = io.BytesIO()
            torch.save({"learner": learner.state_dict(), "history": vars(history)}, content)
            write_whole(checkpoint, content.getvalue())
            saved = time.perf_counter()
        since = time.perf_counter()
    model.load_state_dict(learner.average.state_dict())
    return history


def _stream(
    batches: Batches, settings: Settings, first: int, device: torch.device
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Batches from number first on: a seed for the model's own randomness, images and masks."""
    numbers, pinned = range(first, settings.steps * settings.recipe.accumulate), device.type == "cuda"
    loader = DataLoader(batches, None, sampler=numbers, num_workers=settings.workers, pin_memory=pinned)
    for number, (images, masks) in zip(numbers, loader, strict=True):
        yield mixed_seed(batches.seed, 2, number, batches.rank), images, masks


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
