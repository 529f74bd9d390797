"""The runs of a grid as tasks of a Ray, on this machine or on many that see the same output folder.

A run whose process or machine died is tried again by Ray, and goes on from its checkpoint in that folder.
"""

import contextlib
import importlib.util
import logging
import os
import platform
import re
import socket
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from experiments.data import SegmentationData
from experiments.records.files import TEMPORARY, locked
from experiments.records.grid import Run
from experiments.records.options import RayResources
from experiments.records.results import Row, machine
from experiments.records.settings import Settings

# For a port to answer, and for an execution that lost its connection to notice that Ray is gone: it holds its run.
PORT_SECONDS, LOCK_SECONDS = 5.0, 600.0


def check_ray(resources: RayResources, device: str) -> None:
    """What can be refused before any training: ImportError without Ray, ValueError for resources that do not fit the
    device, cpu or cuda, and ConnectionError where nothing answers at the address."""
    _import_ray(resources)
    if (device == "cuda") != (resources.gpus > 0):
        rule = "more than 0 (a run sees the GPUs it asks for)" if device == "cuda" else "0"
        raise ValueError(f"--ray.gpus must be {rule} for --device {device}, got {resources.gpus:g}")
    if resources.address not in (None, "auto"):
        host, _, port = resources.address.rpartition(":")
        if not host or "/" in host or not port.isdecimal() or int(port) > 65535:
            raise ValueError(f"--ray.address must be host:port or auto, got {resources.address!r}")
        try:  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), timeout=PORT_SECONDS).close()
        except OSError as error:
            there = f"nothing answers at {resources.address} ({error})"
            raise ConnectionError(f"--ray.address: {there}; start a Ray with `ray start --head --port=6379`") from error


def run_on_ray(
    todo: Sequence[Run],
    origin: Row,
    collect: Callable[[list[Row]], None],
    fail: Callable[[Run, BaseException], None],
    *,
    data: SegmentationData,
    settings: Settings,
    output: Path,
    say: Callable[[str], None],
    resources: RayResources,
) -> None:
    """Make the rows of every run, each as one task. resources have passed check_ray.

    This code and the data travel to the machines, which need the same Python environment and see output. The rows of a
    run are collected once, however often it is executed. fail gets what a run raised, or Ray's error where retries are
    used up, and the others go on. What collect or fail raise, and Ctrl-C, ends all tasks and passes through.

    Raises:
        ValueError: no run fits on this machine. ConnectionError: the Ray at the address does not take this machine.
    """
    from experiments.execution.runs import execute

    ray = _import_ray(resources)
    running: dict[Any, Run] = {}
    try:
        _connect(ray, resources, say)
        # Tasks of one machine read arrays in place, and must not write to them; of tensors each would get a copy.
        ray.util.register_serializer(torch.Tensor, serializer=torch.Tensor.numpy, deserializer=torch.from_numpy)
        stored = ray.put(data)
        ray.util.deregister_serializer(torch.Tensor)
        limits = {"num_cpus": resources.cpus, "num_gpus": resources.gpus, "max_retries": resources.retries}
        task = ray.remote(**limits)(_task)
        with tempfile.NamedTemporaryFile(dir=output, prefix=TEMPORARY) as token:
            for run in todo:
                reference = task.remote(execute, run, stored, settings, Path(token.name).resolve(), origin)
                running[reference] = run
            while running:
                (reference, *_), _ = ray.wait(list(running))
                run = running.pop(reference)
                try:
                    rows = ray.get(reference)
                except ray.exceptions.RayError as error:
                    cause = getattr(error, "cause", None) or error
                    cause.add_note(re.sub(r"\x1b\[\d*m", "", str(error)))  # the trace of its process, without colours
                    fail(run, cause)
                else:
                    collect(rows)
    finally:
        with contextlib.suppress(ray.exceptions.RayError):  # what ended the work is on its way out already
            for reference in running:
                ray.cancel(reference, force=True)
        ray.shutdown()  # and with it a Ray that was started here


def _task(
    execute: Callable[..., list[Row]], run: Run, data: SegmentationData, settings: Settings, token: Path, origin: Row
) -> list[Row]:
    """Execute a run in a process of Ray's; token is a file that the command has put into its output folder."""
    output = token.parent
    if not token.exists():
        raise FileNotFoundError(f"{platform.node()} does not see {output}: Ray needs a folder that all its nodes share")
    with locked(output / "runs" / run.id, wait=LOCK_SECONDS):
        return execute(run, data, settings, output, {**origin, **machine(torch.device(settings.device))})


def _import_ray(resources: RayResources) -> Any:
    if importlib.util.find_spec("ray") is None:
        raise ImportError('Ray is not installed; it comes with the extra ray: pip install -e ".[ray]"')
    # Of itself Ray tells its makers about each cluster, and tries what ran out of memory without end.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_task_oom_retries", str(resources.retries))
    return importlib.import_module("ray")


def _connect(ray: Any, resources: RayResources, say: Callable[[str], None]) -> None:
    """Connect to a Ray that has room for a run, now or later, and send it the two packages."""
    checkout = Path(__file__).resolve().parents[2]
    others = [f"/{path.name}" for path in checkout.iterdir() if path.name not in ("experiments", "swinx")]
    options: dict[str, Any] = {"runtime_env": {"working_dir": str(checkout), "excludes": others}}
    options |= {"address": "local", "include_dashboard": False} if resources.address is None else {}
    try:
        ray.init(**{"address": resources.address, "log_to_driver": False, "logging_level": logging.ERROR, **options})
    except RuntimeError as error:
        raise ConnectionError(f"--ray.address {resources.address}: {error}") from error
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    sizes = [f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes]
    if not any(node.get("CPU", 0) >= resources.cpus and node.get("GPU", 0) >= resources.gpus for node in nodes):
        asked = f"{resources.cpus:g} CPUs and {resources.gpus:g} GPUs for a run, where nodes have {'; '.join(sizes)}"
        if resources.address is None:
            raise ValueError(f"--ray.cpus, --ray.gpus ask for {asked}")
        say(f"waiting for a node with {asked}")
