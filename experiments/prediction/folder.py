"""The folder of a prediction, which an interrupted run can go on with.

masks/NAME.png         palette picture: pixels are class ids, shown in the colours of the classes
overlays/NAME.png      the colours over the picture
confidence/NAME.png    8-bit grey: 255 times the probability of the class in the mask, rounded
classes.json           [{"id": 0, "name": ..., "color": [r, g, b]}, ...]
prediction.json        what predicted: the fields of Record, and where the run comes from
index.html             classes and overlays at a glance
"""

import html
import io
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

from experiments.prediction import pixels
from experiments.records import Row, write_whole

KINDS = ("masks", "overlays", "confidence")
CLASSES, RECORD, INDEX = "classes.json", "prediction.json", "index.html"


@dataclass(frozen=True)
class Record:
    """What decides the pixels of a prediction: results that differ in it do not share a folder.

    weights is a digest of the file. The rest are the options of the command, with their defaults filled in.
    """

    weights: str
    short_side: int | None
    size: tuple[int, int] | None
    tile: tuple[int, int] | None
    overlap: float
    flip: bool
    scales: tuple[float, ...]
    precision: str

    def as_json(self) -> Row:
        """The fields as JSON gives them back."""
        row: Row = json.loads(json.dumps(asdict(self)))
        return row


def check_output(output: Path, record: Record) -> None:
    """Raise ValueError where output is no folder, holds other files, or results of another record."""
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output must be a folder, got {output}, which is a file")
    present = {path.name for path in output.iterdir() if not path.name.startswith(".")} if output.exists() else set()
    if foreign := sorted(present - {*KINDS, CLASSES, RECORD, INDEX}):
        shown = ", ".join(foreign[:5])
        raise ValueError(f"--output must be new, empty or of this command, got {output}, which holds {shown}")
    if not present:
        return
    if RECORD not in present:
        raise ValueError(f"--output must be new, empty or of this command, got {output}, which has no {RECORD}")
    there = _read_record(output / RECORD)
    now = record.as_json()
    differing = [f"{key} {there.get(key)} there, {value} now" for key, value in now.items() if there.get(key) != value]
    if differing:
        raise ValueError(
            f"--output must not hold results of another prediction, got {output} ({'; '.join(differing)}): "
            "choose another folder"
        )


def _read_record(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}")
    return content


def write_record(
    output: Path, record: Record, origin: Row, class_names: Iterable[str], colors: Iterable[tuple[int, int, int]]
) -> None:
    """Write prediction.json and classes.json. Raises OSError where the folder cannot be written."""
    classes = [
        {"id": number, "name": name, "color": list(color)}
        for number, (name, color) in enumerate(zip(class_names, colors, strict=True))
    ]
    write_whole(output / RECORD, json.dumps({**record.as_json(), **origin}, indent=1) + "\n")
    write_whole(output / CLASSES, json.dumps(classes, indent=1) + "\n")


def finished(output: Path, name: str, picture: Path) -> bool:
    """Whether the three files of a picture are there and none is older than its last change."""
    results = [_at(output, kind, name) for kind in KINDS]
    if not all(path.is_file() for path in (picture, *results)):
        return False
    source = picture.stat()
    changed = max(source.st_mtime_ns, source.st_ctime_ns)  # a copy may keep the time of what it is a copy of
    return all(path.stat().st_mtime_ns >= changed for path in results)


def write_prediction(
    output: Path, name: str, picture: Image.Image, ids: pixels.Bytes, confidence: pixels.Bytes, colors: pixels.Colors
) -> None:
    """Write the three files of a picture, each whole or not at all. ids and confidence are (H, W), as the picture."""
    mask = pixels.mask(ids, colors)
    for kind, image in zip(KINDS, (mask, pixels.overlay(picture, mask), Image.fromarray(confidence)), strict=True):
        buffer = io.BytesIO()
        # Level 2 takes a third of the time of Pillow's own 6 and a tenth more room.
        image.save(buffer, format="PNG", compress_level=2)
        write_whole(_at(output, kind, name), buffer.getvalue())


def remove_prediction(output: Path, name: str) -> None:
    """Remove what an earlier run wrote for a picture, if anything."""
    for kind in KINDS:
        _at(output, kind, name).unlink(missing_ok=True)


def _at(output: Path, kind: str, name: str) -> Path:
    return output / kind / f"{name}.png"


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Prediction</title><style>
:root {{ color-scheme: light dark; font: 15px/1.4 system-ui, sans-serif; }}
body {{ margin: 1.5rem; }}
ul, main {{ display: flex; flex-wrap: wrap; gap: .4rem 1rem; padding: 0; list-style: none; }}
i {{ display: inline-block; width: 1em; height: 1em; margin-right: .4em; outline: 1px solid #8888; }}
figure {{ margin: 0; width: 20rem; overflow-wrap: anywhere; }}
img {{ width: 100%; display: block; }}
</style></head><body>
<ul>{legend}</ul>
<main>{figures}</main>
</body></html>
"""


def write_index(
    output: Path, names: Iterable[str], class_names: Iterable[str], colors: Iterable[tuple[int, int, int]]
) -> None:
    """Write index.html: the classes with their colours, and of each picture the overlay, with links to its files."""
    legend = [
        f'<li><i style="background:rgb{color}"></i>{html.escape(name)}</li>'
        for name, color in zip(class_names, colors, strict=True)
    ]
    figures = []
    for name in names:
        mask, shown, confidence = (quote(f"{kind}/{name}.png") for kind in KINDS)
        figures.append(
            f'<figure><a href="{shown}"><img src="{shown}" alt="" loading="lazy"></a><figcaption>{html.escape(name)}: '
            f'<a href="{mask}">mask</a>, <a href="{confidence}">confidence</a></figcaption></figure>'
        )
    write_whole(output / INDEX, PAGE.format(legend="\n".join(legend), figures="\n".join(figures)))
