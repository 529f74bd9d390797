"""The command as a user runs it: two steps per cell, refusals, continuation, interruption."""

import functools
import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from experiments import compare_decoders, comparison
from experiments.compare_decoders import main
from experiments.data import SegmentationData, Split
from experiments.records import read_rows
from experiments.training import Segmenter

ONE = ["--decoders", "FPN", "--steps", "1", "--batch-size", "2", "--device", "cpu"]
FAST = ["--decoders", "FPN", "Unet", "--steps", "2", "--batch-size", "2", "--device", "cpu"]
REPORT = {"results.jsonl", "report.md", "report.html", "summary.csv", "class_iou.csv", "panel", "cells"}
SCHEMA = {
    *("kind", "commit", "dirty", "command", "time", "host", "python", "torch", "swinx"),
    *("data", "encoder", "decoder", "output_stride", "stem", "seed", "images_seen", "train_minutes", "val_miou"),
    *("test_miou", "class_iou", "pixel_accuracy", "params_m", "gflops", "latency_ms_p20", "latency_ms_p50"),
    *("latency_ms_p80", "peak_memory_mb", "thin_miou", "status", "error"),
}


@pytest.fixture(autouse=True)
def tiny_scenes(toy: SegmentationData, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The generated set is replaced by a tiny one; the working folder must stay clean."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setattr(compare_decoders, "make_scenes", lambda **_: toy)
    # Thirty timed runs per cell are for reports, not for tests.
    short = functools.partial(comparison.evaluation.latency, warmup=0, runs=3)
    monkeypatch.setattr(comparison.evaluation, "latency", short)


def test_two_steps_write_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    assert main([*FAST, "--seeds", "0", "1", "--output", str(output)]) == 0
    assert {path.name for path in output.iterdir()} == REPORT
    rows = read_rows(output / "results.jsonl")
    assert [(row["decoder"], row["seed"]) for row in rows] == [("FPN", 0), ("Unet", 0), ("FPN", 1), ("Unet", 1)]
    for row in rows:
        assert set(row) >= SCHEMA
        assert (row["kind"], row["status"], row["error"], row["images_seen"]) == ("segmentation", "ok", None, 4)
        assert set(row["class_iou"]) == {"dark", "grey", "bright <&>"}
        assert 0 < row["latency_ms_p20"] <= row["latency_ms_p50"] <= row["latency_ms_p80"]
        assert row["params_m"] > 1
        assert row["gflops"] > 0.1
        assert 0 <= row["test_miou"] <= 100
        assert (output / "cells" / f"{row['cell']}.json").exists()
        assert len(list((output / "cells" / row["cell"]).iterdir())) == 5
    assert list((tmp_path / "cwd").iterdir()) == []
    assert "report.html" in capsys.readouterr().out


def test_finished_cells_are_skipped_and_a_grown_grid_continues(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    assert main([*ONE, "--output", str(output)]) == 0
    before = (output / "results.jsonl").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(comparison, "fit", lambda *_, **__: pytest.fail("nothing is left to train"))
        assert main([*ONE, "--output", str(output)]) == 0
    assert (output / "results.jsonl").read_bytes() == before
    assert capsys.readouterr().out.count("finished before, skipped") == 1
    assert main([*ONE, "--seeds", "0", "1", "--output", str(output)]) == 0
    rows = read_rows(output / "results.jsonl")
    assert len({row["cell"] for row in rows}) == len(rows) == 2
    assert (output / "results.jsonl").read_bytes().startswith(before)


def test_another_configuration_is_refused_before_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, toy: SegmentationData
) -> None:
    output = tmp_path / "out"
    assert main([*ONE, "--output", str(output)]) == 0
    contents = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    monkeypatch.setattr(comparison, "fit", lambda *_, **__: pytest.fail("must be refused before training"))
    assert main([*ONE, "--steps", "3", "--output", str(output)]) == 2
    assert "holds results of another configuration (steps 1 there, 3 now)" in capsys.readouterr().err
    for change in ({"test": toy.val}, {"class_names": ("grey", "dark", "bright <&>")}, {"ignore_index": 254}):
        other = SegmentationData(**(vars(toy) | change))
        monkeypatch.setattr(compare_decoders, "make_scenes", lambda other=other, **_: other)
        assert main([*ONE, "--output", str(output)]) == 2
        assert "data_id" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == contents


def test_foreign_folders_and_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.tex").touch()
    assert main([*ONE, "--output", str(tmp_path / "notes")]) == 2
    assert "holds other files (thesis.tex)" in capsys.readouterr().err
    assert main([*ONE, "--output", str(tmp_path / "notes" / "thesis.tex")]) == 2
    assert "is a file, a folder is needed" in capsys.readouterr().err
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "results.jsonl").write_text('{"kind": "attention"}\n')
    assert main([*ONE, "--output", str(tmp_path / "rows")]) == 2
    assert "holds rows of kind 'attention'" in capsys.readouterr().err


