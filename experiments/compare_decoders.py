"""Compare segmentation decoders: one table of accuracy and cost, from the same data, batches and budget.

    python -m experiments.compare_decoders
    python -m experiments.compare_decoders --data camvid --root PATH --output runs/camvid
    python -m experiments.compare_decoders --decoders Unet UPerNet --output-strides 8 16 32 --seeds 0 1 2 --output DIR
    torchrun --nproc-per-node 8 -m experiments.compare_decoders --batch-size 64 --output DIR
    python -m experiments.compare_decoders --launcher ray --ray.address HOST:PORT --ray.gpus 1 --output DIR

Trains every cell (decoder, encoder, output stride, stem, dilation rule, window, alignment, seed) and writes a folder:
results.jsonl (one row per cell), report.html (self-contained), report.md, report.tex, CSV files, weights for
experiments.predict. The same command on the same folder continues where it stopped, a cell cut off from its last
checkpoint.

The default command took 6.3 minutes (by hand) and 1.7 GB on two cores of an AMD EPYC (2026-11-24, seed 0) and reached
43.4 % test mIoU with DeepLabV3Plus, 40.9 with Unet, 40.3 with PAN and 39.5 with FPN; its rows are in
docs/benchmarks/scenes-default-cpu-2026-11-24.jsonl. Pages beside them have more seeds.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace

import tyro
from rich.console import Console

from experiments import comparison, data_options
from experiments.cells import Axes, Cell, NotApplicable, grid
from experiments.compare_options import Options, check_against, check_options, device_of
from experiments.console import complain, say
from experiments.data import SegmentationData
from experiments.launch import run_on_ray
from experiments.records import Row
from experiments.settings import Settings, data_id
from experiments.training import Budget, processes

# Steps of the default budget: one to two minutes for each default decoder on scenes, on two CPU cores.
DEFAULT_STEPS = 250


def main(
    arguments: Sequence[str] | None = None,
    defaults: Options | None = None,
    prog: str = "python -m experiments.compare_decoders",
    description: str | None = None,
) -> int:
    """Run the command, or one that differs from it in its defaults.

    Returns the exit status: 0, 1 where a cell diverged or failed, 2 for bad input, 130 when interrupted.
    """
    console = Console(quiet=processes().rank > 0)
    try:
        options = tyro.cli(Options, args=arguments, default=defaults or Options(), prog=prog, description=description)
        cells, missing, data, settings = prepare(options, console)
        _advise(settings, console)
    except (ValueError, ImportError, OSError) as error:
        _complain(str(error))
        return 2
    try:
        launch = _launch(options, data, settings, console)
        rows = comparison.run(cells, missing, data, settings, options.output, console, launch)
    except ValueError as error:
        _complain(str(error))
        return 2
    except OSError as error:
        _complain(f"{error}; finished cells are kept, and the same command continues after them")
        return 2
    except comparison.CellsFailedError as error:
        _complain(str(error))
        return 1
    except KeyboardInterrupt:
        console.print("interrupted; the same command continues with the cell that was cut off")
        return 130
    say(console, f"report: {options.output / 'report.html'}")
    if processes().world > 1:
        return 0  # torchrun would take anything else for a process that broke down, and start it again
    asked = {cell.id for cell in cells}
    return int(any(row["status"] != "ok" for row in rows if row["cell"] in asked))


def _advise(settings: Settings, console: Console) -> None:
    """What is allowed, but seldom meant."""
    crop, image = settings.recipe.crop, (settings.height, settings.width)
    if crop not in (None, image) and settings.inference.tile is None:
        say(
            console,
            f"note: training sees crops of {crop[0]}x{crop[1]}, evaluation whole images of {image[0]}x{image[1]}; "
            "decoders that pool over all they see lose by that, "
            f"--tile {crop[0]} {crop[1]} evaluates at the size trained on",
        )


def _complain(message: str) -> None:
    if processes().rank == 0:  # the others would say the same
        complain(message)


def prepare(options: Options, console: Console) -> tuple[list[Cell], list[NotApplicable], SegmentationData, Settings]:
    """Everything that can be refused is refused here, before any training.

    Raises:
        ValueError, OSError: bad input; the message names option, rule and value.
    """
    cells, missing = grid(
        Axes(
            options.decoders,
            options.encoders,
            options.seeds,
            options.output_strides,
            options.stems,
            options.dilations,
            options.windows,
            options.alignments,
        )
    )
    if options.steps is not None and options.minutes is not None:
        raise ValueError(f"--steps and --minutes exclude each other, got {options.steps} and {options.minutes}")
    steps = DEFAULT_STEPS if options.steps is None and options.minutes is None else options.steps
    Budget(steps, options.minutes)
    check_options(options)
    settings = Settings(
        data="",
        data_id="",
        height=0,
        width=0,
        steps=steps,
        minutes=options.minutes,
        batch_size=options.batch_size,
        precision=options.precision,
        device=device_of(options),
        recipe=options.recipe,
        inference=options.inference,
        workers=options.workers,
        loggers=options.loggers,
    )
    untold = ("data", "data_id", "height", "width")
    known = {name: value for name, value in settings.as_row().items() if name not in untold}
    comparison.check_output(options.output, known)
    with console.status("loading data"):
        data = data_options.load(options.data)
    height, width = data.train.images.shape[-2:]
    settings = replace(settings, data=data.name, data_id=data_id(data), height=height, width=width)
    comparison.check_output(options.output, settings.as_row())
    check_against(options, data)
    # Sizes that models meet: in training, and with each scale and tile of evaluation.
    sizes = [options.recipe.crop or (height, width), *options.inference.sizes(height, width)]
    cells, missing = comparison.runnable(cells, missing, sizes, len(data.class_names), console)
    comparison.check_writable(options.output)
    return cells, missing, data, settings


def _launch(options: Options, data: SegmentationData, settings: Settings, console: Console) -> comparison.Launch | None:
    if options.launcher == "here":
        return None

    def launch(todo: Sequence[Cell], origin: Row, collect: comparison.Collect, fail: comparison.Fail) -> None:
        run_on_ray(
            todo,
            data,
            settings,
            options.output,
            origin,
            collect=collect,
            fail=fail,
            say=lambda line: say(console, line),
            resources=options.ray,
        )

    return launch


if __name__ == "__main__":
    sys.exit(main())
