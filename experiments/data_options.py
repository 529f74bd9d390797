"""Which data a command works on: options, and the set they name."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from experiments.data import (
    SegmentationData,
    load_camvid,
    load_folder,
    load_hub_folder,
    load_pet,
    make_scenes,
    read_class_names,
)


@dataclass(frozen=True)
class DataOptions:
    """The set that a command works on."""

    data: Literal["scenes", "camvid", "folder", "pet", "hf"] = "scenes"
    """scenes: generated; camvid, folder: images/ and masks/ by split under --root; pet: Oxford-IIIT Pet as
    experiments.data.fetch_pet lays it; hf: a folder of Hugging Face's with metadata.jsonl by split"""
    root: Path | None = None
    """folder of the data, for all but scenes"""
    classes: Path | None = None
    """text file with one class name per line, for folder and hf"""
    ignore_index: int | None = None
    """id in the masks that counts as unlabelled, for folder and hf (default 255)"""
    size: tuple[int, int] | None = None
    """height and width to resize images to (scenes: to generate)"""
    data_seed: int | None = None
    """seed that scenes are generated from (default 0)"""


def load(options: DataOptions) -> SegmentationData:
    """The data asked for; options of another kind of data are refused rather than ignored.

    Raises:
        ValueError, OSError: bad input, or data that cannot be used; the message names option or file.
    """
    own_classes = options.data in ("folder", "hf")
    naming = {"--classes": options.classes, "--ignore-index": options.ignore_index}
    misplaced = [name for name, value in naming.items() if value is not None and not own_classes]
    if misplaced:
        raise ValueError(f"{', '.join(misplaced)}: only for --data folder and hf, got --data {options.data}")
    if options.data_seed is not None and options.data != "scenes":
        raise ValueError(f"--data-seed: only for --data scenes, got --data {options.data}")
    if options.size is not None and min(options.size) < 1:
        raise ValueError(f"--size must be height and width of at least 1, got {options.size[0]} {options.size[1]}")
    if options.data == "scenes":
        if options.root is not None:
            raise ValueError(f"--root: scenes are generated and read no folder, got {options.root}")
        height, width = options.size or (128, 160)
        return make_scenes(seed=options.data_seed or 0, height=height, width=width)
    if options.root is None:
        raise ValueError(f"--data {options.data} needs --root, the folder of the data")
    if options.data == "camvid":
        return load_camvid(options.root, size=options.size)
    if options.data == "pet":
        if options.size is None:
            raise ValueError("--data pet needs --size, height and width: its images have many sizes")
        return load_pet(options.root, size=options.size)
    if options.classes is None:
        raise ValueError(f"--data {options.data} needs --classes, a text file with one class name per line")
    reader = load_folder if options.data == "folder" else load_hub_folder
    return reader(
        options.root,
        read_class_names(options.classes),
        name=options.root.resolve().name,
        ignore_index=255 if options.ignore_index is None else options.ignore_index,
        size=options.size,
    )
