"""Two processes under torchrun against one: see train_together.py, which they run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import train_together
from timm.layers import BatchNormAct2d
from toy import save_folder

import experiments
from experiments.compare_decoders import main
from experiments.data import SegmentationData
from experiments.decoders import DECODERS
from experiments.records import read_rows
from experiments.training import sync_norm
from swinx.config import STEMS

SCRIPT = Path(__file__).with_name("train_together.py")


def start(processes: int, *arguments: str) -> None:
    """Run the script in one process, or in several under torchrun."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    path = os.pathsep.join([str(Path(experiments.__file__).parent.parent), str(SCRIPT.parent)])
    done = subprocess.run(
        [sys.executable, *(launcher if processes > 1 else []), str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_two_processes_equal_one_with_the_same_batches(tmp_path: Path) -> None:
    """Cross-entropy, BatchNorm, accumulation, clipping, AdamW and the average, over five steps in float64."""
    start(1, str(tmp_path), "equal")
    start(2, str(tmp_path), "equal")
    one, two = (torch.load(tmp_path / f"{world}.pt", weights_only=True) for world in (1, 2))
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-12)
    assert len(set(one["losses"])) == 5
    assert [step for step, _ in two["validations"]] == [2, 4, 5]
    assert dict(two["validations"]) == pytest.approx(dict(one["validations"]), rel=1e-11)
    assert one["state"].keys() == two["state"].keys()
    for name, tensor in one["state"].items():
        torch.testing.assert_close(two["state"][name], tensor, rtol=1e-9, atol=1e-11, msg=name)


def test_every_stem_trains_in_two_processes_under_every_decoder(tmp_path: Path) -> None:
    """Parameters that a decoder does not reach, such as norms of levels it does not read, must not stop the run."""
    start(2, str(tmp_path), "stems")
    trained = [tuple(line.split()[:2]) for line in (tmp_path / "stems.txt").read_text().splitlines()]
    assert trained == [(decoder, stem) for decoder in DECODERS for stem in STEMS]


def test_batch_norm_of_two_processes_is_that_of_all_images(tmp_path: Path) -> None:
    """Against torch's BatchNorm2d, with shares of unequal size and images far from zero."""
    start(2, str(tmp_path), "norm")
    parts = [torch.load(tmp_path / f"norm-{rank}.pt", weights_only=True) for rank in (0, 1)]
    for name, dtype, affine, momentum in train_together.NORMS:
        layer = torch.nn.BatchNorm2d(3, affine=affine, momentum=momentum).double()
        expected = train_together.pass_through(layer, *(t.double() for t in train_together.norm_input(dtype)))
        first, second = (part[name] for part in parts)
        assert first.keys() == second.keys() == expected.keys()
        band = {"rtol": 1e-11, "atol": 1e-11} if dtype == torch.float64 else {"rtol": 2e-2, "atol": 2e-2}
        for key, value in expected.items():
            if key in ("out", "x"):
                assert first[key].dtype == dtype
                found = torch.cat([first[key], second[key]])
            elif key in ("weight", "bias"):
                found = first[key] + second[key]
            else:
                found = first[key]
                assert torch.equal(found, second[key])
            torch.testing.assert_close(found.to(value.dtype), value, **band, msg=lambda m, at=(name, key): f"{at}: {m}")


def command(root: Path, output: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """experiments.compare_decoders on the tiny set, by two processes under torchrun."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    data = ["--data", "folder", "--root", str(root), "--classes", str(root / "classes.txt"), "--device", "cpu"]
    run = ["--decoders", "Unet", "--batch-size", "4", "--output", str(output), *arguments]
    return subprocess.run(
        [sys.executable, *launcher, "-m", "experiments.compare_decoders", *data, *run],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=Path(experiments.__file__).parent.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )


def test_the_command_in_two_processes_writes_each_row_once(toy: SegmentationData, tmp_path: Path) -> None:
    """Cells train, and then diverge, in both processes: one row each, and no process waits for the other in vain."""
    save_folder(toy, tmp_path / "toy")
    output = tmp_path / "out"
    done = command(tmp_path / "toy", output, "--seeds", "0", "1", "--steps", "2")
    assert done.returncode == 0, done.stderr[-3000:]
    rows = read_rows(output / "results.jsonl")
    assert [(row["seed"], row["status"], row["world_size"]) for row in rows] == [(0, "ok", 2), (1, "ok", 2)]
    diverging = command(tmp_path / "toy", tmp_path / "diverging", "--learning-rate", "1e30", "--steps", "9")
    assert diverging.returncode == 0, diverging.stderr[-3000:]
    assert [row["status"] for row in read_rows(tmp_path / "diverging" / "results.jsonl")] == ["diverged"]


@pytest.mark.parametrize(("rank", "told"), [(0, 1), (1, 0)])
def test_a_batch_that_cannot_be_shared_is_refused_and_told_once(
    rank: int, told: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torchrun = {"TORCHELASTIC_RUN_ID": "x", "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    for name, value in torchrun.items():
        monkeypatch.setenv(name, str(value))
    assert main(["--batch-size", "3"]) == 2
    message = "--batch-size must be a multiple of the number of processes, 2, got 3"
    assert capsys.readouterr().err.count(message) == told


def test_other_kinds_of_batch_norm_are_refused() -> None:
    """torch's conversion would replace timm's by one without its activation."""
    with pytest.raises(ValueError, match="several processes train networks with BatchNorm2d, got BatchNormAct2d"):
        sync_norm.check(torch.nn.Sequential(torch.nn.BatchNorm2d(3), BatchNormAct2d(3)))
    sync_norm.check(torch.nn.Sequential(torch.nn.BatchNorm2d(3)))
