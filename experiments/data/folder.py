"""Segmentation sets read from a folder of images and masks.

Shapes: N images, H W pixels, K classes. Layout under the root:

    images/{train,val,test}/NAME.(jpg|jpeg|png)     8 bits a channel
    masks/{train,val,test}/NAME.png                 8-bit, one class id per pixel: mode L, or P (the palette index)
"""

from pathlib import Path

from experiments.data.dataset import SegmentationData
from experiments.data.pairs import SPLITS, DataError, Pair, Size, check_arguments, hues, plain_ids, read_splits

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")

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
    empty, images without mask or masks without image, two images of one name, and what `read_splits` refuses.
    """
    check_arguments(class_names, ignore_index, colors=colors, size=size, thin_classes=thin_classes)
    root = Path(root)
    problems: list[str] = []
    pairs = _find_pairs(root, problems)
    ids = plain_ids(len(class_names), ignore_index)
    splits = read_splits(root, pairs, problems, ids=ids, ignore_index=ignore_index, size=size)
    colors = colors or hues(len(class_names))
    return SegmentationData(name, *splits, class_names, colors, ignore_index, thin_classes, note)


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


def _find_pairs(root: Path, problems: list[str]) -> list[Pair]:
    """Every complete pair, by name; what is missing or double goes to problems."""
    if not root.is_dir():
        problems.append("the folder does not exist" if not root.exists() else "this is not a folder")
        return []
    pairs: list[Pair] = []
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
        pairs += [Pair(split, n, images[n], masks[n]) for n in images if n in masks]
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
