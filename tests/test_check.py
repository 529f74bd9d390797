"""The check command: kernels that are right, wrong and broken, and times; and who reads its records."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from kernel_cases import DEVICE
from releases import KERNELS
from torch import Tensor

from swinx.attention import check
from swinx.attention.triton import launch, records, trial

pytestmark = KERNELS


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """One small window in one dtype; gives the file for the record."""
    monkeypatch.setattr(check, "WINDOWS", (((4, 5), 16, False), ((3, 3), 8, True)))
    monkeypatch.setattr(check, "INTERPRETED", {torch.float32: 2})
    monkeypatch.setattr(check, "ON_A_GPU", {torch.float32: 2})
    monkeypatch.setattr(check, "PROCESSES", 1)  # others would not see what is patched here
    monkeypatch.setattr(check, "REPEATS", 3)
    monkeypatch.setattr(check, "REPEATS_INTERPRETED", 3)
    monkeypatch.setattr(check, "REPEATED", ((4, 5),))
    monkeypatch.setattr(check, "REPEATED_INTERPRETED", ((4, 5),))
    monkeypatch.setattr(check, "timed", lambda device: [])
    monkeypatch.setattr(trial, "trials", lambda *call, plain=trial.trials, **named: plain(*call, **named)[:2])
    monkeypatch.setattr("sys.argv", ["check", "--output", str(tmp_path / "record.json")])
    return tmp_path / "record.json"


def run(output: Path) -> tuple[int, dict[str, Any]]:
    with pytest.raises(SystemExit) as left:
        check.main()
    return left.value.code, json.loads(output.read_text())


def test_kernels_that_are_right(short: Path) -> None:
    status, record = run(short)
    assert status == 0
    assert record["right"]
    assert [case["right"] for case in record["cases"]] == [True] * 4
    assert all(0 < case["excess"] <= 1 for case in record["cases"])
    assert (record["capability"] is None) == (DEVICE == "cpu")
    assert not record["faster"]  # nothing was timed
    assert "Right: 4 of 4 cases" in record["verdict"][-3]
    assert record["verdict"][-2] == "Equal bits in 3 runs."


def test_each_kind_of_input_has_a_process_of_its_own(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = check.right(torch.device(DEVICE))
    monkeypatch.setattr(check, "PROCESSES", 2)
    apart = check.right(torch.device(DEVICE))  # with the third trial, which `short` leaves out in this process
    assert [row for row in apart if row["case"] < 2] == alone


def test_a_process_that_breaks_down_takes_no_other_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "PROCESSES", 2)
    assert list(check._apart(eval, [("1",), ("__import__('os')._exit(3)",), ("2",), ("3",)])) == [1, None, 2, 3]


def test_a_case_without_memory_beside_others_is_tried_again_alone(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, calls = launch.forward, []

    def full(*call: Any) -> tuple[Tensor, Tensor]:
        calls.append(0)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return plain(*call)

    monkeypatch.setattr(launch, "forward", full)
    status, record = run(short)
    assert status == 0
    assert [case["right"] for case in record["cases"]] == [True] * 4


def test_a_case_that_never_has_enough_memory_is_not_right(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*call: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(launch, "forward", full)
    status, record = run(short)
    assert status == 1
    assert {case["reason"] for case in record["cases"]} == {"OutOfMemoryError: CUDA out of memory."}


def test_nothing_is_begun_after_an_interruption(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(check, "PROCESSES", 2)
    begun = check._apart(os.mkdir, [(str(tmp_path / str(number)),) for number in range(40)])
    next(begun)
    begun.close()
    assert len(list(tmp_path.iterdir())) < 40


def test_kernels_that_are_wrong(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = launch.backward

    def wrong(*call: Any) -> tuple[Tensor, ...]:
        grad_qkv, grad_bias, grad_pad, grad_cosine = plain(*call)
        return grad_qkv, grad_bias, grad_pad, grad_cosine * 1.01

    monkeypatch.setattr(launch, "backward", wrong)
    status, record = run(short)
    assert status == 1
    assert not record["right"]
    assert [case["right"] for case in record["cases"]] == [True] * 2 + [False] * 2
    assert "Right: 2 of 4 cases" in record["verdict"][-2]


@pytest.mark.parametrize("failing", ["forward", "backward"])
def test_kernels_that_give_nan(short: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    plain = getattr(launch, failing)

    def wrong(*call: Any) -> tuple[Tensor, ...]:
        first, *rest = plain(*call)
        first[:, -1] = torch.nan
        return first, *rest

    monkeypatch.setattr(launch, failing, wrong)
    status, record = run(short)
    assert status == 1
    assert not record["right"]
    assert not any(case["right"] for case in record["cases"])


def test_kernels_that_give_other_bits_every_time(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, calls = launch.forward, []

    def wavering(*call: Any) -> tuple[Tensor, Tensor]:
        calls.append(0)
        out, lse = plain(*call)
        return out + (2.0**-10 if len(calls) > 6 else 0.0), lse  # four cases, then the same one three times

    monkeypatch.setattr(launch, "forward", wavering)
    status, record = run(short)
    assert status == 1
    assert all(case["right"] for case in record["cases"])
    assert "Not reproducible: equal inputs gave different bits." in record["verdict"]


def test_kernels_that_cannot_start(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*call: Any) -> None:
        raise RuntimeError("Failed to find C compiler.\nand more")

    monkeypatch.setattr(launch, "forward", fails)
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    status, record = run(short)
    assert status == 1
    assert record["c_compiler"] is None
    assert {case["reason"] for case in record["cases"]} == {"RuntimeError: Failed to find C compiler."}
    assert any("no C compiler" in sentence for sentence in record["verdict"])


@pytest.mark.parametrize(
    ("output", "reason"), [("missing/record.json", "No such file or directory"), (".", "Is a directory")]
)
def test_a_record_that_cannot_be_written_is_refused_before_any_work(
    short: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], output: str, reason: str
) -> None:
    monkeypatch.chdir(short.parent)
    monkeypatch.setattr(check, "right", lambda device: pytest.fail("it began to work"))
    monkeypatch.setattr("sys.argv", ["check", "--output", output])
    with pytest.raises(SystemExit, match="2"):
        check.main()
    assert f"--output {output} cannot be written: {reason}" in capsys.readouterr().err
    assert not list(short.parent.iterdir())


def test_faster_means_in_every_stage_and_direction() -> None:
    rows = [
        {"stage": stage, "direction": direction, "way": way, "ms": 1.0 if way == "triton" else 2.0}
        for stage in "ab"
        for direction in ("forward", "both")
        for way in ("triton", "sdpa", "flex_attention")
    ]
    assert check.faster(rows)
    assert not check.faster([])
    for way, ms in (("triton", 2.5), ("triton", None)):
        changed = [dict(row) for row in rows]
        next(row for row in changed if row["way"] == way)["ms"] = ms
        assert not check.faster(changed)
    without = [row for row in rows if (row["stage"], row["way"]) != ("b", "sdpa")]
    assert check.faster(without)  # SDPA did not run where the kernels did


def test_a_record_switches_auto_on_for_its_capability(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, capability, right, faster in [
        ("h100", [9, 0], True, True), ("a100", [8, 0], True, False), ("l4", [8, 9], False, False),
    ]:  # fmt: skip
        text = json.dumps({"capability": capability, "right": right, "faster": faster})
        (tmp_path / f"{name}.json").write_text(text)
    monkeypatch.setattr(records, "FOLDER", tmp_path)
    records.tested_capabilities.cache_clear()
    try:
        assert records.tested_capabilities() == {(9, 0)}
    finally:
        records.tested_capabilities.cache_clear()


def test_the_committed_records_are_of_gpus() -> None:
    for path in records.FOLDER.glob("*.json"):
        record = json.loads(path.read_text())
        assert record["capability"], path
        assert record["right"], path
