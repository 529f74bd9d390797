"""Results as reports take them: read from runs folders or merged sets, checked, and merged into one set.

A runs folder keeps the arrays of each row in runs/RUN/step{STEP}.npz. A merged set is NAME.jsonl with NAME.npz, whose
keys are "{row}/{name}", rows counted from 0; a folder of experiments.report is one with the name results. All of it may
come from a stranger: names in rows are plain (records.results), no link is followed, and texts lose their control
characters, so that each stays one line.
"""

import json
import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy
from numpy.typing import NDArray

from experiments.records.counts import MOST_BYTES, Arrays, ImageCounts, counts_of, miou, pack, unpack
from experiments.records.files import plain_file, write_whole
from experiments.records.results import MOST, RESULTS, Row, read_rows

MOST_PICTURE_BYTES = 20 * 1024**2  # of one folder
ROUNDING = 1e-3  # rows have three digits
Pictures = dict[str, bytes]  # PNG files by name


@dataclass(frozen=True)
class Data:
    """What data.json says of a set, all of it texts: see SegmentationData.

    images: how many, by split. colors: #rrggbb of each class, and of ignored pixels. examples: names, as NN.png.
    """

    name: str = "unknown data"
    note: str = ""
    images: str = ""
    class_names: tuple[str, ...] = ()
    colors: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Result:
    """A row with its arrays (counts and curves) and pictures; none of these where they are missing."""

    row: Row
    arrays: Arrays
    pictures: Pictures

    @cached_property
    def counts(self) -> ImageCounts | None:
        """Counts of each test image without their confusion matrices; None where they are missing."""
        found = {name: array for name, array in self.arrays.items() if name != "confusion"}
        return counts_of(found) if "hits" in found else None


@dataclass(frozen=True)
class Results:
    """Results on one set of data, and the example images of that set."""

    data: Data
    examples: Pictures
    items: tuple[Result, ...]


def read(paths: Sequence[Path]) -> Results:
    """The rows of kind "segmentation" of folders or NAME.jsonl files, of one data_id; examples are those of the first.

    Raises:
        ValueError: nothing there, different data, or a file that is not what it should be; the message names it.
    """
    if not paths:
        raise ValueError("at least one folder or file of rows is needed, got none")
    found = {path: _read(path) for path in paths}
    digests = {i.row["data_id"]: path for path in paths for i in found[path].items}
    if len(digests) > 1:
        listing = ", ".join(f"{digest} in {path}" for digest, path in digests.items())
        raise ValueError(f"all must be of the same data, got data_id {listing}")
    return replace(found[paths[0]], items=tuple(item for part in found.values() for item in part.items))


def _read(path: Path) -> Results:
    root, file = (path, path / RESULTS) if path.is_dir() else (path.parent, path)
    arrays_file = file.with_suffix(".npz")
    merged = file.name != RESULTS or plain_file(arrays_file, root)
    together: dict[str, Arrays] = defaultdict(dict)
    for key, array in _arrays(arrays_file, root).items():
        number, _, name = key.partition("/")
        together[number][name] = array
    items = []
    for number, row in enumerate(read_rows(file) if plain_file(file, root) else []):
        if row.get("kind") != "segmentation":
            continue
        own = root / "pictures" / str(number) if merged else root / "runs" / row["run"]
        arrays = together[str(number)] if merged else _arrays(own / f"step{row['step']}.npz", root)
        items.append(Result(one_line(row), arrays, _pictures(own, root)))
        try:
            _check_score(row, items[-1].counts)
            _check_curves(arrays)
        except ValueError as error:
            where = f"{file}, line {number + 1}: arrays of {row['run']} at step {row['step']}"
            raise ValueError(f"{where}: {error}") from error
    if not items:
        raise ValueError(f"{path} holds no results: rows of kind segmentation are needed in {RESULTS} or NAME.jsonl")
    known = file.name == RESULTS and plain_file(root / "data.json", root)
    data = _data(root / "data.json") if known else Data(str(items[0].row.get("data")))
    return Results(data, _pictures(root / "examples", root), tuple(items))


