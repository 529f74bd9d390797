"""Runs on Ray: a process killed in mid-run, a run that fails, Ctrl-C, and what is refused before any of it."""

import errno
import itertools
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from toy import toy_data

import experiments.execution
from experiments.execution import launch
from experiments.execution.runs import execute as execute_here
from experiments.records.files import locked, remove_torn
from experiments.records.grid import Run
from experiments.records.options import RayResources, Recipe
from experiments.records.results import Row, provenance
from experiments.records.settings import Settings

pytest.importorskip("ray")

KILLED, FAILS, HANGS = (Run("swinx_n", "inline", "FPN", 32, seed) for seed in range(3))
SETTINGS = Settings("toy", "0", 64, 64, 4, 2, "32", "cpu", Recipe(validate_every=1))


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """A shell makes what it starts in the background ignore it, and tests with it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def wait_for(condition: Any, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return bool(condition())


@pytest.mark.usefixtures("one_thread", "ctrl_c")
def test_runs_die_fail_and_are_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three runs one is killed while it trains and resumes, one raises, and Ctrl-C comes while the last goes on."""
    expected = execute_here(KILLED, toy_data(), SETTINGS, tmp_path / "local", provenance(torch.device("cpu")))

    def execute(run: Run, data: Any, settings: Settings, output: Path, origin: Row) -> list[Row]:
        from experiments.execution import launch, runs

        folder = output / "runs" / run.id
        if run.seed == 1:
            raise ZeroDivisionError(f"{run.id} has no loss")
        if run.seed == 2:
            (folder / "process").write_text(str(os.getpid()))
            (folder / "process").rename(output / "hanging")
            time.sleep(600)
        resumed, steps = (folder / "training.ckpt").exists(), []

        def on_step(share: float, loss: float) -> None:
            steps.append(share)
            if (folder / "training.ckpt").exists() and not resumed:
                os.kill(os.getpid(), signal.SIGKILL)

        rows = runs.execute(run, data, settings, output, origin, on_step)
        at = data.train.images.data_ptr()
        maps = [(line.split()[0].split("-"), line) for line in Path("/proc/self/maps").read_text().splitlines()]
        memory = next(line for (start, end), line in maps if int(start, 16) <= at < int(end, 16))
        return [{**row, "code": launch.__file__, "memory": memory, "steps_here": len(steps)} for row in rows]

    stand_in = SimpleNamespace(execute=execute)  # a function inside another travels to tasks by value
    monkeypatch.setitem(sys.modules, "experiments.execution.runs", stand_in)
    monkeypatch.setattr(experiments.execution, "runs", stand_in)
    rows: list[Row] = []
    failed: list[tuple[Run, BaseException]] = []
    hanging = tmp_path / "hanging"

    def interrupt() -> None:
        wait_for(lambda: hanging.exists() and rows and failed, 300)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        launch.run_on_ray(
            [KILLED, FAILS, HANGS],
            {**provenance(torch.device("cpu")), "host": "of the command", "command": "mine"},
            collect=rows.extend,
            fail=lambda *what: failed.append(what),
            data=toy_data(),
            settings=SETTINGS,
            output=tmp_path,
            say=print,
            resources=RayResources(),
        )

    assert wait_for(lambda: not Path(f"/proc/{int(hanging.read_text())}").exists(), 20)
    (row,) = rows
    assert 0 < row.pop("steps_here") < SETTINGS.steps  # of a second execution, from the checkpoint of the first
    assert "plasma" in row.pop("memory")  # the data are shared by all tasks, not copied
    assert not Path(row.pop("code")).is_relative_to(Path(__file__).parents[2])  # a copy, which edits do not reach
    assert row["command"] == "mine"
    ignored = {"command", "time", "latency_sitting", "peak_memory_mb", "train_minutes", "dirty"}
    ignored |= {name for name in row if name.startswith("latency_ms")}
    assert [{name: row[name] for name in row if name not in ignored}] == [
        {name: local[name] for name in local if name not in ignored} for local in expected
    ]
    ((run, error),) = failed
    assert run == FAILS
    assert isinstance(error, ZeroDivisionError)
    assert str(error) == f"{FAILS.id} has no loss"
    assert "in execute" in error.__notes__[0]
    assert "\x1b" not in error.__notes__[0]
    assert {path.name for path in tmp_path.iterdir()} == {"hanging", "local", "runs"}


class Cluster:
    """Stands for ray, with nodes of these numbers of CPUs and GPUs."""

    def __init__(self, *sizes: dict[str, float], error: str = "") -> None:
        self.sizes, self.error = sizes, error

    def init(self, **options: Any) -> None:
        self.options = options
        if self.error:
            raise RuntimeError(self.error)

    def nodes(self) -> list[dict[str, Any]]:
        lost = {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}
        return [lost, *({"Alive": True, "Resources": size} for size in self.sizes)]


