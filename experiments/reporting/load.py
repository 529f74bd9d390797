"""Results as reports take them: read from runs folders or merged sets, checked, chosen from, and merged into one set.

A runs folder keeps the arrays of each row in runs/RUN/step{STEP}.npz. A merged set is NAME.jsonl with NAME.npz, whose
keys are "{row}/{name}", rows counted from 0; a folder of experiments.report is one with the name results. All of it may
come from a stranger: names in rows are plain (records.results), no link is followed, and texts lose their control
characters, so that each stays one line.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy

from experiments.records.counts import MOST_BYTES, Arrays, ImageCounts, counts_of, miou, pack, unpack
from experiments.records.files import plain_file, write_whole
from experiments.records.results import RESULTS, Row, read_rows

MOST_PICTURE_BYTES = 20 * 1024**2
EXTREMES = 2  # worst images of a run, and best ones


@dataclass(frozen=True)
class Data:
    """What data.json says of a set: see SegmentationData. images: how many, by split. examples: names, as NN.png."""

    name: str
    class_names: tuple[str, ...] = ()
    note: str = ""
    colors: tuple[tuple[int, int, int], ...] = ()
    thin_classes: tuple[int, ...] = ()
    images: dict[str, int] = field(default_factory=dict)
    height: int | None = None
    width: int | None = None
    examples: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Result:
    """A row with its arrays (counts and curves, none where they are missing) and the folder of its pictures in root."""

    row: Row
    arrays: Arrays
    pictures: Path
    root: Path

    @cached_property
    def counts(self) -> ImageCounts | None:
        """Counts of each test image without their confusion matrices; None where they are missing."""
        names = {part.name for part in fields(ImageCounts)} - {"confusion"}
        found = {name: array for name, array in self.arrays.items() if name in names}
        return counts_of(found) if found else None

    def picture(self, name: str) -> bytes | None:
        """The content of a PNG file of this row, None where there is none."""
        return read_picture(self.pictures / name, self.root)


@dataclass(frozen=True)
class Results:
    """Results on one set of data. examples: the folder of its example images, in root."""

    data: Data
    examples: Path
    root: Path
    items: tuple[Result, ...]


def read(paths: Sequence[Path]) -> Results:
    """The rows of kind "segmentation" of folders or NAME.jsonl files, of one data_id; pictures are those of the first.

    Raises:
        ValueError: nothing there, different data, or a file that is not what it should be; the message names it.
    """
    if not paths:
        raise ValueError("at least one folder or file of rows is needed, got none")
    found = [(path, _read(path)) for path in paths]
    digests = {item.row["data_id"]: path for path, part in found for item in part.items if item.row.get("data_id")}
    if len(digests) > 1:
        listing = ", ".join(f"{digest} in {path}" for digest, path in digests.items())
        raise ValueError(f"all must be of the same data, got data_id {listing}")
    return replace(found[0][1], items=tuple(item for _, part in found for item in part.items))


def _read(path: Path) -> Results:
    root, file = (path, path / RESULTS) if path.is_dir() else (path.parent, path)
    rows = read_rows(file) if plain_file(file, root) else []
    numbered = [(number, one_line(row)) for number, row in enumerate(rows) if row.get("kind") == "segmentation"]
    if not numbered:
        raise ValueError(f"{path} holds no results: rows of kind segmentation are needed in {RESULTS} or NAME.jsonl")
    together = file.with_suffix(".npz")
    merged: dict[int, Arrays] | None = {} if file.name != RESULTS or plain_file(together, root) else None
    if merged is not None:
        for key, array in _arrays(together, root).items():
            number, _, name = key.partition("/")
            merged.setdefault(int(number) if number.isdecimal() else -1, {})[name] = array
    items = []
    for number, row in numbered:
        if merged is not None:
            items.append(Result(row, merged.get(number, {}), root / "pictures" / str(number), root))
        else:
            folder = root / "runs" / row["run"]
            items.append(Result(row, _arrays(folder / f"step{row['step']}.npz", root), folder, root))
    for item in items:
        try:
            _ = item.counts
            _check_curves(item.arrays)
        except ValueError as error:
            raise ValueError(f"{path}, arrays of {item.row['run']} at step {item.row['step']}: {error}") from error
    own = file.with_name(f"{file.stem}-data.json")
    return Results(
        _data(own if plain_file(own, root) else root / "data.json", root, items), root / "examples", root, tuple(items)
    )


def _arrays(path: Path, root: Path) -> Arrays:
    if not plain_file(path, root):
        return {}
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"is larger than {MOST_BYTES} bytes")
        return unpack(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _check_curves(arrays: Arrays) -> None:
    for x, y in (("loss_step", "loss"), ("val_step", "val_miou")):
        points = [arrays.get(name, numpy.zeros(0)) for name in (x, y)]
        if any(array.ndim != 1 or array.dtype.kind not in "fiu" for array in points) or len({*map(len, points)}) > 1:
            raise ValueError(f"{x} and {y} must be numbers, as many of one as of the other")


def _is(kind: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kind) and not isinstance(value, bool)


def _list(good: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(good, value))


RULES: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(("name", "note"), ("text", _is(str))),
    **dict.fromkeys(("class_names", "examples", "left_out"), ("a list of texts", _list(_is(str)))),
    "colors": ("three numbers 0..255 each", _list(lambda c: _list(lambda v: v in range(256))(c) and len(c) == 3)),
    "thin_classes": ("a list of class ids", _list(_is(int))),
    "images": ("whole numbers by split", lambda value: isinstance(value, dict) and all(map(_is(int), value.values()))),
    **dict.fromkeys(("height", "width"), ("a whole number or null", lambda value: value is None or _is(int)(value))),
}


def _data(path: Path, root: Path, items: Sequence[Result]) -> Data:
    """What path says of the data; what the rows tell where there is no such file."""
    if not plain_file(path, root):
        classes = next((item.counts.class_names for item in items if item.counts is not None), ())
        return Data(str(items[0].row.get("data", "unknown data")), one_line(classes))
    try:
        found = one_line(json.loads(path.read_text(encoding="utf-8-sig")))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(found).__name__}")
    for name, (rule, good) in RULES.items():
        if (name in found or name == "name") and not good(found.get(name)):
            raise ValueError(f"{path}: {name} must be {rule}, got {str(found.get(name))[:80]!r}")
    data = Data(**{name: _tuples(value) for name, value in found.items() if name in RULES})
    classes = len(data.class_names)
    if len(data.colors) not in (0, classes + 1) or not set(data.thin_classes) <= set(range(classes)):
        raise ValueError(f"{path}: colors and thin_classes must fit the {classes} class_names")
    return data


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def one_line(value: Any) -> Any:
    """A value of JSON, or a tuple of texts, with every run of control characters in its texts as one space."""
    if isinstance(value, str):
        return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+", " ", value)
    if isinstance(value, dict):
        return {one_line(key): one_line(part) for key, part in value.items()}
    return type(value)(map(one_line, value)) if isinstance(value, list | tuple) else value


def read_picture(path: Path, root: Path) -> bytes | None:
    """The content of a PNG file, None where path is none, is a link or leads out of root, or is too large."""
    if not plain_file(path, root) or path.stat().st_size > MOST_PICTURE_BYTES:
        return None
    content = path.read_bytes()
    return content if content.startswith(b"\x89PNG\r\n\x1a\n") else None


def extremes(counts: ImageCounts) -> list[tuple[str, int, float]]:
    """Worst and best images by their own mIoU, EXTREMES of each and none twice: file stem, index, mIoU in percent."""
    scores = miou(counts.hits, counts.union)
    order = [int(i) for i in numpy.argsort(scores, kind="stable") if not numpy.isnan(scores[i])]
    each = min(EXTREMES, len(order) // 2)
    found = [("worst", n, i) for n, i in enumerate(order[:each], start=1)]
    found += [("best", n, i) for n, i in enumerate(order[::-1][:each], start=1)]
    return [(f"extreme_{kind}{n}", i, float(scores[i])) for kind, n, i in found]


def write_merged(results: Results, output: Path) -> None:
    """Write results as the merged set output/results.jsonl, with data.json and the pictures there are."""
    arrays = {f"{n}/{name}": array for n, item in enumerate(results.items) for name, array in item.arrays.items()}
    pictures = [(results.examples, results.root, output / "examples")]
    pictures += [(item.pictures, item.root, output / "pictures" / str(n)) for n, item in enumerate(results.items)]
    for folder, root, target in pictures:
        for path in sorted(folder.glob("*.png")) if folder.is_dir() else ():
            if (content := read_picture(path, root)) is not None:
                write_whole(target / path.name, content)
    write_whole(output / "data.json", json.dumps(asdict(results.data), indent=1))
    write_whole(output / Path(RESULTS).with_suffix(".npz"), pack(arrays))
    write_whole(output / RESULTS, "".join(json.dumps(item.row) + "\n" for item in results.items))
