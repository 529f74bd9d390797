"""Segmentation sets in the layout of Hugging Face's "imagefolder", read without the `datasets` library.

Shapes: N images, H W pixels, K classes. Layout under the root:

    {train,validation,test}/metadata.jsonl      or metadata.csv; validation may also be called val, valid or dev
        {"file_name": "0001.jpg", "mask_file_name": "masks/0001.png"}

Conventions (huggingface.co/docs/datasets/image_dataset): `file_name`, and every column whose name ends in `_file_name`,
holds paths of images relative to the folder of the metadata file; the page shows pairs of images as
`input_file_name` and `output_file_name`. It fixes no name for masks. Here the image is `file_name`, or else
`image_file_name` or `input_file_name`, and the mask is the only other column that ends in `_file_name`. Masks hold one
class id per pixel, as in `folder`.
"""

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path

from experiments.data.dataset import SegmentationData
from experiments.data.folder import IMAGE_SUFFIXES
from experiments.data.pairs import Pair, Size, check_arguments, hues, plain_ids, read_splits

FOLDERS = {"train": ("train",), "val": ("validation", "val", "valid", "dev"), "test": ("test",)}
METADATA = ("metadata.jsonl", "metadata.csv")
IMAGE_COLUMNS = ("file_name", "image_file_name", "input_file_name")

Line = tuple[int, dict[str, object]]  # number in the file, and its columns


def load_hub_folder(
    root: Path,
    class_names: tuple[str, ...],
    *,
    name: str = "hf",
    ignore_index: int = 255,
    size: Size | None = None,
) -> SegmentationData:
    """Reads the three splits into memory as uint8, in the order of their metadata.

    size as for `load_folder`. Images are called by their path in the split's folder, without suffix.

    Raises:
        ValueError: unusable arguments.
        DataError: with every problem of the data at once: splits or metadata that are missing or there twice, lines
            that cannot be read or name no image or mask, no or several columns of masks, an image named twice, images
            that no line names, and what `read_splits` refuses, files outside root among it.
    """
    check_arguments(class_names, ignore_index, size=size)
    root = Path(root)
    problems: list[str] = []
    pairs: list[Pair] = []
    if root.is_dir():
        for split, folders in FOLDERS.items():
            pairs += _find_pairs(root, split, folders, problems)
        problems += _repeated(root, pairs)
    else:
        problems.append("this is not a folder" if root.exists() else "the folder does not exist")
    ids = plain_ids(len(class_names), ignore_index)
    splits = read_splits(root, pairs, problems, ids=ids, ignore_index=ignore_index, size=size)
    return SegmentationData(name, *splits, class_names, hues(len(class_names)), ignore_index)


def _find_pairs(root: Path, split: str, folders: tuple[str, ...], problems: list[str]) -> list[Pair]:
    """The pairs of one split, in the order of its metadata; what is wrong goes to problems."""
    there = [folder for folder in folders if (root / folder).is_dir()]
    if len(there) != 1:
        problems.append(f"{' and '.join(there)} are the same split" if there else f"{' or '.join(folders)} is missing")
        return []
    folder = root / there[0]
    files = [file for file in METADATA if (folder / file).exists()]
    if len(files) != 1:
        joined = "both {} and {}; it must have one of them" if files else "neither {} nor {}"
        problems.append(f"{there[0]} has {joined.format(*METADATA)}")
        return []
    at = f"{there[0]}/{files[0]}"
    try:
        with (folder / files[0]).open(encoding="utf-8-sig", newline="") as stream:
            lines = list(_csv_lines(stream) if files[0].endswith(".csv") else _json_lines(stream))
    except (OSError, ValueError, csv.Error) as error:  # ValueError: no UTF-8, or the line that _json_lines names
        problems.append(f"{at} cannot be read: {error}")
        return []
    columns = _columns(lines, at, problems)
    if columns is None:
        return []
    before = len(problems)
    pairs = []
    for number, line in lines:
        values = [line.get(column) for column in columns]
        usable = [isinstance(value, str) and value != "" for value in values]
        problems += [f"{at} line {number} has no {c}" for c, good in zip(columns, usable, strict=True) if not good]
        if all(usable):
            image, mask = (Path(os.path.abspath(folder / str(value))) for value in values)
            name, _ = os.path.splitext(os.path.relpath(image, os.path.abspath(folder)))
            pairs.append(Pair(split, name, image, mask))
    if len(problems) == before:
        problems += _unnamed(root, folder, pairs, at)
    return pairs


def _json_lines(stream: Iterator[str]) -> Iterator[Line]:
    for number, text in enumerate(stream, 1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number} is not JSON: {error}") from error
        if not isinstance(line, dict):
            raise ValueError(f"line {number} is not a JSON object")
        yield number, line


def _csv_lines(stream: Iterator[str]) -> Iterator[Line]:
    reader = csv.DictReader(stream, strict=True)
    for line in reader:
        yield reader.line_num, dict(line)


def _columns(lines: list[Line], at: str, problems: list[str]) -> tuple[str, str] | None:
    """Names of the columns of images and of masks; None, with a problem noted, if that is not clear."""
    files = list(dict.fromkeys(key for _, line in lines for key in line if key and key.endswith("file_name")))
    image = next((column for column in IMAGE_COLUMNS if column in files), None)
    masks = [column for column in files if column != image and column.endswith("_file_name")]
    if not lines:
        problems.append(f"{at} has no lines")
    elif image is None:
        problems.append(f"{at} must have a column {' or '.join(IMAGE_COLUMNS)}")
    elif len(masks) != 1:
        rule = f"one column that ends in _file_name for masks, beside {image}"
        problems.append(f"{at} must have {rule}; got {', '.join(masks) or 'none'}")
    else:
        return image, masks[0]
    return None


def _unnamed(root: Path, folder: Path, pairs: list[Pair], at: str) -> list[str]:
    """Images in the folder of a split that its metadata does not name."""
    named = {path for pair in pairs for path in (pair.image, pair.mask)}
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    stray = [path.relative_to(root) for path in files if Path(os.path.abspath(path)) not in named]
    return [f"{path.as_posix()} is in no line of {at}" for path in stray if not path.name.startswith(".")]


def _repeated(root: Path, pairs: list[Pair]) -> list[str]:
    """Images, or names of images in a split, that occur twice."""
    problems = []
    seen: dict[Path | tuple[str, str], str] = {}
    for pair in pairs:
        at = os.path.relpath(pair.image, os.path.abspath(root))
        if pair.image in seen:
            problems.append(f"{at} is named twice, in {seen[pair.image]} and {pair.split}")
        elif (pair.split, pair.name) in seen:
            problems.append(f"{at} has the same name as {seen[pair.split, pair.name]}")
        seen.setdefault(pair.image, pair.split)
        seen.setdefault((pair.split, pair.name), at)
    return problems
