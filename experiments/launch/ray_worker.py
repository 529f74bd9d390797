"""What a Ray task does: one cell, in the output folder itself where the machine sees it, otherwise in a folder of its
own, from which the files go back with the row."""

import errno
import fcntl
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from experiments.cell_run import run_cell
from experiments.cells import Cell
from experiments.launch.stored import StoredData
from experiments.records import Row, host_name
from experiments.settings import Settings
from experiments.training import CHECKPOINT

# An execution whose machine was given up by Ray ends within about a minute, when it notices that Ray is gone.
LOCK_SECONDS = 600.0
LOCK_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Token:
    """A file of unguessable name and content in the output folder: who can read it sees the same folder."""

    path: Path
    content: str

    def visible(self) -> bool:
        """Whether this machine sees the folder of the command, and not one of the same name."""
        try:
            return self.path.read_text() == self.content
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return False


@dataclass(frozen=True)
class Job:
    """What all tasks of a run share. output is absolute; origin is the provenance of the command; threads is torch's
    number for each task."""

    settings: Settings
    output: Path
    token: Token
    origin: Row
    threads: int


@dataclass(frozen=True)
class Result:
    """What a task hands back.

    files: content by path below output/cells where the task worked in a folder of its own, None where it worked in the
    output folder. machine: the name of the machine.
    """

    row: Row
    files: dict[str, bytes] | None
    machine: str


def execute(cell: Cell, stored: StoredData, job: Job) -> Result:
    """Run one cell in this process; what run_cell raises passes through.

    The row tells the host, Python and torch of this process; the rest of its origin is the command's.
    """
    torch.set_num_threads(job.threads)
    data = stored.load()
    here = {
        "host": host_name(torch.device(job.settings.device)),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }

    def run(output: Path) -> Row:
        row = run_cell(cell, data, job.settings, output, {**job.origin, **here})
        assert row is not None  # this process trains alone
        return row

    if job.token.visible():
        with only_execution(lock_file(job.output, cell.id)):
            return Result(run(job.output), None, platform.node())
    with tempfile.TemporaryDirectory(prefix="cell-") as folder:
        row = run(Path(folder))
        return Result(row, _files(Path(folder) / "cells"), platform.node())


def lock_file(output: Path, cell_id: str) -> Path:
    """The file that an execution of a cell holds locked; the command removes it when it has the row."""
    return output / "cells" / cell_id / ".lock"


@contextmanager
def only_execution(path: Path) -> Iterator[None]:
    """Hold the lock of a cell, after waiting for an execution that Ray has given up but that is still alive.

    Such a one may go on for a while on a machine that lost its connection to Ray and sees the output folder still. The
    system gives a lock back when its process ends, however it ends.

    Raises:
        TimeoutError: another process held the lock for LOCK_SECONDS.
        RuntimeError: another execution has finished the cell, so that the command has removed the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        deadline = time.monotonic() + LOCK_SECONDS
        while not _locked(descriptor):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{path} is locked by another execution of the cell, for {LOCK_SECONDS:.0f} s now")
            time.sleep(LOCK_POLL_SECONDS)
        if not _is(descriptor, path):
            raise RuntimeError(f"{path} is gone: another execution has finished the cell")
        yield
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    """Try to lock a file for this process alone; whether that worked."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def _is(descriptor: int, path: Path) -> bool:
    """Whether an open file is still the one at path."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _files(folder: Path) -> dict[str, bytes]:
    """Every file below folder but the state of training, which is of no use to anybody any more."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != CHECKPOINT)
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}
