"""Training that starts from finished runs, scores at listed steps, and scores at other resolutions and conditions."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import report_folder
import segmentation_models_pytorch as smp
import torch
from report_folder import row
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional
from torchmetrics.classification import MulticlassJaccardIndex
from toy import IGNORE, ONE, save_folder, toy_data

from experiments import data
from experiments.compare_decoders import main
from experiments.data import Split
from experiments.evaluation.corruptions import corrupted
from experiments.execution import runs
from experiments.execution.runs import find_source
from experiments.records.counts import counts_of, miou, unpack
from experiments.records.options import Corruption, DataOptions
from experiments.records.results import Row, read_rows, run_of
from experiments.reporting.rows import source_of
from experiments.training.models import Segmenter
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


def test_of_several_runs_whose_weights_fit_the_same_one_is_begun_with(tmp_path: Path) -> None:
    made = [row("Unet", output_stride=stride) for stride in (32, 16)] + [row("Unet", 1, output_stride=16)]
    report_folder.folder(tmp_path, made)
    for source in made:
        (tmp_path / "runs" / source["run"] / "last.pt").touch()
        assert find_source(tmp_path, run_of(source)).row == source
    assert find_source(tmp_path, replace(run_of(made[2]), output_stride=8)).row == made[2]
    both = f"whose weights fit swinx_n-inline-Unet-os8-seed0, got {made[0]['run']}, {made[1]['run']}"
    with pytest.raises(ValueError, match=both):
        find_source(tmp_path, replace(run_of(made[0]), output_stride=8))


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


def by_hand(
    model: Callable[[Tensor], Tensor], split: Split, *, flip: bool, native: bool, corruption: Corruption | None = None
) -> float:
    """Mean IoU in percent, with a measure of torchmetrics."""
    images = split.images
    if corruption is not None:
        images = torch.stack([corrupted(image, corruption, number) for number, image in enumerate(images)])
    masks = split.masks if split.native_masks is None or not native else torch.stack(split.native_masks)
    with torch.inference_mode():
        scores = model(images).softmax(1)
        if flip:
            scores = (scores + model(images.flip(-1)).softmax(1).flip(-1)) / 2
    scores = functional.interpolate(scores, masks.shape[-2:], mode="bilinear")
    return 100 * MulticlassJaccardIndex(3, ignore_index=IGNORE)(scores, masks.long()).item()


def test_training_validates_by_tiles_where_it_scores_by_them(tmp_path: Path) -> None:
    """One view of each tile: of mirrors, which the scores of the end average over, the curve has none."""
    tiles = ["--crop", "64", "32", "--tile", "64", "32", "--overlap", "0", "--flip"]
    assert main([*ONE, *tiles, "--output", str(tmp_path / "out")]) == 0
    (row,) = rows(tmp_path / "out")
    folder = tmp_path / "out" / "runs" / row["run"]
    curve = unpack((folder / "step1.npz").read_bytes())["val_miou"]
    model = load_weights(folder / "last.pt", "cpu").model

    def halves(images: Tensor) -> Tensor:
        return torch.cat([model(half) for half in images.split(32, -1)], -1)

    expected = {flip: by_hand(halves, toy_data().val, flip=flip, native=False) for flip in (False, True)}
    assert curve.tolist() == pytest.approx([expected[False]], abs=1e-3)
    assert row["val_miou"] == pytest.approx(expected[True], abs=1e-3)
    assert len({*expected.values(), by_hand(model, toy_data().val, flip=False, native=False)}) == 3


def test_scores_at_native_resolution_and_under_corruptions(tmp_path: Path) -> None:
    """Masks twice as large hold four times the pixels; all scores are of the averages over mirrors."""
    root = tmp_path / "data"
    save_folder(toy_data(128), root)
    options = DataOptions(data="folder", root=root, classes=root / "classes.txt", size=(64, 64))
    common = [*ONE, "--data", "folder", "--root", str(root), "--classes", str(root / "classes.txt"), "--flip"]
    common += ["--size", "64", "64", "--corruptions", "contrast", "gaussian_noise"]
    loaded, found = data.load(options, native=True), []
    for name in ("native", "size"):
        assert main([*common, "--score-at", name, "--output", str(tmp_path / name)]) == 0
        (row,) = rows(tmp_path / name)
        folder = tmp_path / name / "runs" / row["run"]
        counts = counts_of(unpack((folder / "step1.npz").read_bytes()))
        assert miou(counts.hits.sum(0), counts.union.sum(0)) == pytest.approx(row["test_miou"], abs=6e-4)
        model = load_weights(folder / "last.pt", "cpu").model
        how = {"flip": True, "native": name == "native"}
        expected = {kind: by_hand(model, loaded.test, corruption=kind, **how) for kind in row["corruption_miou"]}
        assert list(expected) == ["contrast", "gaussian_noise"]
        assert row["corruption_miou"] == pytest.approx(expected, abs=0.01)
        assert row["test_miou"] == pytest.approx(by_hand(model, loaded.test, **how), abs=0.01)
        validated = by_hand(model, loaded.val, flip=True, native=False)
        assert row["val_miou"] == pytest.approx(validated, abs=0.01)
        assert abs(by_hand(model, loaded.val, flip=False, native=False) - validated) > 0.1
        assert row["score_at"] == name
        found.append(counts)
    of_native, of_size = found
    masks = toy_data(128).test.masks
    sizes = [[int((mask == k).sum()) for k in range(3)] for mask in masks]
    order = [of_native.names.index(name) for name in sorted(of_native.names)]
    numpy.testing.assert_array_equal(of_native.truth[order], numpy.array(sizes))
    assert of_size.truth.sum() < of_native.truth.sum() / 3.5


def begun(monkeypatch: pytest.MonkeyPatch, output: Path, *arguments: str) -> dict[int, dict[str, Tensor]]:
    """By its seed, the weights that each run begins with."""
    found: dict[int, dict[str, Tensor]] = {}

    def stop(model: Segmenter, *rest: object, seed: int, **how: object) -> None:
        found[seed] = model.model.state_dict()
        raise RuntimeError

    monkeypatch.setattr(runs, "fit", stop)
    assert main([*ONE, *arguments, "--output", str(output)]) == 1
    return found


def test_seeds_draw_other_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = begun(monkeypatch, tmp_path / "out", "--seeds", "0", "7")
    assert list(found) == [0, 7]
    for name, tensor in found[0].items():
        if tensor.dim() > 1:
            assert not torch.equal(tensor, found[7][name]), name


def test_pretrained_weights_are_begun_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = smp.encoders.get_encoder("swinx_n").state_dict()
    save_file(state, tmp_path / "model.safetensors")
    settings = {"local": {"repo_id": "any", "revision": "any"}}
    monkeypatch.setitem(smp.encoders.encoders["swinx_n"], "pretrained_settings", settings)
    monkeypatch.setattr(smp.encoders, "hf_hub_download", lambda repo_id, *, filename, revision: tmp_path / filename)
    (found,) = begun(monkeypatch, tmp_path / "out", "--weights", "local").values()
    assert all(torch.equal(found[f"encoder.{name}"], tensor) for name, tensor in state.items())
