"""Compare segmentation decoders: one table of accuracy and cost, from the same data, batches and budget.

    python -m experiments.compare_decoders
    python -m experiments.compare_decoders --data camvid --root PATH --size 192 256 --output runs/camvid
    python -m experiments.compare_decoders --decoders Unet UPerNet --output-strides 8 16 32 --seeds 0 1 2 --output DIR
    torchrun --nproc-per-node 8 -m experiments.compare_decoders --batch-size 64 --output DIR
    python -m experiments.compare_decoders --launcher ray --ray.address HOST:PORT --ray.gpus 1 --output DIR

Trains every run (decoder, encoder, output stride, stem, dilation rule, window, alignment, seed) and writes a folder:
results.jsonl (one row per run), report.html (self-contained), report.md, report.tex, CSV files, weights for
experiments.predict. The same command on the same folder continues where it stopped, a run that was cut off from its
last checkpoint. More --seeds, decoders or strides may be added to a folder.
"""

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import tyro

from experiments.records.options import CompareOptions


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status as `run` does."""
    prog = "python -m experiments.compare_decoders"
    return run(tyro.cli(CompareOptions, args=arguments, prog=prog, description=__doc__), strict=True)


def run(options: CompareOptions, *, strict: bool) -> int:
    """Make the runs, rows and report that options ask for; strict: see execution.prepare.

    Returns the exit status: 0, 1 where a run diverged or failed, 2 for bad input, 130 when interrupted.
    """
    # Not above: --help and a mistyped option need not wait for torch.
    from rich.console import Console

    from experiments.execution import comparison
    from experiments.execution.launch import run_on_ray
    from experiments.execution.prepare import prepare

    def work(console: Console) -> Any:
        runs, missing, data, settings = prepare(options, console, strict=strict)
        crop, image = settings.recipe.crop, (settings.height, settings.width)
        if crop not in (None, image) and settings.inference.tile is None:
            advice = f"--tile {crop[0]} {crop[1]} evaluates at the size trained on"
            comparison.say(
                console, f"note: training sees crops of {crop[0]}x{crop[1]}, evaluation whole images; {advice}"
            )
        where = {"data": data, "settings": settings, "output": options.output, "resources": options.ray}
        on_ray = partial(run_on_ray, **where, say=partial(comparison.say, console))
        how = {"launch": on_ray if options.launcher == "ray" else None, "contrasts": options.contrasts}
        return runs, comparison.make(runs, missing, data, settings, options.output, console, **how)

    return comparison.command(work, options.output)


if __name__ == "__main__":
    sys.exit(main())
