"""Pictures for the report: images, truth and predictions as PNG files, and the names and colours that explain them.

panel/data.json and panel/NN_{image,truth}.png belong to the data, cells/CELL_ID/NN.png to a cell.
"""

import io
import json
from pathlib import Path

import numpy
import torch
from PIL import Image
from torch import Tensor, nn

from experiments.data import SegmentationData
from experiments.evaluation.inference import Inference, probabilities
from experiments.records import write_whole

PANEL_IMAGES = 5


def panel_indices(data: SegmentationData) -> list[int]:
    """Indices of the test images shown: evenly spaced, not chosen for their looks."""
    count = len(data.test.images)
    shown = min(PANEL_IMAGES, count)
    return [(2 * i + 1) * count // (2 * shown) for i in range(shown)]


def save_data_panel(output: Path, data: SegmentationData) -> None:
    """Write what every cell shares: panel/data.json and the images and truth of the panel."""
    description = {
        "name": data.name,
        "note": data.note,
        "class_names": data.class_names,
        "colors": data.colors,
        "thin_classes": data.thin_classes,
        "images": {name: len(getattr(data, name).images) for name in ("train", "val", "test")},
        "height": data.test.images.shape[-2],
        "width": data.test.images.shape[-1],
        "panel": [data.test.names[i] for i in panel_indices(data)],
    }
    for number, index in enumerate(panel_indices(data)):
        image = Image.fromarray(data.test.images[index].permute(1, 2, 0).numpy())
        _save(output / "panel" / f"{number:02}_image.png", image)
        _save(output / "panel" / f"{number:02}_truth.png", _colored(data.test.masks[index], data))
    write_whole(output / "panel" / "data.json", json.dumps(description, indent=1))


def save_predictions(
    folder: Path,
    model: nn.Module,
    data: SegmentationData,
    device: torch.device,
    *,
    inference: Inference,
    precision: str,
) -> None:
    """Write NN.png into the folder of a cell: the classes that model predicts for the images of the panel."""
    model.eval()
    for number, index in enumerate(panel_indices(data)):
        image = data.test.images[index : index + 1].to(device)
        found = probabilities(model, image, inference, precision=precision)[0].argmax(0)
        _save(folder / f"{number:02}.png", _colored(found.cpu(), data))


def _colored(ids: Tensor, data: SegmentationData) -> Image.Image:
    """A palette image of class ids (H, W); ignored pixels take the last colour."""
    classes = len(data.class_names)
    pixels = ids.where(ids != data.ignore_index, classes).numpy().astype(numpy.uint8)
    image = Image.fromarray(pixels)
    image.putpalette([channel for color in data.colors for channel in color])
    return image


def _save(path: Path, image: Image.Image) -> None:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    write_whole(path, buffer.getvalue())
