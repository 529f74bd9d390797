"""Compare segmentation decoders: one table of accuracy and cost, from the same data, batches and budget.

    python -m experiments.compare_decoders
    python -m experiments.compare_decoders --data camvid --root PATH --output runs/camvid
    python -m experiments.compare_decoders --decoders Unet UPerNet --output-strides 8 16 32 --seeds 0 1 2 --output DIR

Trains every cell (decoder, encoder, output stride, stem, seed) from scratch and writes a folder: results.jsonl (one row
per cell), report.html (self-contained), report.md, summary.csv, class_iou.csv. The same command on the same folder
continues where it stopped.

The default command took 6.5 to 9.5 minutes and 1.6 GB on two cores of an AMD EPYC (2026-11-22, seed 0) and reached 43.3
and 44.0 % test mIoU with DeepLabV3Plus on two machines, 41.3 and 41.9 with Unet, 40.2 and 39.9 with PAN, 39.4 and 38.7
with FPN. docs/benchmarks has more seeds.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from rich.console import Console

from experiments import comparison
from experiments.cells import Cell, check_image_size, grid
from experiments.data import SegmentationData, load_camvid, load_folder, make_scenes, read_class_names
from experiments.training import Budget
from experiments.training.optim import class_weights

# Steps of the default budget: one to two minutes for each default decoder on scenes, on two CPU cores.
DEFAULT_STEPS = 250


@dataclass(frozen=True)
class Options:
    """Compare segmentation decoders on the same data, batches and budget.

    Trains every combination of the lists below from scratch and writes results.jsonl, report.html and report.md into
    the output folder. The same command on the same folder continues where it stopped.
    """

    data: Literal["scenes", "camvid", "folder"] = "scenes"
    """scenes: generated; camvid and folder: images/ and masks/ by split under --root"""
    root: Path | None = None
    """folder of the data, for camvid and folder"""
    classes: Path | None = None
    """text file with one class name per line, for folder"""
    ignore_index: int | None = None
    """id in the masks that counts as unlabelled, for folder (default 255)"""
    size: tuple[int, int] | None = None
    """height and width to resize images to (scenes: to generate)"""
    data_seed: int | None = None
    """seed that scenes are generated from (default 0)"""
    decoders: tuple[str, ...] = ("DeepLabV3Plus", "Unet", "FPN", "PAN")
    """decoders of segmentation_models_pytorch"""
    encoders: tuple[str, ...] = ("swinx_n",)
    """swinx's encoders, smp's, or tu- and a timm model"""
    output_strides: tuple[int, ...] = ()
    """8, 16, 32; none: the decoder's own"""
    stems: tuple[str, ...] = ()
    """shared, branch, inline, none; none given: the encoder's own"""
    seeds: tuple[int, ...] = (0,)
    """each seed is a training run of its own"""
    steps: int | None = None
    """training steps of each cell (default 250, unless --minutes is given)"""
    minutes: float | None = None
    """training time of each cell, instead of --steps"""
    batch_size: int = 8
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["32", "bf16", "16"] = "32"
    """bf16 and 16 are mixed precision; 16 needs cuda"""
    output: Path = Path("runs/compare_decoders")
    """folder for results and report"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, 1 where a cell diverged, 2 for bad input, 130 when interrupted."""
    options = tyro.cli(Options, args=arguments, prog="python -m experiments.compare_decoders")
    console = Console()
    try:
        cells, data, settings = prepare(options, console)
    except (ValueError, OSError) as error:
        _complain(str(error))
        return 2
    try:
        rows = comparison.run(cells, data, settings, options.output, console)
    except OSError as error:
        _complain(f"{error}; finished cells are kept, and the same command continues after them")
        return 2
    except KeyboardInterrupt:
        console.print("interrupted; the same command continues with the cell that was cut off")
        return 130
    console.print(f"report: {options.output / 'report.html'}", markup=False, highlight=False, soft_wrap=True)
    asked = {cell.id for cell in cells}
    return int(any(row["status"] != "ok" for row in rows if row["cell"] in asked))


