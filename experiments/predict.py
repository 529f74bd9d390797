"""Predict a folder of pictures with a trained cell: masks, colour overlays and confidence maps.

    python -m experiments.predict runs/camvid/cells/ID/best.pt photos --output runs/photos
    python -m experiments.predict best.pt photos --output DIR --flip --scales 0.75 1.0 1.25
    python -m experiments.predict best.pt aerial --output DIR --native --tile 512 512

Works on one picture or on a folder with its sub-folders (JPEG, PNG), of any sizes. By default a picture is scaled so
that its shorter side is that of the training images, the scale that the model knows; results are at the picture's own
resolution. The same command on the same folder continues where it stopped. docs/predict.md tells more.

Cost: 100 CamVid pictures of 360 x 480 pixels, seen at 128 x 171, took 7 to 9 seconds and 0.9 GB on one core of an AMD
EPYC (swinx_n, DeepLabV3Plus, 2026-11-24). One picture of 3000 x 4000 took 4.4 seconds; with --native in tiles of 512 x
512, three minutes on two busy cores.
"""

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from experiments import prediction
from experiments.console import complain, say
from experiments.devices import choose_device
from experiments.evaluation.inference import Inference
from experiments.prediction import Job, PictureError, Scaling
from experiments.records import provenance
from experiments.weights import Trained, load_weights

SHOWN = 20  # problems spelled out at the end; the rest are counted


@dataclass(frozen=True)
class Options:
    """Predict pictures with a trained cell: masks, colour overlays and confidence maps."""

    weights: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="WEIGHTS")]
    """last.pt or best.pt of a cell"""
    images: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="IMAGES")]
    """a JPEG or PNG file, or a folder, searched with its sub-folders"""
    output: Path
    """folder for the results"""
    short_side: int | None = None
    """scale pictures to this shorter side in pixels (default: that of the training images)"""
    size: tuple[int, int] | None = None
    """resize pictures to this height and width instead, whatever their aspect"""
    native: bool = False
    """leave pictures at their own size, and predict tiles of the size trained on"""
    tile: tuple[int, int] | None = None
    """height and width of overlapping tiles of the scaled picture (default: the crops trained on; where training saw
    whole images none, but with --native their size)"""
    overlap: float | None = None
    """least share of a tile in common with the next one (default 0.5)"""
    flip: bool = False
    """average with the prediction of the mirrored picture"""
    scales: tuple[float, ...] = (1.0,)
    """average over the picture resized by these factors"""
    batch_size: int = 4
    """most pictures at a time; they must be of one size after scaling"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["32", "bf16", "16"] = "32"
    """bf16 and 16 are mixed precision; 16 needs cuda"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, 1 where pictures failed, 2 for bad input, 130 when interrupted."""
    options = tyro.cli(Options, args=arguments, prog="python -m experiments.predict")
    console = Console()
    try:
        job = prepare(options)
        classes = job.trained.class_names, job.trained.colors[:-1]
        prediction.write_record(job.output, job.record, provenance(job.device), *classes)
    except (ValueError, OSError) as error:
        complain(str(error))
        return 2
    say(console, _summary(job))
    try:
        problems = _run(job, console)
        prediction.write_index(job.output, [name for name in job.pictures if name not in problems], *classes)
    except OSError as error:
        complain(f"{error}; finished pictures are kept, and the same command continues after them")
        return 2
    except torch.OutOfMemoryError as error:
        complain(f"{error}; a smaller --batch-size or --tile needs less memory; finished pictures are kept")
        return 2
    except KeyboardInterrupt:
        say(console, "interrupted; the same command continues after the pictures that are finished")
        return 130
    done = f"{len(job.todo) - len(problems)} predicted"
    before = f", {len(job.pictures) - len(job.todo)} finished before" if len(job.todo) < len(job.pictures) else ""
    say(console, f"{done}{before}: {job.output / 'index.html'}")
    if problems:
        lines = [f"  {job.pictures[name]} {problem}" for name, problem in list(problems.items())[:SHOWN]]
        lines += [f"  and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        complain("\n".join([f"{len(problems)} of {len(job.pictures)} pictures have no result:", *lines]))
    return int(bool(problems))


def prepare(options: Options) -> Job:
    """Everything that can be refused as a whole is refused here, before anything is written.

    Raises:
        ValueError, OSError: bad input; the message names option, rule and value.
    """
    _check(options)
    device = torch.device(choose_device(options.device, options.precision))
    pictures = prediction.find_pictures(options.images, options.output)
    trained = load_weights(options.weights, device)
    scaling = _scaling(options, trained)
    inference = _inference(options, trained)
    with options.weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:12]
    record = prediction.Record(
        weights=digest,
        short_side=scaling.short_side,
        size=scaling.size,
        tile=inference.tile,
        overlap=inference.overlap,
        flip=inference.flip,
        scales=inference.scales,
        precision=options.precision,
    )
    prediction.check_output(options.output, record)
    # A picture without limits shows what no picture can have: a tile or a scaled side that the model does not take.
    try:
        prediction.check_size(trained, inference, *scaling.working_size(10**6, 10**6))
    except PictureError as error:
        raise ValueError(f"--short-side, --size, --tile, --scales: even a large picture {error}") from error
    todo = {name: path for name, path in pictures.items() if not prediction.finished(options.output, name, path)}
    return Job(
        trained,
        scaling,
        inference,
        options.precision,
        options.batch_size,
        device,
        record,
        options.output,
        pictures,
        todo,
    )


