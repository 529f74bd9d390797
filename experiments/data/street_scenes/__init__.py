"""Generated street, yard and country scenes with exact masks, drawn with numpy and Pillow."""

import numpy as np
import torch

from experiments.data.dataset import SegmentationData, Split
from experiments.data.street_scenes.canvas import CLASSES, COLORS, IGNORE, THIN
from experiments.data.street_scenes.scenes import SMALLEST, scene

__all__ = ["SMALLEST", "make_scenes"]


def make_scenes(
    seed: int = 0, sizes: tuple[int, int, int] = (400, 80, 120), height: int = 128, width: int = 160
) -> SegmentationData:
    """Train, validation and test split of the given sizes. Height and width are 64 pixels or more.

    Image i of a split depends on (seed, split, i, height, width) alone, so a smaller set is the beginning of a larger
    one. The splits are draws from one distribution.
    """
    train, val, test = (
        _split(name, [seed, number], count, height, width)
        for number, (name, count) in enumerate(zip(("train", "val", "test"), sizes, strict=True))
    )
    note = "generated scenes: all splits come from the same generator, so scores say little about other images"
    return SegmentationData("scenes", train, val, test, CLASSES, COLORS, IGNORE, THIN, note)


def _split(name: str, seed: list[int], count: int, height: int, width: int) -> Split:
    drawn = (scene(np.random.default_rng([*seed, i]), height, width) for i in range(count))
    images, masks = (torch.from_numpy(np.stack(part)) for part in zip(*drawn, strict=True))
    return Split(images, masks, tuple(f"{name}_{i:05d}" for i in range(count)))
