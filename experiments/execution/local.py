"""The runs of a grid as processes of this machine, several at a time.

On the CPU a small network keeps one core busy and gains little from a second one: two runs beside each other are done
sooner than one after the other.
"""

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

import torch
from rich.console import Console

from experiments.data import SegmentationData
from experiments.execution import comparison, runs
from experiments.records.files import locked
from experiments.records.grid import Run
from experiments.records.options import Settings
from experiments.records.results import Row

# For a process of an earlier command, whose command was killed, to notice that: it holds its run.
LOCK_SECONDS = 120.0


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_in_processes(
    todo: Sequence[Run],
    origin: Row,
    collect: Callable[[list[Row]], None],
    fail: Callable[[Run, BaseException], None],
    *,
    data: SegmentationData,
    settings: Settings,
    output: Path,
    name: Callable[[Run], str],
    jobs: int,
) -> None:
    """Make the rows of every run, at most so many jobs at a time, which share the cores.

    data: each process holds a copy. name: what lines about progress call a run. fail gets what a run raised, or
    RuntimeError where its process was killed, and the others go on. What collect or fail raise, and Ctrl-C, ends all
    processes and passes through.
    """
    context = multiprocessing.get_context("spawn")
    waiting = list(reversed(todo))
    running: dict[Connection, tuple[Run, SpawnProcess]] = {}
    threads = max(1, cores() // jobs)  # whatever is left to do: a resumed run needs as many as before
    common = (pickle.dumps(data), settings, output, origin, threads, runs.SITTING, os.getpid())
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                run = waiting.pop()
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_make, args=(sender, run, name(run), *common))
                process.start()
                sender.close()  # else the pipe would stay open when the process ends
                running[receiver] = run, process
            for receiver in wait(list(running)):
                run, process = running[receiver]
                try:
                    made = receiver.recv()
                except EOFError:
                    process.join()
                    made = RuntimeError(f"its process ended with exit code {process.exitcode}")
                process.join()
                del running[receiver]
                if isinstance(made, BaseException):
                    fail(run, made)
                else:
                    collect(made)
    finally:
        for _, process in running.values():
            process.kill()
            process.join()


def _make(
    sender: Connection,
    run: Run,
    name: str,
    data: bytes,
    settings: Settings,
    output: Path,
    origin: Row,
    threads: int,
    sitting: str,
    parent: int,
) -> None:
    """Execute a run in a process of its own and send its rows, or what it raised."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the command, which ends this process
    torch.set_num_threads(threads)
    runs.SITTING = sitting
    console = Console(force_terminal=False)  # several processes write: whole lines only

    def on_step(share: float, loss: float) -> None:
        if os.getppid() != parent:
            sys.exit("the command has ended")
        show(share, loss)

    try:
        with (
            locked(output / "runs" / run.id, wait=LOCK_SECONDS),
            comparison.progress(name, console) as show,
        ):
            made: list[Row] | Exception = runs.execute(run, pickle.loads(data), settings, output, origin, on_step)
    except Exception as error:
        # Not every exception survives the way; an OSError does, and its errno counts.
        made = error if isinstance(error, OSError) else RuntimeError(f"{type(error).__name__}: {error}")
        made.add_note("".join(traceback.format_exception(error)))
    with contextlib.suppress(BrokenPipeError):
        sender.send(made)