def test_interrupted_cell_leaves_the_others_and_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    original = comparison.evaluation.save_predictions

    def interrupt(folder: Path, cell_id: str, *rest: object) -> None:
        original(folder, cell_id, *rest)
        if "Unet" in cell_id:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(comparison.evaluation, "save_predictions", interrupt)
        assert main([*FAST, "--output", str(output)]) == 130
    assert "the same command continues" in capsys.readouterr().out
    assert [row["decoder"] for row in read_rows(output / "results.jsonl")] == ["FPN"]
    assert "Unet" not in (output / "report.md").read_text()
    assert main([*FAST, "--output", str(output)]) == 0
    assert [row["decoder"] for row in read_rows(output / "results.jsonl")] == ["FPN", "Unet"]


def test_a_first_cell_interrupted_does_not_block_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "out"

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(comparison, "fit", interrupt)
        assert main([*ONE, "--output", str(output)]) == 130
    assert main([*ONE, "--output", str(output)]) == 0


def test_a_diverged_cell_has_a_row_and_the_grid_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = Segmenter.forward

    def breaks(self: Segmenter, images: Tensor) -> Tensor:
        logits = original(self, images)
        return logits * math.nan if self.training and type(self.model).__name__ == "FPN" else logits

    monkeypatch.setattr(Segmenter, "forward", breaks)
    output = tmp_path / "out"
    assert main([*FAST, "--output", str(output)]) == 1
    failed, fine = read_rows(output / "results.jsonl")
    assert (failed["status"], failed["error"]) == ("diverged", "the loss became nan at step 1, training stopped")
    assert failed["test_miou"] is None
    assert set(failed) == set(fine)
    assert fine["status"] == "ok"
    assert "the loss became nan" in capsys.readouterr().out
    assert "the loss became nan" in (output / "report.html").read_text()


def test_a_budget_of_minutes(tmp_path: Path) -> None:
    arguments = ["--decoders", "FPN", "--minutes", "0.005", "--batch-size", "2", "--output", str(tmp_path / "out")]
    assert main(arguments) == 0
    (row,) = read_rows(tmp_path / "out" / "results.jsonl")
    assert (row["steps"], row["minutes"]) == (None, 0.005)
    assert "0.005 minutes" in (tmp_path / "out" / "report.md").read_text()


def test_mixed_precision(tmp_path: Path) -> None:
    assert main([*ONE, "--precision", "bf16", "--output", str(tmp_path / "out")]) == 0
    (row,) = read_rows(tmp_path / "out" / "results.jsonl")
    assert (row["precision"], row["status"]) == ("bf16", "ok")


