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
        ValueError: a folder without a comparison, or folders of different data.
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
    return found


def once(chosen: Sequence[tuple[Path, Row]]) -> tuple[list[tuple[Path, Row]], list[tuple[Path, Row]]]:
    """The rows with those left out that repeat another: a trained cell evaluated again as it was after training.

    Returns what is left, and what was left out.

    Raises:
        ValueError: one cell comes twice with one inference, and neither row repeats the other.
    """
    kept: dict[tuple[str, str], tuple[Path, Row]] = {}
    repeated = []
    for folder, row in chosen:
        key = (row["cell"], tables.inference(row))
        if key not in kept:
            kept[key] = (folder, row)
            continue
        there, other = kept[key]
        if _repeats(row, other):
            repeated.append((folder, row))
        elif _repeats(other, row):
            repeated.append((there, other))
            kept[key] = (folder, row)
        else:
            way = f" ({key[1]})" if key[1] else ""
            raise ValueError(f"each cell may come once with one inference, got {key[0]}{way} in {there} and {folder}")
    return list(kept.values()), repeated


def _repeats(row: Row, other: Row) -> bool:
    """Whether row evaluates the very model that other trained and evaluated, in the same precision on such a device."""
    source = row.get("weights_of")
    if source is None or "weights_of" in other:
        return False
    return all(source[key] == other[key] for key in ("cell", "time")) and all(
        row[key] == other[key] for key in ("precision", "device")
    )


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
