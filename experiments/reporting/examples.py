"""Pictures for reports: example images with their truth, what a model predicts for them, and its worst and best images.

Classes have the colours of the set. Nothing is named after an image: names are in data.json.
"""

import io
import json
from dataclasses import asdict
from pathlib import Path

import numpy
import torch
from PIL import Image
from torch import Tensor, nn

from experiments.data import SegmentationData
from experiments.evaluation.inference import probabilities
from experiments.records.counts import ImageCounts, miou
from experiments.records.files import write_whole
from experiments.records.settings import Settings
from experiments.reporting.load import Data

EXAMPLES = 5
EXTREMES = 2  # worst images of a run, and best ones
# Longer sides are shrunk to this, so that the page does not grow with the images.
MOST_SIDE = 512


def chosen(data: SegmentationData) -> list[int]:
    """Indices of the example images: evenly spaced in the test split, not chosen for their looks."""
    count = len(data.test.images)
    shown = min(EXAMPLES, count)
    return [(2 * i + 1) * count // (2 * shown) for i in range(shown)]


def extremes(counts: ImageCounts) -> list[tuple[str, int, float]]:
    """Worst and best images by their own mIoU, EXTREMES of each and none twice: file stem, index, mIoU in percent."""
    scores = miou(counts.hits, counts.union)
    order = [int(i) for i in numpy.argsort(scores, kind="stable") if not numpy.isnan(scores[i])]
    each = min(EXTREMES, len(order) // 2)
    ends = {"worst": order[:each], "best": order[::-1][:each]}
    return [(f"extreme_{kind}{n}", i, float(scores[i])) for kind in ends for n, i in enumerate(ends[kind], start=1)]


def save_examples(output: Path, data: SegmentationData) -> None:
    """Write data.json and examples/NN_{image,truth}.png into a runs folder."""
    indices = chosen(data)
    described = Data(
        images=", ".join(f"{len(getattr(data, split).images)} {split}" for split in ("train", "val", "test")),
        colors=tuple(f"#{bytes(color).hex()}" for color in data.colors),
        examples=tuple(data.test.names[i] for i in indices),
        **{name: getattr(data, name) for name in ("name", "note", "class_names", "left_out")},
    )
    for number, index in enumerate(indices):
        _save(output / "examples" / f"{number:02}_image.png", _image(data.test.images[index]))
        _save(output / "examples" / f"{number:02}_truth.png", _colored(data.test.masks[index], data))
    write_whole(output / "data.json", json.dumps(asdict(described), indent=1))


def save_predictions(
    folder: Path,
    model: nn.Module,
    data: SegmentationData,
    device: torch.device,
    settings: Settings,
    counts: ImageCounts,
) -> None:
    """Write into the folder of a run what model predicts for the test images that reports show.

    NN.png are the examples; extreme_{worst,best}{1,2}.png (see extremes, of counts) are strips of image, truth and
    prediction.
    """
    model.eval()

    def predicted(index: int) -> Image.Image:
        image = data.test.images[index : index + 1].to(device)
        found = probabilities(model, image, settings.inference, precision=settings.precision)
        return _colored(found[0].argmax(0).cpu(), data)

    for number, index in enumerate(chosen(data)):
        _save(folder / f"{number:02}.png", predicted(index))
    for name, index, _ in extremes(counts):
        parts = [_image(data.test.images[index]), _colored(data.test.masks[index], data), predicted(index)]
        strip = numpy.concatenate([numpy.asarray(part.convert("RGB")) for part in parts], axis=1)
        _save(folder / f"{name}.png", Image.fromarray(strip))


def _image(pixels: Tensor) -> Image.Image:
    """A picture of bytes (3, H, W)."""
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    image.thumbnail((MOST_SIDE, MOST_SIDE))
    return image


def _colored(ids: Tensor, data: SegmentationData) -> Image.Image:
    """A palette picture of class ids (H, W); ignored pixels have the last colour."""
    pixels = ids.where(ids != data.ignore_index, len(data.class_names)).numpy().astype(numpy.uint8)
    image = Image.fromarray(pixels)
    image.putpalette([channel for color in data.colors for channel in color])
    image.thumbnail((MOST_SIDE, MOST_SIDE), Image.Resampling.NEAREST)
    return image


def _save(path: Path, image: Image.Image) -> None:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    write_whole(path, buffer.getvalue())
