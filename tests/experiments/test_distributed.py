"""Two processes under torchrun against one: see train_together.py, which they run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import experiments
from experiments.decoders import DECODERS
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
    """Cross-entropy, BatchNorm, accumulation, clipping, AdamW and the average, over ten steps in float64."""
    start(1, str(tmp_path), "equal")
    start(2, str(tmp_path), "equal")
    one, two = (torch.load(tmp_path / f"{world}.pt", weights_only=True) for world in (1, 2))
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-12)
    assert len(set(one["losses"])) == 10
    assert [step for step, _ in two["validations"]] == [4, 8, 10]
    assert dict(two["validations"]) == pytest.approx(dict(one["validations"]), rel=1e-11)
    assert one["state"].keys() == two["state"].keys()
    for name, tensor in one["state"].items():
        torch.testing.assert_close(two["state"][name], tensor, rtol=1e-9, atol=1e-11, msg=name)


def test_every_stem_trains_in_two_processes_under_every_decoder(tmp_path: Path) -> None:
    """Parameters that a decoder does not reach, such as norms of levels it does not read, must not stop the run."""
    start(2, str(tmp_path), "stems")
    trained = [tuple(line.split()[:2]) for line in (tmp_path / "stems.txt").read_text().splitlines()]
    assert trained == [(decoder, stem) for decoder in DECODERS for stem in STEMS]
