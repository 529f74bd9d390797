"""Make a report of rows, from any subset of those of one or more folders or committed files of the same data.

    python -m experiments.report runs/a runs/b --where decoder=Unet,PAN seed=0 --output runs/both
    python -m experiments.report docs/benchmarks/NAME.jsonl --contrasts exact-dense@os8 --output runs/NAME

The new folder holds the chosen rows with what belongs to them, and needs nothing of the old ones. A run may come once
for each way of inference (experiments.evaluate) and each setting that differs: these are then compared. Of evaluations
that differ in nothing else, the one with groups of images or with corruptions stays, else the one after training.
"""

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from experiments.records.files import TEMPORARY
from experiments.records.messages import ended
from experiments.records.options import unset


@dataclass(frozen=True)
class Options:
    """Make a report of any subset of the rows of one or more folders of the same data."""

    results: tyro.conf.Positional[Annotated[tuple[Path, ...], unset("FOLDER|NAME.jsonl ...")]]
    """folders of results, or files NAME.jsonl with NAME.npz beside them"""
    output: Path
    """a new folder"""
    where: Annotated[tuple[str, ...], unset("[FIELD=VALUE ...]")] = ()
    """conditions such as decoder=Unet,PAN: rows must meet them all; a dash stands for what is not given"""
    contrasts: Annotated[tuple[str, ...], unset("[NAME ...]")] = ()
    """planned comparisons such as exact-dense@os8, or a file of them (default: all pairs, as an exploration)"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, or 2 for bad input."""
    options = tyro.cli(Options, args=arguments, prog="python -m experiments.report", description=__doc__)
    return ended(lambda: rebuild(options))


def rebuild(options: Options) -> int:
    """Read rows, choose, write them and their report; returns 0, or raises ValueError or OSError for bad input.

    The output is there whole or not at all.
    """
    # Not above: --help need not wait for torch.
    from dataclasses import replace

    from experiments.reporting import pages
    from experiments.reporting.content import gather
    from experiments.reporting.load import read, write_merged
    from experiments.reporting.rows import condition

    results = read(options.results)
    meets = condition(options.where, [item.row for item in results.items])
    chosen = tuple(item for item in results.items if meets(item.row))
    if not chosen:
        raise ValueError(f"--where: no row meets {' '.join(options.where)}")
    content = gather(replace(results, items=chosen), options.contrasts, strict=True)
    if options.output.exists():
        raise ValueError(f"--output must be a new folder, got {options.output}, which exists")
    if left := len(chosen) - len(content.results.items):
        known = "with the same groups and corruptions or more"
        print(f"left out: {left} rows of models that other rows evaluate in the same way, {known}")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.output.parent, prefix=TEMPORARY) as temporary:
        made = Path(temporary, "report")
        write_merged(content.results, made)
        pages.render(content, made)
        made.rename(options.output)
    print(f"report: {options.output / 'report.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
