"""Runs the cells of a comparison into a folder: one row each, finished ones skipped, the report kept up to date."""

import hashlib
import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from experiments import evaluation
from experiments.cells import Cell, build_model, refuse
from experiments.data import SegmentationData
from experiments.records import Row, append_row, now, provenance, read_rows, write_whole
from experiments.report import write_report
from experiments.report.tables import COST, SPREAD
from experiments.training import Budget, NonFiniteLossError, Segmenter, Training, fit

RESULTS = "results.jsonl"
SIDE_FOLDERS = {"panel", "cells"}
# Points kept of a loss curve, so that a long run does not swell the report.
CURVE_POINTS = 500


@dataclass(frozen=True)
class Settings:
    """What all cells of one folder share; it is part of every row, and rows that differ in it do not mix.

    data_id is a digest of the pixels and masks. height and width are those of the images. One of steps and minutes is
    None. precision is 32, bf16 or 16; device cpu or cuda.
    """

    data: str
    data_id: str
    height: int
    width: int
    steps: int | None
    minutes: float | None
    batch_size: int
    precision: str
    device: str


def data_id(data: SegmentationData) -> str:
    """Digest of classes, images and masks: equal for equal data, wherever it came from."""
    digest = hashlib.sha256()
    digest.update(repr((data.class_names, data.ignore_index, data.thin_classes)).encode())
    for split in (data.train, data.val, data.test):
        for tensor in (split.images, split.masks):
            digest.update(str(tuple(tensor.shape)).encode())
            digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()[:12]


def check_output(output: Path, known: dict[str, Any]) -> list[Row]:
    """The rows that output holds already; none for a new folder.

    known: the part of Settings, by name, that can be told so far. Raises ValueError where output is not a folder, holds
    rows of other settings, or holds files that are not of a comparison.
    """
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output: {output} is a file, a folder is needed")
    rows = read_rows(output / RESULTS)
    for row in rows:
        if row.get("kind") != "segmentation":
            raise ValueError(f"--output: {output} holds rows of kind {row.get('kind')!r}, choose another folder")
        differing = [
            f"{key} {row.get(key)} there, {value} now" for key, value in known.items() if row.get(key) != value
        ]
        if differing:
            listing = "; ".join(differing)
            raise ValueError(
                f"--output: {output} holds results of another configuration ({listing}), choose another folder"
            )
    if not rows and output.exists():
        # A first cell that was interrupted leaves side folders, and rows if any were torn.
        foreign = sorted(
            {path.name for path in output.iterdir() if not path.name.startswith(".")} - {*SIDE_FOLDERS, RESULTS}
        )
        if foreign:
            raise ValueError(f"--output: {output} holds other files ({', '.join(foreign[:5])}), choose another folder")
    return rows


def check_writable(output: Path) -> None:
    """Create the folder and a file in it: raises OSError, naming the path, where that cannot be done."""
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=output):
        pass


def check_models(cells: Sequence[Cell], data: SegmentationData) -> None:
    """Build every model once and run it on one blank image: raises ValueError listing the cells that fail, and why."""
    image = data.test.images[:1].new_zeros(1, *data.test.images.shape[1:])
    failures: dict[str, str] = {}
    tried: set[tuple[Any, ...]] = set()
    for cell in cells:
        key = (cell.encoder, cell.stem, cell.decoder, cell.output_stride)
        if key in tried:
            continue
        tried.add(key)
        try:
            with torch.inference_mode():
                Segmenter(build_model(cell, len(data.class_names))).eval()(image)
        except Exception as error:
            # Encoders of other libraries fail in their own ways; all that matters here is that they do, and the words.
            failures[cell.id] = f"{cell.id}: {type(error).__name__}: {error}"
    refuse(list(failures.values()))


def run(cells: Sequence[Cell], data: SegmentationData, settings: Settings, output: Path, console: Console) -> list[Row]:
    """Train and evaluate every cell that output has no row for, and write the report after each; returns all rows.

    A cell's side files are in place before its row, and a row is appended whole: an interruption at any moment loses
    the cell in progress and nothing else.
    """
    origin = provenance(torch.device(settings.device))  # before any training: later edits did not train these cells
    rows = check_output(output, asdict(settings))
    done = {row["cell"] for row in rows}
    todo = [cell for cell in cells if cell.id not in done]
    evaluation.save_data_panel(output, data)
    for number, cell in enumerate(cells, start=1):
        name = f"[{number}/{len(cells)}] {cell.id}"
        if cell not in todo:
            _say(console, f"{name}: finished before, skipped")
            continue
        row = {**run_cell(cell, data, settings, output, name, console), **origin, "time": now()}
        append_row(output / RESULTS, row)
        rows.append(row)
        write_report(output)
        if row["status"] == "ok":
            scores = f"test mIoU {_percent(row['test_miou'])}, val mIoU {_percent(row['val_miou'])}"
            _say(console, f"{name}: {scores}, {row['train_minutes']:.1f} min of training")
        else:
            _say(console, f"{name}: {row['error']}", style="bold red")
    if not todo:
        # Nothing was left to do, but the renderer may be newer than the report.
        write_report(output)
    return rows


