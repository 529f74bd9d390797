"""Images and masks into memory, checked and brought to one size.

Shapes: N images, H W pixels of the tensors, h w pixels of one file. A loader finds the pairs and what is wrong with its
layout; here the files are decoded once, checked and stored.
"""

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from experiments.data.dataset import Placement, Split

SPLITS = ("train", "val", "test")
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP")  # as PIL calls them; the suffix of a file does not count
SHOWN = 20  # problems, sizes or names that one message spells out; the rest are counted

Size = tuple[int, int]
Fit = Literal["pad", "crop", "stretch"]
Bytes = NDArray[np.uint8]


class Pair(NamedTuple):
    """An image and its mask. split is one of SPLITS; name is what reports call the image."""

    split: str
    name: str
    image: Path
    mask: Path


# What a loader finds below a folder: pairs, what is wrong with the layout, and what is left out with the reason.
Found = tuple[list[Pair], list[str], list[str]]


class Labels(NamedTuple):
    """What masks mean: fields of SegmentationData, and the class id (or ignore_index) that each value of them is."""

    class_names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    ignore_index: int
    ids: Mapping[int, int]
    thin_classes: tuple[int, ...] = ()
    note: str = ""


class DataError(ValueError):
    """A set that cannot be used as it is: the message lists what is wrong with which file, problems has every one."""

    def __init__(self, root: Path, problems: Sequence[str]) -> None:
        self.problems = tuple(map(printable, problems))
        lines = [f"{root}: {len(problems)} problem{'s' if len(problems) > 1 else ''}", *shortened(self.problems)]
        super().__init__("\n  ".join(lines))


