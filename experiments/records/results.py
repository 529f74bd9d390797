"""Rows of results: one JSON object per line, appended whole or not at all, checked when read, and where they come from.

The rows of a JSON Lines file are the truth of an experiment; reports are rendered from them and never parsed back.
A file may come from a stranger: what becomes a path must be a plain name, and every field that is used has its type.
"""

import contextlib
import fcntl
import json
import os
import platform
import shlex
import subprocess
import sys
import warnings
from collections.abc import Sequence
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy
import segmentation_models_pytorch as smp
import timm
import torch

import swinx
from experiments.records.files import PLAIN_NAME, write_whole
from experiments.records.grid import Run
from experiments.records.options import Inference, Recipe

Row = dict[str, Any]

RESULTS = "results.jsonl"
STATUSES = ("ok", "diverged", "not applicable")
# Fields of a row that hold a number or None: percentages, costs and what training used. A new score is named here,
# computed in evaluation.metrics, put into rows by execution.runs.measure, and shown by reporting.tables.COLUMNS.
PERCENTAGES = ("test_miou", "val_miou", "thin_miou", "test_f1", "pixel_accuracy", "ece")
SCORES = (
    *PERCENTAGES,
    *("params_m", "gflops", "latency_ms_p20", "latency_ms_p50", "latency_ms_p80", "peak_memory_mb"),
    *("images_seen", "train_minutes"),
)
# The largest number in a row or a curve; plots overflow with much larger ones.
MOST = 10**15
# Fields that hold an object of percentages or None.
TABLES = ("class_iou", "boundary_f1", "thin_boundary_f1", "corruption_miou")
BUDGET = ("steps", "batch_size", "precision")
RECIPE = (*(part.name for kind in (Recipe, Inference) for part in fields(kind)), "start", "score_at")
# What makes another configuration where it differs. The rest of Settings is of the data, or changes no score.
SETTINGS = (*BUDGET, *(name for name in RECIPE if name != "validate_every"))
# None in a row that has no results.
RESULT_FIELDS = (*SCORES, *TABLES, "latency_sitting")


def append_rows(path: Path, rows: Sequence[Row]) -> None:
    """Append rows, each as one line: after a crash at any moment the file holds all of them, or a torn last line.

    The lines go out in a single write under an exclusive lock, so that several processes may share a file, and are
    flushed to the disk. A torn last line, left by a writer that was killed, is removed first.

    Raises:
        ValueError: a value is not JSON, or not finite (write None instead).
        OSError: the lines could not be written whole; the file is as it was before.
    """
    lines = _lines(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        size = _drop_torn_line(descriptor)
        try:
            written = os.write(descriptor, lines)
            if written != len(lines):
                raise OSError(f"{path}: only {written} of {len(lines)} bytes could be written, is the disk full?")
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)


