"""What the launcher on Ray is made of: data in the store, locks, refusals, disks that are full."""

import errno
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest

from experiments.data import SegmentationData
from experiments.launch import RayResources, check_ray, ray_grid, ray_worker
from experiments.launch.stored import StoredData
from experiments.records import remove_torn
from experiments.settings import data_id

ray = pytest.importorskip("ray")
import ray_driver  # noqa: E402

MARK = "SWINX_TEST_RAY"
TESTS = Path(__file__).parent
# What says where, when and how fast, not what came out.
PROVENANCE = {"command", "time", "host", "commit", "dirty", "output", "threads"}
TIMES = {"latency_ms_p20", "latency_ms_p50", "latency_ms_p80", "peak_memory_mb", "train_minutes"}


def test_stored_data(toy: SegmentationData) -> None:
    """The set comes back equal, in the same memory, also where that may not be written to."""
    stored = StoredData.of(toy)
    assert all(part.images.numel() == part.masks.numel() == 0 for part in (stored.skeleton.train, stored.skeleton.test))
    for array in stored.arrays.values():
        array.flags.writeable = False
    loaded = stored.load()
    assert data_id(loaded) == data_id(toy)
    assert loaded.train.names == toy.train.names
    assert (loaded.name, loaded.colors, loaded.note) == (toy.name, toy.colors, toy.note)
    assert numpy.shares_memory(loaded.val.images.numpy(), stored.arrays["val", "images"])


def test_only_execution(tmp_path: Path) -> None:
    """A second execution of a cell waits for the first, and refuses to follow one whose row was collected."""
    path = ray_worker.lock_file(tmp_path, "a")
    entered = threading.Event()

    def second() -> None:
        with ray_worker.only_execution(path):
            entered.set()

    with ray_worker.only_execution(path):
        waiting = threading.Thread(target=second)
        waiting.start()
        assert not entered.wait(0.3)
    waiting.join(timeout=10)
    assert entered.is_set()


def test_superseded_execution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = ray_worker.lock_file(tmp_path, "a")
    monkeypatch.setattr(ray_worker, "LOCK_POLL_SECONDS", 0.01)
    errors: list[BaseException] = []

    def second() -> None:
        try:
            with ray_worker.only_execution(path):
                pytest.fail("entered")
        except RuntimeError as error:
            errors.append(error)

    with ray_worker.only_execution(path):
        waiting = threading.Thread(target=second)
        waiting.start()
        time.sleep(0.2)
        path.unlink()  # as the command does it
    waiting.join(timeout=10)
    assert "another execution has finished the cell" in str(errors[0])
    monkeypatch.setattr(ray_worker, "LOCK_SECONDS", 0.1)
    with ray_worker.only_execution(path), pytest.raises(TimeoutError, match=r"\.lock is locked by another execution"):
        second()


