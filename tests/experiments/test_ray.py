"""The grid on Ray: a node killed in mid-grid, machines without the output folder, failing cells, Ctrl-C, bad addresses.

The processes that a test starts carry a mark in their environment, by which they are found and ended, however the test
ends.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from toy import toy_data

from experiments import cell_run
from experiments.launch import ray_worker
from experiments.records import provenance, read_rows
from experiments.settings import data_id

ray = pytest.importorskip("ray")
import psutil  # noqa: E402  # Ray brings it along
import ray_driver  # noqa: E402

MARK = "SWINX_TEST_RAY"
TESTS = Path(__file__).parent
# What says where, when and how fast, not what came out.
PROVENANCE = {"command", "time", "host", "commit", "dirty", "output", "threads"}
TIMES = {"latency_ms_p20", "latency_ms_p50", "latency_ms_p80", "peak_memory_mb", "train_minutes"}


class Machine:
    """Processes with a mark of their own, and a folder for Ray; end() kills every one of them."""

    def __init__(self) -> None:
        # Ray's sockets lie in this folder, and a socket's path may have 107 characters.
        self.folder = Path(tempfile.mkdtemp(prefix="ray"))
        self.mark = f"{os.getpid()}-{self.folder.name}"
        (self.folder / "home").mkdir()
        self.environment = {
            **os.environ,
            MARK: self.mark,
            "HOME": str(self.folder / "home"),  # Ray leaves a key there
            "RAY_TMPDIR": str(self.folder),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": "5f" * 32,
            "RAY_USAGE_STATS_ENABLED": "0",
            "PYTHONPATH": os.pathsep.join([str(TESTS.parent.parent), str(TESTS)]),
            "OMP_NUM_THREADS": "1",
        }
        self.environment.pop("RAY_ADDRESS", None)

    def processes(self, **also: str) -> list[psutil.Process]:
        """Those that live and have the mark, and whatever else is asked of their environment."""
        wanted = {MARK: self.mark, **also}
        found = []
        for process in psutil.process_iter():
            try:
                environment = process.environ()
                alive = process.status() != psutil.STATUS_ZOMBIE
            except psutil.Error:
                continue
            if alive and wanted.items() <= environment.items():
                found.append(process)
        return found

    def kill(self, **also: str) -> None:
        """SIGKILL for all of processes(), until none is left: the dying may have started others."""
        while found := self.processes(**also):
            for process in found:
                if process.is_running():
                    process.kill()
            psutil.wait_procs(found, timeout=5)

    def end(self) -> None:
        self.kill()
        shutil.rmtree(self.folder)

    def ray_start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", "import ray.scripts.scripts as scripts; scripts.main()", "start", *arguments]
        command += ["--num-cpus=1", "--object-store-memory=100000000", "--min-worker-port=0", "--max-worker-port=0"]
        return self._start(command, **environment)

    def drive(self, address: str, output: Path, kind: str) -> subprocess.Popen[str]:
        return self._start([sys.executable, str(TESTS / "ray_driver.py"), address, str(output), kind])

    def _start(self, command: list[str], **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.folder,
            start_new_session=True,
        )


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = Machine()
    try:
        yield machine
    finally:
        machine.end()


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str], what: str) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, f"ended before {what}: {process.communicate()[0]}"
        assert time.monotonic() < deadline, f"no {what} in 120 s"
        time.sleep(0.1)


def finish(process: subprocess.Popen[str]) -> tuple[list[dict[str, Any]], str]:
    """What the command was told, and all else that it or Ray printed. One that hangs says where, in every thread."""
    try:
        printed, _ = process.communicate(timeout=200)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)
        pytest.fail(f"the command hangs: {process.communicate(timeout=60)[0]}")
    events, rest = [], []
    for line in printed.splitlines():
        if line.startswith("{"):
            events.append(json.loads(line))
        else:
            rest.append(line)
    return events, "\n".join(rest)


def told(events: list[dict[str, Any]], kind: str) -> list[Any]:
    return [event[kind] for event in events if kind in event]


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_killed_node(machine: Machine, tmp_path: Path) -> None:
    """The second of two nodes dies with a cell half trained: the grid completes, with the rows of a local run."""
    port = ray_driver.free_port()
    head = machine.ray_start(
        "--head", f"--port={port}", "--include-dashboard=false", f"--ray-client-server-port={ray_driver.free_port()}"
    )
    data = toy_data()
    settings = ray_driver.settings(data)
    local = tmp_path / "local"
    expected = {
        cell.id: cell_run.run_cell(cell, data, settings, local, provenance(torch.device("cpu")))
        for cell in ray_driver.REAL
    }
    printed, _ = head.communicate(timeout=300)
    assert head.returncode == 0, printed
    machine.ray_start(f"--address=127.0.0.1:{port}", **{ray_driver.SECOND: "yes"})
    output = tmp_path / "ray"
    output.mkdir()
    driver = machine.drive(f"127.0.0.1:{port}", output, "real")

    wait_for((output / ".stuck").exists, driver, "cell on the second node")
    victim = (output / ".stuck").read_text()
    machine.kill(**{ray_driver.SECOND: "yes"})
    events, rest = finish(driver)

    assert driver.returncode == 0, rest
    assert told(events, "failed") == []
    assert "raylet" not in rest  # nothing of what Ray has to say of a lost node
    rows = read_rows(output / "results.jsonl")
    assert sorted(row["cell"] for row in rows) == sorted(expected)  # each once
    assert rows == told(events, "row")
    for row in rows:
        reference = expected[row["cell"]]
        assert reference is not None
        assert row["host"] == reference["host"]  # of the worker, not that of the command
        ignored = PROVENANCE | TIMES
        assert {k: v for k, v in row.items() if k not in ignored} == {
            k: v for k, v in reference.items() if k not in ignored
        }
        assert row["status"] == "ok"
        assert row["stopped_step"] == ray_driver.STEPS
        counts = Path("cells", row["cell"], "images.json")
        assert (output / counts).read_bytes() == (local / counts).read_bytes()
    # It was executed twice, and the second time began where the first had its checkpoint: after step 1.
    assert ray_driver.marks(output, next(cell for cell in ray_driver.REAL if cell.id == victim)).read_text() == (
        "begun on second, checkpoint False\nstep on second\nstep on second\nbegun on first, checkpoint True\n"
        + "step on first\n" * (ray_driver.STEPS - 1)
    )
    assert [path for path in output.rglob(".*") if path.name in (".lock", ray_worker.CHECKPOINT)] == []
    assert list(output.glob(".ray*")) == []


def test_machine_of_its_own(machine: Machine, tmp_path: Path) -> None:
    """Fake cells on a Ray started here, which does not see the output: two work, one raises, one goes on to Ctrl-C."""
    driver = machine.drive("-", tmp_path, "fake")
    wait_for((tmp_path / ".hanging").exists, driver, "last cell")
    wait_for((tmp_path / ".failed").exists, driver, "failure")
    wait_for(lambda: len(read_rows(tmp_path / "results.jsonl")) == 2, driver, "two rows")
    os.killpg(driver.pid, signal.SIGINT)  # as a terminal does it: Ray's processes get it too
    events, rest = finish(driver)

    check_files_come_back(events, tmp_path)
    check_cells_travel(events, machine)
    check_failing_cell(events, rest)
    assert rest.rstrip().endswith("KeyboardInterrupt")
    assert machine.processes() == []  # neither the cell that went on nor anything of Ray
    assert len(read_rows(tmp_path / "results.jsonl")) == 2


def check_files_come_back(events: list[dict[str, Any]], output: Path) -> None:
    """Byte for byte, and without the state of training."""
    cells = [ray_driver.FAKE[0], ray_driver.FAKE[2]]
    files = [path for path in (output / "cells").rglob("*") if path.is_file()]
    found = {str(path.relative_to(output / "cells")): path.read_bytes() for path in files}
    assert found == {name: part for cell in cells for name, part in ray_driver.content(cell).items()}
    assert told(events, "said") == [
        f"{os.uname().nodename} does not see {output}: files of its cells come back with their rows"
    ]


def check_cells_travel(events: list[dict[str, Any]], machine: Machine) -> None:
    """Tasks run the code that was sent, on data in shared memory, in a folder that is gone afterwards."""
    rows = told(events, "row")
    assert sorted(row["seed"] for row in rows) == [0, 3]
    for row in rows:
        code = Path(row["code"])
        assert code.is_relative_to(machine.folder.resolve())
        assert code.name == "ray_worker.py"
        assert row["data_id"] == data_id(toy_data())
        assert row["in_store"]
        assert row["threads"] == 1
        assert row["host"] == provenance(torch.device("cpu"))["host"]
        assert row["command"] == "of the command"
        assert not Path(row["worked_in"]).exists()


def check_failing_cell(events: list[dict[str, Any]], rest: str) -> None:
    """What a cell raises reaches the command with its words and trace, once."""
    (failure,) = [event for event in events if "failed" in event]
    cell = ray_driver.FAKE[1].id
    assert failure["failed"] == cell
    assert failure["type"] == "ZeroDivisionError"
    assert failure["message"] == f"{cell} has no loss"
    assert "in fake_cell" in failure["trace"]
    assert "\x1b" not in failure["trace"]
    assert cell not in rest  # Ray does not tell it again