def replace_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write rows in the place of those of a file, all or none; errors as append_rows. One writer holds the folder."""
    write_whole(path, _lines(rows))


def _lines(rows: Sequence[Row]) -> bytes:
    return "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode()


def _drop_torn_line(descriptor: int) -> int:
    """Cut the file back to the end of its last whole line and return that size. The caller holds the lock."""
    size = os.fstat(descriptor).st_size
    if size == 0 or os.pread(descriptor, 1, size - 1) == b"\n":
        return size
    whole = os.pread(descriptor, size, 0).rfind(b"\n") + 1
    os.ftruncate(descriptor, whole)
    return whole


def read_rows(path: Path) -> list[Row]:
    """The rows of a file, in order; none where there is no file. Those of kind "segmentation" are checked.

    A last line without its line end was torn by an interruption: it is left out, with a warning that says so.

    Raises:
        ValueError: a line is not a JSON object, a field has the wrong type, a name is not plain, or two rows are of the
            same run, step and inference; the message names the file and the line.
    """
    if not path.exists():
        return []
    *lines, tail = path.read_bytes().split(b"\n")
    if tail:
        warnings.warn(f"{path}: the last line is torn (an interrupted write) and is left out", stacklevel=2)
    rows: list[Row] = []
    seen: dict[tuple[object, ...], int] = {}
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error})") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: expected a JSON object, got {type(row).__name__}")
        if row.get("kind") == "segmentation":
            try:
                check_row(row)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
            first = seen.setdefault(identity(row), number)
            if first != number:
                raise ValueError(
                    f"{path}, line {number}: {row['run']} at step {row['step']} is in line {first} already"
                )
        rows.append(row)
    return rows


def runs_in(folder: Path) -> list[Row]:
    """The rows of runs in a folder, in order; raises ValueError as read_rows does."""
    return [row for row in read_rows(folder / RESULTS) if row.get("kind") == "segmentation"]


def differing(there: Row, now: Row) -> str:
    """The fields of now that have another value there, in words; empty where none has."""
    return "; ".join(f"{key} {there.get(key)} there, {now[key]} now" for key in now if there.get(key) != now[key])


def run_of(row: Row) -> Run:
    """The run that a row is about; raises ValueError where the row is of none."""
    if lacking := [part.name for part in fields(Run) if part.name not in row]:
        raise ValueError(f"a row lacks {', '.join(lacking)}")
    return Run(**{part.name: row[part.name] for part in fields(Run)})


def settings_of(row: Row) -> Row:
    """SETTINGS of a row, but for those that it lacks, as an earlier version wrote it, or that mean nothing there."""
    without = () if row.get("tile") else ("overlap",)
    return {name: row[name] for name in SETTINGS if name in row and name not in without}


def identity(row: Row) -> tuple[object, ...]:
    """What no two rows of a file share: run, step, settings, and whose weights it was."""
    source = row.get("source") or {}
    return *configuration_of(row), source.get("run"), source.get("time")


def configuration_of(row: Row) -> tuple[object, ...]:
    """Run, step and settings of a row."""
    return row["run"], row.get("step"), json.dumps(settings_of(row))


def check_row(row: Row) -> None:
    """Raise ValueError, naming field, rule and value, where a row of kind "segmentation" cannot be used."""
    run = run_of(row)
    _check(row, "run", row.get("run") == run.id and _is_plain(run.id), "the plain name of its run")
    _check(row, "data_id", isinstance(row.get("data_id"), str), "text")
    step = row.get("step")
    _check(row, "step", step is None or _whole(step, 0), "a whole number from 0, or null")
    size = row.get("world_size")
    _check(row, "world_size", size is None or _whole(size, 1), "a whole number from 1, or null")
    _check(row, "status", row.get("status") in STATUSES, f"one of {', '.join(STATUSES)}")
    for name in SCORES:
        most = 100 if name in PERCENTAGES else MOST
        _check(row, name, _number(row.get(name), most), f"a number of 0 to {most:g}, or null")
    for name in TABLES:
        value = row.get(name)
        good = value is None or (isinstance(value, dict) and all(_number(part, 100) for part in value.values()))
        _check(row, name, good, "an object of numbers of 0 to 100, or null")
    _check(row, "weights_id", isinstance(row.get("weights_id"), str | None), "text or null")
    _check(row, "time", isinstance(row.get("time"), str | None), "text or null")
    trained, source = row.get("trained", True), row.get("source")
    good = trained is True or (trained is False and source is not None)
    _check(row, "trained", good, "true, or false in a row with a source")
    while source is not None:
        good = isinstance(source, dict) and _is_plain(source.get("run")) and isinstance(source.get("time"), str | None)
        _check(row, "source", good, "an object with the plain name of a run, and its time as text, or null")
        source = source.get("source")


def _check(row: Row, name: str, good: bool, rule: str) -> None:
    if not good:
        raise ValueError(f"{name} must be {rule}, got {str(row.get(name))[:80]!r}")


def _is_plain(value: object) -> bool:
    return isinstance(value, str) and PLAIN_NAME.fullmatch(value) is not None


def _whole(value: object, least: int) -> bool:
    return type(value) is int and least <= value <= MOST


def _number(value: object, most: float) -> bool:
    return value is None or (type(value) in (int, float) and 0 <= value <= most)  # type: ignore[operator]


def provenance(device: torch.device) -> Row:
    """What every row carries: the code, the command, the machine and the versions.

    commit and dirty are None where this file is not tracked by git. time is UTC, ISO 8601. host names the processor or
    GPU that did the work, and the cores in sight; cpu_capability is the instruction set that torch uses: scores differ
    in the last bits between them.
    """
    commit, dirty = _git_state(Path(__file__).resolve())
    return {
        "commit": commit,
        "dirty": dirty,
        "command": _command(),
        "time": now(),
        **machine(device),
    }


def _command() -> str:
    """What was typed to start this process, or all processes of torchrun."""
    words = sys.orig_argv[1:]
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return shlex.join(["python", *words])
    sizes = {"--nnodes": "GROUP_WORLD_SIZE", "--nproc-per-node": "LOCAL_WORLD_SIZE"}
    given = [f"{option}={os.environ[name]}" for option, name in sizes.items() if name in os.environ]
    return shlex.join(["torchrun", *given, *(words[1:] if words[:1] == ["-u"] else words)])


def machine(device: torch.device) -> Row:
    """The part of provenance() that is this machine's."""
    return {
        "host": host_name(device),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "smp": smp.__version__,
        "timm": timm.__version__,
        "numpy": numpy.__version__,
        "swinx": swinx.__version__,
    }


def now() -> str:
    """UTC, ISO 8601, to the millisecond: with its name it tells a run from all others."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def host_name(device: torch.device) -> str:
    """Name of the GPU or processor, with the cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor_name()
    return f"{name}, {cores} CPU cores"


def _processor_name() -> str:
    """Marketing name of the processor where Linux tells it, otherwise the architecture."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _git_state(here: Path) -> tuple[str | None, bool | None]:
    """Commit of the checkout that tracks a file, and whether it has uncommitted changes; (None, None) otherwise."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    try:
        # An installed copy may lie inside some other project's checkout, whose commit says nothing about this code.
        git("ls-files", "--error-unmatch", here.name)
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain"))
    except (OSError, subprocess.SubprocessError):
        return None, None
