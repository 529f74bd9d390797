"""SIGKILL at any moment, then the same command: the results are those of a run that was left alone."""

import json
import multiprocessing
import signal
from pathlib import Path
from typing import Any

import killed_run
import pytest
import torch

from experiments.records.results import read_rows

VOLATILE = {"time", "train_minutes", "latency_ms_p20", "latency_ms_p50", "latency_ms_p80", "peak_memory_mb"} | {
    "latency_sitting"
}


def start(output: Path, kill_at: int | None = None, torn_row: bool = False) -> int:
    """Exit code of one run of the command in a process of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["experiments.compare_decoders"])
    process = context.Process(target=killed_run.run, args=(str(output), kill_at, torn_row))
    process.start()
    process.join(120)
    if process.exitcode is None:
        process.kill()
        process.join()
    assert process.exitcode is not None
    return process.exitcode


def results(output: Path) -> dict[str, Any]:
    """Everything that a run leaves, by name, without what a clock tells."""
    found: dict[str, Any] = {
        "rows": [
            {key: value for key, value in row.items() if key not in VOLATILE}
            for row in read_rows(output / "results.jsonl")
        ]
    }
    for path in sorted(output.rglob("*")):
        name = str(path.relative_to(output))
        if path.suffix == ".pt":
            saved = torch.load(path, weights_only=True)
            state = {key: tensor.numpy().tobytes() for key, tensor in saved.pop("state_dict").items()}
            found[name] = (saved, state)
        elif path.suffix == ".json":
            found[name] = json.loads(path.read_text())
        elif path.suffix in (".png", ".npz"):
            found[name] = path.read_bytes()
        elif path.is_file():
            found[name] = "there"
    return found


def test_killed_while_putting_files_in_place(tmp_path: Path) -> None:
    """Each attempt gets a few files further than it takes to start, before or after one more is in place."""
    assert start(tmp_path / "undisturbed") == 0
    undisturbed = results(tmp_path / "undisturbed")
    assert [row["status"] for row in undisturbed["rows"]] == ["ok", "ok"]
    output = tmp_path / "out"
    codes = [start(output, kill_at) for kill_at in (4, 15, 16, 21)]
    assert set(codes) == {-signal.SIGKILL}
    assert start(output, torn_row=True) == -signal.SIGKILL
    with pytest.warns(UserWarning, match="the last line is torn"):
        read_rows(output / "results.jsonl")
    assert start(output) == 0
    assert results(output) == undisturbed
