"""From the options of a comparison to its runs, data and settings: what can be refused is refused here."""

from collections.abc import Sequence
from dataclasses import asdict, replace

import segmentation_models_pytorch as smp
import torch
from rich.console import Console

from experiments import data
from experiments.data import SegmentationData
from experiments.execution import comparison
from experiments.execution.launch import check_ray
from experiments.execution.runs import find_source
from experiments.records.grid import Axes, NotApplicable, Run, grid
from experiments.records.options import (
    CompareOptions,
    RayResources,
    Recipe,
    Scoring,
    Settings,
    check_precision,
    choose_device,
)
from experiments.records.results import RESULTS, Row, read_rows, run_of
from experiments.reporting.rows import axes_of
from experiments.statistics.contrasts import planned, read_contrasts
from experiments.training.batches import check_crop
from experiments.training.losses import class_weights
from experiments.training.train import processes
from swinx.config import VARIANTS

# Steps of the default budget: about a minute for each default decoder on scenes, on two CPU cores.
DEFAULT_STEPS = 200
UNKNOWN = ("data", "data_id", "height", "width")  # fields of Settings that only the data can tell


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
    runs, missing = grid(
        Axes(
            options.decoders,
            options.encoders,
            options.seeds,
            options.output_strides,
            options.stems,
            options.dilations,
            options.windows,
            options.alignments,
        )
    )
    settings = _settings(options)
    _check_execution(options)
    _check_weights(options, runs)
    known = {name: value for name, value in settings.as_row().items() if name not in UNKNOWN}
    comparison.check_output(options.output, known)
    with console.status("loading data"):
        loaded = data.load(options.data, native=options.scoring.score_at == "native")
    height, width = loaded.train.images.shape[-2:]
    settings = replace(settings, data=loaded.name, data_id=data.data_id(loaded), height=height, width=width)
    rows = comparison.check_output(options.output, settings.as_row())
    _check_against(options, loaded)
    if options.start is not None:
        _check_start(options, runs, settings)
    # Sizes that models meet: in training, and with each scale and tile of evaluation.
    sizes = [options.recipe.crop or (height, width), *options.inference.sizes(height, width)]
    runs, missing = comparison.runnable(runs, missing, sizes, len(loaded.class_names), console)
    if strict:
        check_contrasts(options.contrasts, [*runs, *(run_of(row) for row in rows)], settings)
    comparison.check_writable(options.output)
    return runs, missing, loaded, settings


def check_contrasts(given: Sequence[str], runs: Sequence[Run], settings: Settings) -> None:
    """Raise ValueError where planned contrasts name what the finished grid will not have."""
    last = [] if settings.steps is None else [settings.steps]
    for text in read_contrasts(given):
        known: dict[str, Row] = {}
        for run in runs:
            fields = axes_of(asdict(run))
            # Steps before the end are compared only where a contrast asks for them.
            for step in (*settings.evaluate_at, *last) if "step" in text else ():
                known[f"{run.configuration} step {step}"] = {**fields, "step": step}
            if "step" not in text:
                known[run.configuration] = fields
        planned([text], list(known.items()))


def _settings(options: CompareOptions) -> Settings:
    """The settings but for the fields UNKNOWN. Raises ValueError for budgets that cannot be."""
    steps, minutes = options.steps, options.minutes
    if steps is not None and minutes is not None:
        raise ValueError(f"--steps and --minutes exclude each other, got {steps} and {minutes}")
    if steps is not None and steps < 1:
        raise ValueError(f"--steps must be at least 1, got {steps}")
    if minutes is not None and not 0 < minutes < float("inf"):
        raise ValueError(f"--minutes must be positive and finite, got {minutes}")
    if steps is None and minutes is None:
        steps = DEFAULT_STEPS
    at = options.evaluate_at
    if len(set(at)) < len(at) or any(step < 0 or (steps is not None and step > steps) for step in at):
        most = f"at most {steps}" if steps is not None else "whatever the time allows"
        raise ValueError(f"--evaluate-at must be different steps from 0, {most}, got {' '.join(map(str, at))}")
    return Settings(
        data="",
        data_id="",
        height=0,
        width=0,
        steps=steps,
        minutes=minutes,
        batch_size=options.batch_size,
        precision=options.precision,
        device=_device(options),
        recipe=options.recipe,
        inference=options.inference,
        scoring=options.scoring,
        evaluate_at=tuple(sorted(at)),
        start=None if options.start is None else str(options.start.resolve()),  # machines of Ray work elsewhere
        workers=options.workers,
        loggers=options.loggers,
    )


