"""The pictures that reports show, in the colours of the set."""

import json
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from report_folder import image_counts, row
from torch import Tensor, nn

from experiments.data import SegmentationData, Split
from experiments.records.counts import ImageCounts
from experiments.records.options import PLAIN, Inference
from experiments.records.settings import Settings
from experiments.reporting.examples import extremes, save_examples, save_predictions

CPU = torch.device("cpu")
SETTINGS = Settings("toy", "x", 32, 48, 2, 2, "32", "cpu")
COLORS = ((20, 20, 90), (90, 160, 90), (240, 220, 90), (1, 2, 3))


def split(count: int, height: int = 32, width: int = 48) -> Split:
    """Noise, with an ignored frame of 3 pixels on the left."""
    generator = torch.Generator().manual_seed(count)
    images = torch.randint(0, 256, (count, 3, height, width), generator=generator).to(torch.uint8)
    masks = torch.randint(0, 3, (count, height, width), generator=generator).to(torch.uint8)
    masks[:, :, :3] = 255
    return Split(images, masks, tuple(f"name {count} {n}" for n in range(count)))


@pytest.fixture(scope="module")
def data() -> SegmentationData:
    return SegmentationData("toy", split(2), split(3), split(12), ("a", "b", "<c>"), COLORS, 255, (1,), "a note")


@pytest.fixture
def counts(data: SegmentationData) -> ImageCounts:
    """The more of an image is right, the higher its number."""
    hits = numpy.arange(12)[:, None] * numpy.ones((12, 3), int)
    full = numpy.full_like(hits, 100)
    return ImageCounts(data.test.names, data.test.names, data.class_names, hits, full, full)


class Sided(nn.Module):
    """Sure of class 0 in the left half, inclined to class 1 in the right."""

    def forward(self, images: Tensor) -> Tensor:
        logits = torch.zeros(len(images), 3, *images.shape[-2:])
        half = images.shape[-1] // 2
        logits[:, 0, :, :half] = 4
        logits[:, 1, :, half:] = 1
        return logits


def test_example_images_are_evenly_spaced_with_their_names(data: SegmentationData, tmp_path: Path) -> None:
    save_examples(tmp_path, data)
    told = json.loads((tmp_path / "data.json").read_text(encoding="utf-8"))
    assert told["examples"] == [f"name 12 {n}" for n in (1, 3, 6, 8, 10)]
    assert told["class_names"] == ["a", "b", "<c>"]
    assert told["images"] == "2 train, 3 val, 12 test"
    assert told["colors"] == ["#14145a", "#5aa05a", "#f0dc5a", "#010203"]
    truth = Image.open(tmp_path / "examples" / "02_truth.png").convert("RGB")
    assert truth.getpixel((0, 0)) == COLORS[-1], "ignored"
    assert truth.getpixel((40, 30)) == COLORS[int(data.test.masks[6, 30, 40])]
    image = Image.open(tmp_path / "examples" / "02_image.png")
    assert image.getpixel((40, 30)) == tuple(data.test.images[6, :, 30, 40].tolist())


@pytest.mark.parametrize(("inference", "right"), [(PLAIN, 1), (Inference(flip=True), 0)])
def test_predictions_are_those_that_are_scored(
    data: SegmentationData, counts: ImageCounts, inference: Inference, right: int, tmp_path: Path
) -> None:
    save_predictions(tmp_path, Sided(), data, CPU, replace(SETTINGS, inference=inference), counts)
    assert len(list(tmp_path.glob("0?.png"))) == 5
    predicted = Image.open(tmp_path / "04.png").convert("RGB")
    assert predicted.getpixel((0, 0)) == COLORS[0]
    assert predicted.getpixel((47, 31)) == COLORS[right]


def test_strips_show_image_truth_and_prediction(data: SegmentationData, counts: ImageCounts, tmp_path: Path) -> None:
    save_predictions(tmp_path, Sided(), data, CPU, SETTINGS, counts)
    for name, index, _ in extremes(counts):
        assert index == {"worst1": 0, "worst2": 1, "best1": 11, "best2": 10}[name.removeprefix("extreme_")]
        strip = Image.open(tmp_path / f"{name}.png").convert("RGB")
        assert strip.size == (3 * 48, 32)
        assert strip.getpixel((5, 7)) == tuple(data.test.images[index, :, 7, 5].tolist())
        assert strip.getpixel((48 + 5, 7)) == COLORS[int(data.test.masks[index, 7, 5])]
        assert strip.getpixel((2 * 48 + 47, 7)) == COLORS[1]


def test_large_images_are_shrunk_and_keep_their_classes(tmp_path: Path) -> None:
    large = split(1, 24, 1536)
    save_examples(tmp_path, SegmentationData("toy", large, large, large, ("a", "b", "c"), COLORS, 255))
    truth = Image.open(tmp_path / "examples" / "00_truth.png")
    assert truth.size == (512, 8)
    assert {color for _, color in truth.convert("RGB").getcolors()} <= set(COLORS)


def test_worst_and_best_images_are_by_their_own_score() -> None:
    counts = image_counts(row("Unet"), images=7)
    ious = (counts.hits[:, :2] / counts.union[:, :2]).mean(1) * 100
    order = numpy.argsort(ious)
    names, indices, scores = zip(*extremes(counts), strict=True)
    assert names == ("extreme_worst1", "extreme_worst2", "extreme_best1", "extreme_best2")
    assert indices == (order[0], order[1], order[6], order[5])
    assert scores == pytest.approx(ious[list(indices)])
    assert [name for name, _, _ in extremes(image_counts(row("Unet"), images=3))] == ["extreme_worst1", "extreme_best1"]
    assert extremes(image_counts(row("Unet"), images=1)) == []
