"""Segmentation sets: generated scenes and sets read from files, held in memory as uint8."""

import hashlib

from torch import Tensor

from experiments.data.dataset import SegmentationData, Split
from experiments.data.folder import CAMVID, find_pairs, labels_of
from experiments.data.groups import camvid_group, finder, with_groups
from experiments.data.pet import PET, find_pet
from experiments.data.reading import DataError, read_splits
from experiments.data.street_scenes import SMALLEST, make_scenes
from experiments.records.messages import printable, shortened
from experiments.records.options import DataOptions

__all__ = ["DataError", "SegmentationData", "Split", "data_id", "groups_id", "load", "make_scenes"]

FILES = ("folder", "camvid", "pet")
ONLY_FOR = {"root": FILES, "fit": FILES, "groups": FILES, "classes": ("folder",), "ignore_index": ("folder",)}


def load(options: DataOptions, *, native: bool = False) -> SegmentationData:
    """The set that options ask for; those of another kind of data are refused rather than ignored.

    native keeps the masks of the test split at the resolution of their files, too (where --size resizes them).

    Raises:
        ValueError: options that cannot be used, or data: DataError lists what is wrong with which file.
        OSError: a folder cannot be read.
    """
    _check(options, native)
    if options.data == "scenes":
        height, width = options.size or (128, 160)
        return make_scenes(height=height, width=width)
    root, name = options.root, str(options.data)
    if root is None:
        raise ValueError(f"--data {name} needs --root, the folder of the data")
    find = finder(options.groups) if options.groups is not None else None
    if options.data == "pet":
        if options.size is None:
            raise ValueError("--data pet needs --size H W: its images have many sizes")
        labels = PET
    elif options.data == "camvid":
        labels, find = CAMVID, find or camvid_group
    elif options.classes is None:
        raise ValueError("--data folder needs --classes, a text file with one class name per line")
    else:
        name, labels = root.resolve().name, labels_of(options.classes, options.ignore_index)
    if not root.is_dir():
        raise DataError(root, ["this is not a folder" if root.exists() else "the folder does not exist"])
    found = find_pet(root) if options.data == "pet" else find_pairs(root)
    train, val, test = read_splits(root, found, labels, options.size, options.fit, native)
    left_out = tuple(map(printable, shortened(found.left_out)))
    repeated = [_repeated(train, other, which) for other, which in ((test, "test"), (val, "validation"))]
    labels = labels._replace(note="; ".join(filter(None, (labels.note, *repeated))))
    data = SegmentationData(printable(name), train, val, test, *labels, left_out)
    return data if find is None else with_groups(data, find)


def _repeated(train: Split, other: Split, which: str) -> str:
    """What a reader must know of images that two splits have in common; empty where there are none."""
    seen = {_digest(image) for image in train.images}
    count = sum(_digest(image) in seen for image in other.images)
    said = f"{count} of {len(other.names)} {which} images are also in the training split, pixel for pixel"
    return f"{said}, so that scores on them say little" if count else ""


def _digest(image: Tensor) -> bytes:
    return hashlib.sha256(image.contiguous().numpy().data).digest()


def _check(options: DataOptions, native: bool) -> None:
    """Raise ValueError for options that do not go together, naming them."""
    for name, data in ONLY_FOR.items():
        if options.data not in data and getattr(options, name) != getattr(DataOptions, name):
            option = "--" + name.replace("_", "-")
            raise ValueError(f"{option} is only for --data {', '.join(data)}, got --data {options.data}")
    least = SMALLEST if options.data == "scenes" else 1
    if options.size is not None and min(options.size) < least:
        got = f"{options.size[0]} {options.size[1]} with --data {options.data}"
        raise ValueError(f"--size must be height and width of at least {least}, got {got}")
    if options.fit != DataOptions.fit and options.size is None:
        raise ValueError(f"--fit must be left out without --size, got {options.fit}")
    if native and options.fit == "crop":
        raise ValueError("--score-at native needs the whole images: --fit pad or stretch, got --fit crop")


def groups_id(data: SegmentationData) -> str | None:
    """Digest of what test images belong to; None where each stands for itself."""
    groups = data.test.groups
    return hashlib.sha256(repr((data.test.names, groups)).encode()).hexdigest()[:12] if groups else None


def data_id(data: SegmentationData) -> str:
    """Digest of classes, images and masks: equal for equal data, wherever it came from and however it is grouped.

    It does not cover native masks: a folder scored at either resolution is of the same data, and a comparison of models
    refuses other masks (statistics.significance).
    """
    digest = hashlib.sha256()
    digest.update(repr((data.class_names, data.ignore_index, data.thin_classes)).encode())
    for split in (data.train, data.val, data.test):
        for tensor in (split.images, split.masks):
            digest.update(str(tuple(tensor.shape)).encode())
            digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()[:12]