def test_token(tmp_path: Path) -> None:
    """Only the folder itself passes: not a folder of that name elsewhere, with another run's token or none."""
    with ray_grid._token(tmp_path) as token:
        assert token.visible()
        assert not ray_worker.Token(token.path, "other").visible()
        assert not ray_worker.Token(token.path.parent / "gone" / token.path.name, token.content).visible()
    assert not token.visible()
    assert list(tmp_path.iterdir()) == []
    shutil.copy(__file__, token.path)  # as if the command had been killed
    remove_torn(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name == "ray" or name.startswith("ray.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [_Missing(), *sys.meta_path])
    with pytest.raises(ImportError, match=r'extra ray: pip install -e "\.\[ray\]"'):
        check_ray(RayResources(), "cpu")


class _Missing:
    """Finds no ray."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> None:
        if name == "ray":
            raise ModuleNotFoundError("No module named 'ray'", name="ray")


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_unreachable(scheme: str) -> None:
    address = f"{scheme}127.0.0.1:{ray_driver.free_port()}"
    begin = time.monotonic()
    with pytest.raises(ConnectionError, match=rf"--ray\.address: nothing answers at {address} .*`ray start --head"):
        check_ray(RayResources(address), "cpu")
    assert time.monotonic() - begin < 10


def test_something_else_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_grid, "HEALTH_SECONDS", 2.0)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(ConnectionError, match=rf"--ray\.address: what answers at {address} is no Ray"):
            check_ray(RayResources(address), "cpu")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cpus": 0}, r"--ray\.cpus must be more than 0, got 0"),
        ({"gpus": 1.5}, r"--ray\.gpus must be a part of one GPU or a whole number, got 1\.5"),
        ({"gpus": -1}, r"--ray\.gpus .* got -1"),
        ({"retries": -1}, r"--ray\.retries must not be negative, got -1"),
        ({"address": "localhost"}, r"--ray\.address must be host:port, .* got 'localhost'"),
        ({"address": "ray://head"}, r"--ray\.address must be host:port, .* got 'ray://head'"),
    ],
)
def test_bad_resources(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RayResources(**arguments)


@pytest.mark.parametrize(
    ("gpus", "device", "message"),
    [(0, "cuda", "must be more than 0 for --device cuda"), (0.5, "cpu", "must be 0 for --device cpu, got 0.5")],
)
def test_resources_fit_device(gpus: float, device: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_ray(RayResources(gpus=gpus), device)


class _Cluster:
    """Stands for ray: nodes of the sizes given, (CPUs, GPUs)."""

    def __init__(self, *sizes: tuple[float, float]) -> None:
        self.sizes = dict(enumerate(sizes))

    def nodes(self) -> list[dict[str, Any]]:
        lost = {"NodeID": "lost", "Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}
        alive = [
            {"NodeID": str(name), "Alive": True, "Resources": {"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus}}
            for name, (cpus, gpus) in self.sizes.items()
        ]
        return [lost, *alive]


def test_nodes_watched() -> None:
    """That a node is lost, and that a cell fits on none, is said once each time that it becomes so."""
    cluster, said = _Cluster((4, 0), (2, 2)), []
    nodes = ray_grid._Nodes(cluster, RayResources("auto", cpus=4, gpus=1), said.append)
    nodes.watch()
    nodes.watch()
    waiting = "a cell asks for 4 CPUs and 1 GPUs, which no node has (2 CPUs, 2 GPUs; 4 CPUs, 0 GPUs): waiting for one"
    assert said == [waiting]
    cluster.sizes[2] = (8, 1)
    nodes.watch()
    assert said == [waiting]
    del cluster.sizes[2]
    nodes.watch()
    nodes.watch()
    assert said == [waiting, "Ray lost 1 of 3 nodes", waiting]
    with pytest.raises(ValueError, match=r"a cell asks for 3 CPUs and 0 GPUs, this machine has 2 CPUs, 0 GPUs"):
        ray_grid._Nodes(_Cluster((2, 0)), RayResources(cpus=3), said.append).watch()


class _Inline:
    """Stands for ray: task i has ended at once, with result i; what was cancelled, and how, is kept."""

    exceptions = ray.exceptions

    def __init__(self, results: list[Any]) -> None:
        self.results = results
        self.cancelled: list[tuple[int, bool]] = []
        self.submitted = 0

    def remote(self, **options: Any) -> Callable[[Any], "_Inline"]:
        return lambda function: self

    def options(self, **options: Any) -> Any:
        return SimpleNamespace(remote=lambda *arguments: self._submit())

    def _submit(self) -> int:
        self.submitted += 1
        return self.submitted - 1

    def put(self, value: Any) -> None: ...

    def nodes(self) -> list[dict[str, Any]]:
        return _Cluster((1, 0)).nodes()

    def wait(self, references: list[int], **options: Any) -> tuple[list[int], list[int]]:
        return references[:1], references[1:]

    def get(self, reference: int) -> Any:
        return self.results[reference]

    def cancel(self, reference: int, force: bool) -> None:
        self.cancelled.append((reference, force))


def test_full_disk(toy: SegmentationData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that cannot be written ends the run, with the rows before it kept and the tasks that are left cancelled."""
    files = {"a.json": b"{}"}
    inline = _Inline([ray_worker.Result({"cell": number}, files, "elsewhere") for number in range(4)])
    monkeypatch.setattr(ray_grid, "_import_ray", lambda resources: inline)
    monkeypatch.setattr(ray_grid, "_connection", lambda ray, resources: nullcontext())
    rows = []

    def collect(row: dict[str, Any]) -> None:
        assert (tmp_path / "cells" / "a.json").read_bytes() == b"{}"  # the files come before the row
        if row["cell"] == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        rows.append(row)

    with pytest.raises(OSError, match="No space left"):
        ray_grid.run_on_ray(
            ray_driver.FAKE,
            toy,
            ray_driver.settings(toy),
            tmp_path,
            {},
            collect=collect,
            fail=lambda cell, error: pytest.fail(str(error)),
            say=lambda line: None,
            resources=RayResources(),
        )
    assert rows == [{"cell": 0}]
    assert inline.cancelled[:2] == [(2, False), (3, False)]
    assert [path.name for path in tmp_path.iterdir()] == ["cells"]
