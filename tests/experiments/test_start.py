"""Training that starts from finished runs, scores at listed steps, and scores at other resolutions and conditions."""

from pathlib import Path

import numpy
import pytest
import torch
from toy import ONE, save_folder, toy_data

from experiments import data
from experiments.compare_decoders import main
from experiments.records.counts import counts_of, miou, unpack
from experiments.records.results import Row, read_rows
from experiments.reporting.rows import source_of
from experiments.training.weights import load_weights

SEGFORMER = "swinx_n-inline-Segformer-os32-seed0"
COMMON = [*ONE[2:], "--decoders", "Segformer"]

pytestmark = pytest.mark.usefixtures("tiny_scenes")


def rows(folder: Path) -> list[Row]:
    return read_rows(folder / "results.jsonl")


def test_runs_start_from_finished_ones_at_another_stride(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before the first step the model is the source's, read out at the new stride; a frozen encoder stays the same."""
    source, output = tmp_path / "source", tmp_path / "out"
    assert main([*COMMON, "--output", str(source)]) == 0
    grid = ["--output-strides", "8", "--dilations", "exact", "dense", "--steps", "3", "--evaluate-at", "0", "2"]
    start = ["--start", str(source), "--freeze", "encoder"]
    assert main([*COMMON, *grid, *start, "--contrasts", "exact-dense@os8,step0", "--output", str(output)]) == 0
    made = rows(output)
    assert [(row["dilation"], row["step"], row["status"]) for row in made] == [
        (rule, step, "ok") for rule in ("exact", "dense") for step in (0, 2, 3)
    ]
    (told,) = rows(source)
    assert all(row["source"]["run"] == SEGFORMER and row["source"]["time"] == told["time"] for row in made)
    for rule in ("exact", "dense"):  # steps of one training have one time, by which they are paired
        assert len({row["time"] for row in made if row["dilation"] == rule}) == 1
    toy = toy_data()
    model = load_weights(source / "runs" / SEGFORMER / "last.pt", "cpu").model
    before = {name: tensor.clone() for name, tensor in model.model.encoder.state_dict().items()}
    model.model.encoder.make_dilated(8)
    with torch.inference_mode():
        predicted = model(toy.test.images).argmax(1)
    run = SEGFORMER.replace("os32", "os8")
    counts = counts_of(unpack((output / "runs" / run / "step0.npz").read_bytes()))
    kept = toy.test.masks != toy.ignore_index
    expected = [[int(((p == k) & m).sum()) for k in range(3)] for p, m in zip(predicted, kept, strict=True)]
    assert counts.predicted.tolist() == expected
    after = load_weights(output / "runs" / run / "last.pt", "cpu").model.model
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.encoder.state_dict().items())
    assert not torch.equal(after.decoder.fuse_stage[0].weight, model.model.decoder.fuse_stage[0].weight)
    assert not list((output / "runs").rglob("*.json"))
    assert "exact-dense@os8,step0" in (output / "differences.csv").read_text()
    assert len({source_of(row) for row in (*made, told)}) == 1  # compared source by source
    capsys.readouterr()
    for arguments, message in (
        (["--seeds", "1"], "none among swinx_n-inline-Segformer-os32-seed0"),
        (["--decoders", "FPN"], "must have one finished run whose weights fit swinx_n-inline-FPN-os32-seed0"),
    ):
        assert main([*COMMON, *arguments, "--start", str(source), "--output", str(tmp_path / "no")]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_runs_that_cannot_exist_need_no_start(tmp_path: Path) -> None:
    """PAN cannot take these images: it has no weights in the folder that is begun with."""
    both = [*ONE, "--decoders", "FPN", "PAN"]
    assert main([*both, "--output", str(tmp_path / "source")]) == 0
    assert main([*both, "--start", str(tmp_path / "source"), "--output", str(tmp_path / "out")]) == 0
    assert {row["decoder"]: row["status"] for row in rows(tmp_path / "out")} == {"PAN": "not applicable", "FPN": "ok"}


def test_weights_of_other_data_are_no_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([*ONE, "--output", str(tmp_path / "source")]) == 0
    monkeypatch.setattr(data, "make_scenes", lambda **_: toy_data(96))
    assert main([*ONE, "--start", str(tmp_path / "source"), "--output", str(tmp_path / "out")]) == 2
    assert "--start must be of the same data, toy (" in capsys.readouterr().err


def test_scores_at_native_resolution_and_under_corruptions(tmp_path: Path) -> None:
    """Masks twice as large hold four times the pixels; their scores are kept, and those under noise beside them."""
    save_folder(toy_data(128), tmp_path / "data")
    folder = ["--data", "folder", "--root", str(tmp_path / "data"), "--classes", str(tmp_path / "data" / "classes.txt")]
    common = [*ONE, *folder, "--size", "64", "64"]
    assert main([*common, "--score-at", "native", "--corruptions", "contrast", "--output", str(tmp_path / "a")]) == 0
    assert main([*common, "--output", str(tmp_path / "b")]) == 0
    found = []
    for name in ("a", "b"):
        (row,) = rows(tmp_path / name)
        counts = counts_of(unpack((tmp_path / name / "runs" / row["run"] / "step1.npz").read_bytes()))
        assert miou(counts.hits.sum(0), counts.union.sum(0)) == pytest.approx(row["test_miou"], abs=6e-4)
        found.append((row, counts))
    (native, of_native), (plain, of_plain) = found
    masks = toy_data(128).test.masks
    expected = [[int((mask == k).sum()) for k in range(3)] for mask in masks]
    order = [of_native.names.index(name) for name in sorted(of_native.names)]
    numpy.testing.assert_array_equal(of_native.truth[order], numpy.array(expected))
    assert of_plain.truth.sum() < of_native.truth.sum() / 3.5
    assert list(native["corruption_miou"]) == ["contrast"]
    assert 0 <= native["corruption_miou"]["contrast"] <= 100
    assert plain["corruption_miou"] is None
    assert (native["score_at"], plain["score_at"]) == ("native", "size")
