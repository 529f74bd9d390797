"""The command as a user runs it: two steps per run, refusals, continuation, interruption."""

import errno
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from torch import Tensor
from toy import FAST, ONE

from experiments.compare_decoders import main
from experiments.data import SegmentationData
from experiments.evaluation.cost import flops
from experiments.execution import comparison, launch, prepare, runs
from experiments.records.counts import counts_of, miou, unpack
from experiments.records.grid import Run
from experiments.records.options import Inference, RayResources, Recipe, Scoring
from experiments.records.results import RESULT_FIELDS, read_rows
from experiments.records.settings import EXECUTION, Settings
from experiments.reporting.pages import FILES
from experiments.training.models import Segmenter
from experiments.training.weights import load_weights

FOLDER = {"results.jsonl", "settings.json", "data.json", "examples", "runs", ".lock", *FILES}
RUN_FILES = {*(f"{number:02}.png" for number in range(5)), "last.pt"}
RUN_FILES |= {f"extreme_{kind}{number}.png" for kind in ("worst", "best") for number in (1, 2)}
PROVENANCE = {"commit", "dirty", "command", "time", "host", "cpu_capability", "python"}
PROVENANCE |= {"torch", "smp", "timm", "numpy", "swinx"}


pytestmark = pytest.mark.usefixtures("tiny_scenes")


def test_two_steps_write_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str], toy: SegmentationData) -> None:
    output = tmp_path / "out"
    assert main([*FAST, "--output", str(output)]) == 0
    assert {path.name for path in output.iterdir()} == FOLDER
    rows = read_rows(output / "results.jsonl")
    assert [(row["decoder"], row["seed"]) for row in rows] == [("FPN", 0), ("Unet", 0)]
    for row in rows:
        assert set(row) >= {*PROVENANCE, *RESULT_FIELDS, "latency_sitting", "threads", "world_size", "step", "source"}
        assert (row["kind"], row["status"], row["error"], row["images_seen"]) == ("segmentation", "ok", None, 4)
        assert set(row["class_iou"]) == {"dark", "grey", "bright <&>"}
        assert 0 < row["latency_ms_p20"] <= row["latency_ms_p50"] <= row["latency_ms_p80"]
        unmeasured = {"peak_memory_mb", "thin_miou", "thin_boundary_f1", "corruption_miou"}
        assert [name for name in RESULT_FIELDS if row[name] is None and name not in unmeasured] == []
        assert 0 <= row["test_miou"] <= 100
        folder = output / "runs" / row["run"]
        assert {path.name for path in folder.iterdir()} == RUN_FILES | {"step2.npz"}
        model = load_weights(folder / "last.pt", "cpu").model
        assert row["params_m"] == pytest.approx(sum(p.numel() for p in model.parameters()) / 1e6, abs=1e-4)
        assert row["gflops"] == pytest.approx(flops(model, toy.test.images[:1]) / 1e9, abs=1e-4)
        arrays = unpack((folder / "step2.npz").read_bytes())
        assert arrays["loss_step"].tolist() == [1, 2]
        assert arrays["val_step"].tolist() == [1, 2]
        assert arrays["val_miou"][-1] == pytest.approx(row["val_miou"], abs=6e-4)
        counts = counts_of(arrays)
        assert miou(counts.hits.sum(0), counts.union.sum(0)) == pytest.approx(row["test_miou"], abs=6e-4)
    assert list((tmp_path / "cwd").iterdir()) == []
    printed = capsys.readouterr().out
    assert "report.html" in printed
    assert "note:" not in printed


def test_crops_are_kept_with_the_weights_and_whole_images_are_pointed_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    note = "note: training sees crops of 48x32, evaluation whole images; --tile 48 32 evaluates"
    assert main([*ONE, "--crop", "48", "32", "--output", str(output)]) == 0
    assert note in capsys.readouterr().out
    assert load_weights(output / "runs" / "swinx_n-inline-FPN-os32-seed0" / "last.pt", "cpu").crop == (48, 32)
    for name, more in {"tiles": ("48", "32", "--tile", "48", "32"), "whole": ("64", "64")}.items():
        assert main([*ONE, "--crop", *more, "--output", str(tmp_path / name)]) == 0
        assert "note:" not in capsys.readouterr().out