def printable(text: str) -> str:
    """The text with escapes for what is not printable, such as bytes of a file's name that are no UTF-8."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shortened(items: Sequence[str]) -> list[str]:
    """The first SHOWN items and how many more there are."""
    return [*items[:SHOWN], *([f"and {len(items) - SHOWN} more"] if len(items) > SHOWN else [])]


def read_splits(
    root: Path, found: Found, labels: Labels, *, size: Size | None, fit: Fit, native: bool
) -> tuple[Split, Split, Split]:
    """Train, validation and test split as uint8 tensors, in the order of the pairs.

    size = (H, W) resizes images (bilinear, antialiased) and masks (nearest) as fit says; without it all images must
    have one size. native with size keeps the masks of the test split as their files have them, too. Images are taken
    as stored, whatever EXIF says, but where their masks have the size of the turned image alone.

    Raises:
        DataError: with every problem at once: those found; files that are missing, not regular, no image, damaged or
            too large to be decoded; images or masks of other than 8 bits, masks of several channels, an image and its
            mask of unequal size, images of several sizes without size, values that labels do not have, a split without
            images or without a pixel of any class. A set that does not fit into memory is refused before any file is
            decoded.
    """
    pairs, problems = found[0], list(found[1])
    names = {split: tuple(pair.name for pair in pairs if pair.split == split) for split in SPLITS}
    problems += [f"{split} has no images" for split in SPLITS if not (names[split] or problems)]
    # Without size all images are as large as the first, or refused.
    shape = size or (_size(pairs[0].mask) if pairs else None) or (1, 1)
    native = native and size is not None
    if shortage := _shortage(pairs, shape, size is not None, native):
        raise DataError(root, [*problems, shortage])

    splits = {
        split: Split(
            torch.empty(len(own), 3, *shape, dtype=torch.uint8), torch.empty(len(own), *shape, dtype=torch.uint8), own
        )
        for split, own in names.items()
    }
    stored = dict.fromkeys(SPLITS, 0)
    native_masks: list[torch.Tensor] = []
    placements: list[Placement] = []
    sizes: dict[Size, list[str]] = {}
    for pair in pairs:
        read = _read_pair(root, pair, labels.ids, sizes, problems)
        if read is None or problems:
            continue  # nothing will be returned: only look for further problems
        image, mask = _bring(*read, shape, fit, labels.ignore_index)
        splits[pair.split].images[stored[pair.split]] = torch.from_numpy(image).permute(2, 0, 1)
        splits[pair.split].masks[stored[pair.split]] = torch.from_numpy(mask)
        stored[pair.split] += 1
        if native and pair.split == "test":
            native_masks.append(torch.from_numpy(read[1]))
            placements.append(Placement(0, 0, *_shown(read[0].height, read[0].width, shape, fit)))

    if size is None and len(sizes) > 1:
        each = [f"{h}x{w} ({len(at)}, first {at[0]})" for (h, w), at in sorted(sizes.items())]
        advice = "--size H W brings them to one, as --fit says"
        problems.append(f"images have {len(sizes)} sizes; {advice}: {', '.join(shortened(each))}")
    if not problems:
        problems += [
            f"{name} has no labelled pixel: its masks hold {labels.ignore_index} (ignored) everywhere"
            for name, split in splits.items()
            if (split.masks == labels.ignore_index).all()
        ]
    if problems:
        raise DataError(root, problems)
    train, val, test = splits.values()
    if native:
        test = replace(test, native_masks=tuple(native_masks), placements=tuple(placements))
    return train, val, test


def available_memory() -> int:
    """Bytes that programs can still take: the kernel's own estimate on Linux, elsewhere all memory of the machine.

    Free pages (SC_AVPHYS_PAGES) would be no measure: they leave out the file cache, which is given back on demand.
    """
    estimate = Path("/proc/meminfo")
    if estimate.exists():
        for line in estimate.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _shortage(pairs: Sequence[Pair], shape: Size, resized: bool, native: bool) -> str | None:
    """What to say where the set would need more memory than there is; None if it fits."""
    kept = (_size(pair.mask) or (0, 0) for pair in pairs if native and pair.split == "test")
    # Three bytes a pixel of an image and one of its mask.
    needed, available = len(pairs) * 4 * shape[0] * shape[1] + sum(h * w for h, w in kept), available_memory()
    if needed <= available:
        return None
    advice = f"lower --size, which is {shape[0]} {shape[1]}" if resized else "give --size H W to read smaller images"
    advice += ", or leave out --score-at native" if native else ""
    needs = f"{len(pairs)} images and masks need {needed / 1e9:.1f} GB of memory"
    return f"{needs}, of which {available / 1e9:.1f} GB are available; {advice}"


def _size(path: Path) -> Size | None:
    """h and w by the header; None if there is none to read, which decoding reports."""
    with contextlib.suppress(Exception):
        if path.is_file():
            with Image.open(path, formats=FORMATS) as picture:
                return picture.height, picture.width
    return None


def _decode(path: Path, at: str, problems: list[str], drawn_on: Image.Image | None = None) -> Image.Image | None:
    """The picture, turned by its EXIF orientation where only that has the size of drawn_on; None, and a problem, if the
    file is none that can be decoded.
    """
    try:
        if not path.is_file():  # opening a pipe or a device would wait for ever
            problems.append(f"{at} is {'not a regular file' if path.exists() else 'missing'}")
            return None
        with Image.open(path, formats=FORMATS) as picture:
            picture.load()  # open() reads the header only: a truncated file shows itself here
            if drawn_on is None or picture.size == drawn_on.size:
                return picture
            turned = ImageOps.exif_transpose(picture)
            return turned if turned.size == drawn_on.size else picture
    except UnidentifiedImageError:
        problems.append(f"{at} is not an image ({', '.join(FORMATS)})")
    except Exception as error:  # decoders of damaged or hostile files raise nearly anything
        problems.append(f"{at} cannot be read: {error}")
    return None


def _read_pair(
    root: Path, pair: Pair, ids: Mapping[int, int], sizes: dict[Size, list[str]], problems: list[str]
) -> tuple[Image.Image, Bytes] | None:
    """RGB image and class ids (h, w) of a pair; None, and problems, if it cannot be used. sizes gets the image's."""
    before = len(problems)
    at_image, at_mask = (path.relative_to(root).as_posix() for path in (pair.image, pair.mask))
    mask = _decode(pair.mask, at_mask, problems)
    image = _decode(pair.image, at_image, problems, drawn_on=mask)
    if image is not None:
        sizes.setdefault((image.height, image.width), []).append(at_image)
        if image.mode.startswith(("I", "F")):
            problems.append(f"{at_image} must have 8 bits a channel, is mode {image.mode}")
    if mask is not None and mask.mode not in ("L", "P"):
        problems.append(f"{at_mask} must be single-channel 8-bit (mode L or P), is mode {mask.mode}")
    elif mask is not None:
        present = np.flatnonzero(np.bincount(np.asarray(mask).ravel(), minlength=256))
        if wrong := [str(value) for value in present if value not in ids]:
            *known, ignored = sorted(ids)
            allowed = f"{known[0]} to {known[-1]} and {ignored} (ignored)"
            problems.append(f"{at_mask} has ids {', '.join(shortened(wrong))}; allowed are {allowed}")
    if image is not None and mask is not None and image.size != mask.size:
        unequal = f"{image.height}x{image.width}, its mask {at_mask} {mask.height}x{mask.width}"
        problems.append(f"{at_image} is {unequal}; they must be equal")
    if image is None or mask is None or len(problems) > before:
        return None
    meaning = np.zeros(256, np.uint8)
    meaning[list(ids)] = list(ids.values())
    return image.convert("RGB"), meaning[np.asarray(mask)]


def _shown(height: int, width: int, size: Size, fit: Fit) -> Size:
    """Rows and columns of size = (H, W), at its top left, that an image of height x width comes to; crop fills all."""
    scale = min(size[0] / height, size[1] / width)
    return (max(1, round(scale * height)), max(1, round(scale * width))) if fit == "pad" else size


def _bring(image: Image.Image, mask: Bytes, size: Size, fit: Fit, ignore_index: int) -> tuple[Bytes, Bytes]:
    """An RGB image and its mask (h, w) brought to size = (H, W): (H, W, 3) and (H, W).

    An image that fills size to the pixel when it is scaled to fit inside has the aspect asked for: fit does not matter.
    pad fills the bottom and the right with the mean colour of the image and with ignored pixels.
    """
    height, width = size
    labels = Image.fromarray(mask)
    if fit == "crop" and _shown(image.height, image.width, size, "pad") != size:
        image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
        labels = ImageOps.fit(labels, (width, height), Image.Resampling.NEAREST)
        return np.array(image), np.array(labels)
    rows, columns = _shown(image.height, image.width, size, fit)
    shown = np.asarray(image.resize((columns, rows), Image.Resampling.BILINEAR))
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:] = shown.mean((0, 1)).round()
    pixels[:rows, :columns] = shown
    ids = np.full((height, width), ignore_index, np.uint8)
    ids[:rows, :columns] = np.asarray(labels.resize((columns, rows), Image.Resampling.NEAREST))
    return pixels, ids
