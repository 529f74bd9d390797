"""Images and masks from files into memory, checked and brought to one size.

Shapes: N images, H W pixels of the tensors, h w pixels of one file.
"""

import contextlib
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, ImageStat
from torch import Tensor

from experiments.data.dataset import Split
from experiments.data.images import ImageError, read_image, stored_size
from experiments.records.messages import printable, shortened

SPLITS = ("train", "val", "test")

Size = tuple[int, int]
Fit = Literal["pad", "crop", "stretch"]


class Pair(NamedTuple):
    """An image and its mask. split is one of SPLITS; name is what reports call the image."""

    split: str
    name: str
    image: Path
    mask: Path


class Found(NamedTuple):
    """What a loader finds below a folder; values has the class id (or ignore_index) of each value in a mask, where they
    are not the same.
    """

    pairs: list[Pair]
    problems: list[str]
    left_out: list[str]
    values: Mapping[int, int] | None = None


class Labels(NamedTuple):
    """What class ids mean: fields of SegmentationData."""

    class_names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    ignore_index: int
    thin_classes: tuple[int, ...] = ()
    note: str = ""


class DataError(ValueError):
    """A set that cannot be used as it is: the message lists what is wrong with which file, problems has every one."""

    def __init__(self, root: Path, problems: Sequence[str]) -> None:
        self.problems = tuple(map(printable, problems))
        lines = [f"{root}: {len(problems)} problem{'s' if len(problems) > 1 else ''}", *shortened(self.problems)]
        super().__init__("\n  ".join(lines))


def read_splits(
    root: Path, found: Found, labels: Labels, size: Size | None, fit: Fit, native: bool
) -> tuple[Split, Split, Split]:
    """Train, validation and test split as uint8 tensors, in the order of the pairs.

    size = (H, W) resizes images (bilinear, antialiased) and masks (nearest) as fit says; without it all images must
    have one size. native with size keeps the masks of the test split as their files have them, too. Images are taken as
    stored, whatever EXIF says, but where their masks have the size of the turned image alone.

    Raises:
        DataError: with all problems at once: those found, the first one of each pair, a split without images or without
            a pixel of any class. A set that does not fit into memory is refused before it is read.
    """
    pairs, problems, ignore_index = found.pairs, list(found.problems), labels.ignore_index
    values = found.values or {i: i for i in (*range(len(labels.class_names)), ignore_index)}
    if not problems:
        problems = [f"{split} has no images" for split in SPLITS if split not in {pair.split for pair in pairs}]
    shape = size or next(filter(all, (stored_size(pair.mask) for pair in pairs)), (1, 1))
    needed, available = len(pairs) * 4 * shape[0] * shape[1], available_memory()  # 3 bytes of image, 1 of mask
    own_sizes = [stored_size(pair.mask) or (0, 0) for pair in pairs if native and size and pair.split == "test"]
    needed += sum(height * width for height, width in own_sizes)
    if needed > available:
        size_of = f"{shape[0]} {shape[1]} pixels" + (", and test masks of their own size," if own_sizes else "")
        needs = f"{len(pairs)} images and masks of {size_of} need {needed / 1e9:.1f} GB of memory"
        problems.append(f"{needs}, of which {available / 1e9:.1f} GB are available: give a smaller --size H W")
        raise DataError(root, problems)

    splits = []
    for split in SPLITS:
        own = [pair for pair in pairs if pair.split == split]
        images = torch.empty(len(own), 3, *shape, dtype=torch.uint8)
        masks = torch.empty(len(own), *shape, dtype=torch.uint8)
        kept: list[Tensor] = []
        sides: list[int] = []
        for i, pair in enumerate(own):
            try:
                image, mask = _read_pair(pair, values)
                if not size and image.size != shape[::-1]:
                    sizes = f"{image.height}x{image.width}, the first one {shape[0]}x{shape[1]}"
                    raise ImageError(f"is {sizes}; --size H W brings images to one size, as --fit says")
            except ImageError as error:
                problems.append(f"{pair.image.relative_to(root).as_posix()} {error}")
                continue
            mean = tuple(round(level) for level in ImageStat.Stat(image).mean)
            images[i] = _resized(image, shape, fit, Image.Resampling.BILINEAR, mean).permute(2, 0, 1)
            masks[i] = _resized(mask, shape, fit, Image.Resampling.NEAREST, ignore_index)
            sides.append(_short_side(image.height, image.width, shape, fit))
            if native and size and split == "test":
                kept.append(torch.from_numpy(np.array(mask)))
        if not problems and (masks == ignore_index).all():
            problems.append(f"{split} has no labelled pixel: its masks hold {ignore_index} (ignored) everywhere")
        names = tuple(pair.name for pair in own)
        shown = tuple(_shown(mask.shape[0], mask.shape[1], shape, fit) for mask in kept)
        short_side = round(statistics.median(sides)) if size and sides else None
        splits.append(Split(images, masks, names, (), tuple(kept) or None, shown or None, short_side))
    if problems:
        raise DataError(root, problems)
    train, val, test = splits
    return train, val, test