def test_finished_runs_are_skipped_and_a_grown_grid_continues(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    assert main([*ONE, "--output", str(output)]) == 0
    before = (output / "results.jsonl").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(runs, "fit", lambda *_, **__: pytest.fail("nothing is left to train"))
        assert main([*ONE, "--output", str(output)]) == 0
    assert (output / "results.jsonl").read_bytes() == before
    assert capsys.readouterr().out.count("finished before, skipped") == 1
    assert main([*ONE, "--seeds", "0", "1", "--output", str(output)]) == 0
    rows = read_rows(output / "results.jsonl")
    assert len({row["run"] for row in rows}) == len(rows) == 2
    assert (output / "results.jsonl").read_bytes().startswith(before)


def test_interrupted_run_leaves_the_others_and_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    original = runs.save_predictions

    def interrupt(folder: Path, *rest: Any, **how: Any) -> None:
        original(folder, *rest, **how)
        if "Unet" in folder.name:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runs, "save_predictions", interrupt)
        assert main([*FAST, "--output", str(output)]) == 130
    assert "the same command continues" in capsys.readouterr().err
    assert [row["decoder"] for row in read_rows(output / "results.jsonl")] == ["FPN"]
    assert "Unet" not in (output / "report.md").read_text()
    assert main([*FAST, "--output", str(output)]) == 0
    assert [row["decoder"] for row in read_rows(output / "results.jsonl")] == ["FPN", "Unet"]


def test_a_first_run_interrupted_does_not_block_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "out"

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runs, "fit", interrupt)
        assert main([*ONE, "--output", str(output)]) == 130
    assert main([*ONE, "--output", str(output)]) == 0


def test_a_diverged_run_keeps_its_rows_and_the_grid_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = Segmenter.forward

    def breaks(self: Segmenter, images: Tensor) -> Tensor:
        logits = original(self, images)
        return logits * math.nan if self.training and type(self.model).__name__ == "FPN" else logits

    monkeypatch.setattr(Segmenter, "forward", breaks)
    output = tmp_path / "out"
    command = [*FAST, "--evaluate-at", "0", "2", "--accumulate", "2", "--output", str(output)]
    assert main(command) == 1
    rows = read_rows(output / "results.jsonl")
    kept = [(row["decoder"], row["step"], row["status"], row["images_seen"]) for row in rows]
    of_failed = [("FPN", 0, "ok", None), ("FPN", None, "diverged", None)]
    assert kept == [*of_failed, ("Unet", 0, "ok", None), ("Unet", 2, "ok", 2 * 2 * 2)]
    _, failed, _, fine = rows
    assert (failed["status"], failed["error"]) == ("diverged", "the loss became nan at step 1, training stopped")
    assert failed["test_miou"] is None
    assert set(failed) == set(fine)
    assert "the loss became nan" in capsys.readouterr().out
    assert "the loss became nan" in (output / "report.html").read_text()
    # The exit status is about the runs that were asked for, finished before or not.
    assert [main([*command, "--decoders", decoder]) for decoder in ("Unet", "FPN")] == [0, 1]


def test_mixed_precision(tmp_path: Path) -> None:
    assert main([*ONE, "--precision", "bf16", "--output", str(tmp_path / "out")]) == 0
    (row,) = read_rows(tmp_path / "out" / "results.jsonl")
    assert (row["precision"], row["status"]) == ("bf16", "ok")


def test_other_strides_stems_and_encoders(tmp_path: Path) -> None:
    output = tmp_path / "out"
    shared = [*ONE[2:], "--decoders", "Segformer", "--output", str(output)]
    assert main([*shared, "--output-strides", "8", "--stems", "none"]) == 0
    assert main([*shared, "--encoders", "resnet18"]) == 0
    rows = read_rows(output / "results.jsonl")
    expected = [("swinx_n", 8, "none"), ("resnet18", 32, None)]
    assert [(row["encoder"], row["output_stride"], row["stem"]) for row in rows] == expected
    assert "Segformer · resnet18" in (output / "report.html").read_text()
    # By way of timm it is swinx's all the same, whose learning rate can fall from block to block.
    assert main([*ONE, "--encoders", "tu-swinx_n", "--layer-decay", "0.9", "--output", str(tmp_path / "timm")]) == 0


