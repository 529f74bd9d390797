"""Runs as processes of this machine: the same rows, whatever happens to one of them."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from toy import ONE, save_folder, toy_data, toy_settings

from experiments import compare_decoders
from experiments.execution import local
from experiments.execution.local import run_in_processes
from experiments.records.grid import Run
from experiments.records.results import read_rows

RUNS = [Run("swinx_n", "inline", "FPN", 32, seed) for seed in (0, 1, 2)]
# What a clock tells, and what belongs to the process.
VOLATILE = ("time", "train_minutes", "latency", "peak_memory", "command")


def lasting(folder: Path) -> dict[str, dict[str, Any]]:
    rows = read_rows(folder / "results.jsonl")
    return {row["run"]: {k: v for k, v in row.items() if not k.startswith(VOLATILE)} for row in rows}


def test_two_at_once_give_the_rows_of_one_after_the_other(
    tiny_scenes: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*ONE, "--decoders", "FPN", "Unet", "--jobs"]
    assert compare_decoders.main([*arguments, "1", "--output", str(tmp_path / "one")]) == 0
    monkeypatch.setattr(local, "cores", lambda: 2)  # as many threads as this process has, under pytest-xdist
    assert compare_decoders.main([*arguments, "2", "--output", str(tmp_path / "two")]) == 0
    assert lasting(tmp_path / "two") == lasting(tmp_path / "one")
    sittings = {row["latency_sitting"] for row in read_rows(tmp_path / "two" / "results.jsonl")}
    assert len(sittings) == 1, "latencies of one command are compared"


def scripted(sender: Any, run: Run, *_: Any) -> None:
    """In the place of a run: a kill, an error or rows, by seed."""
    if run.seed == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    sender.send(RuntimeError("no such luck") if run.seed == 1 else [{"run": run.id}])


def asleep(sender: Any, run: Run, *_: Any) -> None:
    """The run of seed 0 ends, the others do not."""
    if run.seed == 0:
        sender.send([])
    time.sleep(600)


def launched(output: Path, collect: Any, fail: Any) -> None:
    where = {"data": toy_data(), "settings": toy_settings(), "output": output}
    run_in_processes(RUNS, {}, collect, fail, **where, name=str, jobs=2)


def test_what_ends_one_process_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_make", scripted)
    rows: list[Any] = []
    failed: dict[int, str] = {}
    launched(tmp_path, rows.extend, lambda run, error: failed.update({run.seed: str(error)}))
    assert rows == [{"run": RUNS[2].id}]
    assert failed == {0: f"its process ended with exit code {-signal.SIGKILL}", 1: "no such luck"}


def test_an_interruption_ends_all_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_make", asleep)

    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        launched(tmp_path, interrupt, None)
    assert not multiprocessing.active_children()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads Linux's list of processes")
def test_processes_of_a_killed_command_end_by_themselves(tmp_path: Path) -> None:
    """Otherwise they would go on writing where the next command writes."""
    save_folder(toy_data(), tmp_path / "data")
    data = ["--data", "folder", "--root", str(tmp_path / "data"), "--classes", str(tmp_path / "data" / "classes.txt")]
    endless = ["--seeds", "0", "1", "--jobs", "2", "--steps", "1000000", "--output", str(tmp_path / "out")]
    command = [sys.executable, "-m", "experiments.compare_decoders", *ONE, *data, *endless]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        logs = [tmp_path / "out" / "runs" / run.id for run in RUNS[:2]]
        wait_for(lambda: all(folder.exists() for folder in logs), 120)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        children = [child for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
        assert len(children) == 2
    finally:
        process.kill()
        process.wait()
    wait_for(lambda: not any(map(alive, children)), 60)


def alive(process: str) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition: Any, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.2)
