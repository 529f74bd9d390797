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

import tyro

from experiments.records.options import CompareOptions


def main(
    arguments: Sequence[str] | None = None,
    defaults: CompareOptions | None = None,
    prog: str = "python -m experiments.compare_decoders",
    description: str | None = None,
) -> int:
    """Run the command, or one that differs from it in its defaults.

    Returns the exit status: 0, 1 where a run diverged or failed, 2 for bad input, 130 when interrupted.
    """
    options = tyro.cli(
        CompareOptions,
        args=arguments,
        default=defaults or CompareOptions(),
        prog=prog,
        description=description or __doc__,
    )
    return _run(options, strict=defaults is None or options.contrasts != defaults.contrasts)


def _run(options: CompareOptions, *, strict: bool) -> int:
    # Not above: --help and a mistyped option need not wait for torch.
    from rich.console import Console

    from experiments.execution import comparison
    from experiments.execution.comparison import complain, say
    from experiments.execution.launch import run_on_ray
    from experiments.execution.prepare import prepare
    from experiments.training.train import processes

    console = Console(quiet=processes().rank > 0)
    try:
        runs, missing, data, settings = prepare(options, console, strict=strict)
        crop, image = settings.recipe.crop, (settings.height, settings.width)
        if crop not in (None, image) and settings.inference.tile is None:
            advice = f"--tile {crop[0]} {crop[1]} evaluates at the size trained on"
            say(console, f"note: training sees crops of {crop[0]}x{crop[1]}, evaluation whole images; {advice}")
        on_ray = partial(
            run_on_ray,
            data=data,
            settings=settings,
            output=options.output,
            say=partial(say, console),
            resources=options.ray,
        )
        rows = comparison.make(
            runs,
            missing,
            data,
            settings,
            options.output,
            console,
            launch=on_ray if options.launcher == "ray" else None,
            contrasts=options.contrasts,
        )
    except (ValueError, ImportError) as error:
        complain(str(error))
        return 2
    except OSError as error:
        complain(f"{error}; finished runs are kept, and the same command continues after them")
        return 2
    except comparison.RunsFailedError as error:
        complain(str(error))
        return 1
    except KeyboardInterrupt:
        say(console, "interrupted; the same command continues with the run that was cut off")
        return 130
    say(console, f"report: {options.output / 'report.html'}")
    if processes().world > 1:
        return 0  # torchrun would take anything else for a process that broke down, and start it again
    asked = {run.id for run in runs}
    return int(any(row["status"] != "ok" for row in rows if row["run"] in asked))


if __name__ == "__main__":
    sys.exit(main())
