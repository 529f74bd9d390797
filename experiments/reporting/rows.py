"""What rows say of their configuration, and which of them make a report."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any

from experiments.records.grid import own_window
from experiments.records.options import PLAIN, Recipe
from experiments.records.results import Row, run_of
from experiments.reporting.load import Result, Results

AXES = ("decoder", "encoder", "stem", "output_stride", "dilation", "window", "alignment")
# Settings that make another configuration where they differ. The rest of Settings is of the data, or changes no score.
SETTINGS = (*(part.name for part in fields(Recipe)), "steps", "minutes", "batch_size", "precision", "start", "score_at")
CONDITIONS = (*AXES, "inference", "seed", "status", "run", "step", "commit", "host")
MISSING = "\N{EN DASH}"
# Between the parts of an inference. A comma would part the values of --where.
AND = " + "


def fields_of(row: Row) -> dict[str, str]:
    """AXES and the inference of a row as texts; MISSING where there is nothing to say."""
    run = run_of(row)
    window = run.window or own_window(run.encoder)
    swinx = run.stem is not None
    told = {**asdict(run), "window": window, "inference": inference(row)}
    told |= {} if swinx else dict.fromkeys(("dilation", "window", "alignment"))
    return {name: MISSING if told[name] in (None, "") else str(told[name]) for name in (*AXES, "inference")}


def inference(row: Row) -> str:
    """How the images of a row are predicted, where that is more than one call of the model; "" elsewhere."""
    parts = []
    if tile := row.get("tile"):
        overlap = "" if row.get("overlap", PLAIN.overlap) == PLAIN.overlap else f" overlap {row['overlap']}"
        parts.append(f"tiles {spelled(tile, 'x')}{overlap}")
    if row.get("flip"):
        parts.append("mirrored")
    if row.get("scales") not in (None, [1.0]):
        parts.append(f"scales {spelled(row['scales'])}")
    return AND.join(parts)


def spelled(value: Any, between: str = " ") -> str:
    """A value of a row as it is printed."""
    if value is None:
        return "none"
    return between.join(map(str, value)) if isinstance(value, list) else str(value)


def conditions(where: Sequence[str], rows: Sequence[Row]) -> dict[str, list[str]]:
    """Accepted values by field of the conditions of --where.

    Raises:
        ValueError: a field or a value that no row has, with the choices, or a field that is given twice.
    """
    accepted: dict[str, list[str]] = {}
    for condition in where:
        name, sign, values = condition.partition("=")
        if not sign or name not in CONDITIONS:
            choices = ", ".join(CONDITIONS)
            raise ValueError(f"--where: conditions are FIELD=VALUE,VALUE with a field of {choices}, got {condition}")
        if name in accepted:
            raise ValueError(f"--where: each field may be given once, with values split by commas, got {name} twice")
        there = sorted({_text(row, name) for row in rows})
        accepted[name] = values.split(",")
        if unknown := [value for value in accepted[name] if value not in there]:
            raise ValueError(f"--where: {name} {', '.join(unknown)} is not one of {', '.join(there)}")
    return accepted


def matches(row: Row, accepted: Mapping[str, Sequence[str]]) -> bool:
    """Whether a row has an accepted value in every field."""
    return all(_text(row, name) in values for name, values in accepted.items())


def _text(row: Row, name: str) -> str:
    value = {**row, **fields_of(row)}.get(name)
    return "-" if value in (None, MISSING) else str(value)


def once(results: Results) -> tuple[Results, list[Row]]:
    """The results without evaluations that repeat the row of the training itself; and the rows of these.

    Raises:
        ValueError: a run comes twice with one step, inference and settings, and neither row repeats the other.
    """
    kept: dict[str, Result] = {}
    repeated = []
    for item in results.items:
        row = item.row
        way = [inference(row), *(row.get(name) for name in SETTINGS)]
        key = json.dumps([row["run"], row["step"], *way])
        other = kept.get(key)
        if other is None or _repeats(other.row, row):
            repeated += [] if other is None else [other.row]
            kept[key] = item
        elif _repeats(row, other.row):
            repeated.append(row)
        else:
            how = f" ({way[0]})" if way[0] else ""
            both = f"{row['run']}{how} at step {row['step']} in {other.root} and {item.root}"
            raise ValueError(f"a run may come once with the same step, inference and settings, got {both}")
    return replace(results, items=tuple(kept.values())), repeated


def _repeats(row: Row, other: Row) -> bool:
    """Whether row evaluates the very model that other trained and evaluated, in the same precision on such a device."""
    source = row.get("source")
    if source is None or row.get("trained", True) or not other.get("trained", True):
        return False
    same = source["run"] == other["run"] and source.get("time") == other.get("time")
    return same and all(row.get(key) == other.get(key) for key in ("precision", "device"))
