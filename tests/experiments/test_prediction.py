"""Pixels and pictures of a prediction, against formulas and Pillow."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from experiments.data.images import ImageError, read_image, stored_size
from experiments.prediction.pictures import find_pictures, full_resolution, write_results

COLORS = ((20, 20, 90), (90, 160, 90), (240, 220, 90))


def random_probabilities(classes: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(classes)
    return torch.randn(classes, height, width, generator=generator).mul(3).softmax(0)


def bilinear(planes: np.ndarray, height: int, width: int) -> np.ndarray:
    """(K, h, w) enlarged to (K, H, W) in float64: linear between pixel centres, constant beyond the outer ones."""

    def along(values: np.ndarray, size: int) -> np.ndarray:
        old = values.shape[-1]
        return np.interp((np.arange(size) + 0.5) * old / size - 0.5, np.arange(old), values)

    rows = np.apply_along_axis(along, 2, planes.astype(np.float64), width)
    return np.apply_along_axis(along, 1, rows, height)


def assert_agrees(ids: np.ndarray, confidence: np.ndarray, expected: np.ndarray) -> None:
    """ids are those of the largest of expected (K, H, W), but for ties within rounding; confidence is its value."""
    chosen = np.take_along_axis(expected, ids[None].astype(int), 0)[0]
    np.testing.assert_allclose(chosen, expected.max(0), atol=2e-6)
    assert (ids == expected.argmax(0)).mean() > 0.99
    assert np.abs(confidence - 255 * expected.max(0)).max() <= 0.5 + 1e-3


@pytest.mark.parametrize("size", [(23, 37), (53, 41), (61, 97)])
def test_enlarged_results_are_linear_between_pixel_centres(size: tuple[int, int]) -> None:
    probabilities = random_probabilities(5, 23, 37)
    ids, confidence = full_resolution(probabilities, *size)
    assert ids.shape == confidence.shape == size
    assert ids.dtype == confidence.dtype == np.uint8
    assert_agrees(ids, confidence, bilinear(probabilities.numpy(), *size))


def test_reduced_results_are_those_of_pillow() -> None:
    probabilities = random_probabilities(5, 53, 71)
    planes = [Image.fromarray(plane).resize((29, 17), Image.Resampling.BILINEAR) for plane in probabilities.numpy()]
    assert_agrees(*full_resolution(probabilities, 17, 29), np.stack([np.asarray(plane) for plane in planes]))


def test_of_equal_classes_the_first_wins() -> None:
    probabilities = torch.tensor([0.2, 0.4, 0.4]).view(3, 1, 1).expand(3, 2, 3)
    ids, confidence = full_resolution(probabilities, 5, 7)
    assert (ids == 1).all()
    assert (confidence == 102).all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    probabilities = random_probabilities(3, 5, 7)
    probabilities[1, 2, 3] = value
    with pytest.raises(ImageError, match="got probabilities that are not finite from the model"):
        full_resolution(probabilities, 5, 7)


def test_255_classes_fit_a_mask_and_overlays_are_half_picture_half_colour(tmp_path: Path) -> None:
    ids = np.arange(255, dtype=np.uint8).reshape(15, 17)
    picture = np.random.default_rng(0).integers(0, 256, (15, 17, 3), dtype=np.uint8)
    colors = tuple((i, 254 - i, i // 2) for i in range(255))
    write_results(tmp_path, "a", Image.fromarray(picture), ids, 255 - ids, colors)
    stored = Image.open(tmp_path / "masks" / "a.png")
    assert stored.mode == "P"
    assert (np.asarray(stored) == ids).all()
    assert (np.asarray(stored.convert("RGB")) == np.asarray(colors)[ids]).all()
    overlay = np.asarray(Image.open(tmp_path / "overlays" / "a.png"))
    assert np.abs(overlay - (picture + np.asarray(colors)[ids]) / 2).max() <= 0.5
    assert (np.asarray(Image.open(tmp_path / "confidence" / "a.png")) == 255 - ids).all()


def test_pictures_are_found_by_name(tmp_path: Path) -> None:
    for name in (
        "b.JPG",
        "a.x.png",
        "sub/deep/a.jpeg",
        "c.Tif",
        "d.webp",
        "notes.txt",
        ".hidden.png",
        ".git/c.png",
        "out/masks/b.png",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    found = find_pictures(tmp_path, tmp_path / "out")
    assert list(found) == ["a.x", "b", "c", "d", "sub/deep/a"]
    assert found["sub/deep/a"] == tmp_path / "sub/deep/a.jpeg"
    assert find_pictures(tmp_path / "b.JPG", tmp_path / "out") == {"b": tmp_path / "b.JPG"}


def test_a_folder_that_cannot_be_read_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.png").touch()
    scandir = os.scandir

    def guarded(path: str) -> Any:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    with pytest.raises(PermissionError, match="closed"):
        find_pictures(tmp_path, tmp_path / "out")


def test_stored_sizes(tmp_path: Path) -> None:
    Image.new("L", (7, 5)).save(tmp_path / "a.png")
    (tmp_path / "b.png").touch()
    os.mkfifo(tmp_path / "c.png")
    assert [stored_size(tmp_path / f"{name}.png") for name in "abc"] == [(5, 7), (0, 0), (0, 0)]


@pytest.mark.parametrize(("suffix", "error"), [("tif", 0), ("webp", 8), ("bmp", 0), ("jpeg", 8)])
def test_formats(tmp_path: Path, suffix: str, error: int) -> None:
    coarse = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((37, 23), Image.Resampling.BICUBIC)
    picture.save(tmp_path / f"a.{suffix}", quality=95)
    found = np.asarray(read_image(tmp_path / f"a.{suffix}")).astype(int)
    assert np.abs(found - np.asarray(picture)).mean() <= error


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int, suffix: str) -> None:
    # The rows and columns of the stored picture that EXIF 2.3 says are at the top and at the left of the scene.
    turns = {1: (0, False), 2: (0, True), 3: (2, False), 4: (2, True), 5: (3, True), 6: (3, False), 7: (1, True)}
    quarter_turns, mirrored = turns.get(orientation, (1, False))
    stored = np.kron(np.arange(0, 240, 10, dtype=np.uint8).reshape(4, 6), np.ones((8, 8), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / f"a.{suffix}", exif=exif)
    upright = np.rot90(stored, quarter_turns)  # counter-clockwise
    expected = upright[:, ::-1] if mirrored else upright
    read = np.asarray(read_image(tmp_path / f"a.{suffix}", upright=True))
    assert read.shape == (*expected.shape, 3)
    assert np.abs(read.astype(int) - expected[..., None]).max() <= (3 if suffix == "jpg" else 0)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "RGB", "RGBA", "CMYK"])
def test_other_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    rng = np.random.default_rng(0)
    pixels_rgba = rng.integers(0, 256, (23, 37, 4), dtype=np.uint8)
    picture = Image.fromarray(pixels_rgba) if mode == "RGBA" else Image.fromarray(pixels_rgba[..., :3]).convert(mode)
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    picture.save(path)
    read = read_image(path)
    assert (read.mode, read.size) == ("RGB", (37, 23))
    if mode == "RGBA":
        assert (np.asarray(read) == pixels_rgba[..., :3]).all()
    elif mode != "CMYK":
        assert (np.asarray(read) == np.asarray(picture.convert("RGB"))).all()


def test_unusable_pictures_say_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(np.full((7, 11), 40000, np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:5000])
    (tmp_path / "text.jpg").write_text("not a picture")
    Image.new("RGB", (9, 9)).save(tmp_path / "icon.png", format="ICO")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "broken.png").symlink_to(tmp_path / "gone.png")
    wanted = {
        "deep.png": "must have 8 bits a channel, is mode I;16",
        "cut.png": "cannot be read: image file is truncated",
        "text.jpg": "is not an image .JPEG, PNG, ",
        "icon.png": "is not an image .JPEG, PNG, ",
        "pipe.png": "is not a regular file",
        "broken.png": "cannot be read: .*No such file",
    }
    assert set(wanted) < {path.name for path in find_pictures(tmp_path, tmp_path / "out").values()}
    for name, message in wanted.items():
        with pytest.raises(ImageError, match=message):
            read_image(tmp_path / name)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    with pytest.raises(ImageError, match=r"cannot be read: .*exceeds limit"):
        read_image(tmp_path / "whole.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)
    assert read_image(tmp_path / "whole.png").size == (64, 64)  # above half the limit Pillow only warns
