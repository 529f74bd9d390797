"""Images and masks into memory: the checks that every set read from files shares.

Shapes: N images, H W pixels, K classes. A loader finds (split, image, mask) and what its layout is missing; here the
files are decoded once, checked, resized and stored.
"""

import colorsys
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from experiments.data.dataset import Split

SPLITS = ("train", "val", "test")
FORMATS = ("JPEG", "PNG")
SHOWN = 20  # problems spelled out in one error; the rest are counted
BYTES_PER_PIXEL = 4  # three of the image and one of the mask

Size = tuple[int, int]
Bytes = NDArray[np.uint8]


class DataError(ValueError):
    """A data set that cannot be used as it is: the message lists what is wrong with which file."""

    def __init__(self, root: Path, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        lines = [f"{root}: {len(problems)} problem{'s' if len(problems) > 1 else ''}", *problems[:SHOWN]]
        if len(problems) > SHOWN:
            lines.append(f"and {len(problems) - SHOWN} more")
        super().__init__("\n  ".join(lines))


class Pair(NamedTuple):
    """An image and its mask. split is one of SPLITS; name is what reports call the image."""

    split: str
    name: str
    image: Path
    mask: Path


def read_splits(
    root: Path,
    pairs: Sequence[Pair],
    problems: Sequence[str],
    *,
    ids: dict[int, int],
    ignore_index: int,
    size: Size | None,
    formats: tuple[str, ...] = FORMATS,
) -> tuple[Split, Split, Split]:
    """Train, validation and test split as uint8 tensors, in the order of pairs.

    problems: what the loader found wrong with the layout; reported with what is found here. ids: what a value in a mask
    file means, a class id or ignore_index; other values are refused. size = (H, W) resizes images (bilinear,
    antialiased) and masks (nearest); without it all images must have one size. formats: PIL's names of image formats.
    Images are taken as stored, whatever EXIF says, but where their masks have the size of the turned image alone.

    Raises:
        DataError: with every problem at once: those given, files outside root, unreadable or truncated ones, images or
            masks of other than 8 bits, masks of several channels, an image and its mask of unequal size, images of
            several sizes without size, values that ids does not have, a split without images or without a pixel of
            any class. A set that does not fit into memory is refused before any file is decoded.
    """
    problems = list(problems)
    inside = []
    for pair in pairs:
        outside = [path for path in (pair.image, pair.mask) if not _is_inside(path, root)]
        problems += [f"{path} lies outside the folder" for path in outside]
        if not outside:
            inside.append(pair)
    shortage = _shortage(inside, size, formats)
    if shortage is not None:
        raise DataError(root, [*problems, shortage])

    counts = Counter(pair.split for pair in inside)
    problems += [f"{split} has no images" for split in SPLITS if not (counts[split] or problems)]
    names: dict[str, list[str]] = {split: [] for split in SPLITS}
    images: dict[str, Bytes] = {}
    masks: dict[str, Bytes] = {}
    seen: dict[Size, list[str]] = {}
    meaning = np.zeros(256, np.uint8)
    meaning[list(ids)] = list(ids.values())
    for pair in inside:
        image = _read(pair.image, root, formats, problems)
        mask = _read(pair.mask, root, FORMATS, problems)
        if image is not None and mask is not None:
            image = _as_drawn_on(image, mask)
        if image is not None:
            seen.setdefault((image.height, image.width), []).append(_at(pair.image, root))
        problems += _pair_problems(pair, image, mask, root, ids, ignore_index)
        if image is None or mask is None or problems or (size is None and len(seen) > 1):
            continue  # nothing will be returned: only look for further problems
        image = image.convert("RGB")
        if size is not None:
            image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
            mask = mask.resize((size[1], size[0]), Image.Resampling.NEAREST)
        if pair.split not in images:
            # Written in place: stacking a list at the end would hold the set twice.
            images[pair.split] = np.empty((counts[pair.split], 3, image.height, image.width), np.uint8)
            masks[pair.split] = np.empty((counts[pair.split], image.height, image.width), np.uint8)
        number = len(names[pair.split])
        images[pair.split][number] = np.asarray(image).transpose(2, 0, 1)
        masks[pair.split][number] = meaning[np.asarray(mask)]
        names[pair.split].append(pair.name)

    if size is None and len(seen) > 1:
        each = ", ".join(f"{_spell(s)} ({len(at)}, first {at[0]})" for s, at in sorted(seen.items()))
        problems.append(f"images have {len(seen)} sizes, give size=(H, W) to resize them: {each}")
    if not problems:
        problems += [
            f"{split} has no labelled pixel: its masks hold {ignore_index} (ignored) everywhere"
            for split in SPLITS
            if (masks[split] == ignore_index).all()
        ]
    if problems:
        raise DataError(root, problems)
    train, val, test = (
        Split(torch.from_numpy(images[split]), torch.from_numpy(masks[split]), tuple(names[split])) for split in SPLITS
    )
    return train, val, test


def check_arguments(
    class_names: tuple[str, ...],
    ignore_index: int,
    *,
    colors: tuple[tuple[int, int, int], ...] | None = None,
    size: Size | None = None,
    thin_classes: tuple[int, ...] = (),
) -> None:
    """Raise ValueError where an argument that loaders share cannot be used; the message names it."""
    k = len(class_names)
    if not 1 <= k <= 255 or len(set(class_names)) < k:
        raise ValueError(f"class_names must be 1 to 255 different names, got {k}: {class_names}")
    if not k <= ignore_index <= 255:
        raise ValueError(f"ignore_index must be {k} (the number of classes) to 255, got {ignore_index}")
    if colors is not None and len(colors) != k + 1:
        raise ValueError(f"colors must have one entry per class and one for ignored pixels, {k + 1}, got {len(colors)}")
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise ValueError(f"size must be (height, width) of 1 or more, got {size}")
    if any(not 0 <= thin < k for thin in thin_classes):
        raise ValueError(f"thin_classes must be ids 0 to {k - 1}, got {thin_classes}")


def plain_ids(classes: int, ignore_index: int) -> dict[int, int]:
    """The meaning of masks that hold class ids 0..K-1 and ignore_index as they are."""
    return {i: i for i in (*range(classes), ignore_index)}


def hues(k: int) -> tuple[tuple[int, int, int], ...]:
    """k colours of evenly spread hue and alternating brightness, then black."""
    spread = [colorsys.hsv_to_rgb(i / k, 0.75, 0.95 if i % 2 else 0.65) for i in range(k)]
    return (*((round(255 * r), round(255 * g), round(255 * b)) for r, g, b in spread), (0, 0, 0))


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


def _shortage(pairs: Sequence[Pair], size: Size | None, formats: tuple[str, ...]) -> str | None:
    """What to say where the set would need more memory than there is; None if it fits."""
    pixels = len(pairs) * size[0] * size[1] if size is not None else sum(_pixels(pair.image, formats) for pair in pairs)
    needed, available = BYTES_PER_PIXEL * pixels, available_memory()
    if needed <= available:
        return None
    advice = "give --size to read smaller images" if size is None else f"lower --size, which is {_spell(size)}"
    needs = f"{len(pairs)} images and masks need {needed / 1e9:.1f} GB of memory"
    return f"{needs}, of which {available / 1e9:.1f} GB are available; {advice}"


def _pixels(path: Path, formats: tuple[str, ...]) -> int:
    """H * W by the header; 0 if there is none to read, which decoding reports."""
    try:
        with Image.open(path, formats=formats) as picture:
            return picture.height * picture.width
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return 0


def _is_inside(path: Path, root: Path) -> bool:
    """Whether the path as written stays under root; links on the way are the owner's own and may lead anywhere."""
    return Path(os.path.abspath(path)).is_relative_to(os.path.abspath(root))


def _at(path: Path, root: Path) -> str:
    return os.path.relpath(os.path.abspath(path), os.path.abspath(root))


def _read(path: Path, root: Path, formats: tuple[str, ...], problems: list[str]) -> Image.Image | None:
    """The decoded picture; None, with a problem noted, if the file is no picture or ends early."""
    try:
        with Image.open(path, formats=formats) as picture:
            picture.load()  # open() reads the header only: a truncated file shows itself here
            return picture
    except UnidentifiedImageError:
        problems.append(f"{_at(path, root)} is not a {' or '.join(formats)} image")
    except FileNotFoundError:
        problems.append(f"{_at(path, root)} is missing")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # PIL raises all of these
        problems.append(f"{_at(path, root)} cannot be read: {error}")
    return None


def _as_drawn_on(image: Image.Image, mask: Image.Image) -> Image.Image:
    """The image as its mask was drawn on it: as stored, or turned as its EXIF orientation says where only that fits."""
    if image.size == mask.size:
        return image
    turned = ImageOps.exif_transpose(image)
    return turned if turned.size == mask.size else image


def _pair_problems(
    pair: Pair, image: Image.Image | None, mask: Image.Image | None, root: Path, ids: dict[int, int], ignore_index: int
) -> list[str]:
    """What is wrong with the decoded image, with the decoded mask, and with the two together."""
    at_image, at_mask = _at(pair.image, root), _at(pair.mask, root)
    problems = []
    if image is not None and image.mode.startswith(("I", "F")):
        problems.append(f"{at_image} must have 8 bits a channel, is mode {image.mode}")
    if mask is not None:
        problems += _mask_problems(mask, at_mask, ids, ignore_index)
    if image is not None and mask is not None and image.size != mask.size:
        sizes = f"{_spell((image.height, image.width))}, its mask {at_mask} {_spell((mask.height, mask.width))}"
        problems.append(f"{at_image} is {sizes}; they must be equal")
    return problems


def _mask_problems(mask: Image.Image, at: str, ids: dict[int, int], ignore_index: int) -> list[str]:
    if mask.mode not in ("L", "P"):
        return [f"{at} must be single-channel 8-bit (mode L or P), is mode {mask.mode}"]
    present = np.flatnonzero(np.bincount(np.asarray(mask).ravel(), minlength=256))
    wrong = [int(i) for i in present if int(i) not in ids]
    if not wrong:
        return []
    known = [value for value, meaning in ids.items() if meaning != ignore_index]
    ignored = [value for value, meaning in ids.items() if meaning == ignore_index]
    allowed = f"{min(known)} to {max(known)} and {', '.join(map(str, ignored))} (ignored)"
    return [f"{at} has ids {', '.join(map(str, wrong))}; allowed are {allowed}"]


def _spell(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
