"""Runs on Ray: a process killed in mid-run, a run that fails, Ctrl-C, and what is refused before any of it."""

import importlib
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from toy import toy_data

import experiments
from experiments import launch
from experiments.files import locked, remove_torn
from experiments.grid import Run
from experiments.options import RayResources, Settings
from experiments.results import Row, machine

pytest.importorskip("ray")

OK, FAILS, KILLED, HANGS = (Run("swinx_n", "inline", "FPN", 32, seed) for seed in range(4))
SETTINGS = Settings("toy", "0", 64, 64, steps=1, minutes=None, batch_size=2, precision="32", device="cpu")


def execute_as(function: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks call this function; one defined in another travels to them by value."""
    stand_in = SimpleNamespace(execute=function)
    monkeypatch.setitem(sys.modules, "experiments.runs", stand_in)
    monkeypatch.setattr(experiments, "runs", stand_in, raising=False)


def wait_for(condition: Any, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return bool(condition())


def test_runs_end_die_fail_and_are_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four runs one works, one raises, one is killed and resumes, and Ctrl-C comes while the last one goes on."""

    def execute(run: Run, data: Any, settings: Settings, output: Path, origin: Row) -> list[Row]:
        checkpoint = output / "runs" / run.id / "training.ckpt"
        resumed = checkpoint.exists()
        checkpoint.write_text(str(os.getpid()))
        if run.seed == 1:
            raise ZeroDivisionError(f"{run.id} has no loss")
        if run.seed == 2 and not resumed:
            os.kill(os.getpid(), signal.SIGKILL)
        if run.seed == 3:
            checkpoint.rename(output / "hanging")
            time.sleep(600)
        maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
        ranges = {tuple(int(side, 16) for side in line[0].split("-")): line[-2:] for line in maps}
        at = data.train.images.data_ptr()
        memory = next(name for (start, end), name in ranges.items() if start <= at < end)
        code = importlib.import_module("experiments.launch").__file__
        found = {"images": data.train.images.sum().item(), "code": code, "memory": "".join(memory)}
        return [{**origin, **found, "seed": run.seed, "resumed": resumed, "threads": torch.get_num_threads()}]

    execute_as(execute, monkeypatch)
    rows: list[Row] = []
    failed: list[tuple[Run, BaseException]] = []
    hanging = tmp_path / "hanging"

    def interrupt() -> None:
        wait_for(lambda: hanging.exists() and len(rows) == 2 and failed, 300)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        launch.run_on_ray(
            [OK, FAILS, KILLED, HANGS],
            {"host": "of the command", "command": "mine"},
            collect=rows.extend,
            fail=lambda *what: failed.append(what),
            data=toy_data(),
            settings=SETTINGS,
            output=tmp_path,
            say=print,
            resources=RayResources(),
        )

    assert wait_for(lambda: not psutil.pid_exists(int(hanging.read_text())), 20)
    assert {row["seed"]: row["resumed"] for row in rows} == {0: False, 2: True}
    for row in rows:
        assert {name: row[name] for name in machine(torch.device("cpu"))} == machine(torch.device("cpu"))
        assert (row["command"], row["threads"]) == ("mine", 1)
        assert row["images"] == toy_data().train.images.sum().item()
        assert "plasma" in row["memory"]  # shared by all tasks, not a copy
        assert not Path(row["code"]).is_relative_to(Path(__file__).parents[2])  # a copy: edits do not reach it
    ((run, error),) = failed
    assert run == FAILS
    assert isinstance(error, ZeroDivisionError)
    assert str(error) == f"{FAILS.id} has no loss"
    assert "in execute" in error.__notes__[0]
    assert "\x1b" not in error.__notes__[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hanging", "runs"]


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
    launch._connect(mixed, RayResources("auto", cpus=4, gpus=1), said.append)
    assert said == ["waiting for a node with 4 CPUs and 1 GPUs for a run, where nodes have 4 CPUs and 0 GPUs; "
                    "2 CPUs and 2 GPUs"]  # fmt: skip
    with pytest.raises(ConnectionError, match=r"--ray\.address head:1: no node of it"):
        launch._connect(Cluster(error="no node of it"), RayResources("head:1"), said.append)


def test_a_machine_that_does_not_see_the_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"does not see {tmp_path}: Ray needs a folder that all its nodes"):
        launch._task(lambda *arguments: [], OK, toy_data(), SETTINGS, tmp_path / ".ray.12345678", {})
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".ray.12345678").touch()
    assert launch._task(lambda *arguments: [{"row": 1}], OK, toy_data(), SETTINGS, tmp_path / ".ray.12345678", {})
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


@pytest.mark.parametrize("address", ["localhost", "ray://head:10001", ":6379", "head:port", "head:99999"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(ValueError, match=rf"--ray\.address must be host:port or auto, got '{address}'"):
        launch.check_ray(RayResources(address), "cpu")


@pytest.mark.parametrize(
    ("gpus", "device", "message"),
    [(0, "cuda", r"must be more than 0 .* for --device cuda, got 0"), (0.5, "cpu", "must be 0 for --device cpu")],
)
def test_resources_fit_the_device(gpus: float, device: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        launch.check_ray(RayResources(gpus=gpus), device)