def _complain(message: str) -> None:
    Console(stderr=True).print(f"error: {message}", style="bold red", markup=False, highlight=False, soft_wrap=True)


def prepare(options: Options, console: Console) -> tuple[list[Cell], SegmentationData, comparison.Settings]:
    """Everything that can be refused is refused here, before any training.

    Raises:
        ValueError, OSError: bad input; the message names option, rule and value.
    """
    cells = grid(options.decoders, options.encoders, options.output_strides, options.stems, options.seeds)
    if options.steps is not None and options.minutes is not None:
        raise ValueError(f"--steps and --minutes exclude each other, got {options.steps} and {options.minutes}")
    steps = DEFAULT_STEPS if options.steps is None and options.minutes is None else options.steps
    Budget(steps, options.minutes)
    if options.batch_size < 2:
        raise ValueError(
            f"--batch-size must be at least 2 (BatchNorm cannot train on one image), got {options.batch_size}"
        )
    if min(options.seeds) < 0:
        raise ValueError(f"--seeds must not be negative, got {min(options.seeds)}")
    known: dict[str, Any] = {
        "steps": steps,
        "minutes": options.minutes,
        "batch_size": options.batch_size,
        "precision": options.precision,
        "device": _device(options),
    }
    comparison.check_output(options.output, known)
    with console.status("loading data"):
        data = _load(options)
    height, width = data.train.images.shape[-2:]
    settings = comparison.Settings(
        data=data.name, data_id=comparison.data_id(data), height=height, width=width, **known
    )
    comparison.check_output(options.output, asdict(settings))
    check_image_size(cells, height, width)
    if options.batch_size > len(data.train.images):
        count = len(data.train.images)
        raise ValueError(
            f"--batch-size must not exceed the number of training images, {count}, got {options.batch_size}"
        )
    class_weights(data.train.masks, len(data.class_names), data.ignore_index)  # refuses masks of a single class
    with console.status("building every model once"):
        comparison.check_models(cells, data)
    comparison.check_writable(options.output)
    return cells, data, settings


def _device(options: Options) -> str:
    available = torch.cuda.is_available()
    if options.device == "cuda" and not available:
        raise ValueError("--device cuda: torch sees no CUDA device here")
    device = ("cuda" if available else "cpu") if options.device == "auto" else options.device
    if options.precision == "16" and device == "cpu":
        raise ValueError("--precision 16 needs --device cuda; bf16 works on the CPU")
    return device


def _load(options: Options) -> SegmentationData:
    """The data asked for; options of another kind of data are refused rather than ignored."""
    folder_only = {"--classes": options.classes, "--ignore-index": options.ignore_index}
    misplaced = [name for name, value in folder_only.items() if value is not None and options.data != "folder"]
    if misplaced:
        raise ValueError(f"{', '.join(misplaced)}: only for --data folder, got --data {options.data}")
    if options.data_seed is not None and options.data != "scenes":
        raise ValueError(f"--data-seed: only for --data scenes, got --data {options.data}")
    if options.size is not None and min(options.size) < 1:
        raise ValueError(f"--size must be height and width of at least 1, got {options.size[0]} {options.size[1]}")
    if options.data == "scenes":
        if options.root is not None:
            raise ValueError(f"--root: scenes are generated and read no folder, got {options.root}")
        height, width = options.size or (128, 160)
        return make_scenes(seed=options.data_seed or 0, height=height, width=width)
    if options.root is None:
        raise ValueError(f"--data {options.data} needs --root, the folder with images/ and masks/")
    if options.data == "camvid":
        return load_camvid(options.root, size=options.size)
    if options.classes is None:
        raise ValueError("--data folder needs --classes, a text file with one class name per line")
    return load_folder(
        options.root,
        read_class_names(options.classes),
        name=options.root.resolve().name,
        ignore_index=255 if options.ignore_index is None else options.ignore_index,
        size=options.size,
    )


if __name__ == "__main__":
    sys.exit(main())
