"""Runs the cells of a comparison into a folder: one row each, finished ones skipped, the report kept up to date."""

import errno
import fcntl
import json
import os
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from experiments import evaluation
from experiments.cell_rows import not_applicable_row
from experiments.cell_run import finish, run_cell
from experiments.cells import Cell, NotApplicable
from experiments.console import say
from experiments.data import SegmentationData
from experiments.models import applicable
from experiments.records import Row, append_row, provenance, read_rows, remove_torn, write_whole
from experiments.report import write_report
from experiments.settings import Settings
from experiments.training import processes

RESULTS = "results.jsonl"
# Written before the first cell trains: its checkpoints must not go on under other settings.
SETTINGS = "settings.json"
SIDES = {"panel", "cells", SETTINGS}
# What an operating system says of a disk that is full, over its quota, read-only or broken.
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}


class CellsFailedError(RuntimeError):
    """Cells ended in an error of their own and have no row; the message counts them."""


# Take a finished row; take a cell that ended in an error of its own.
Collect = Callable[[Row], None]
Fail = Callable[[Cell, BaseException], None]
# Makes the row of a cell in this process, given the origin of the row and whom to tell share done and loss.
Work = Callable[[Cell, Row, Callable[[float, float], None]], Row | None]
# Runs cells, given the origin of their rows.
Launch = Callable[[Sequence[Cell], Row, Collect, Fail], None]


def check_output(output: Path, known: Row, *, trained: bool = True) -> list[Row]:
    """The rows that output holds already; none for a new folder.

    known: the part of Settings.as_row that can be told so far. trained: whether cells are trained, or take the weights
    of cells that were trained elsewhere. Raises ValueError where output is not a folder, was begun with other settings
    or the other way of these two, or holds files that are not of a comparison.
    """
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output: {output} is a file, a folder is needed")
    rows = read_rows(output / RESULTS)
    for row in rows:
        if row.get("kind") != "segmentation":
            raise ValueError(f"--output: {output} holds rows of kind {row.get('kind')!r}, choose another folder")
    begun = [json.loads((output / SETTINGS).read_text())] if (output / SETTINGS).exists() else []
    finished = [("weights_of" not in row) for row in rows if row.get("status") != "not applicable"]
    if any(was is not trained for was in (*finished, *(there.get("trained", True) for there in begun))):
        what = "evaluations of cells trained elsewhere" if trained else "cells that were trained"
        raise ValueError(f"--output: {output} holds {what}, choose another folder")
    for there in (*begun, *rows):
        differing = [
            f"{key} {there.get(key)} there, {value} now" for key, value in known.items() if there.get(key) != value
        ]
        if differing:
            listing = "; ".join(differing)
            raise ValueError(
                f"--output: {output} holds results of another configuration ({listing}), choose another folder"
            )
    if not rows and output.exists():
        # A first cell that was interrupted leaves side files, and rows if any were torn.
        foreign = sorted({path.name for path in output.iterdir() if not path.name.startswith(".")} - {*SIDES, RESULTS})
        if foreign:
            raise ValueError(f"--output: {output} holds other files ({', '.join(foreign[:5])}), choose another folder")
    return rows


def runnable(
    cells: Sequence[Cell],
    missing: Sequence[NotApplicable],
    sizes: Sequence[tuple[int, int]],
    classes: int,
    console: Console,
) -> tuple[list[Cell], list[NotApplicable]]:
    """Cells that can run at every one of these heights and widths in pixels; and those that cannot, after missing.

    Raises:
        ValueError: none can.
    """
    able, unable = list(cells), list(missing)
    with console.status("building every model once"):
        for height, width in dict.fromkeys(sizes):
            able, more = applicable(able, height, width, classes)
            unable += more
    if not able:
        listing = "\n".join(f"  {absent.cell.id}: {absent.rule}" for absent in unable)
        raise ValueError(f"none of these cells can exist:\n{listing}")
    return able, unable


def check_writable(output: Path) -> None:
    """Create the folder and a file in it: raises OSError, naming the path, where that cannot be done."""
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=output):
        pass


