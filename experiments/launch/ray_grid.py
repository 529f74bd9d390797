"""The cells of a comparison as tasks of a Ray on this machine or on many. Only this file knows Ray."""

import contextlib
import importlib
import logging
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import experiments
import swinx
from experiments.cells import Cell
from experiments.data import SegmentationData
from experiments.launch.ray_worker import Job, Result, Token, execute, lock_file
from experiments.launch.stored import StoredData
from experiments.records import Row, write_whole
from experiments.settings import Settings

# How long a port may take to answer, and a Ray behind it to say that it is well.
PORT_SECONDS, HEALTH_SECONDS = 5.0, 15.0
# How often the machines are looked at while no cell ends.
WATCH_SECONDS = 5.0
# How long a cell may take to stop after Ctrl-C before its process is killed.
GRACE_SECONDS = 10.0


@dataclass(frozen=True)
class RayResources:
    """Where Ray runs the cells and what each may use; raises ValueError where a number or the address cannot be."""

    address: str | None = None
    """host:port of a Ray that this machine is a node of, auto for the one running here, ray://host:port from outside;
    none given: one is started on this machine for the time of the run"""
    cpus: float = 1
    """CPU cores of each cell"""
    gpus: float = 0
    """GPUs of each cell; 0.5 trains two cells on one GPU"""
    retries: int = 3
    """how often a cell is tried again when its machine or process died"""

    def __post_init__(self) -> None:
        if self.cpus <= 0:
            raise ValueError(f"--ray.cpus must be more than 0, got {self.cpus:g}")
        if self.gpus < 0 or (self.gpus > 1 and self.gpus != int(self.gpus)):
            raise ValueError(f"--ray.gpus must be a part of one GPU or a whole number, got {self.gpus:g}")
        if self.retries < 0:
            raise ValueError(f"--ray.retries must not be negative, got {self.retries}")
        if self.address not in (None, "auto"):
            _endpoint(self.address)


def check_ray(resources: RayResources, device: str) -> None:
    """Everything about Ray that can be refused before any training.

    Raises:
        ImportError: Ray is not installed; the message names the extra.
        ValueError: resources do not fit the device, cpu or cuda, that the cells train on.
        ConnectionError: no Ray answers at the address; known after PORT_SECONDS + HEALTH_SECONDS at most.
    """
    _import_ray(resources)
    if device == "cuda" and resources.gpus == 0:
        raise ValueError("--ray.gpus must be more than 0 for --device cuda, got 0: a cell sees the GPUs it asks for")
    if device == "cpu" and resources.gpus > 0:
        raise ValueError(f"--ray.gpus must be 0 for --device cpu, got {resources.gpus:g}")
    if resources.address not in (None, "auto"):
        _check_reachable(resources.address)


def run_on_ray(
    todo: Sequence[Cell],
    data: SegmentationData,
    settings: Settings,
    output: Path,
    origin: Row,
    *,
    collect: Callable[[Row], None],
    fail: Callable[[Cell, BaseException], None],
    say: Callable[[str], None],
    resources: RayResources,
) -> None:
    """Train and evaluate every cell of todo, each as one Ray task; collect its row as it comes.

    The code of this checkout and the data travel to the machines, which need nothing but the same Python environment.
    Where a machine sees output, a cell works right in it, and a cell whose machine died continues from its checkpoint;
    elsewhere its files come back with the row and are written before the row is collected. A cell may be executed more
    than once, its row is collected once.

    fail gets what a cell raised, or Ray's error where retries are used up, and the other cells go on. Whatever collect
    or fail raise, and Ctrl-C, ends the tasks that still run and passes through. A Ray that was started here ends here.

    Raises:
        ImportError, ValueError, ConnectionError: see check_ray; ValueError too where no cell fits on this machine.
        OSError: a file could not be written here.
    """
    check_ray(resources, settings.device)
    ray = _import_ray(resources)
    with _connection(ray, resources), _token(output) as token:
        nodes = _Nodes(ray, resources, say)
        nodes.watch()
        job = Job(settings, output.resolve(), token, origin, threads=max(1, int(resources.cpus)))
        task = ray.remote(
            num_cpus=resources.cpus, num_gpus=resources.gpus, max_retries=resources.retries, retry_exceptions=False
        )(execute)
        stored = ray.put(StoredData.of(data))
        running: dict[Any, Cell] = {}
        apart: set[str] = set()
        try:
            for cell in todo:
                running[task.options(name=cell.id).remote(cell, stored, job)] = cell
            for cell, outcome in _outcomes(ray, running, nodes):
                if isinstance(outcome, BaseException):
                    fail(cell, outcome)
                    continue
                if outcome.files is not None and outcome.machine not in apart:
                    apart.add(outcome.machine)
                    say(f"{outcome.machine} does not see {output}: files of its cells come back with their rows")
                for name, content in (outcome.files or {}).items():
                    write_whole(output / "cells" / name, content)
                lock_file(output, cell.id).unlink(missing_ok=True)
                collect(outcome.row)
        except BaseException:
            _cancel(ray, list(running))
            raise


def _outcomes(ray: Any, running: dict[Any, Cell], nodes: "_Nodes") -> Iterator[tuple[Cell, Result | BaseException]]:
    """What came of each task, in the order in which they end, and taken out of running then."""
    while running:
        done, _ = ray.wait(list(running), timeout=WATCH_SECONDS)
        nodes.watch()
        for reference in done:
            cell = running.pop(reference)
            try:
                outcome: Result | BaseException = ray.get(reference)
            except ray.exceptions.RayError as error:
                outcome = _cause(error)
            yield cell, outcome