def run_cell(cell: Cell, data: SegmentationData, settings: Settings, output: Path, name: str, console: Console) -> Row:
    """Train and evaluate one cell, write its side files and return its row but for where it comes from.

    status is "ok", or "diverged" where the loss stopped being finite; then error says so and the results are None.
    """
    device = torch.device(settings.device)
    memory = evaluation.PeakMemory(device)
    torch.manual_seed(cell.seed)
    model = Segmenter(build_model(cell, len(data.class_names))).to(device)
    results: Row = {"status": "ok", "error": None, **dict.fromkeys(RESULT_FIELDS)}
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("loss {task.fields[loss]:.3f}"), console=console, transient=True) as progress:
        task = progress.add_task(escape(name), total=1.0, loss=math.nan)
        try:
            training = fit(
                model,
                data,
                Budget(settings.steps, settings.minutes),
                batch_size=settings.batch_size,
                seed=cell.seed,
                device=device,
                precision=settings.precision,
                on_step=lambda share, loss: progress.update(task, completed=share, loss=loss),
            )
        except NonFiniteLossError as error:
            results |= {"status": "diverged", "error": str(error)}
        else:
            model.to(device)
            results |= _measure(model, data, settings, device, training)
            results |= {"peak_memory_mb": round(memory.megabytes(), 1), "peak_memory_scope": memory.scope}
            evaluation.save_predictions(output, cell.id, model, data, device, settings.precision)
            write_whole(output / "cells" / f"{cell.id}.json", json.dumps(loss_curve(training.losses)))
    return {
        "kind": "segmentation",
        "cell": cell.id,
        **asdict(cell),
        **asdict(settings),
        "threads": torch.get_num_threads(),
        **results,
    }


RESULT_FIELDS = (*SPREAD, "class_iou", *COST, "peak_memory_scope")


def _measure(
    model: Segmenter, data: SegmentationData, settings: Settings, device: torch.device, training: Training
) -> Row:
    """Accuracy and cost of a trained model, by the names of RESULT_FIELDS."""
    classes = len(data.class_names)
    common: dict[str, Any] = {"batch_size": settings.batch_size, "device": device, "precision": settings.precision}
    common["thin_classes"] = data.thin_classes
    val = evaluation.evaluate(model, data.val, classes, data.ignore_index, **common)
    test = evaluation.evaluate(model, data.test, classes, data.ignore_index, **common)
    image = data.test.images[:1].to(device)
    p20, p50, p80 = evaluation.latency(model, image, settings.precision)
    return {
        "images_seen": training.images_seen,
        "train_minutes": round(training.minutes, 3),
        "val_miou": _rounded(val.miou),
        "test_miou": _rounded(test.miou),
        "thin_miou": _rounded(test.thin_miou),
        "class_iou": {name: _rounded(iou) for name, iou in zip(data.class_names, test.class_iou, strict=True)},
        "pixel_accuracy": _rounded(test.pixel_accuracy),
        "params_m": round(evaluation.parameters(model) / 1e6, 4),
        "gflops": round(evaluation.flops(model, image) / 1e9, 4),
        "latency_ms_p20": round(p20, 3),
        "latency_ms_p50": round(p50, 3),
        "latency_ms_p80": round(p80, 3),
    }


def loss_curve(losses: Sequence[float]) -> dict[str, list[float]]:
    """At most CURVE_POINTS means of neighbouring losses, each with its middle step, counted from 1."""
    width = max(1, -(-len(losses) // CURVE_POINTS))
    chunks = [losses[i : i + width] for i in range(0, len(losses), width)]
    steps = [i * width + (len(chunk) + 1) / 2 for i, chunk in enumerate(chunks)]
    return {"step": steps, "loss": [round(sum(chunk) / len(chunk), 5) for chunk in chunks]}


def _say(console: Console, line: str, style: str | None = None) -> None:
    """One line as it is: names of cells look like markup, and a log must not be wrapped."""
    console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _percent(value: float | None) -> str:
    return "none" if value is None else f"{value:.1f} %"
