"""Pairs of images and masks in a folder, and what their masks mean.

ROOT/images/{train,val,test}/NAME.SUFFIX
ROOT/masks/{train,val,test}/NAME.SUFFIX      8-bit, one class id per pixel: mode L, or P (the palette index)
"""

import colorsys
from pathlib import Path

from experiments.data.reading import SPLITS, DataError, Found, Labels, Pair, printable

MASKS = (".png", ".tif", ".tiff", ".bmp")
IMAGES = (*MASKS, ".jpg", ".jpeg", ".webp")

_CAMVID = {
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
# Its form of 11 classes at 360 x 480: 367, 101 and 233 images.
CAMVID = Labels(
    class_names=tuple(_CAMVID),
    colors=(*_CAMVID.values(), (0, 0, 0)),
    ignore_index=11,
    ids={i: i for i in range(12)},
    thin_classes=(2, 6, 7),  # pole, sign, fence
    note="validation shares its drive with most of train and so flatters: choose on validation, report test",
)


def labels_of(classes: Path, ignore_index: int | None) -> Labels:
    """The meaning of masks that hold the ids of the names in a file, and ignore_index (255 for None), as they are.

    Raises:
        ValueError: what read_class_names refuses, too many names, or an ignore_index that is the id of a class.
    """
    names = read_class_names(classes)
    k, ignored = len(names), 255 if ignore_index is None else ignore_index
    if k > 255:
        raise ValueError(f"--classes must name at most 255 classes, got {k}")
    if not k <= ignored <= 255:
        raise ValueError(f"--ignore-index must be {k} (the number of classes) to 255, got {ignored}")
    spread = [colorsys.hsv_to_rgb(i / k, 0.75, 0.95 if i % 2 else 0.65) for i in range(k)]
    colors = (*((round(255 * r), round(255 * g), round(255 * b)) for r, g, b in spread), (0, 0, 0))
    return Labels(names, colors, ignored, {i: i for i in (*range(k), ignored)})


def read_class_names(path: Path) -> tuple[str, ...]:
    """Class names of a text file, one a line: line i names id i. Blanks around names and at the end drop out.

    Raises:
        DataError: the file cannot be read as UTF-8, names no class, or has a blank line or a name twice.
    """
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(path, [f"class names cannot be read: {error}"]) from error
    problems = [] if names else ["the file names no class"]
    for number, name in enumerate(names, start=1):
        first = names.index(name) + 1
        if not name:
            problems.append(f"line {number} is blank; each line names one class")
        elif first < number:
            problems.append(f"line {number} repeats {name!r} of line {first}")
    if problems:
        raise DataError(path, problems)
    return tuple(names)


def find_pairs(root: Path) -> Found:
    """Every pair below root, by split and name; what is missing or there twice; and what is left out: hidden files,
    other suffixes (which may be in capitals), and what is no split.
    """
    if not root.is_dir():
        return [], ["this is not a folder" if root.exists() else "the folder does not exist"], []
    pairs: list[Pair] = []
    problems: list[str] = []
    left_out: list[str] = []
    for split in SPLITS:
        images = _by_name(root, f"images/{split}", IMAGES, problems, left_out)
        masks = _by_name(root, f"masks/{split}", MASKS, problems, left_out)
        if images and masks:
            alone = [path for name, path in images.items() if name not in masks]
            problems += [f"images/{split}/{path.name} has no mask in masks/{split}" for path in alone]
            alone = [path for name, path in masks.items() if name not in images]
            problems += [f"masks/{split}/{path.name} has no image in images/{split}" for path in alone]
            pairs += [Pair(split, name, images[name], masks[name]) for name in images if name in masks]
    for kind in ("images", "masks"):
        others = sorted(path.name for path in (root / kind).glob("*") if path.name not in SPLITS)
        left_out += [f"{kind}/{name}: not one of {', '.join(SPLITS)}" for name in others]
    return pairs, problems, left_out


def _by_name(
    root: Path, where: str, suffixes: tuple[str, ...], problems: list[str], left_out: list[str]
) -> dict[str, Path]:
    """Files of a split by their printable stem, sorted; none, with a problem noted, where the split has none."""
    if not (root / where).is_dir():
        problems.append(f"{where} is missing")
        return {}
    found: dict[str, Path] = {}
    for path in sorted((root / where).iterdir()):
        name = printable(path.stem)
        if path.name.startswith("."):
            left_out.append(f"{where}/{path.name}: hidden")
        elif path.suffix.lower() not in suffixes:
            left_out.append(f"{where}/{path.name}: not {', '.join(suffixes)}")
        elif name in found:
            problems.append(f"{where}/{path.name} has the same name as {found[name].name}")
        else:
            found[name] = path
    if not found:
        problems.append(f"{where} has no {', '.join(suffixes)} files")
    return found
