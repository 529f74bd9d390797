"""Segmentation sets read from a folder of images and masks.

Shapes: N images, H W pixels, K classes. Layout under the root:

    images/{train,val,test}/NAME.(jpg|jpeg|png)     8 bits a channel
    masks/{train,val,test}/NAME.png                 8-bit, one class id per pixel: mode L, or P (the palette index)
"""

import colorsys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from experiments.data.dataset import SegmentationData, Split

SPLITS = ("train", "val", "test")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
SHOWN = 20  # problems spelled out in one error; the rest are counted

CAMVID = {
    "sky": (128, 128, 128),
    "building": (128, 0, 0),
    "pole": (192, 192, 128),
    "road": (128, 64, 128),
    "pavement": (60, 40, 222),
    "tree": (128, 128, 0),
    "sign": (192, 128, 128),
    "fence": (64, 64, 128),
    "car": (64, 0, 128),
    "pedestrian": (64, 64, 0),
    "bicyclist": (0, 128, 192),
}

Size = tuple[int, int]
Bytes = NDArray[np.uint8]


class DataError(ValueError):
    """A data set that cannot be used as it is: the message lists what is wrong with which file."""

    def __init__(self, root: Path, problems: list[str]) -> None:
        self.problems = tuple(problems)
        lines = [f"{root}: {len(problems)} problem{'s' if len(problems) > 1 else ''}", *problems[:SHOWN]]
        if len(problems) > SHOWN:
            lines.append(f"and {len(problems) - SHOWN} more")
        super().__init__("\n  ".join(lines))


def read_class_names(path: Path) -> tuple[str, ...]:
    """Class names of a text file, one a line: line i names id i. Blanks around names and at the end drop out.

    Raises DataError if the file cannot be read as UTF-8, names no class, or has a blank line or a name twice.
    """
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").rstrip().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(path, [f"class names cannot be read: {error}"]) from error
    problems = [f"line {i + 1} is blank; each line names one class" for i, name in enumerate(names) if not name]
    problems += [
        f"line {i + 1} repeats {name!r} of line {names.index(name) + 1}"
        for i, name in enumerate(names)
        if name and names.index(name) < i
    ]
    if not names:
        problems.append("the file names no class")
    if problems:
        raise DataError(path, problems)
    return tuple(names)


def load_folder(
    root: Path,
    class_names: tuple[str, ...],
    *,
    name: str = "folder",
    ignore_index: int = 255,
    colors: tuple[tuple[int, int, int], ...] | None = None,
    size: Size | None = None,
    thin_classes: tuple[int, ...] = (),
    note: str = "",
) -> SegmentationData:
    """Reads the three splits into memory as uint8, in the order of their names.

    size = (H, W) resizes images (bilinear, antialiased) and masks (nearest); without it all must have one size. colors
    (K + 1, the last for ignored pixels) default to hues spread over the circle.

    Raises ValueError for unusable arguments, and DataError with every problem of the data at once: folders missing or
    empty, images without mask or masks without image, unreadable or truncated files, images or masks of other than 8
    bits, masks of several channels, an image and its mask of unequal size, images of several sizes without `size`,
    ids that are neither a class nor ignore_index. Each file is read once.
    """
    _check_arguments(class_names, ignore_index, colors, size, thin_classes)
    root = Path(root)
    problems: list[str] = []
    pairs = _find_pairs(root, problems)
    splits: dict[str, list[tuple[str, Bytes, Bytes]]] = {split: [] for split in SPLITS}
    seen: dict[Size, list[str]] = {}
    allowed = np.zeros(256, bool)
    allowed[[*range(len(class_names)), ignore_index]] = True
    for split, image_path, mask_path in pairs:
        at_image, at_mask = (str(path.relative_to(root)) for path in (image_path, mask_path))
        image = _read(image_path, at_image, problems)
        mask = _read(mask_path, at_mask, problems)
        if image is not None:
            seen.setdefault((image.height, image.width), []).append(at_image)
            if image.mode.startswith(("I", "F")):
                problems.append(f"{at_image} must have 8 bits a channel, is mode {image.mode}")
        if mask is not None:
            problems += _mask_problems(mask, at_mask, allowed, len(class_names), ignore_index)
        if image is None or mask is None:
            continue
        if image.size != mask.size:
            sizes = f"{_spell((image.height, image.width))}, its mask {at_mask} {_spell((mask.height, mask.width))}"
            problems.append(f"{at_image} is {sizes}; they must be equal")
        if problems:
            continue  # nothing will be returned: only look for further problems
        if size is not None:
            image = image.convert("RGB").resize((size[1], size[0]), Image.Resampling.BILINEAR)
            mask = mask.resize((size[1], size[0]), Image.Resampling.NEAREST)
        splits[split].append((image_path.stem, np.asarray(image.convert("RGB")), np.asarray(mask)))
    if size is None and len(seen) > 1:
        each = ", ".join(f"{_spell(s)} ({len(at)}, first {at[0]})" for s, at in sorted(seen.items()))
        problems.append(f"images have {len(seen)} sizes, give size=(H, W) to resize them: {each}")
    if problems:
        raise DataError(root, problems)
    train, val, test = (_stack(splits[split]) for split in SPLITS)
    return SegmentationData(
        name, train, val, test, class_names, colors or _hues(len(class_names)), ignore_index, thin_classes, note
    )