def _import_ray(resources: RayResources) -> Any:
    # Ray reads these once, when it is imported. Of itself it tells its makers about each cluster, and tries a task that
    # was killed for want of memory again without end.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_task_oom_retries", str(resources.retries))
    try:
        return importlib.import_module("ray")
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise ImportError('Ray is not installed; it comes with the extra ray: pip install -e ".[ray]"') from error


def _endpoint(address: str) -> tuple[str, int]:
    """Host and port of an address; raises ValueError where it has none."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"--ray.address must be host:port, ray://host:port or auto, got {address!r}")
    return host, int(port)


def _check_reachable(address: str) -> None:
    """Raise ConnectionError where no Ray answers: Ray itself would try for minutes, and end the process then."""
    advice = "start one with `ray start --head --port=6379`"
    try:
        socket.create_connection(_endpoint(address), timeout=PORT_SECONDS).close()
    except OSError as error:
        raise ConnectionError(f"--ray.address: nothing answers at {address} ({error}); {advice}") from error
    if address.startswith("ray://"):
        return  # for these Ray keeps a limit of its own
    command = "import ray.scripts.scripts as scripts; scripts.main()"
    try:
        subprocess.run(
            [sys.executable, "-c", command, "health-check", "--address", address],
            check=True,
            capture_output=True,
            text=True,
            timeout=HEALTH_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise ConnectionError(f"--ray.address: what answers at {address} is no Ray; {advice}") from error
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or [f"exit status {error.returncode}"])[-1]
        raise ConnectionError(f"--ray.address: the Ray at {address} refuses: {reason}") from error


@contextmanager
def _connection(ray: Any, resources: RayResources) -> Iterator[None]:
    """Connected to a Ray, to which the code of this checkout was sent; a Ray that was started here ends at the exit."""
    try:
        with tempfile.TemporaryDirectory(prefix="code-") as folder:
            # A copy of the two packages, nothing else of the checkout: as the working folder it precedes the paths of
            # this process, so that tasks run the code as it was at the start, also where they see the checkout.
            for package in (experiments, swinx):
                source = Path(package.__path__[0])
                shutil.copytree(source, Path(folder) / source.name, ignore=shutil.ignore_patterns("__pycache__"))
            options: dict[str, Any] = {
                "runtime_env": {"working_dir": folder},
                "log_to_driver": False,
                "logging_level": logging.ERROR,
            }
            if resources.address is None:
                ray.init(address="local", include_dashboard=False, **options)
            else:
                _connect(ray, resources.address, options)
        # Ray would print the state of each node that it loses, whatever log_to_driver is. Its debugger sets this too.
        ray._private.worker._worker_logs_enabled = False
        yield
    finally:
        ray.shutdown()


def _connect(ray: Any, address: str, options: dict[str, Any]) -> None:
    try:
        ray.init(address=address, **options)
    except RuntimeError as error:
        raise ConnectionError(
            f"--ray.address: {address}: {error}; a machine that is none of its nodes must become one "
            f"(`ray start --address={address}`), or take the address of the form ray://host:10001"
        ) from error


@contextmanager
def _token(output: Path) -> Iterator[Token]:
    """A token in the output folder, for the time of the run; remove_torn() clears away that of a killed one."""
    with tempfile.NamedTemporaryFile("w", dir=output, prefix=".ray-token.") as file:
        content = secrets.token_hex()
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        yield Token(Path(file.name).resolve(), content)


class _Nodes:
    """Says so when Ray loses nodes, and when no node is large enough for a cell, once each time that it becomes so."""

    def __init__(self, ray: Any, resources: RayResources, say: Callable[[str], None]) -> None:
        self.ray, self.resources, self.say = ray, resources, say
        self.alive: set[str] = set()
        self.fit = True

    def watch(self) -> None:
        """Look once; raises ValueError where no cell fits on the node that was started here: it will not grow."""
        nodes = {node["NodeID"]: node["Resources"] for node in self.ray.nodes() if node["Alive"]}
        lost = self.alive - set(nodes)
        if lost:
            self.say(f"Ray lost {len(lost)} of {len(self.alive)} nodes")
        self.alive = set(nodes)
        sizes = {(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in nodes.values()}
        fit = any(cpus >= self.resources.cpus and gpus >= self.resources.gpus for cpus, gpus in sizes)
        if self.fit and not fit:
            asked = f"a cell asks for {self.resources.cpus:g} CPUs and {self.resources.gpus:g} GPUs"
            there = "; ".join(f"{cpus:g} CPUs, {gpus:g} GPUs" for cpus, gpus in sorted(sizes))
            if self.resources.address is None:
                raise ValueError(f"--ray.cpus, --ray.gpus: {asked}, this machine has {there}")
            self.say(f"{asked}, which no node has ({there}): waiting for one")
        self.fit = fit


def _cause(error: Any) -> BaseException:
    """What the cell raised, with the trace of its process as a note; Ray's own error where its process died."""
    cause = getattr(error, "cause", None)
    if not isinstance(cause, BaseException):
        return error  # type: ignore[no-any-return]  # one of Ray's errors
    cause.add_note(re.sub(r"\x1b\[\d*m", "", str(error)))  # Ray colours a part of it
    return cause


def _cancel(ray: Any, references: list[Any]) -> None:
    """End tasks, waiting or running, and return when they have ended: first by KeyboardInterrupt, then by force."""
    with contextlib.suppress(ray.exceptions.RayError):  # an error is on its way out already
        for force in (False, True):
            for reference in references:
                ray.cancel(reference, force=force)
            if references:
                _, references = ray.wait(references, num_returns=len(references), timeout=GRACE_SECONDS)