def available_memory() -> int:
    """Bytes that programs can still take: the kernel's own estimate on Linux, elsewhere all memory of the machine.

    Free pages (SC_AVPHYS_PAGES) would be no measure: they leave out the file cache, which is given back on demand.
    """
    with contextlib.suppress(FileNotFoundError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _read_pair(pair: Pair, values: Mapping[int, int]) -> tuple[Image.Image, Image.Image]:
    """RGB image and mask of class ids.

    Raises:
        ImageError: what read_image refuses; masks that are JPEG, of several channels or with other values; unequal
            sizes.
    """
    image = read_image(pair.image)
    try:
        mask = read_image(pair.mask, mode=None)
    except ImageError as error:
        raise ImageError(f"has a mask that {error}") from error
    if mask.format == "JPEG" or mask.info.get("compression") in ("jpeg", "tiff_jpeg"):
        raise ImageError("has a mask that must not be JPEG, which changes ids")
    if image.size != mask.size:
        image = read_image(pair.image, upright=True)
    if image.size != mask.size:
        raise ImageError(f"is {image.height}x{image.width}, its mask {mask.height}x{mask.width}; they must be equal")
    if mask.mode not in ("L", "P"):
        raise ImageError(f"has a mask of mode {mask.mode}, which must be single-channel 8-bit (mode L or P)")
    ids = np.asarray(mask)
    if wrong := [str(value) for value in np.unique(ids) if value not in values]:
        *known, ignored = sorted(values)
        allowed = f"{known[0]} to {known[-1]} and {ignored} (ignored)"
        raise ImageError(f"has a mask with ids {', '.join(shortened(wrong))}; allowed are {allowed}")
    meaning = np.zeros(256, np.uint8)
    meaning[list(values)] = list(values.values())
    return image, Image.fromarray(meaning[ids])


def _shown(height: int, width: int, size: Size, fit: Fit) -> Size:
    """Rows and columns, at the top left of size = (H, W), that a whole picture of height x width is scaled to."""
    scale = min(size[0] / height, size[1] / width)
    return (max(1, round(scale * height)), max(1, round(scale * width))) if fit == "pad" else size


def _short_side(height: int, width: int, size: Size, fit: Fit) -> int:
    """The shorter side in pixels that a whole picture of height x width has at the scale at which size shows it."""
    if fit == "crop":  # what is cropped is left out of _shown
        return max(1, round(max(size[0] / height, size[1] / width) * min(height, width)))
    return min(_shown(height, width, size, fit))


def _resized(image: Image.Image, size: Size, fit: Fit, method: Image.Resampling, fill: int | tuple[int, ...]) -> Tensor:
    """(H, W, 3) or (H, W) uint8 of an image brought to size = (H, W); pad fills the bottom and the right."""
    if fit == "crop":
        return torch.from_numpy(np.array(ImageOps.fit(image, size[::-1], method)))
    whole = Image.new(image.mode, size[::-1], fill)
    whole.paste(image.resize(_shown(image.height, image.width, size, fit)[::-1], method))
    return torch.from_numpy(np.array(whole))