def test_room_for_a_run() -> None:
    """More than this machine has is refused; a cluster may grow, and what it lacks is said."""
    said: list[str] = []
    small = Cluster({"CPU": 2.0})
    with pytest.raises(ValueError, match=r"--ray.cpus, .* 3 CPUs and 0 GPUs for a run, where nodes have 2 CPUs and 0"):
        launch._connect(small, RayResources(cpus=3), said.append)
    packed = {"experiments", "swinx"}
    checkout = Path(small.options["runtime_env"]["working_dir"])
    assert {path.name for path in checkout.iterdir()} - packed == {
        name.removeprefix("/") for name in small.options["runtime_env"]["excludes"]
    }
    mixed = Cluster({"CPU": 4.0}, {"CPU": 2.0, "GPU": 2.0})
    launch._connect(mixed, RayResources("auto", cpus=2, gpus=1), said.append)
    assert said == []
    assert (small.options["address"], mixed.options["address"]) == ("local", "auto")
    launch._connect(mixed, RayResources("auto", cpus=4, gpus=1), said.append)
    assert said == ["waiting for a node with 4 CPUs and 1 GPUs for a run, where nodes have 4 CPUs and 0 GPUs; "
                    "2 CPUs and 2 GPUs"]  # fmt: skip
    with pytest.raises(ConnectionError, match=r"--ray\.address head:1: no node of it"):
        launch._connect(Cluster(error="no node of it"), RayResources("head:1"), said.append)


class Tasks:
    """Stands for ray: tasks are numbered, end in their order and return one row each."""

    exceptions = SimpleNamespace(RayError=ZeroDivisionError)

    def __init__(self) -> None:
        self.numbers = itertools.count()
        self.cancelled: list[tuple[int, bool]] = []
        self.down = False
        self.util = SimpleNamespace(
            register_serializer=lambda kind, serializer, deserializer: None, deregister_serializer=lambda kind: None
        )

    def put(self, data: Any) -> Any:
        return data

    def remote(self, **limits: float) -> Any:
        return lambda task: SimpleNamespace(remote=lambda *arguments: next(self.numbers))

    def wait(self, running: list[int]) -> tuple[list[int], list[int]]:
        return running[:1], running[1:]

    def get(self, reference: int) -> list[Row]:
        return [{"task": reference}]

    def cancel(self, reference: int, *, force: bool) -> None:
        self.cancelled.append((reference, force))

    def shutdown(self) -> None:
        self.down = True


def test_what_collecting_raises_ends_all_tasks_and_passes_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the disk is full."""
    ray, rows, failed = Tasks(), list[Row](), list[Run]()
    monkeypatch.setattr(launch, "_import_ray", lambda resources: ray)
    monkeypatch.setattr(launch, "_connect", lambda *arguments: None)

    def collect(made: list[Row]) -> None:
        assert [path.name[:7] for path in tmp_path.iterdir()] == [".swinx-"]
        if rows:
            raise OSError(errno.ENOSPC, "No space left on device")
        rows.extend(made)

    with pytest.raises(OSError, match="No space left on device"):
        launch.run_on_ray(
            [replace(KILLED, seed=seed) for seed in range(4)],
            {},
            collect,
            lambda run, error: failed.append(run),
            data=toy_data(),
            settings=SETTINGS,
            output=tmp_path,
            say=print,
            resources=RayResources(),
        )
    assert (rows, failed) == ([{"task": 0}], [])
    assert ray.cancelled == [(2, True), (3, True)]
    assert ray.down
    assert list(tmp_path.iterdir()) == []


def test_a_machine_that_does_not_see_the_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"does not see {tmp_path}: Ray needs a folder that all its nodes"):
        launch._task(lambda *arguments: [], KILLED, toy_data(), SETTINGS, tmp_path / ".swinx-12345678", {})
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".swinx-12345678").touch()
    assert launch._task(lambda *arguments: [{"row": 1}], KILLED, toy_data(), SETTINGS, tmp_path / ".swinx-12345678", {})
    remove_torn(tmp_path)  # as after a command that was killed
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_a_second_execution_waits_for_the_first(tmp_path: Path) -> None:
    entered = threading.Event()

    def second() -> None:
        with locked(tmp_path, wait=60):
            entered.set()

    with locked(tmp_path):
        threading.Thread(target=second).start()
        assert not entered.wait(0.3)
        with pytest.raises(ValueError, match="another run is writing into"), locked(tmp_path, wait=0.1):
            pass
    assert entered.wait(10)


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r'extra ray: pip install -e "\.\[ray\]"'):
        launch.check_ray(RayResources(), "cpu")


def test_an_address_where_nobody_answers() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConnectionError, match=rf"--ray\.address: nothing answers at {address} .*`ray start --head"):
            launch.check_ray(RayResources(address), "cpu")


@pytest.mark.parametrize(
    ("resources", "device", "message"),
    [
        *((RayResources(address), "cpu", rf"--ray\.address must be host:port or auto, got '{address}'")
          for address in ("localhost", "ray://head:10001", ":6379", "head:port", "head:99999")),
        (RayResources(gpus=0), "cuda", r"--ray\.gpus must be more than 0 .* for --device cuda, got 0"),
        (RayResources(gpus=0.5), "cpu", r"--ray\.gpus must be 0 for --device cpu, got 0\.5"),
    ],
)  # fmt: skip
def test_what_is_refused(resources: RayResources, device: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        launch.check_ray(resources, device)
