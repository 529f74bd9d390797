"""Rebuild a report from any subset of the rows of one or more folders of the same data.

    python -m experiments.report runs/a runs/b --where decoder=Unet,PAN seed=0 --output runs/both

The new folder holds the chosen rows and what belongs to them, and needs nothing of the old ones. A cell may come once
for each way of inference, such as whole and by tiles (experiments.evaluate): they are then compared. An evaluation that
repeats the one after training, such as that at the stride trained at, is left out beside it.
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

from experiments.console import complain, say
from experiments.records import Row, write_whole
from experiments.report import write_report
from experiments.report.subset import conditions, matches, once, rows_of, side_name, with_sides
from experiments.report.write import FILES

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
        chosen, repeated = once(chosen)
        rebuild(chosen, options)
    except (ValueError, OSError) as error:
        complain(str(error))
        return 2
    for folder, row in repeated:
        say(Console(), f"{row['cell']} of {folder}: left out, it repeats what the trained cell's own row says")
    say(Console(), f"report: {options.output / 'report.html'}")
    return 0


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
    rows = with_sides([row for _, row in chosen])
    for (folder, was), row in zip(chosen, rows, strict=True):
        for part in (".json", *(f"/{kept}" for kept in KEPT)):
            source = folder / "cells" / f"{side_name(was)}{part}"
            if source.exists():
                write_whole(output / "cells" / f"{side_name(row)}{part}", source.read_bytes())
    write_whole(output / "results.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    write_report(output)


if __name__ == "__main__":
    sys.exit(main())