def _arrays(path: Path, root: Path) -> Arrays:
    if not plain_file(path, root):
        return {}
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"is larger than {MOST_BYTES} bytes")
        return {name: _one_lined(array) for name, array in unpack(path.read_bytes()).items()}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _check_score(row: Row, counts: ImageCounts | None) -> None:
    """Refuse counts that are of another row: where rows were left out, or their order was changed."""
    found = float(miou(counts.hits.sum(0), counts.union.sum(0))) if counts else math.nan
    there = math.nan if row["test_miou"] is None else row["test_miou"]
    if counts and not numpy.isclose(found, there, rtol=0, atol=ROUNDING, equal_nan=True):
        raise ValueError(f"their test_miou is {found:.3f}, that of the row {there}: they are not of this row")


def _check_curves(arrays: Arrays) -> None:
    for x, y in (("loss_step", "loss"), ("val_step", "val_miou")):
        points = [arrays[name] for name in (x, y) if name in arrays]
        good = all(array.ndim == 1 and array.dtype.kind in "fiu" for array in points)
        if points and (len(points) < 2 or not good or len(points[0]) != len(points[1])):
            raise ValueError(f"{x} and {y} must be numbers, as many of one as of the other")
        for name, array in zip((x, y), points, strict=False):
            low, high = (0, 100) if name == "val_miou" else (-MOST, MOST)
            unknown = numpy.isnan(array) & (name == "val_miou")  # no class was there
            if (wrong := array[~((low <= array) & (array <= high) | unknown)]).size:
                raise ValueError(f"{name} must be from {low:g} to {high:g}, got {wrong[0]:g}")


def _pictures(folder: Path, root: Path) -> Pictures:
    """The PNG files of a folder, but for those that are links or lead out of root."""
    found = [path for path in sorted(folder.glob("*.png")) if plain_file(path, root)]
    if sum(path.stat().st_size for path in found) > MOST_PICTURE_BYTES:
        raise ValueError(f"{folder}: pictures must not take more than {MOST_PICTURE_BYTES} bytes together")
    contents = {path.name: path.read_bytes() for path in found}
    return {name: content for name, content in contents.items() if content.startswith(b"\x89PNG\r\n\x1a\n")}


def _data(path: Path) -> Data:
    try:
        found = one_line(json.loads(path.read_text(encoding="utf-8-sig")))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(found).__name__}")
    known = {part.name: found[part.name] for part in fields(Data) if part.name in found}
    for name, value in known.items():
        texts = [value] if isinstance(getattr(Data, name), str) else value
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{path}: {name} must be text, or a list of texts, got {str(value)[:80]!r}")
    if not all(re.fullmatch("#[0-9a-f]{6}", color) for color in known.get("colors", ())):
        raise ValueError(f"{path}: colors must be of the form #rrggbb, got {', '.join(known['colors'])[:80]}")
    return Data(**{name: tuple(value) if isinstance(value, list) else value for name, value in known.items()})


def one_line(value: Any) -> Any:
    """A value of JSON whose texts can be written: each run of control characters is one space, and what is no character
    (of a file's name that is no UTF-8) a question mark."""
    if isinstance(value, str):
        return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+", " ", value.encode(errors="replace").decode())
    if isinstance(value, dict):
        return {one_line(key): one_line(part) for key, part in value.items()}
    return list(map(one_line, value)) if isinstance(value, list) else value


def _one_lined(array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype.kind != "U":
        return array
    return numpy.array(one_line(array.ravel().tolist()), dtype=array.dtype).reshape(array.shape)


def write_merged(results: Results, output: Path) -> None:
    """Write results as the merged set output/results.jsonl, with data.json and the pictures there are."""
    arrays = {f"{n}/{name}": array for n, item in enumerate(results.items) for name, array in item.arrays.items()}
    folders = {"examples": results.examples, **{f"pictures/{n}": item.pictures for n, item in enumerate(results.items)}}
    for folder, pictures in folders.items():
        for name, content in pictures.items():
            write_whole(output / folder / name, content)
    write_whole(output / "data.json", json.dumps(asdict(results.data), indent=1))
    write_whole(output / Path(RESULTS).with_suffix(".npz"), pack(arrays))
    write_whole(output / RESULTS, "".join(json.dumps(item.row) + "\n" for item in results.items))