def _check(options: Options) -> None:
    scalings = {"--short-side": options.short_side, "--size": options.size, "--native": options.native or None}
    given = [name for name, value in scalings.items() if value is not None]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} exclude each other: each says at what size the model sees a picture")
    if options.short_side is not None and options.short_side < 1:
        raise ValueError(f"--short-side must be at least 1, got {options.short_side}")
    if options.size is not None and min(options.size) < 1:
        raise ValueError(f"--size must be height and width of at least 1, got {options.size[0]} {options.size[1]}")
    if options.batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {options.batch_size}")


def _scaling(options: Options, trained: Trained) -> Scaling:
    if options.native or options.size is not None:
        return Scaling(size=options.size)
    return Scaling(short_side=options.short_side or min(trained.height, trained.width))


def _inference(options: Options, trained: Trained) -> Inference:
    tile = options.tile or trained.crop or ((trained.height, trained.width) if options.native else None)
    if options.overlap is not None and tile is None:
        raise ValueError(f"--overlap is for tiles, which --tile or --native makes, got {options.overlap} without")
    overlap = 0.5 if options.overlap is None else options.overlap
    try:
        return Inference(tile, overlap, options.flip, options.scales)
    except ValueError as error:  # its messages begin with the field, which is the option
        raise ValueError(f"--{error}") from error


def _summary(job: Job) -> str:
    """Model and scale in a line."""
    trained, tile = job.trained, job.inference.tile
    size = "at their own size"
    if job.scaling.size:
        size = "at {}x{} pixels".format(*job.scaling.size)
    elif job.scaling.short_side:
        size = f"with a shorter side of {job.scaling.short_side} pixels"
    tiles = f", in tiles of {tile[0]}x{tile[1]}" if tile else ""
    return (
        f"{trained.cell.id}, trained on {trained.data} at {trained.height}x{trained.width}, "
        f"sees {len(job.todo)} pictures {size}{tiles}"
    )


def _run(job: Job, console: Console) -> dict[str, str]:
    """Predict under a progress bar; returns the problems by name of picture."""
    columns = (TextColumn("predicting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=len(job.todo))
        return prediction.run(job, on_picture=lambda: progress.advance(task))


if __name__ == "__main__":
    sys.exit(main())
