"""The command as a user runs it: what it writes."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import COLORS, KINDS, RUN, Pixelwise, arguments, fill, picture, read, stand_in
from PIL import Image
from toy import toy_data

from experiments import data
from experiments.data import SegmentationData
from experiments.predict import main
from experiments.prediction.options import Options
from experiments.prediction.prediction import prepare
from experiments.records import files
from experiments.records.files import locked
from experiments.records.options import DataOptions
from experiments.training.models import Segmenter, build_model
from experiments.training.weights import load_weights, save_weights


@pytest.fixture
def pixelwise(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Pixelwise:
    return stand_in(monkeypatch, tmp_path / "w.pt")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real, untrained model, with logits far enough apart for classes to be clear."""
    torch.manual_seed(0)
    model = Segmenter(build_model(RUN, 3))
    with torch.no_grad():
        model.model.segmentation_head[0].weight *= 5
    path = tmp_path_factory.mktemp("weights") / "last.pt"
    save_weights(path, model, RUN, toy_data())
    return path


def test_files_are_what_the_model_says(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path / "in", {"a.png": (64, 64), "sub/b.png": (64, 83)})
    assert main([str(weights), str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--device", "cpu"]) == 0
    model = load_weights(weights, "cpu").model
    for name in ("a", "sub/b"):
        image = read(tmp_path / "in" / f"{name}.png")
        with torch.inference_mode():
            probabilities = model(torch.from_numpy(image.copy()).permute(2, 0, 1)[None])[0].softmax(0)
        expected, ids = probabilities.max(0)
        assert len(ids.unique()) > 1
        mask = Image.open(tmp_path / "out" / "masks" / f"{name}.png")
        assert mask.mode == "P"
        assert (np.asarray(mask) == ids.numpy()).all()
        assert (np.asarray(mask.convert("RGB")) == np.asarray(COLORS)[ids.numpy()]).all()
        confidence = read(tmp_path / "out" / "confidence" / f"{name}.png")
        assert confidence.shape == image.shape[:2]
        assert np.abs(confidence - 255 * expected.numpy()).max() <= 0.5 + 1e-3
        overlay = read(tmp_path / "out" / "overlays" / f"{name}.png")
        assert np.abs(overlay - (image + np.asarray(COLORS)[ids.numpy()]) / 2).max() <= 0.5
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        ".lock",
        *KINDS,
        "classes.json",
        "prediction.json",
    }
    assert json.loads((tmp_path / "out" / "classes.json").read_text()) == [
        {"id": 0, "name": "dark", "color": [20, 20, 90]},
        {"id": 1, "name": "grey", "color": [90, 160, 90]},
        {"id": 2, "name": "bright <&>", "color": [240, 220, 90]},
    ]
    out = capsys.readouterr().out
    assert "trained on toy at 64x64, sees 2 pictures: weights " in out
    assert ", short_side 64, " in out
    assert f"2 predicted: {tmp_path / 'out'}" in out


def load(root: Path, *class_names: str, **options: Any) -> SegmentationData:
    (root / "classes.txt").write_text("\n".join(class_names))
    return data.load(DataOptions(data="folder", root=root, classes=root / "classes.txt", **options))


def test_masks_can_be_trained_on(tmp_path: Path, pixelwise: Pixelwise) -> None:
    for split in ("train", "val", "test"):
        fill(tmp_path / "data" / "images" / split, {"a.png": (64, 96)})
    assert main(arguments(tmp_path, images="data/images")) == 0
    os.rename(tmp_path / "out" / "masks", tmp_path / "data" / "masks")
    assert load(tmp_path / "data", "dark", "grey", "bright").test.masks.unique().tolist() == [0, 1, 2]


def test_by_default_the_model_sees_the_training_scale(tmp_path: Path, pixelwise: Pixelwise) -> None:
    fill(tmp_path / "in", {"a.png": (128, 192), "b.png": (101, 67), "c.png": (32, 31)})
    assert main(arguments(tmp_path)) == 0
    assert sorted(pixelwise.shapes) == [(1, 3, 64, 96), (1, 3, 66, 64), (1, 3, 96, 64)]
    sizes = {name: read(tmp_path / "out" / "masks" / f"{name}.png").shape for name in "abc"}
    assert sizes == {"a": (128, 192), "b": (101, 67), "c": (32, 31)}


@pytest.mark.parametrize(("fit", "short_side"), [("pad", 32), ("crop", 64), ("stretch", 64)])
def test_the_training_scale_is_that_of_the_pictures_and_not_of_their_canvas(
    tmp_path: Path, fit: str, short_side: int
) -> None:
    """Pictures twice as wide as high, brought to a square: padding them halves their scale."""
    for split in ("train", "val", "test"):
        fill(tmp_path / "data" / "images" / split, {"a.png": (48, 96)})
        (tmp_path / "data" / "masks" / split).mkdir(parents=True)
        Image.fromarray(np.zeros((48, 96), np.uint8)).save(tmp_path / "data" / "masks" / split / "a.png")
    loaded = load(tmp_path / "data", "dark", "grey", "bright", size=(64, 64), fit=fit)
    save_weights(tmp_path / "last.pt", Segmenter(build_model(RUN, 3)), RUN, loaded)
    options = Options(tmp_path / "last.pt", tmp_path / "data" / "images", tmp_path / "out", device="cpu")
    assert prepare(options).short_side == short_side


def test_the_training_scale_of_upright_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = stand_in(monkeypatch, tmp_path / "w.pt", size=(96, 64))
    fill(tmp_path / "in", {"a.png": (128, 192)})
    assert main(arguments(tmp_path)) == 0
    assert model.shapes == [(1, 3, 64, 96)]


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        ([], [(1, 3, 64, 70)] * 2),
        (["--native"], [(1, 3, 64, 70)] * 6),
        (["--tile", "64", "96"], [(1, 3, 64, 96)]),
    ],
)
def test_a_model_of_crops_sees_tiles_of_their_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], seen: list[tuple[int, ...]]
) -> None:
    model = stand_in(monkeypatch, tmp_path / "w.pt", crop=(64, 70))
    fill(tmp_path / "in", {"a.png": (100, 150)})
    overlap = [] if "--tile" in options else ["--overlap", "0.25"]
    assert main(arguments(tmp_path, *options, *overlap)) == 0
    assert model.shapes == seen


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        (["--short-side", "50"], [(1, 3, 50, 75)]),
        (["--size", "40", "50"], [(1, 3, 40, 50)]),
        (["--native", "--tile", "999", "999"], [(1, 3, 100, 150)]),
        (["--native", "--overlap", "0"], [(1, 3, 64, 96)] * 4),
        (["--tile", "64", "50", "--overlap", "0"], [(1, 3, 64, 50)] * 2),
        (["--scales", "0.5", "1"], [(1, 3, 32, 48), (1, 3, 64, 96)]),
        (["--flip"], [(1, 3, 64, 96)] * 2),
    ],
)
def test_other_scales(tmp_path: Path, pixelwise: Pixelwise, options: list[str], seen: list[tuple[int, ...]]) -> None:
    fill(tmp_path / "in", {"a.png": (100, 150)})
    assert main(arguments(tmp_path, *options)) == 0
    assert pixelwise.shapes == seen
    assert read(tmp_path / "out" / "masks" / "a.png").shape == (100, 150)