def run(
    cells: Sequence[Cell],
    missing: Sequence[NotApplicable],
    data: SegmentationData,
    settings: Settings,
    output: Path,
    console: Console,
    launch: Launch | None = None,
    work: Work | None = None,
) -> list[Row]:
    """Make the row of every cell that output has none for, and write the report after each; returns all rows.

    missing: cells that cannot exist; each gets a row that says why. launch: what runs the cells, by default one after
    another in this process. work: what is done for a cell there, by default training and evaluation. A cell's side
    files are in place before its row, and a row is appended whole: an interruption at any moment loses what a cell did
    since its last checkpoint, where it trains, and nothing else.

    Raises:
        CellsFailedError: after all others have finished, where cells ended in an error.
        ValueError: another run writes into the folder, or check_output says no.
        OSError: the folder cannot be written.
    """
    together = processes()
    # Told before any training: later edits did not train these cells. Where they run elsewhere, this machine need not
    # have their device, and they name their own.
    origin = provenance(torch.device(settings.device if launch is None else "cpu"))
    first = together.rank == 0
    with _locked(output) if first else nullcontext():
        rows = check_output(output, settings.as_row(), trained=work is None)
        done = {row["cell"] for row in rows}
        todo = [cell for cell in cells if cell.id not in done]
        if first:
            remove_torn(output)
            begun = settings.as_row() | ({} if work is None else {"trained": False})
            write_whole(output / SETTINGS, json.dumps(begun, indent=1))
            evaluation.save_data_panel(output, data)
            for cell in cells:
                if cell.id in done:
                    finish(cell.id, output)
                    say(console, f"{_name(cell, cells)}: finished before, skipped")
            for absent in missing:
                if absent.cell.id not in done:
                    rows.append(not_applicable_row(absent, settings, origin))
                    append_row(output / RESULTS, rows[-1])
                say(console, f"{absent.cell.id}: not applicable, {absent.rule}")
        failed: list[Cell] = []

        def collect(row: Row) -> None:
            append_row(output / RESULTS, row)
            rows.append(row)
            finish(row["cell"], output)
            write_report(output)
            _tell(row, cells, console)

        def fail(cell: Cell, error: BaseException) -> None:
            failed.append(cell)
            say(console, f"{_name(cell, cells)}: failed, {type(error).__name__}: {error}", style="bold red")
            say(console, "".join(traceback.format_exception(error)))

        def train(cell: Cell, origin: Row, on_step: Callable[[float, float], None]) -> Row | None:
            return run_cell(cell, data, settings, output, origin, on_step)

        if todo:
            (launch or _here(cells, work or train, console))(todo, origin, collect, fail)
        elif first:
            # Nothing was left to do, but the renderer may be newer than the report.
            write_report(output)
    if failed:
        raise CellsFailedError(
            f"{len(failed)} of {len(cells)} cells failed and have no row; the same command tries them again"
        )
    return rows


def _here(cells: Sequence[Cell], work: Work, console: Console) -> Launch:
    """One cell after another in this process, or in those that torchrun started together."""

    def launch(
        todo: Sequence[Cell],
        origin: Row,
        collect: Collect,
        fail: Fail,
    ) -> None:
        together = processes()
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        for cell in todo:
            with Progress(
                *columns,
                TextColumn("{task.fields[loss]}"),
                console=console,
                transient=True,
                disable=together.rank > 0,
            ) as progress:
                task = progress.add_task(escape(_name(cell, cells)), total=1.0, loss="")

                def show(share: float, loss: float, progress: Progress = progress, task: object = task) -> None:
                    progress.update(task, completed=share, loss=f"loss {loss:.3f}")  # type: ignore[arg-type]  # rich's own id

                try:
                    row = work(cell, origin, show)
                except Exception as error:
                    # A disk that takes no more stops everything. Among several processes the others wait for this one:
                    # torchrun ends or restarts them all.
                    if together.world > 1 or (isinstance(error, OSError) and error.errno in DISK):
                        raise
                    fail(cell, error)
                    continue
            if row is not None:
                collect(row)

    return launch


@contextmanager
def _locked(output: Path) -> Iterator[None]:
    """Holds the folder for one run: two would train the same cells twice."""
    output.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(output / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ValueError(f"--output: another run is writing into {output}") from error
    else:
        yield
    finally:
        os.close(descriptor)


def _name(cell: Cell, cells: Sequence[Cell]) -> str:
    return f"[{list(cells).index(cell) + 1}/{len(cells)}] {cell.id}"


def _tell(row: Row, cells: Sequence[Cell], console: Console) -> None:
    name = next(_name(cell, cells) for cell in cells if cell.id == row["cell"])
    if row["status"] == "ok":
        scores = f"test mIoU {_percent(row['test_miou'])}, val mIoU {_percent(row['val_miou'])}"
        took = f", {row['train_minutes']:.1f} min of training" if "weights_of" not in row else ""
        say(console, f"{name}: {scores}{took}")
    else:
        say(console, f"{name}: {row['error']}", style="bold red")


def _percent(value: float | None) -> str:
    return "none" if value is None else f"{value:.1f} %"
