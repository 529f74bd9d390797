"""What rows say of their configuration, and which of them make a report."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

from experiments.records.grid import own_window
from experiments.records.results import SETTINGS, Row, configuration_of, run_of
from experiments.reporting.load import Result

AXES = ("decoder", "encoder", "stem", "output_stride", "dilation", "window", "alignment")
CONDITIONS = (*AXES, *SETTINGS, "seed", "status", "run", "step", "commit", "host")


def axes_of(row: Row) -> dict[str, Any]:
    """AXES of a row; None where there is nothing to say."""
    run = run_of(row)
    found = {**asdict(run), "window": run.window or own_window(run.encoder)}
    if run.stem is None:
        found |= dict.fromkeys(("dilation", "window", "alignment"))
    return {name: found[name] for name in AXES}


def spelled(value: Any) -> str:
    """A value of a row as it is printed."""
    if value is None:
        return "none"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def condition(where: Sequence[str], rows: Sequence[Row]) -> Callable[[Row], bool]:
    """What says whether a row meets all of where, such as "decoder=Unet,PAN"; a dash stands for what is not given.

    Raises:
        ValueError: a field or a value that none of rows has, with the choices, or a field that is given twice.
    """

    def text(row: Row, name: str) -> str:
        value = {**row, **axes_of(row)}.get(name)
        return "-" if value is None else spelled(value)

    accepted: dict[str, list[str]] = {}
    for given in where:
        name, sign, values = given.partition("=")
        if not sign or name not in CONDITIONS or name in accepted:
            choices = ", ".join(CONDITIONS)
            raise ValueError(f"--where: must be FIELD=VALUE,VALUE with each field once, of {choices}; got {given}")
        there = sorted({text(row, name) for row in rows})
        accepted[name] = values.split(",")
        if unknown := [value for value in accepted[name] if value not in there]:
            raise ValueError(f"--where: {name} {', '.join(unknown)} is not one of {', '.join(there)}")
    return lambda row: all(text(row, name) in values for name, values in accepted.items())


def model_of(row: Row) -> str:
    """What tells the training behind a row from all others: its run, and when it finished."""
    source = row if row.get("trained", True) else row["source"]
    return f"{source['run']} {source.get('time')}"


def source_of(row: Row) -> str:
    """What tells the training that a row is of, or the first one that it continued from, from all others.

    So rows of the same weights, and of trainings that began with the same weights, are compared source by source.
    """
    while row.get("source"):
        row = row["source"]
    return f"{row['run']} {row.get('time')}"


def once(items: Iterable[Result]) -> tuple[Result, ...]:
    """The results, those of the same model in the same configuration once: the row that has groups of images or
    corruptions which the others lack; else the row of the training, if it is there.

    Raises:
        ValueError: a run comes twice with one step and the same settings, and these are two trainings, or each has
            groups or corruptions that the other lacks.
    """
    kept: dict[tuple[object, ...], Result] = {}
    for item in sorted(items, key=lambda item: (-len(_extras(item)), not item.row.get("trained", True))):
        row = item.row
        first = kept.setdefault(configuration_of(row), item)
        if model_of(first.row) != model_of(row):
            raise ValueError(f"a run may come once with the same step and settings, got {row['run']} at {row['step']}")
        if not _extras(item) <= _extras(first):
            raise ValueError(
                f"{row['run']} at {row['step']} is there twice, each time with groups or corruptions that the other "
                "lacks: leave one of them out, or evaluate it with both"
            )
    return tuple(kept.values())


def _extras(item: Result) -> set[object]:
    """What an evaluation may have beside its scores: groups of the test images, and kinds of corruptions."""
    counts = item.counts
    grouped = counts is not None and counts.groups != counts.names
    groups = set(zip(counts.names, counts.groups, strict=True)) if counts and grouped else set()
    return {*groups, *(item.row.get("corruption_miou") or ())}