def test_size_gives_the_pixels_of_a_comparison(tmp_path: Path, pixelwise: Pixelwise) -> None:
    for split in ("train", "val", "test"):
        fill(tmp_path / "data" / "images" / split, {"a.png": (101, 149)})
        (tmp_path / "data" / "masks" / split).mkdir(parents=True)
        Image.new("L", (149, 101)).save(tmp_path / "data" / "masks" / split / "a.png")
    stretched = load(tmp_path / "data", "only", size=(40, 50), fit="stretch")
    assert main(arguments(tmp_path, "--size", "40", "50", images="data/images/test")) == 0
    assert torch.equal(pixelwise.calls[0], stretched.test.images)


def test_tiles_and_flips_of_a_pixelwise_model_change_nothing(tmp_path: Path, pixelwise: Pixelwise) -> None:
    fill(tmp_path / "in", {"a.png": (131, 173), "b.png": (29, 211), "c.png": (17, 13)})
    assert main(arguments(tmp_path, "--native", "--tile", "500", "500")) == 0
    tiled = arguments(tmp_path, "--native", "--tile", "31", "37", "--overlap", "0.3", "--flip", output="tiled")
    assert main(tiled) == 0
    assert (1, 3, 31, 37) in pixelwise.shapes
    for name in "abc":
        at = [(tmp_path / output, f"{name}.png") for output in ("out", "tiled")]
        whole, parts = (read(output / "masks" / file) for output, file in at)
        assert (whole == parts).mean() > 0.999
        whole, parts = (read(output / "confidence" / file).astype(int) for output, file in at)
        assert np.abs(whole - parts).max() <= 1


def test_bfloat16_changes_little(tmp_path: Path, weights: Path) -> None:
    fill(tmp_path / "in", {"a.png": (64, 96)})
    for precision in ("32", "bf16"):
        command = [str(weights), str(tmp_path / "in"), "--output", str(tmp_path / precision), "--device", "cpu"]
        assert main([*command, "--precision", precision]) == 0
    whole, half = (read(tmp_path / precision / "confidence" / "a.png").astype(int) for precision in ("32", "bf16"))
    assert 0 < np.abs(whole - half).max() < 40


def test_one_file_and_an_output_inside_the_folder(tmp_path: Path, pixelwise: Pixelwise) -> None:
    fill(tmp_path / "in", {"a.png": (64, 96), "b.png": (64, 96)})
    assert main(arguments(tmp_path, images="in/a.png", output="in/out")) == 0
    assert [path.name for path in (tmp_path / "in/out/masks").iterdir()] == ["a.png"]
    assert main(arguments(tmp_path, output="in/out")) == 0
    assert sorted(path.name for path in (tmp_path / "in/out/masks").iterdir()) == ["a.png", "b.png"]
    assert len(pixelwise.calls) == 2


def test_pictures_lie_as_viewers_show_them(tmp_path: Path, pixelwise: Pixelwise) -> None:
    upright = picture(0, 64, 96)
    (tmp_path / "in").mkdir()
    upright.save(tmp_path / "in" / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "in" / "turned.png", exif=exif)
    assert main(arguments(tmp_path)) == 0
    for kind in KINDS:
        assert (read(tmp_path / "out" / kind / "upright.png") == read(tmp_path / "out" / kind / "turned.png")).all()


def test_a_folder_has_one_writer_and_what_a_killed_one_left_goes(
    tmp_path: Path, pixelwise: Pixelwise, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path / "in", {"a.png": (64, 96)})
    assert main(arguments(tmp_path)) == 0
    (tmp_path / "out" / "masks" / "a.png").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", lambda *_: None)  # where a kill would leave things
        assert main(arguments(tmp_path)) == 0
    assert len([path for path in (tmp_path / "out").rglob(".*") if path.name != ".lock"]) == 5
    with locked(tmp_path / "out"):
        assert main(arguments(tmp_path)) == 2
    assert f"--output: another run is writing into {tmp_path / 'out'}" in capsys.readouterr().err
    assert main(arguments(tmp_path)) == 0
    assert [path.name for path in (tmp_path / "out").rglob(".*")] == [".lock"]