def test_other_strides_stems_and_encoders(tmp_path: Path) -> None:
    output = tmp_path / "out"
    shared = [
        "--decoders",
        "Segformer",
        "--device",
        "cpu",
        "--steps",
        "1",
        "--batch-size",
        "2",
        "--output",
        str(output),
    ]
    assert main([*shared, "--output-strides", "8", "32", "--stems", "none", "shared"]) == 0
    assert main([*shared, "--encoders", "resnet18"]) == 0
    rows = read_rows(output / "results.jsonl")
    assert [(row["encoder"], row["output_stride"], row["stem"]) for row in rows] == [
        ("swinx_n", 8, "none"),
        ("swinx_n", 8, "shared"),
        ("swinx_n", 32, "none"),
        ("swinx_n", 32, "shared"),
        ("resnet18", 32, None),
    ]
    assert "Segformer · resnet18" in (output / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "5", "--minutes", "1"], "--steps and --minutes exclude each other, got 5 and 1.0"),
        (["--steps", "0"], "steps must be at least 1, got 0"),
        (["--minutes", "-1"], "minutes must be positive and finite, got -1.0"),
        (["--batch-size", "1"], "--batch-size must be at least 2"),
        (["--batch-size", "8"], "must not exceed the number of training images, 7, got 8"),
        (["--decoders", "Unet", "DPT"], "--decoders: DPT is not one of DeepLabV3, DeepLabV3Plus, FPN"),
        (["--output-strides", "16"], "FPN takes output stride 32, got 16"),
        (["--decoders", "PAN"], "needs image sides of at least 128, got 64x64"),
        (["--encoders", "swin"], "--encoders: swin is not one of"),
        (["--decoders", "DeepLabV3Plus", "--encoders", "vgg11"], "these cells cannot exist"),
        (["--seeds", "-1"], "--seeds must not be negative, got -1"),
        (["--root", "x"], "--root: scenes are generated"),
        (["--classes", "x"], "--classes: only for --data folder, got --data scenes"),
        (["--data", "camvid"], "--data camvid needs --root"),
        (["--data", "camvid", "--root", "x", "--ignore-index", "3"], "--ignore-index: only for --data folder"),
        (["--data", "folder", "--root", "x"], "--data folder needs --classes"),
        (["--data", "folder", "--root", "x", "--classes", "missing.txt"], "missing.txt"),
        (["--size", "0", "5"], "--size must be height and width of at least 1, got 0 5"),
        (["--precision", "16", "--device", "cpu"], "--precision 16 needs --device cuda"),
        (["--data", "camvid", "--root", "x", "--data-seed", "3"], "--data-seed: only for --data scenes"),
    ],
)
def test_bad_input_is_refused_before_work(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert main(["--decoders", "FPN", "Unet", "--batch-size", "2", *arguments, "--output", str(output)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert not output.exists()


def test_masks_of_one_class_are_refused_before_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, toy: SegmentationData
) -> None:
    blank = Split(toy.train.images, torch.zeros_like(toy.train.masks), toy.train.names)
    monkeypatch.setattr(compare_decoders, "make_scenes", lambda **_: SegmentationData(**(vars(toy) | {"train": blank})))
    assert main([*ONE, "--output", str(tmp_path / "out")]) == 2
    assert "at least two classes besides the ignored pixels, got ids [0]" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written_is_refused_before_work(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "fit", lambda *_, **__: pytest.fail("must be refused before training"))
    assert main([*ONE, "--output", "/dev/null/out"]) == 2
    assert "/dev/null" in capsys.readouterr().err


def test_a_full_disk_ends_with_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(comparison, "append_row", full)
    assert main([*ONE, "--output", str(tmp_path / "out")]) == 2
    assert "No space left on device; finished cells are kept" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_is_refused_where_there_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*FAST, "--device", "cuda", "--output", str(tmp_path / "out")]) == 2
    assert "--device cuda: torch sees no CUDA device" in capsys.readouterr().err


def test_unknown_data_lists_the_choices(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--data", "cityscapes"])
    assert caught.value.code == 2
    assert "scenes" in capsys.readouterr().err


def test_rows_hold_what_settings_compare(tmp_path: Path) -> None:
    output = tmp_path / "out"
    main([*ONE, "--output", str(output)])
    (row,) = read_rows(output / "results.jsonl")
    for key in comparison.Settings.__dataclass_fields__:
        assert key in row
    json.dumps(row, allow_nan=False)
