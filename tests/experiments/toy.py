"""A tiny set whose masks can be read off its images, settings for it, and arguments of commands that work on it."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image

from experiments.data import SegmentationData, Split
from experiments.records.options import Recipe
from experiments.records.settings import Settings

HEIGHT, WIDTH, IGNORE = 64, 64, 255
# Grey level of each class; any blend or brightness change keeps the order.
LEVELS = (30, 120, 220)

ONE = ["--decoders", "FPN", "--steps", "1", "--batch-size", "2", "--device", "cpu"]
FAST = ["--decoders", "FPN", "Unet", "--steps", "2", "--batch-size", "2", "--device", "cpu"]


def color_coded(count: int, seed: int, height: int = HEIGHT, width: int = WIDTH, block: int = 16) -> Split:
    """Blocks of flat grey, one level per class, with an ignored frame of 3 pixels along the left edge."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, len(LEVELS), (count, height // block, width // block), generator=generator)
    masks = coarse.repeat_interleave(block, 1).repeat_interleave(block, 2).to(torch.uint8)
    images = torch.tensor(LEVELS, dtype=torch.uint8)[masks.long()].unsqueeze(1).repeat(1, 3, 1, 1)
    masks[:, :, :3] = IGNORE
    return Split(images, masks, tuple(f"toy_{seed}_{i}" for i in range(count)))


def toy_data(size: int = HEIGHT) -> SegmentationData:
    """The set with its splits and names: 7 images to train on, 3 to validate, 5 to test."""
    return SegmentationData(
        name="toy",
        train=color_coded(7, 0, size, size),
        val=color_coded(3, 1, size, size),
        test=color_coded(5, 2, size, size),
        class_names=("dark", "grey", "bright <&>"),
        colors=((20, 20, 90), (90, 160, 90), (240, 220, 90), (0, 0, 0)),
        ignore_index=IGNORE,
        thin_classes=(1,),
        note="made for tests",
    )


def toy_settings(recipe: Recipe | None = None, **changes: Any) -> Settings:
    """Settings of a short training on the CPU, 1 step in batches of 2 unless changed."""
    common = {"data": "toy", "data_id": "toy", "height": HEIGHT, "width": WIDTH, "steps": 1}
    common |= {"batch_size": 2, "precision": "32", "device": "cpu", "recipe": recipe or Recipe()}
    return Settings(**{**common, **changes})


def save_folder(data: SegmentationData, root: Path) -> None:
    """The set as files, in the layout that load_folder reads, with classes.txt beside it."""
    root.mkdir(parents=True)
    (root / "classes.txt").write_text("\n".join(data.class_names), encoding="utf-8")
    for name in ("train", "val", "test"):
        split: Split = getattr(data, name)
        for kind in ("images", "masks"):
            (root / kind / name).mkdir(parents=True)
        for stem, image, mask in zip(split.names, split.images, split.masks, strict=True):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(root / "images" / name / f"{stem}.png")
            Image.fromarray(mask.numpy()).save(root / "masks" / name / f"{stem}.png")
