"""Pairs of images and masks in a folder, and what their masks mean.

ROOT/images/{train,val,test}/NAME.SUFFIX
ROOT/masks/{train,val,test}/NAME.SUFFIX      8-bit, one class id per pixel: mode L, or P (the palette index)
"""

import colorsys
from pathlib import Path

from experiments.data.reading import SPLITS, DataError, Found, Labels, Pair
from experiments.records.messages import printable

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
    thin_classes=(2, 6, 7),  # pole, sign, fence
    note="validation shares its drive with most of train and so flatters: choose on validation, report test",
)


def labels_of(classes: Path, ignore_index: int | None) -> Labels:
    """The meaning of masks that hold the ids of the names in a file, one a line, and ignore_index (255 for None).

    Raises:
        ValueError: the file cannot be read as UTF-8, does not name 1 to 255 classes, has a blank line or a name twice;
            or ignore_index is the id of a class.
    """
    try:
        names = tuple(line.strip() for line in classes.read_text(encoding="utf-8-sig").rstrip().splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(classes, [f"class names cannot be read: {error}"]) from error
    k, ignored = len(names), 255 if ignore_index is None else ignore_index
    problems = [] if 0 < k <= 255 else [f"--classes must name 1 to 255 classes, got {k}"]
    wrong = [i for i, name in enumerate(names) if not name or name in names[:i]]
    problems += [f"line {i + 1} is blank or repeats another: {names[i]!r}" for i in wrong]
    if problems:
        raise DataError(classes, problems)
    if not k <= ignored <= 255:
        raise ValueError(f"--ignore-index must be {k} (the number of classes) to 255, got {ignored}")
    spread = [colorsys.hsv_to_rgb(i / k, 0.75, 0.95 if i % 2 else 0.65) for i in range(k)]
    colors = tuple((round(255 * r), round(255 * g), round(255 * b)) for r, g, b in spread)
    return Labels(names, (*colors, (0, 0, 0)), ignored)


def find_pairs(root: Path) -> Found:
    """Every pair below root, by split and name; what is missing or there twice; and what is left out: hidden files,
    other suffixes (which may be in capitals), and what is no split.
    """
    pairs: list[Pair] = []
    problems: list[str] = []
    left_out: list[str] = []

    def files(where: str, suffixes: tuple[str, ...]) -> dict[str, Path]:
        """Files by their printable stem, sorted."""
        found: dict[str, Path] = {}
        for path in sorted((root / where).glob("*")):
            name = printable(path.stem)
            if path.name.startswith(".") or path.suffix.lower() not in suffixes:
                left_out.append(f"{where}/{path.name}: hidden, or not {', '.join(suffixes)}")
            elif name in found:
                problems.append(f"{where}/{path.name} has the same name as {found[name].name}")
            else:
                found[name] = path
        if not found:
            problems.append(f"{where} is missing, or has no {', '.join(suffixes)} files")
        return found

    for split in SPLITS:
        images, masks = files(f"images/{split}", IMAGES), files(f"masks/{split}", MASKS)
        for name, path in (images | masks).items():
            if name in images and name in masks:
                pairs.append(Pair(split, name, images[name], masks[name]))
            else:
                missing = "mask" if name in images else "image"
                problems.append(f"{path.relative_to(root).as_posix()} has no {missing} in {missing}s/{split}")
    for path in sorted((root / "images").glob("*")) + sorted((root / "masks").glob("*")):
        if path.name not in SPLITS:
            left_out.append(f"{path.relative_to(root).as_posix()}: not one of {', '.join(SPLITS)}")
    return Found(pairs, problems, left_out)
