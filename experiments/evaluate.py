"""Evaluate finished runs once more, without training: at other strides, under other rules, averaged over mirrors.

    python -m experiments.evaluate runs/camvid --data camvid --root PATH --size 192 256 --flip --output runs/camvid_flip
    python -m experiments.evaluate FOLDER --output-strides 32 16 8 --dilations exact dense --output runs/strides

Takes a folder of experiments.compare_decoders and the data that it was trained on, and writes a folder of the same
kind, with a report: one row for each finished run (those that --where chooses) in each combination of output stride,
dilation rule and alignment; by default its own. One state_dict fits all of them. Mirrors, scales and tiles are what the
options say, by default none, whatever they were after training. The same command continues where it stopped.

It answers whether exact lattices keep what the weights know where ordinary windows lose it, what a finer stride is
worth to weights that were not made for it, and what mirrors, scales or tiles are worth. The last are a folder each;
experiments.report compares them with each other and with the folder of the training.
"""

import sys
from collections.abc import Sequence
from typing import Any

import tyro

from experiments.records.options import EvaluateOptions


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, 1 where a run failed, 2 for bad input, 130 when interrupted."""
    options = tyro.cli(EvaluateOptions, args=arguments, prog="python -m experiments.evaluate", description=__doc__)
    # Not above: --help and a mistyped option need not wait for torch.
    from rich.console import Console

    from experiments.execution import comparison
    from experiments.execution.reevaluation import prepare

    def work(console: Console) -> Any:
        sources, missing, *rest = prepare(options, console)
        given = {"sources": sources, "contrasts": options.contrasts}
        return list(sources), comparison.make(list(sources), missing, *rest, options.output, console, **given)

    return comparison.command(work, options.output)


if __name__ == "__main__":
    sys.exit(main())
