"""One training run: the trainer, and what comes out."""

import logging
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import lightning
import torch
from lightning.fabric.plugins.environments import ClusterEnvironment, LightningEnvironment
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from torch import nn
from torch.utils.data import DataLoader

from experiments.data import SegmentationData
from experiments.training import sync_norm
from experiments.training.batches import Batches, From, augmentation
from experiments.training.budget import Budget
from experiments.training.losses import Objective
from experiments.training.module import SegmentationModule
from experiments.training.optim import class_weights
from experiments.training.processes import Processes, processes, strategy
from experiments.training.progress import Progress
from experiments.training.recipe import Recipe
from experiments.training.storage import WholeFiles

PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}
# More batches than any budget of minutes reaches.
UNBOUNDED = 10**9
CHECKPOINT = "training.ckpt"


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
    model: nn.Module,
    data: SegmentationData,
    budget: Budget,
    recipe: Recipe,
    *,
    folder: Path,
    batch_size: int,
    seed: int,
    device: torch.device,
    precision: str,
    workers: int = 0,
    loggers: tuple[str, ...] = (),
    validate: Callable[[nn.Module], float | None],
    on_best: Callable[[nn.Module, int, float], None] = lambda model, step, miou: None,
    on_step: Callable[[float, float], None] = lambda progress, loss: None,
) -> Training:
    """Train model in place on the train split; it ends with the moving average of its weights.

    Goes on from folder/training.ckpt where there is one, and keeps that file up to date; the caller removes it when the
    results are safe. Under torchrun, its processes train together, each on its share of every batch, with batch
    statistics over all of them.

    Args:
        model: images (B, 3, H, W) uint8 to logits (B, K, H, W).
        batch_size: images of a batch over all processes; a step takes recipe.accumulate batches.
        seed: fixes the batches and the model's own randomness.
        precision: a key of PRECISIONS.
        workers: processes that prepare batches; 0 prepares them in this one.
        loggers: among csv and tensorboard, into folder/log.
        validate, on_best, on_step: see Progress.

    Raises:
        DivergedError: the loss is no longer finite, or far greater than at the start.
        ValueError: a batch size or masks that cannot be trained on.
    """
    together = processes()
    size = recipe.crop or (data.train.images.shape[-2], data.train.images.shape[-1])
    weights = class_weights(data.train.masks, len(data.class_names), data.ignore_index, recipe.class_weighting)
    if together.world > 1:
        sync_norm.check(model)
        if device.type == "cpu":
            sync_norm.synchronise(model)
    module = SegmentationModule(model, Objective(recipe.losses, weights, data.ignore_index), recipe, seed)
    checkpoint = folder / CHECKPOINT
    progress = Progress(budget, recipe, checkpoint, validate=validate, on_best=on_best, on_step=on_step)
    count = budget.steps * recipe.accumulate if budget.steps is not None else UNBOUNDED
    batches = Batches(
        data.train,
        batch_size,
        seed,
        count,
        augmentation(size, recipe.zoom, recipe.color),
        rank=together.rank,
        world=together.world,
    )
    done, ended = _done(checkpoint) if checkpoint.exists() else (0, False)
    loader = DataLoader(
        batches, batch_size=None, sampler=From(done, count), num_workers=workers, persistent_workers=workers > 0
    )
    with _quiet_lightning():
        trainer = lightning.Trainer(
            accelerator="gpu" if device.type == "cuda" else "cpu",
            devices=_devices(device, together.world, together.local_world),
            num_nodes=together.world // together.local_world,
            strategy=strategy(model, data.train.images[:2, :, : size[0], : size[1]].to(device), together, device),
            sync_batchnorm=together.world > 1 and device.type == "cuda",
            precision=PRECISIONS[precision],  # type: ignore[arg-type]  # Lightning wants literals
            max_steps=budget.steps if budget.steps is not None else UNBOUNDED,
            max_epochs=1,
            accumulate_grad_batches=recipe.accumulate,
            gradient_clip_val=recipe.gradient_clip,
            callbacks=[progress],
            plugins=[WholeFiles(), *_environment(together)],
            logger=[] if ended else _loggers(loggers, folder),  # an ended run has its logs
            use_distributed_sampler=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        try:
            trainer.fit(module, loader, ckpt_path=checkpoint if checkpoint.exists() else None, weights_only=True)
        except SystemExit as error:
            # Lightning turns Ctrl-C into an exit, and no longer listens to it.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt from error
        module.read_losses()
        if ended and together.rank == 0 and (best := progress.best()) is not None and best[0] == trainer.global_step:
            on_best(module.average.module, *best)  # it may have been cut off right before: see Progress
    model.load_state_dict(module.average.module.state_dict())
    steps = trainer.global_step
    return Training(
        progress.losses,
        steps,
        steps * recipe.accumulate * batch_size,
        progress.seconds / 60,
        progress.validations,
        progress.best(),
    )


def _done(checkpoint: Path) -> tuple[int, bool]:
    """How many batches went into the steps of a checkpoint, and whether training had ended there."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    batches = state["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["ready"]
    return int(batches), bool(state["callbacks"]["Progress"]["ended"])


def _environment(together: Processes) -> list[ClusterEnvironment]:
    """Alone, this process is alone: variables of a cluster's scheduler, which Lightning would read, are not ours."""
    return [LightningEnvironment()] if together.world == 1 else []


def _devices(device: torch.device, world: int, local_world: int) -> list[int] | int:
    return [device.index or 0] if device.type == "cuda" and world == 1 else local_world


def _loggers(names: tuple[str, ...], folder: Path) -> list[Logger]:
    """Loggers of a run that logs all its steps from 1, those before its checkpoint once more."""
    made: dict[str, Callable[[], Logger]] = {
        "csv": lambda: CSVLogger(folder, name="log", version=""),
        # TensorBoard hides what files of an earlier start, of which nothing is removed, hold from that step on.
        "tensorboard": lambda: TensorBoardLogger(folder, name="log", version="", purge_step=1),
    }
    return [made[name]() for name in names]


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
