"""Evaluate trained cells once more, without training: at other strides, under other rules, averaged over mirrors.

    python -m experiments.evaluate runs/camvid --data camvid --root PATH --flip --output runs/camvid_flip
    python -m experiments.evaluate FOLDER --output-strides 32 16 8 --dilations exact dense --output runs/strides

Takes a folder of experiments.compare_decoders and the data that it was trained on, and writes a folder of the same
kind, with a report: one row for each trained cell (those that --where chooses) in each combination of output stride,
dilation rule and alignment; by default its own. One state_dict fits all of them. Mirrors, scales and tiles are what the
options say, by default none, whatever they were after training. The same command continues where it stopped.

What it answers: whether exact lattices keep what the weights know where ordinary windows lose it; what a finer stride
is worth to weights that were not made for it; what mirrors, scales or tiles are worth. The last are a folder each, and
experiments.report takes them side by side with each other and with the folder of the training.

Cost: that of evaluating each cell. The 334 images of CamVid's val and test at 128x160 took 15 seconds on one thread of
an AMD EPYC at stride 32 (swinx_n, Segformer).
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from experiments import comparison, data_options
from experiments.cell_again import Source, evaluate_again
from experiments.cells import Axes, Cell, NotApplicable, grid
from experiments.console import complain, say
from experiments.data import SegmentationData
from experiments.data_options import DataOptions
from experiments.devices import choose_device
from experiments.evaluation import Inference, check_inference
from experiments.records import Row
from experiments.report.subset import conditions, matches, rows_of
from experiments.settings import Settings, data_id, settings_of
from experiments.training import processes


@dataclass(frozen=True)
class Options:
    """Evaluate trained cells once more: other strides, dilation rules and alignments, other inference."""

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")]
    """folder of experiments.compare_decoders, with the weights of its cells"""
    output: Path
    """folder for results and report"""
    data: tyro.conf.OmitArgPrefixes[DataOptions] = field(default_factory=DataOptions)
    where: tuple[str, ...] = ()
    """conditions such as decoder=Unet,PAN that trained cells must all meet"""
    output_strides: tuple[int, ...] = ()
    """8, 16, 32; none given: the trained cell's"""
    dilations: tuple[str, ...] = ()
    """exact, dense, enlarged; none given: the trained cell's"""
    alignments: tuple[str, ...] = ()
    """none, centred; none given: the trained cell's"""
    inference: tyro.conf.OmitArgPrefixes[Inference] = field(default_factory=Inference)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["32", "bf16", "16"] | None = None
    """bf16 and 16 are mixed precision; 16 needs cuda (default: that of training)"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, 1 where a cell failed, 2 for bad input, 130 when interrupted."""
    options = tyro.cli(Options, args=arguments, prog="python -m experiments.evaluate", description=__doc__)
    console = Console()
    try:
        sources, missing, data, settings = prepare(options, console)

        def again(cell: Cell, origin: Row, on_step: Callable[[float, float], None]) -> Row:
            return evaluate_again(cell, sources[cell], data, settings, options.output, origin)

        rows = comparison.run(list(sources), missing, data, settings, options.output, console, work=again)
    except (ValueError, OSError) as error:
        complain(str(error))
        return 2
    except comparison.CellsFailedError as error:
        complain(str(error))
        return 1
    except KeyboardInterrupt:
        say(console, "interrupted; the same command continues with the cell that was cut off")
        return 130
    say(console, f"report: {options.output / 'report.html'}")
    asked = {cell.id for cell in sources}
    return int(any(row["status"] != "ok" for row in rows if row["cell"] in asked))


def prepare(
    options: Options, console: Console
) -> tuple[dict[Cell, Source], list[NotApplicable], SegmentationData, Settings]:
    """Each cell to evaluate with the trained cell whose weights it takes. What can be refused is refused here.

    Raises:
        ValueError, OSError: bad input; the message names option, rule and value.
    """
    if processes().world > 1:
        raise ValueError("evaluation runs in one process, got a start by torchrun")
    rows = _chosen(options, console)
    sources, missing = _plan(rows, options)
    settings = _settings(rows, options)
    check_inference(options.inference, settings.height, settings.width)
    begun = comparison.check_output(options.output, settings.as_row(), trained=False)
    _check_begun(begun, sources, options.output)
    with console.status("loading data"):
        data = data_options.load(options.data)
    digest, (height, width) = data_id(data), data.train.images.shape[-2:]
    if digest != settings.data_id:
        raise ValueError(
            f"--data must be what {options.folder} was trained on, {settings.data} at {settings.height}x"
            f"{settings.width} with data_id {settings.data_id}, got {data.name} at {height}x{width} with {digest}"
        )
    sizes = options.inference.sizes(settings.height, settings.width)
    cells, missing = comparison.runnable(list(sources), missing, sizes, len(data.class_names), console)
    comparison.check_writable(options.output)
    return {cell: sources[cell] for cell in cells}, missing, data, settings


