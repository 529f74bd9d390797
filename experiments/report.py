"""Make a report of rows, from any subset of those of one or more folders or committed files of the same data.

    python -m experiments.report runs/a runs/b --where decoder=Unet,PAN seed=0 --output runs/both
    python -m experiments.report docs/benchmarks/NAME.jsonl --contrasts exact-dense@os8 --output runs/NAME

The new folder holds the chosen rows with what belongs to them, and needs nothing of the old ones. A run may come once
for each way of inference (experiments.evaluate) and each setting that differs: these are then compared. An evaluation
that repeats the one after training is left out.
"""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from experiments.records.options import unset


@dataclass(frozen=True)
class Options:
    """Make a report of any subset of the rows of one or more folders of the same data."""

    results: tyro.conf.Positional[Annotated[tuple[Path, ...], unset("FOLDER|NAME.jsonl ...")]]
    """folders of results, or files NAME.jsonl with NAME.npz beside them"""
    output: Path
    """a new folder, or one of an earlier call"""
    where: Annotated[tuple[str, ...], unset("[FIELD=VALUE ...]")] = ()
    """conditions such as decoder=Unet,PAN: rows must meet them all; a dash stands for what is not given"""
    contrasts: Annotated[tuple[str, ...], unset("[NAME ...]")] = ()
    """planned comparisons such as exact-dense@os8, or a file of them (default: all pairs, as an exploration)"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, or 2 for bad input."""
    options = tyro.cli(Options, args=arguments, prog="python -m experiments.report", description=__doc__)
    try:
        _rebuild(options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"report: {options.output / 'report.html'}")
    return 0


def _rebuild(options: Options) -> None:
    # Not above: --help need not wait for torch.
    from dataclasses import replace

    from experiments.reporting.content import gather
    from experiments.reporting.load import read, write_merged
    from experiments.reporting.pages import FILES, render
    from experiments.reporting.rows import condition

    results = read(options.results)
    meets = condition(options.where, [item.row for item in results.items])
    chosen = tuple(item for item in results.items if meets(item.row))
    if not chosen:
        raise ValueError(f"--where: no row meets {' '.join(options.where)}")
    content = gather(replace(results, items=chosen), options.contrasts, strict=True)
    own = ("results.jsonl", "results.npz", "data.json", "examples", "pictures", *FILES)
    _clear(options.output, options.results, own)
    if left := len(chosen) - len(content.results.items):
        print(f"left out: {left} rows of models that other rows evaluate in the same way")
    write_merged(content.results, options.output)
    render(content, options.output)


def _clear(output: Path, sources: Sequence[Path], own: Sequence[str]) -> None:
    """Remove an earlier report of this command.

    Raises:
        ValueError: output is something else, or a source.
    """
    there = {path.name for path in output.iterdir()} if output.is_dir() else set()
    if (output.exists() and not output.is_dir()) or (there and "results.npz" not in there):
        raise ValueError(f"--output must be a new folder or one of an earlier call, got {output}")
    if foreign := sorted(there - set(own)):
        raise ValueError(f"--output: {output} holds other files too ({', '.join(foreign[:5])}), choose another folder")
    if output.resolve() in {path.resolve() for path in sources} | {path.resolve().parent for path in sources}:
        raise ValueError(f"--output must not be one of the folders it is made from, got {output}")
    for name in there:
        path = output / name
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


if __name__ == "__main__":
    sys.exit(main())
