"""Which rows of which folders: the conditions of --where; and where the files of a row are."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from experiments.records import Row, read_rows
from experiments.report import tables

FIELDS = (*tables.CONFIGURATION, "seed", "status", "cell", "commit", "host")


def rows_of(folders: Sequence[Path]) -> list[tuple[Path, Row]]:
    """Every row with its folder.

    Raises:
        ValueError: a folder without a comparison, folders of different data, or one cell with one inference twice.
    """
    found: list[tuple[Path, Row]] = []
    if not folders:
        raise ValueError("at least one folder is needed, got none")
    for folder in folders:
        rows = [row for row in read_rows(folder / "results.jsonl") if row.get("kind") == "segmentation"]
        if not rows or not (folder / "panel" / "data.json").exists():
            raise ValueError(f"{folder} holds no comparison: results.jsonl with rows and panel/data.json are needed")
        found += [(folder, row) for row in rows]
    # The earliest rows have no data_id.
    sets = {row["data_id"]: folder for folder, row in found if row.get("data_id") is not None}
    if len(sets) > 1:
        listing = ", ".join(f"{data} in {folder}" for data, folder in sets.items())
        raise ValueError(f"folders must be of the same data, got data_id {listing}")
    places: dict[tuple[str, str], Path] = {}
    for folder, row in found:
        key = (row["cell"], tables.inference(row))
        if key in places:
            way = f" ({key[1]})" if key[1] else ""
            raise ValueError(
                f"each cell may come once with one inference, got {row['cell']}{way} in {places[key]} and {folder}"
            )
        places[key] = folder
    return found


def side_name(row: Row) -> str:
    """The name below cells/ of what belongs to a row: its cell's, unless that comes with several ways of inference."""
    return str(row.get("side", row["cell"]))


def with_sides(rows: Sequence[Row]) -> list[Row]:
    """The rows, each with a name for its files that no other has: side, where the name of the cell is not enough."""
    times = Counter(row["cell"] for row in rows)
    named = []
    for row in rows:
        plain = {key: value for key, value in row.items() if key != "side"}
        if times[row["cell"]] > 1:
            way = re.sub(r"[^0-9A-Za-z.]+", "-", tables.inference(row) or "plain")
            plain["side"] = f"{row['cell']}-{way}"
        named.append(plain)
    return named


def conditions(where: Sequence[str], found: Sequence[tuple[Path, Row]]) -> dict[str, list[str]]:
    """Accepted values by field.

    Raises:
        ValueError: a field or a value that no row has, with the choices, or a field that is given twice.
    """
    accepted: dict[str, list[str]] = {}
    for condition in where:
        field, sign, values = condition.partition("=")
        if not sign or field not in FIELDS:
            raise ValueError(
                f"--where: conditions are FIELD=VALUE,VALUE with a field of {', '.join(FIELDS)}, got {condition}"
            )
        if field in accepted:
            raise ValueError(f"--where: each field may be given once, with values split by commas, got {field} twice")
        there = sorted({_text(row, field) for _, row in found})
        accepted[field] = values.split(",")
        if unknown := [value for value in accepted[field] if value not in there]:
            raise ValueError(f"--where: {field} {', '.join(unknown)} is not one of {', '.join(there)}")
    return accepted


def matches(row: Row, accepted: dict[str, list[str]]) -> bool:
    """Whether a row has an accepted value in every field."""
    return all(_text(row, field) in values for field, values in accepted.items())


def _text(row: Row, field: str) -> str:
    value = tables.normal(row).get(field)
    return "-" if value in (None, tables.MISSING) else str(value)