def _chosen(options: Options, console: Console) -> list[Row]:
    """The rows of the trained cells asked for; says which of them have no weights to evaluate."""
    found = rows_of([options.folder])
    accepted = conditions(options.where, found)
    met = [row for _, row in found if matches(row, accepted)]
    rows = [row for row in met if row["status"] == "ok"]
    if not rows:
        that = f" that meets --where {' '.join(options.where)}" if options.where else ""
        raise ValueError(f"{options.folder} has no finished cell{that}")
    for row in met:
        if row["status"] != "ok":
            say(console, f"{row['cell']}: left out, {row['status']} ({row['error']})")
    return rows


def _plan(rows: Sequence[Row], options: Options) -> tuple[dict[Cell, Source], list[NotApplicable]]:
    """Every cell asked for with its trained one, and those that cannot exist."""
    sources: dict[Cell, Source] = {}
    missing: dict[Cell, NotApplicable] = {}
    for row in rows:
        trained = Cell(**{part.name: row.get(part.name, part.default) for part in fields(Cell)})
        weights = options.folder / "cells" / trained.id / f"{row.get('select', 'last')}.pt"
        if not weights.is_file():
            raise FileNotFoundError(f"{weights}: no such file; the weights of a trained cell are needed")
        cells, absent = grid(_axes(trained, options))
        missing |= {one.cell: one for one in absent}
        for cell in cells:
            if trained.dilation == "enlarged" and cell != trained:
                raise ValueError(
                    f"--where: {trained.id} was trained with enlarged windows, whose position biases fit it alone, "
                    f"got {cell.id}"
                )
            if cell in sources:
                both = f"{sources[cell].row['cell']} and {trained.id}"
                raise ValueError(f"--where must leave one trained cell for {cell.id}, got {both}")
            sources[cell] = Source(row, weights)
    _check_axes(list(sources), options)
    return sources, list(missing.values())


def _axes(trained: Cell, options: Options) -> Axes:
    """The combinations of one trained cell."""
    common: dict[str, Any] = {
        "decoders": (trained.decoder,),
        "encoders": (trained.encoder,),
        "seeds": (trained.seed,),
        "output_strides": options.output_strides or (trained.output_stride,),
    }
    if trained.stem is None or trained.dilation is None or trained.alignment is None:
        return Axes(**common)  # an encoder of another library
    return Axes(
        **common,
        stems=(trained.stem,),
        dilations=options.dilations or (trained.dilation,),
        windows=() if trained.window is None else (trained.window,),
        alignments=options.alignments or (trained.alignment,),
    )


def _check_axes(cells: Sequence[Cell], options: Options) -> None:
    """Refuse rules and alignments that none of the cells has."""
    for name, asked in (("dilations", options.dilations), ("alignments", options.alignments)):
        there = {getattr(cell, name[:-1]) for cell in cells}
        if asked and cells and there.isdisjoint(asked):
            why = "nothing is dilated" if there - {None} else "no encoder is swinx's"
            raise ValueError(f"--{name} {' '.join(asked)} would do nothing: {why}")


def _settings(rows: Sequence[Row], options: Options) -> Settings:
    """Settings of the evaluation: those of training, with the inference asked for."""
    of_training = list(dict.fromkeys(settings_of(row) for row in rows))
    if len(of_training) > 1:
        raise ValueError(f"--where must choose cells of one configuration of training, got {len(of_training)}")
    settings = of_training[0]
    precision = options.precision or settings.precision
    try:
        device = choose_device(options.device, precision)
    except ValueError as error:
        if options.precision is None:
            raise ValueError(f"{error}; cells were trained with precision {precision}, give another") from error
        raise
    return replace(settings, inference=options.inference, precision=precision, device=device)


def _check_begun(begun: Sequence[Row], sources: Mapping[Cell, Source], output: Path) -> None:
    """Refuse to go on in a folder whose rows are about other weights."""
    there = {row["cell"]: row["weights_of"] for row in begun if "weights_of" in row}
    for cell, source in sources.items():
        was, now = there.get(cell.id, source.told), source.told
        if differing := [
            f"{name} {was.get(name)} there, {now[name]} now" for name in now if was.get(name) != now[name]
        ]:
            raise ValueError(
                f"--output: {output} holds {cell.id} with other weights ({'; '.join(differing)}), choose another folder"
            )


if __name__ == "__main__":
    sys.exit(main())