def test_a_run_that_fails_leaves_the_others_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output, error = tmp_path / "out", FileNotFoundError(2, "no weights in the cache")
    original = runs.fit

    def breaks(model: Segmenter, *rest: Any, **options: Any) -> Any:
        if type(model.model).__name__ == "FPN":
            raise error
        return original(model, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(runs, "fit", breaks)
        assert main([*FAST, "--output", str(output)]) == 1
    told = capsys.readouterr()
    assert f"swinx_n-inline-FPN-os32-seed0: failed, {type(error).__name__}: {error}" in told.out
    assert "1 of 2 runs failed and have no row; the same command tries them again" in told.err
    assert [row["decoder"] for row in read_rows(output / "results.jsonl")] == ["Unet"]
    assert main([*FAST, "--output", str(output)]) == 0
    assert [row["decoder"] for row in read_rows(output / "results.jsonl")] == ["Unet", "FPN"]


def test_a_report_that_fails_on_the_way_does_not_end_the_grid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output, write_report = tmp_path / "out", comparison.write_report

    def fail_before_the_last_row(folder: Path, contrasts: Sequence[str]) -> None:
        if len(read_rows(folder / "results.jsonl")) < 2:
            raise KeyError("a fault of the report")
        write_report(folder, contrasts)

    monkeypatch.setattr(comparison, "REPORT_SECONDS", -1.0)
    monkeypatch.setattr(comparison, "write_report", fail_before_the_last_row)
    assert main([*FAST, "--output", str(output)]) == 0
    assert "no report yet: KeyError: 'a fault of the report'" in capsys.readouterr().out
    assert {path.name for path in output.iterdir()} == FOLDER
    monkeypatch.setattr(comparison, "write_report", lambda folder, contrasts: {}["nothing"])
    with pytest.raises(KeyError):  # an error of the last report is not hidden
        main([*FAST, "--output", str(output)])


@pytest.mark.parametrize(
    ("module", "name", "code"),
    [
        *((runs, "fit", code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)),
        (comparison, "append_rows", errno.ENOSPC),
    ],
)
def test_a_disk_that_takes_no_more_ends_the_grid_with_a_sentence(
    module: ModuleType,
    name: str,
    code: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []

    def full(first: object, *_: object, **__: object) -> None:
        calls.append(first)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(module, name, full)
    assert main([*FAST, "--output", str(tmp_path / "out")]) == 2
    assert len(calls) == 1
    assert f"{os.strerror(code)}; what is finished is kept" in capsys.readouterr().err


def test_ray_makes_the_runs_where_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def on_ray(todo: Sequence[Run], origin: object, collect: object, fail: Any, **how: Any) -> None:
        asked.extend((run.decoder, how["resources"], how["output"]) for run in todo)
        fail(todo[0], RuntimeError("it died elsewhere"))

    monkeypatch.setattr(launch, "run_on_ray", on_ray)
    monkeypatch.setattr(prepare, "check_ray", lambda resources, device: None)
    monkeypatch.setattr(runs, "fit", lambda *_, **__: pytest.fail("must train elsewhere"))
    output = tmp_path / "out"
    assert main([*FAST, "--launcher", "ray", "--ray.cpus", "2", "--output", str(output)]) == 1
    assert asked == [(decoder, RayResources(cpus=2), output) for decoder in ("FPN", "Unet")]


def test_rows_hold_what_settings_compare(tmp_path: Path) -> None:
    output = tmp_path / "out"
    main([*ONE, "--output", str(output)])
    (row,) = read_rows(output / "results.jsonl")
    kinds = (Settings, Recipe, Inference, Scoring)
    names = {name for kind in kinds for name in kind.__dataclass_fields__}
    assert names - {"recipe", "inference", "scoring", *EXECUTION} <= set(row)
    assert Settings.of(row).as_row().items() <= row.items()
    json.dumps(row, allow_nan=False)
