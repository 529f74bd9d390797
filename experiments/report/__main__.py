"""Rebuild a report from any subset of the rows of one or more folders of the same data.

    python -m experiments.report runs/a runs/b --where decoder=Unet,PAN seed=0 --output runs/both

The new folder holds the chosen rows and what belongs to them, and needs nothing of the old ones.
"""

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from experiments.records import Row, read_rows, write_whole
from experiments.report import tables, write_report
from experiments.report.write import FILES

FIELDS = (*tables.CONFIGURATION, "seed", "status", "cell", "commit", "host")
# Marks a folder that this command made, and may make anew.
SOURCES = "sources.json"
WRITTEN = {SOURCES, "results.jsonl", "panel", "cells", *FILES}
KEPT = (*(f"{number:02}.png" for number in range(100)), "images.json")


@dataclass(frozen=True)
class Options:
    """Rebuild a report from any subset of the rows of one or more folders of the same data."""

    folders: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FOLDER ...")]]
    """folders that experiments.compare_decoders, or this command, has written"""
    output: Path
    """a new folder, or one of an earlier call"""
    where: tuple[str, ...] = ()
    """conditions such as decoder=Unet,PAN: rows must meet them all; a dash stands for what is not given"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, or 2 for bad input."""
    options = tyro.cli(Options, args=arguments, prog="python -m experiments.report", description=__doc__)
    try:
        found = rows_of(options.folders)
        accepted = conditions(options.where, found)
        chosen = [(folder, row) for folder, row in found if matches(row, accepted)]
        if not chosen:
            raise ValueError(f"--where: no row meets {' '.join(options.where)}")
        rebuild(chosen, options)
    except (ValueError, OSError) as error:
        Console(stderr=True).print(f"error: {error}", style="bold red", markup=False, highlight=False, soft_wrap=True)
        return 2
    Console().print(f"report: {options.output / 'report.html'}", markup=False, highlight=False, soft_wrap=True)
    return 0


def rows_of(folders: Sequence[Path]) -> list[tuple[Path, Row]]:
    """Every row with its folder.

    Raises:
        ValueError: a folder without a comparison, folders of different data, or one cell in two of them.
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
    places: dict[str, Path] = {}
    for folder, row in found:
        if row["cell"] in places:
            raise ValueError(f"each cell may come once, got {row['cell']} in {places[row['cell']]} and {folder}")
        places[row["cell"]] = folder
    return found


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


def rebuild(chosen: Sequence[tuple[Path, Row]], options: Options) -> None:
    """Copy rows and what belongs to them, and write the report.

    Raises:
        ValueError: the output folder holds something else than an earlier report of this command.
    """
    output = options.output
    there = {path.name for path in output.iterdir()} if output.is_dir() else set()
    if (output.exists() and not output.is_dir()) or (there and SOURCES not in there):
        raise ValueError(f"--output must be a new folder or one of an earlier call, got {output}")
    if foreign := sorted(there - WRITTEN):
        raise ValueError(f"--output: {output} holds other files too ({', '.join(foreign[:5])}), choose another folder")
    if output.resolve() in {folder.resolve() for folder in options.folders}:
        raise ValueError(f"--output must not be one of the folders it is made from, got {output}")
    if output.exists():
        shutil.rmtree(output)
    output.mkdir(parents=True)
    sources = {"folders": list(map(str, options.folders)), "where": options.where}
    write_whole(output / SOURCES, json.dumps(sources, indent=1))
    shutil.copytree(chosen[0][0] / "panel", output / "panel")
    for folder, row in chosen:
        name = str(row["cell"])
        for part in (f"{name}.json", *(f"{name}/{kept}" for kept in KEPT)):
            source = folder / "cells" / part
            if source.exists():
                write_whole(output / "cells" / part, source.read_bytes())
    write_whole(output / "results.jsonl", "".join(json.dumps(row) + "\n" for _, row in chosen))
    write_report(output)


def _text(row: Row, field: str) -> str:
    value = tables.normal(row).get(field)
    return "-" if value in (None, tables.MISSING) else str(value)


if __name__ == "__main__":
    sys.exit(main())
