"""Runs that cannot exist are told from those that could not be tried, and are tried again by the next command."""

from pathlib import Path
from typing import Any

import pytest
import torch
from toy import ONE

from experiments.compare_decoders import main
from experiments.records.grid import Run
from experiments.records.results import Row, read_rows
from experiments.training import models

FOREIGN = Run("resnet18", None, "FPN", 32, 0, None, None, None)
ALLOCATOR = "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"


def failing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """No model with an encoder of another library can be built."""
    original = models.build_model

    def build(run: Run, *arguments: Any, **options: Any) -> Any:
        if run.encoder == "resnet18":
            raise error
        return original(run, *arguments, **options)

    monkeypatch.setattr(models, "build_model", build)


@pytest.mark.parametrize(
    "error",
    [MemoryError(), OSError(24, "Too many open files"), torch.OutOfMemoryError("CUDA out of memory"),
     RuntimeError(f"{ALLOCATOR}\nand a trace")],
)  # fmt: skip
def test_a_machine_that_lacks_something_says_nothing_of_the_run(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    failing(monkeypatch, error)
    with pytest.raises(OSError, match=rf"resnet18-FPN-os32-seed0 could not be tried: {type(error).__name__}") as caught:
        models.applicable([FOREIGN], [(64, 64)], 3)
    assert "\n" not in str(caught.value)


def rows(output: Path) -> dict[str, tuple[str, Row]]:
    return {row["run"]: (row["status"], row) for row in read_rows(output / "results.jsonl")}


@pytest.mark.usefixtures("tiny_scenes")
def test_what_was_not_applicable_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    common = [*ONE, "--encoders", "swinx_n", "resnet18", "--output", str(output)]
    for words in ("an old library", "another library"):
        with monkeypatch.context() as patch:
            failing(patch, RuntimeError(words))
            assert main(common) == 0
        told = capsys.readouterr().out
        assert f"resnet18-FPN-os32-seed0: not applicable, RuntimeError: {words}" in told
        status, row = rows(output)["resnet18-FPN-os32-seed0"]
        assert (status, row["error"]) == ("not applicable", f"RuntimeError: {words}")
    before = rows(output)["swinx_n-inline-FPN-os32-seed0"]
    lines = (output / "results.jsonl").read_text().splitlines()
    assert main(common) == 0
    told = capsys.readouterr().out
    assert "swinx_n-inline-FPN-os32-seed0: finished before, skipped" in told
    assert "resnet18-FPN-os32-seed0: test mIoU " in told
    made = rows(output)
    assert {run: status for run, (status, _) in made.items()} == dict.fromkeys(made, "ok")
    assert len(made) == 2
    assert made["swinx_n-inline-FPN-os32-seed0"] == before
    assert lines[0] in (output / "results.jsonl").read_text().splitlines()
    assert "another library" not in (output / "report.html").read_text()
    assert main(common) == 0
    assert capsys.readouterr().out.count("finished before, skipped") == 2