def load_camvid(root: Path, size: Size | None = None) -> SegmentationData:
    """CamVid in its 11-class form (ids 0..10, 11 ignored), 367 / 101 / 233 images; raises as load_folder does."""
    return load_folder(
        root,
        tuple(CAMVID),
        name="camvid",
        ignore_index=11,
        colors=(*CAMVID.values(), (0, 0, 0)),
        size=size,
        thin_classes=tuple(list(CAMVID).index(thin) for thin in ("pole", "sign", "fence")),
        note="validation shares its drive with most of train and so flatters: choose on validation, report test",
    )


def _check_arguments(
    class_names: tuple[str, ...],
    ignore_index: int,
    colors: tuple[tuple[int, int, int], ...] | None,
    size: Size | None,
    thin_classes: tuple[int, ...],
) -> None:
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


def _find_pairs(root: Path, problems: list[str]) -> list[tuple[str, Path, Path]]:
    """(split, image, mask) of every complete pair, by name; what is missing or double goes to problems."""
    if not root.is_dir():
        problems.append("the folder does not exist" if not root.exists() else "this is not a folder")
        return []
    pairs: list[tuple[str, Path, Path]] = []
    for split in SPLITS:
        images = _list(root, f"images/{split}", IMAGE_SUFFIXES, problems)
        masks = _list(root, f"masks/{split}", (".png",), problems)
        if images is None or masks is None:
            continue
        problems += [
            f"images/{split}/{images[n].name} has no mask masks/{split}/{n}.png" for n in images if n not in masks
        ]
        problems += [
            f"masks/{split}/{masks[n].name} has no image images/{split}/{n}.(jpg|png)" for n in masks if n not in images
        ]
        pairs += [(split, images[n], masks[n]) for n in images if n in masks]
    return pairs


def _list(root: Path, where: str, suffixes: tuple[str, ...], problems: list[str]) -> dict[str, Path] | None:
    """Files of a split by stem, sorted; None, with a problem noted, if there are none."""
    if not (root / where).is_dir():
        problems.append(f"{where} is missing")
        return None
    found: dict[str, Path] = {}
    for path in sorted((root / where).iterdir()):
        if path.suffix.lower() not in suffixes or path.name.startswith("."):
            continue
        if path.stem in found:
            problems.append(f"{where}/{path.name} has the same name as {found[path.stem].name}")
        found.setdefault(path.stem, path)
    if not found:
        problems.append(f"{where} has no {' or '.join(suffixes)} files")
        return None
    return found


def _read(path: Path, at: str, problems: list[str]) -> Image.Image | None:
    """The decoded picture; None, with a problem noted, if the file is no picture or ends early."""
    try:
        with Image.open(path, formats=("JPEG", "PNG")) as picture:
            picture.load()  # open() reads the header only: a truncated file shows itself here
            return picture
    except UnidentifiedImageError:
        problems.append(f"{at} is not a JPEG or PNG image")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # PIL raises all of these
        problems.append(f"{at} cannot be read: {error}")
    return None


def _mask_problems(mask: Image.Image, at: str, allowed: NDArray[np.bool_], k: int, ignore_index: int) -> list[str]:
    if mask.mode not in ("L", "P"):
        return [f"{at} must be single-channel 8-bit (mode L or P), is mode {mask.mode}"]
    present = np.flatnonzero(np.bincount(np.asarray(mask).ravel(), minlength=256))
    wrong = [int(i) for i in present if not allowed[i]]
    if not wrong:
        return []
    return [f"{at} has ids {', '.join(map(str, wrong))}; allowed are 0 to {k - 1} and {ignore_index} (ignored)"]


def _stack(items: list[tuple[str, Bytes, Bytes]]) -> Split:
    names, images, masks = zip(*items, strict=True)
    channels_last = torch.from_numpy(np.stack(images))
    return Split(channels_last.permute(0, 3, 1, 2).contiguous(), torch.from_numpy(np.stack(masks)), names)


def _hues(k: int) -> tuple[tuple[int, int, int], ...]:
    """k colours of evenly spread hue and alternating brightness, then black."""
    spread = [colorsys.hsv_to_rgb(i / k, 0.75, 0.95 if i % 2 else 0.65) for i in range(k)]
    return (*((round(255 * r), round(255 * g), round(255 * b)) for r, g, b in spread), (0, 0, 0))


def _spell(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