def _device(options: CompareOptions) -> str:
    """The device that runs train on, "cpu" or "cuda". Raises ValueError where it does not fit the other options."""
    if options.launcher == "ray":  # the machines of the cluster have devices of their own
        there = "cuda" if options.ray.gpus else "cpu"
        device: str = there if options.device == "auto" else options.device
        check_precision(options.precision, device)
        check_ray(options.ray, device)
        return device
    device = choose_device(options.device, options.precision)
    if device == "cuda" and processes().local_world > max(1, torch.cuda.device_count()):
        count = torch.cuda.device_count()
        raise ValueError(f"--nproc-per-node must not exceed the GPUs, {count}, got {processes().local_world}")
    return device


def _check_execution(options: CompareOptions) -> None:
    world = processes().world
    size = options.batch_size
    if size < 2:
        raise ValueError(f"--batch-size must be at least 2 (BatchNorm cannot train on one image), got {size}")
    if size % world:
        raise ValueError(f"--batch-size must be a multiple of the number of processes, {world}, got {size}")
    if options.recipe.class_weighting != Recipe().class_weighting and "ce" not in options.recipe.losses:
        losses = " ".join(options.recipe.losses)
        raise ValueError(f"--class-weighting is for ce, got {options.recipe.class_weighting} with --losses {losses}")
    if options.workers < 0:
        raise ValueError(f"--workers must not be negative, got {options.workers}")
    if options.launcher == "ray" and world > 1:
        raise ValueError("--launcher ray trains each run in one process, got a start by torchrun")
    if options.launcher == "here" and options.ray != RayResources():
        raise ValueError("--ray options are for --launcher ray, got --launcher here")


def _check_weights(options: CompareOptions, runs: list[Run]) -> None:
    """Pretrained weights that encoders do not have, and what makes sense for trained encoders alone."""
    recipe = options.recipe
    for encoder in options.encoders:
        entry = smp.encoders.encoders.get(encoder)
        if recipe.weights is not None and entry is not None:
            tags = list(entry["pretrained_settings"])
            if recipe.weights not in tags:
                choices = ", ".join(tags) or "(none: it has no pretrained weights)"
                raise ValueError(f"--weights must be one of {choices} for {encoder}, got {recipe.weights}")
        if recipe.layer_decay < 1 and encoder not in VARIANTS:
            raise ValueError(f"--layer-decay is for encoders of swinx, got {encoder} among --encoders")
    if recipe.weights is not None and options.start is not None:
        raise ValueError(f"--weights and --start exclude each other, got {recipe.weights} and {options.start}")
    if recipe.weights is None and options.start is None:
        if recipe.layer_decay < 1:
            raise ValueError(f"--layer-decay is for trained encoders (--weights, --start), got {recipe.layer_decay}")
        if recipe.freeze != "nothing":
            raise ValueError(f"--freeze is for trained encoders (--weights, --start), got {recipe.freeze}")


def _check_against(options: CompareOptions, loaded: SegmentationData) -> None:
    """Raise ValueError, naming option, rule and value, for what only the data can tell."""
    count, _, height, width = loaded.train.images.shape
    if options.recipe.crop is not None:
        check_crop(options.recipe.crop, height, width)
    options.inference.check(height, width)
    check_scoring(options.scoring, loaded)
    if options.batch_size > count:
        raise ValueError(
            f"--batch-size must not exceed the number of training images, {count}, got {options.batch_size}"
        )
    class_weights(loaded.train.masks, len(loaded.class_names), loaded.ignore_index)  # refuses masks of a single class


def check_scoring(scoring: Scoring, loaded: SegmentationData) -> None:
    """Raise ValueError where masks at their own resolution are asked for and are those at hand anyway."""
    if scoring.score_at == "native" and loaded.test.native_masks is None:
        raise ValueError("--score-at native is for images that --size resizes, got images at their own resolution")


def _check_start(options: CompareOptions, runs: list[Run], settings: Settings) -> None:
    """Every run must find the one finished run of --start whose weights it begins with, trained on the same data."""
    assert options.start is not None
    rows = [row for row in read_rows(options.start / RESULTS) if row.get("kind") == "segmentation"]
    if not rows:
        raise ValueError(f"--start must be a folder of finished runs, got {options.start}, which has none")
    there = {(row["data"], row["data_id"]) for row in rows}
    if there != {(settings.data, settings.data_id)}:
        listing = ", ".join(f"{name} ({digest})" for name, digest in sorted(there))
        raise ValueError(f"--start must be of the same data, {settings.data} ({settings.data_id}), got {listing}")
    for run in runs:
        try:
            find_source(options.start, run, rows)
        except (ValueError, FileNotFoundError) as error:
            raise ValueError(f"--start: {error}") from error
