"""Result rows: one JSON object per line, appended whole or not at all, and where they come from (POSIX systems).

The rows of a JSON Lines file are the truth of an experiment; reports are rendered from them and never parsed back.
"""

import contextlib
import fcntl
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import swinx

Row = dict[str, Any]


def append_row(path: Path, row: Row) -> None:
    """Append one row as one line: after a crash at any moment the file holds it whole, or only as a torn last line.

    The line goes out in a single write under an exclusive lock, so that several processes may share a file, and is
    flushed to the disk. A torn last line, left by a writer that was killed, is removed first.

    Raises:
        ValueError: a value is not JSON, or not finite (write None instead).
        OSError: the line could not be written whole; the file is as it was before.
    """
    line = (json.dumps(row, allow_nan=False) + "\n").encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        size = _drop_torn_line(descriptor)
        try:
            written = os.write(descriptor, line)
            if written != len(line):
                raise OSError(f"{path}: only {written} of {len(line)} bytes could be written, is the disk full?")
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)


def _drop_torn_line(descriptor: int) -> int:
    """Cut the file back to the end of its last whole line and return that size. The caller holds the lock."""
    size = os.fstat(descriptor).st_size
    if size == 0 or os.pread(descriptor, 1, size - 1) == b"\n":
        return size
    whole = os.pread(descriptor, size, 0).rfind(b"\n") + 1
    os.ftruncate(descriptor, whole)
    return whole


def read_rows(path: Path) -> list[Row]:
    """The rows of a file, in order; none where there is no file.

    A last line without its line end was torn by an interruption: it is left out, with a warning that says so.

    Raises:
        ValueError: any other line is not a JSON object; the message names the file and the line.
    """
    if not path.exists():
        return []
    *lines, tail = path.read_bytes().split(b"\n")
    if tail:
        warnings.warn(f"{path}: the last line is torn (an interrupted write) and is left out", stacklevel=2)
    rows: list[Row] = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error})") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: expected a JSON object, got {type(row).__name__}")
        rows.append(row)
    return rows


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader finds the old content or the new one, never a part: temporary name, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


def remove_torn(folder: Path) -> None:
    """Remove the temporary files, below folder, of writers that were killed inside write_whole."""
    for path in folder.rglob(".*"):
        if re.fullmatch(r"\..+\.[a-z0-9_]{8}", path.name) and path.is_file():
            path.unlink()


def provenance(device: torch.device) -> Row:
    """What every row carries: commit, dirty, command, time, host, python, torch, swinx.

    commit and dirty are None where this file is not tracked by git. time is UTC, ISO 8601. host names the processor or
    GPU that did the work, and the cores in sight.
    """
    commit, dirty = _git_state(Path(__file__).resolve())
    return {
        "commit": commit,
        "dirty": dirty,
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "time": now(),
        "host": host_name(device),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "swinx": swinx.__version__,
    }


def now() -> str:
    """UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


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
