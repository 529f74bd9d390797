"""Two processes under torchrun against one: see train_together.py, which they run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import train_together
from rich.console import Console
from toy import save_folder, toy_settings

import experiments
from experiments.compare_decoders import main
from experiments.data import SegmentationData
from experiments.execution import comparison, runs
from experiments.records.grid import Run
from experiments.records.results import Row, provenance, read_rows
from experiments.training.train import DivergedError, Processes

ROOT = Path(experiments.__file__).parent.parent
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def start(*arguments: str) -> None:
    """Two processes under torchrun, which must end well."""
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*TWO, *arguments], capture_output=True, text=True, timeout=600, env=environment, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_two_processes_equal_one_with_the_same_batches(tmp_path: Path) -> None:
    """Cross-entropy, accumulation, clipping, AdamW, the average and resuming, over five steps in float64."""
    train_together.equal(tmp_path)
    start(train_together.__file__, str(tmp_path))
    one, two = (torch.load(tmp_path / f"{world}.pt", weights_only=True) for world in (1, 2))
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-12)
    assert len(set(one["losses"])) == 5
    assert [step for step, _ in two["validations"]] == [2, 4, 5]
    assert dict(two["validations"]) == pytest.approx(dict(one["validations"]), rel=1e-11)
    assert one["state"].keys() == two["state"].keys()
    for name, tensor in one["state"].items():
        torch.testing.assert_close(two["state"][name], tensor, rtol=1e-9, atol=1e-11, msg=name)

    first, second = (json.loads((tmp_path / f"{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1))
    assert first == second
    assert [first[decoder][1] for decoder, _ in train_together.OTHERS] == [[[1, 1.0]]] * 2
    assert "the loss " in first["diverges"]
    assert first["breaks"] == "logits are not finite"
    for part in ("'own0', 0", "'own1', 0", "all must see the folder of --output"):
        assert part in first["folders"]


def test_the_command_in_two_processes_writes_each_row_once(toy: SegmentationData, tmp_path: Path) -> None:
    """Both train; the first one evaluates and writes, and the other one waits for it before the next run."""
    root = tmp_path / "toy"
    save_folder(toy, root)
    data = ["--data", "folder", "--root", str(root), "--classes", str(root / "classes.txt"), "--device", "cpu"]
    command = ["-m", "experiments.compare_decoders", *data, "--decoders", "FPN", "--batch-size", "4"]
    start(*command, "--output", str(tmp_path / "out"), "--seeds", "0", "1", "--steps", "2")
    rows = read_rows(tmp_path / "out" / "results.jsonl")
    assert [(row["seed"], row["status"], row["world_size"]) for row in rows] == [(0, "ok", 2), (1, "ok", 2)]


def test_a_run_that_diverged_has_one_row_and_the_processes_end_well(
    toy: SegmentationData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What all of them raise the first one writes down; with another status torchrun would start them again."""

    def diverges(*_: object, **__: object) -> None:
        raise DivergedError("the loss became nan at step 1")

    run, rows = Run("swinx_n", "inline", "FPN", 32, 0), list[Row]()
    monkeypatch.setattr(runs, "fit", diverges)
    for rank, expected in ((0, [("diverged", "the loss became nan at step 1", 2)]), (1, [])):
        monkeypatch.setattr(runs, "processes", lambda rank=rank: Processes(rank, rank, 2, 2))
        made = runs.execute(run, toy, toy_settings(), tmp_path, provenance(torch.device("cpu")))
        assert [(row["status"], row["error"], row["world_size"]) for row in made] == expected
        rows += made

    def work(console: Console) -> tuple[list[Run], list[Row]]:
        return [run], rows

    for world, status in ((1, 1), (2, 0)):
        monkeypatch.setattr(comparison, "processes", lambda world=world: Processes(0, 0, world, world))
        assert comparison.command(work, tmp_path) == status


@pytest.mark.parametrize(("rank", "times"), [(0, 1), (1, 0)])
def test_a_batch_that_cannot_be_shared_is_refused_and_said_once(
    rank: int, times: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torchrun = {"TORCHELASTIC_RUN_ID": "x", "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    for name, value in torchrun.items():
        monkeypatch.setenv(name, str(value))
    assert main(["--batch-size", "3"]) == 2
    message = "--batch-size must be a multiple of the number of processes, 2, got 3"
    assert capsys.readouterr().err.count(message) == times
