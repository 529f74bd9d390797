"""A small set on the disk, in the layout of --data folder, whose pixels can be drawn again by their number."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from experiments.data import SegmentationData, load
from experiments.records.options import DataOptions

NAMES = ("land", "water", "kelp")
H, W = 23, 37
# Number, split and file of each image: two to train on, one each to validate and to test.
FILES = ((0, "train", "a.png"), (1, "train", "b.jpg"), (2, "val", "c.png"), (3, "test", "d.png"))


def picture(seed: int, height: int = H, width: int = W) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def labels(seed: int, height: int = H, width: int = W) -> Image.Image:
    ids = np.asarray([0, 1, 2, 255], np.uint8)
    return Image.fromarray(ids[np.random.default_rng(seed).integers(0, 4, (height, width))])


def write_set(root: Path, height: int = H, width: int = W) -> Path:
    for number, split, file in FILES:
        write_pair(root, number, f"{split}/{file}", height, width)
    (root / "classes.txt").write_text("\n".join(NAMES))
    return root


def write_pair(root: Path, number: int, file: str, height: int = H, width: int = W) -> None:
    image, mask = root / "images" / file, (root / "masks" / file).with_suffix(".png")
    for path, drawn in ((image, picture(number, height, width)), (mask, labels(number, height, width))):
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn.save(path)


def load_set(root: Path, *, native: bool = False, **options: object) -> SegmentationData:
    """The set that write_set wrote below root, by the options of a command."""
    return load(
        DataOptions(**{"data": "folder", "root": root, "classes": root / "classes.txt"} | options), native=native
    )


def tensor(image: Image.Image) -> torch.Tensor:
    """(3, H, W) or (H, W) uint8."""
    array = torch.from_numpy(np.array(image))
    return array.permute(2, 0, 1) if array.ndim == 3 else array
