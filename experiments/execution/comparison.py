"""Makes the runs of a grid in a folder: rows for each, finished ones skipped, the report kept up to date."""

import errno
import json
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape

from experiments.data import SegmentationData
from experiments.execution.runs import Source, execute, finish, not_applicable_row
from experiments.records.files import locked, remove_torn, write_whole
from experiments.records.grid import NotApplicable, Run
from experiments.records.messages import IncompleteError, ended
from experiments.records.results import RESULTS, Row, append_rows, differing, provenance, read_rows, replace_rows
from experiments.records.settings import Settings
from experiments.reporting.examples import save_examples
from experiments.reporting.pages import write_report
from experiments.reporting.tables import number
from experiments.training.models import applicable
from experiments.training.train import processes

# Written before the first run trains: its checkpoints must not go on under other settings.
SETTINGS = "settings.json"
OWN = {"examples", "runs", "data.json", SETTINGS, RESULTS}
# What an operating system says of a disk that is full, over its quota, read-only or broken.
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}
# Seconds between lines about progress where the output is no terminal, and between reports of a grid that goes on.
LINE_SECONDS, REPORT_SECONDS = 30.0, 300.0


OnStep = Callable[[float, float], None]  # share done, loss
# Makes runs elsewhere, given the origin of their rows, and what takes the rows of a run, or its error.
Launch = Callable[[Sequence[Run], Row, Callable[[list[Row]], None], Callable[[Run, BaseException], None]], None]


def command(work: Callable[[Console], tuple[Iterable[Run], list[Row]]], output: Path) -> int:
    """Do the work of a command on a console, and say how it ended; work returns the runs asked for, and all rows.

    Returns the exit status: that of `messages.ended`, and 1 where a run diverged or failed.
    """
    console = Console(quiet=processes().rank > 0)

    def complete() -> int:
        runs, rows = work(console)
        say(console, f"report: {output / 'report.html'}")
        if processes().world > 1:
            return 0  # torchrun would take anything else for a process that broke down, and start it again
        asked = {run.id for run in runs}
        return int(any(row["status"] != "ok" for row in rows if row["run"] in asked))

    return ended(complete, begun=output / SETTINGS, quiet=console.quiet)


def check_output(output: Path, settings: Settings, *, trained: bool = True) -> list[Row]:
    """The rows that output holds already; none for a new folder.

    trained: whether runs are trained, or trained weights re-evaluated. Raises ValueError where output is not a folder,
    was begun with other settings, other files of weights or the other way of these two, or holds files that are not of
    a comparison.
    """
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output must be a folder, got {output}, which is a file")
    rows = read_rows(output / RESULTS)
    for row in rows:
        if row.get("kind") != "segmentation":
            raise ValueError(f"--output: {output} holds rows of kind {row.get('kind')!r}, choose another folder")
    begun = read_settings(output)
    earlier = [begun] if begun else []
    ran = [row for row in rows if row["status"] != "not applicable"]
    if any(there.get("trained", True) is not trained for there in (*ran, *earlier)):
        what = "evaluations of runs trained elsewhere" if trained else "runs that were trained"
        raise ValueError(f"--output: {output} holds {what}, choose another folder")
    # A folder of data may have moved.
    compared = {name: value for name, value in settings.as_row().items() if name != "data"}
    for there in (*earlier, *rows):
        check_settings(output, there, compared)
    for file, now in settings.weights_ids:
        if (old := begun.get("weights_ids", {}).get(file, now)) != now:
            what = f"{file} is not the file that {output} was begun with (SHA-256 {old} there, {now} now)"
            raise ValueError(f"--weights: {what}, choose another folder")
    if not rows and output.exists():
        check_foreign(output, OWN)  # a first run that was interrupted leaves files, and rows if any were torn
    return rows


def read_settings(output: Path) -> Row:
    """What output was begun with; empty where it was not begun. Raises ValueError where the file is damaged."""
    path = output / SETTINGS
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
    if not isinstance(found, dict) or not isinstance(found.get("weights_ids", {}), dict):
        raise ValueError(f"{path}: expected a JSON object of settings")
    return found


def check_settings(output: Path, there: Row, known: Row) -> None:
    """Raise ValueError where a field of known has another value there, in what output was begun with."""
    if listing := differing(there, known):
        raise ValueError(f"--output: {output} was begun with other settings ({listing}), choose another folder")


def check_foreign(output: Path, own: Set[str]) -> None:
    """Raise ValueError where output, a folder, holds files that are neither hidden nor named in own."""
    if foreign := sorted({path.name for path in output.iterdir() if not path.name.startswith(".")} - own):
        raise ValueError(f"--output: {output} holds other files ({', '.join(foreign[:5])}), choose another folder")


def runnable(
    runs: Sequence[Run],
    missing: Sequence[NotApplicable],
    sizes: Sequence[tuple[int, int]],
    classes: int,
    console: Console,
) -> tuple[list[Run], list[NotApplicable]]:
    """Runs that can be made at every one of these heights and widths in pixels; and those that cannot, after missing.

    Raises:
        ValueError: none can.
    """
    with console.status("building every model once"):
        able, unable = applicable(runs, sizes, classes)
    unable = [*missing, *unable]
    if not able:
        listing = "\n".join(f"  {absent.run.id}: {absent.rule}" for absent in unable)
        raise ValueError(f"none of these runs can exist:\n{listing}")
    return able, unable


