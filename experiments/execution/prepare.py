"""From the options of a comparison to its runs, data and settings: what can be refused is refused here."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import torch
from rich.console import Console

import swinx
from experiments import data
from experiments.data import SegmentationData, Split
from experiments.execution import comparison
from experiments.execution.launch import check_ray
from experiments.execution.runs import find_source
from experiments.records.files import digest
from experiments.records.grid import NotApplicable, Run, grid, own_stem
from experiments.records.options import CompareOptions, Recipe, check_precision, choose_device
from experiments.records.results import run_of, runs_in
from experiments.records.settings import Settings
from experiments.reporting.rows import axes_of
from experiments.statistics.contrasts import planned, read_contrasts
from experiments.training.losses import class_weights
from experiments.training.models import encoder_name, encoder_weights
from experiments.training.train import processes


def prepare(
    options: CompareOptions, console: Console, *, strict: bool = True
) -> tuple[list[Run], list[NotApplicable], SegmentationData, Settings]:
    """Everything that can be refused is refused here, before any training.

    strict: whether contrasts that name no runs of the grid are refused; those of an ablation whose grid was changed
    are not, and the report says so.

    Raises:
        ValueError, OSError: bad input; the message names option, rule and value.
        ImportError, ConnectionError: see launch.check_ray.
    """
    runs, missing = grid(options.axes)
    device = _device(options)
    _check_encoders(options)
    with console.status("loading data"):
        loaded = data.load(options.data, native=options.scoring.score_at == "native")
    height, width = loaded.train.images.shape[-2:]
    same = ("steps", "batch_size", "precision", "inference", "scoring", "workers")
    shared: dict[str, Any] = {name: getattr(options, name) for name in same}
    shared["recipe"], shared["weights_ids"] = _check_weights(options.recipe, runs)
    shared["start"] = options.start and str(options.start.resolve())  # machines of Ray work elsewhere
    shared["evaluate_at"] = tuple(sorted(options.evaluate_at))
    shared |= {"device": device, "groups_id": data.groups_id(loaded)}
    settings = Settings(loaded.name, data.data_id(loaded), height, width, **shared)
    rows = comparison.check_output(options.output, settings)
    check_against(options.recipe.crop, options.batch_size, loaded.train)
    class_weights(loaded.train.masks, len(loaded.class_names), loaded.ignore_index)  # refuses masks of a single class
    # Sizes that models meet: in training, and with each scale and tile of evaluation.
    sizes = [options.recipe.crop or (height, width), *options.inference.sizes(height, width)]
    runs, missing = comparison.runnable(runs, missing, sizes, len(loaded.class_names), console)
    if options.start is not None:
        _check_start(options, runs, settings)
    if strict:
        check_contrasts(options.contrasts, [*runs, *(run_of(row) for row in rows)], settings)
    return runs, missing, loaded, settings


def check_contrasts(texts: Sequence[str], runs: Sequence[Run], settings: Settings) -> None:
    """Raise ValueError where planned contrasts name what the finished grid will not have."""
    known = {run.configuration: axes_of(asdict(run)) for run in runs}
    steps = sorted({*settings.evaluate_at, settings.steps})
    by_step = {
        f"{label} step {step}": {**fields, "step": step}
        for label, fields in known.items()
        for step in (steps if len(steps) > 1 else ())
    }
    for text in read_contrasts(texts):
        planned(text, list(known.items()), list(by_step.items()))


def _device(options: CompareOptions) -> str:
    """The device that runs train on, "cpu" or "cuda". Raises ValueError where it or torchrun do not fit the options."""
    world, local = processes().world, processes().local_world
    if options.batch_size % world:
        raise ValueError(
            f"--batch-size must be a multiple of the number of processes, {world}, got {options.batch_size}"
        )
    if options.launcher == "ray":  # the machines of the cluster have devices of their own
        if world > 1:
            raise ValueError("--launcher ray trains each run in one process, got a start by torchrun")
        there = "cuda" if options.ray.gpus else "cpu"
        device: str = there if options.device == "auto" else options.device
        check_precision(options.precision, device)
        check_ray(options.ray, device)
        return device
    device = choose_device(options.device, options.precision)
    if device == "cuda" and local > max(1, torch.cuda.device_count()):
        raise ValueError(f"--nproc-per-node must not exceed the GPUs, {torch.cuda.device_count()}, got {local}")
    return device


def _check_encoders(options: CompareOptions) -> None:
    """Raise ValueError for pretrained weights or a layer decay that encoders do not have."""
    recipe = options.recipe
    for encoder in options.axes.encoders:
        entry = smp.encoders.encoders.get(encoder)
        tagged = isinstance(encoder_weights(recipe.weights, 0), str)
        if tagged and entry is not None and recipe.weights not in entry["pretrained_settings"]:
            tags = ", ".join(entry["pretrained_settings"])
            rule = (
                f"one of {tags} for {encoder}" if tags else f"left out for {encoder}, which has no pretrained weights"
            )
            raise ValueError(f"--weights must be {rule}, got {recipe.weights}")
        if tagged and entry is None and recipe.weights != "imagenet":  # smp takes any tag for timm's own weights
            raise ValueError(f"--weights must be imagenet for {encoder}, got {recipe.weights}")
        if recipe.layer_decay != 1 and own_stem(encoder.removeprefix("tu-").split(".")[0]) is None:
            raise ValueError(f"--layer-decay must be 1 for {encoder}, which is not swinx's, got {recipe.layer_decay}")


def _check_weights(recipe: Recipe, runs: list[Run]) -> tuple[Recipe, tuple[tuple[str, str], ...]]:
    """The recipe, with --weights by its whole path where it is a file, and Settings.weights_ids; every run's file must
    fit its encoder.

    Raises:
        ValueError, FileNotFoundError: a file is missing or unreadable or does not fit, or an encoder is not swinx's.
    """
    if recipe.weights is None or isinstance(encoder_weights(recipe.weights, 0), str):
        return recipe, ()
    # Machines of Ray work elsewhere.
    recipe = replace(recipe, weights=str(Path(recipe.weights).resolve()))
    ids: dict[str, str] = {}
    for encoder, stem, window, seed in dict.fromkeys((run.encoder, run.stem, run.window, run.seed) for run in runs):
        if stem is None:
            raise ValueError(
                f"--weights must be a tag of smp's for {encoder}, which is not swinx's, got {recipe.weights}"
            )
        built = smp.encoders.get_encoder(encoder_name(encoder, stem, window), weights=None)
        file = Path(str(encoder_weights(recipe.weights, seed)))
        try:
            swinx.load_checkpoint(built, file)
            ids[str(file)] = digest(file)
        except (ValueError, OSError) as error:
            raise type(error)(f"--weights: {error}") from error
    return recipe, tuple(ids.items())


def check_against(crop: tuple[int, int] | None, batch_size: int, split: Split) -> None:
    """Raise ValueError, naming option, rule and value, for what only the images to train on can tell."""
    count, _, height, width = split.images.shape
    if crop is not None and (crop[0] > height or crop[1] > width):
        raise ValueError(f"--crop must fit into the images, {height}x{width}, got {crop[0]}x{crop[1]}")
    if batch_size > count:
        raise ValueError(f"--batch-size must not exceed the number of training images, {count}, got {batch_size}")


def _check_start(options: CompareOptions, runs: list[Run], settings: Settings) -> None:
    """Every run must find the one finished run of --start whose weights it begins with, trained on the same data."""
    assert options.start is not None
    there = {row["data_id"]: row.get("data") for row in runs_in(options.start)}
    if not there:
        raise ValueError(f"--start must be a folder of finished runs, got {options.start}, which has none")
    if set(there) != {settings.data_id}:
        listing = ", ".join(f"{name} ({digest})" for digest, name in there.items())
        raise ValueError(f"--start must be of the same data, {settings.data} ({settings.data_id}), got {listing}")
    for run in runs:
        try:
            find_source(options.start, run)
        except (ValueError, FileNotFoundError) as error:
            raise ValueError(f"--start: {error}") from error