def make(
    runs: Sequence[Run],
    missing: Sequence[NotApplicable],
    data: SegmentationData,
    settings: Settings,
    output: Path,
    console: Console,
    *,
    launch: Launch | None = None,
    sources: Mapping[Run, Source] | None = None,
    contrasts: Sequence[str] = (),
) -> list[Row]:
    """Make the rows of every run that output has none for, and keep the report up to date; returns all rows.

    missing: runs that cannot exist; each gets a row that says why. Such a row of an earlier command goes where it holds
    no longer, and its run is made. launch: what makes the runs, by default one after another in this process. sources:
    trained weights that are evaluated as each run, here and instead of training. contrasts: those planned, for the
    report. A run's files are in place before its rows, and these are appended at once: an interruption at any moment
    loses what a run did since its last checkpoint, where it trains, and nothing else.

    Raises:
        IncompleteError: after all others have finished, where runs ended in an error.
        ValueError: another run writes into the folder, or check_output says no.
        OSError: the folder cannot be written.
    """
    first = processes().rank == 0
    # Read before any training: later edits did not train these runs. Where they are made elsewhere, this machine need
    # not have their device, and they name their own.
    origin = provenance(torch.device(settings.device if launch is None else "cpu"))
    with locked(output) if first else nullcontext():
        rows = check_output(output, settings, trained=sources is None)
        # Rows of runs that were found not applicable before, and are not now, or by another rule.
        rules = {run.id: None for run in runs} | {absent.run.id: absent.rule for absent in missing}
        old = [
            row["status"] == "not applicable" and rules.get(row["run"], row["error"]) != row["error"] for row in rows
        ]
        rows = [row for row, is_old in zip(rows, old, strict=True) if not is_old]
        done = {row["run"] for row in rows}
        todo = [run for run in runs if run.id not in done]
        if first:
            remove_torn(output)
            begun = settings.as_row() | ({} if sources is None else {"trained": False})
            begun["weights_ids"] = read_settings(output).get("weights_ids", {}) | dict(settings.weights_ids)
            write_whole(output / SETTINGS, json.dumps(begun, indent=1))
            save_examples(output, data)
            if any(old):
                replace_rows(output / RESULTS, rows)
            for run in runs:
                if run.id in done:
                    finish(run.id, output)
                    say(console, f"{_name(run, runs)}: finished before, skipped")
            for absent in missing:
                if absent.run.id not in done:
                    rows.append(not_applicable_row(absent, settings, origin))
                    append_rows(output / RESULTS, rows[-1:])
                say(console, f"{absent.run.id}: not applicable, {absent.rule}")
        failed: list[Run] = []
        reported = time.monotonic()

        def collect(made: list[Row]) -> None:
            nonlocal reported
            append_rows(output / RESULTS, made)
            rows.extend(made)
            finish(made[-1]["run"], output)
            _say_result(made[-1], runs, console)
            if time.monotonic() - reported > REPORT_SECONDS:
                try:
                    write_report(output, contrasts)
                except Exception as error:  # it is written once more at the end, where errors are not caught
                    say(console, f"no report yet: {type(error).__name__}: {error}", style="bold red")
                reported = time.monotonic()

        def fail(run: Run, error: BaseException) -> None:
            failed.append(run)
            say(console, f"{_name(run, runs)}: failed, {type(error).__name__}: {error}", style="bold red")
            say(console, "".join(traceback.format_exception(error)))

        try:
            if todo and launch is not None:
                launch(todo, origin, collect, fail)
            for run in todo if launch is None else ():
                with progress(_name(run, runs), console) as on_step:
                    try:
                        made = execute(run, data, settings, output, origin, on_step, trained=(sources or {}).get(run))
                    except Exception as error:
                        # A disk that takes no more stops everything. Among several processes the others wait for this
                        # one: torchrun ends or restarts them all.
                        if processes().world > 1 or (isinstance(error, OSError) and error.errno in DISK):
                            raise
                        fail(run, error)
                        continue
                if made:
                    collect(made)
        finally:
            # Also where nothing was left to do: contrasts or the renderer may be newer than the report.
            if first and rows:
                write_report(output, contrasts)
    if failed:
        count = f"{len(failed)} of {len(runs)} runs"
        raise IncompleteError(f"{count} failed and have no row; the same command tries them again")
    return rows


@contextmanager
def progress(name: str, console: Console) -> Iterator[OnStep]:
    """Shows how far a run is: in place in a terminal, elsewhere by a line every LINE_SECONDS."""
    start = last = time.monotonic()
    begun: float | None = None

    def show(share: float, loss: float) -> None:
        nonlocal last, begun
        begun = share if begun is None else begun  # a resumed run does not begin at 0
        now = time.monotonic()
        if share > begun and (console.is_terminal or now - last >= LINE_SECONDS):
            left = (now - start) / (share - begun) * (1 - share) / 60
            line = f"{name}: {100 * share:.0f} % trained, loss {loss:.3f}, {left:.1f} min of training left"
            if console.is_terminal:
                status.update(escape(line))
            else:
                say(console, line)
            last = now

    with console.status(escape(name)) as status:
        yield show


def say(console: Console, line: str, style: str | None = None) -> None:
    """One line as it is: names of runs look like markup, and a log must not be wrapped."""
    console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)


def _name(run: Run, runs: Sequence[Run]) -> str:
    return f"[{list(runs).index(run) + 1}/{len(runs)}] {run.id}"


def _say_result(row: Row, runs: Sequence[Run], console: Console) -> None:
    name = next(_name(run, runs) for run in runs if run.id == row["run"])
    if row["status"] != "ok":
        say(console, f"{name}: {row['error']}", style="bold red")
        return
    scores = ", ".join(f"{split} mIoU {number(row[f'{split}_miou'])} %" for split in ("test", "val"))
    took = f", {row['train_minutes']:.1f} min of training" if row["train_minutes"] is not None else ""
    say(console, f"{name}: {scores}{took}")
