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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from experiments import data
from experiments.data import SegmentationData
from experiments.execution import comparison
from experiments.execution.comparison import complain, say
from experiments.execution.prepare import check_contrasts, check_scoring
from experiments.execution.runs import Source
from experiments.records.files import plain_file
from experiments.records.grid import Axes, NotApplicable, Run, grid
from experiments.records.options import DataOptions, Inference, Precision, Scoring, Settings, choose_device, unset
from experiments.records.results import RESULTS, Row, read_rows, run_of
from experiments.reporting.rows import condition
from experiments.training.train import processes


@dataclass(frozen=True)
class Options:
    """Evaluate finished runs once more: other strides, dilation rules and alignments, other inference."""

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")]
    """folder of experiments.compare_decoders, with the weights of its runs"""
    output: Path
    """folder for results and report"""
    data: tyro.conf.OmitArgPrefixes[DataOptions] = field(default_factory=DataOptions)
    where: Annotated[tuple[str, ...], unset("[FIELD=VALUE ...]")] = ()
    """conditions such as decoder=Unet,PAN that finished runs must all meet"""
    output_strides: Annotated[tuple[int, ...], unset("[INT ...]")] = ()
    """8, 16, 32 (default: the run's own)"""
    dilations: Annotated[tuple[str, ...], unset("[NAME ...]")] = ()
    """exact, dense, enlarged (default: the run's own)"""
    alignments: Annotated[tuple[str, ...], unset("[NAME ...]")] = ()
    """none, centred (default: the run's own)"""
    contrasts: Annotated[tuple[str, ...], unset("[NAME ...]")] = ()
    """planned comparisons such as exact-dense@os8, or a file of them (default: all pairs, as an exploration)"""
    inference: tyro.conf.OmitArgPrefixes[Inference] = field(default_factory=Inference)
    scoring: tyro.conf.OmitArgPrefixes[Scoring] = field(default_factory=Scoring)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Precision | None = None
    """bf16 and 16 are mixed precision; 16 needs cuda (default: that of training)"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, 1 where a run failed, 2 for bad input, 130 when interrupted."""
    console = Console()
    try:
        options = tyro.cli(Options, args=arguments, prog="python -m experiments.evaluate", description=__doc__)
        sources, missing, loaded, settings = prepare(options, console)

        rows = comparison.make(
            list(sources),
            missing,
            loaded,
            settings,
            options.output,
            console,
            sources=sources,
            contrasts=options.contrasts,
        )
    except (ValueError, OSError) as error:
        complain(str(error))
        return 2
    except comparison.RunsFailedError as error:
        complain(str(error))
        return 1
    except KeyboardInterrupt:
        say(console, "interrupted; the same command continues with the run that was cut off")
        return 130
    say(console, f"report: {options.output / 'report.html'}")
    asked = {run.id for run in sources}
    return int(any(row["status"] != "ok" for row in rows if row["run"] in asked))


def prepare(
    options: Options, console: Console
) -> tuple[dict[Run, Source], list[NotApplicable], SegmentationData, Settings]:
    """Each run to evaluate with the finished one whose weights it takes. What can be refused is refused here.

    Raises:
        ValueError, OSError: bad input; the message names option, rule and value.
    """
    if processes().world > 1:
        raise ValueError("evaluation runs in one process, got a start by torchrun")
    rows = _chosen(options, console)
    sources, missing = _plan(rows, options)
    settings = _settings(rows, options)
    options.inference.check(settings.height, settings.width)
    begun = comparison.check_output(options.output, settings.as_row(), trained=False)
    _check_begun(begun, sources, options.output)
    with console.status("loading data"):
        loaded = data.load(options.data, native=options.scoring.score_at == "native")
    digest, (height, width) = data.data_id(loaded), loaded.train.images.shape[-2:]
    if digest != settings.data_id:
        raise ValueError(
            f"--data must be what {options.folder} was trained on, {settings.data} at {settings.height}x"
            f"{settings.width} with data_id {settings.data_id}, got {loaded.name} at {height}x{width} with {digest}"
        )
    check_scoring(options.scoring, loaded)
    sizes = options.inference.sizes(settings.height, settings.width)
    runs, missing = comparison.runnable(list(sources), missing, sizes, len(loaded.class_names), console)
    check_contrasts(options.contrasts, [*runs, *(run_of(row) for row in begun)], settings)
    comparison.check_writable(options.output)
    return {run: sources[run] for run in runs}, missing, loaded, settings


def _chosen(options: Options, console: Console) -> list[Row]:
    """The last row of each finished run asked for; says which of the others have no weights to evaluate."""
    found = [row for row in read_rows(options.folder / RESULTS) if row.get("kind") == "segmentation"]
    if not found:
        raise ValueError(f"FOLDER must hold finished runs ({RESULTS}), got {options.folder}")
    last = {row["run"]: row for row in found if row.get("trained", True)}
    met = list(filter(condition(options.where, found), last.values()))
    rows = [row for row in met if row["status"] == "ok"]
    if not rows:
        that = f" that meets --where {' '.join(options.where)}" if options.where else ""
        raise ValueError(f"{options.folder} has no finished run{that}")
    for row in met:
        if row["status"] != "ok":
            say(console, f"{row['run']}: left out, {row['status']} ({row['error']})")
    return rows


def _plan(rows: Sequence[Row], options: Options) -> tuple[dict[Run, Source], list[NotApplicable]]:
    """Every run asked for with its finished one, and those that cannot exist."""
    sources: dict[Run, Source] = {}
    missing: dict[Run, NotApplicable] = {}
    for row in rows:
        trained = run_of(row)
        weights = options.folder / "runs" / trained.id / f"{row.get('select', 'last')}.pt"
        if not plain_file(weights, options.folder):
            raise FileNotFoundError(f"{weights}: no such file; the weights of a finished run are needed")
        runs, absent = grid(_axes(trained, options))
        missing |= {one.run: one for one in absent}
        for run in runs:
            if not trained.weights_fit(run):
                raise ValueError(
                    f"--where: {trained.id} was trained with enlarged windows, whose position biases fit it alone, "
                    f"got {run.id}"
                )
            if run in sources:
                both = f"{sources[run].row['run']} and {trained.id}"
                raise ValueError(f"--where must leave one finished run for {run.id}, got {both}")
            sources[run] = Source(row, weights)
    for name, asked in (("dilations", options.dilations), ("alignments", options.alignments)):
        there = {getattr(run, name[:-1]) for run in sources}
        if asked and sources and there.isdisjoint(asked):
            why = "nothing is dilated" if there - {None} else "no encoder is swinx's"
            raise ValueError(f"--{name} {' '.join(asked)} would do nothing: {why}")
    return sources, list(missing.values())


def _axes(trained: Run, options: Options) -> Axes:
    """The combinations of one finished run."""
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


def _settings(rows: Sequence[Row], options: Options) -> Settings:
    """Settings of the evaluation: those of training, with the inference and scoring asked for."""
    of_training = list(dict.fromkeys(Settings.of(row) for row in rows))
    if len(of_training) > 1:
        raise ValueError(f"--where must choose runs that were trained alike, got {len(of_training)} ways of training")
    settings = of_training[0]
    precision = options.precision or settings.precision
    try:
        device = choose_device(options.device, precision)
    except ValueError as error:
        if options.precision is None:
            raise ValueError(f"{error}; runs were trained with precision {precision}, give another") from error
        raise
    changed = {"inference": options.inference, "scoring": options.scoring, "evaluate_at": ()}
    return replace(settings, **changed, precision=precision, device=device)


def _check_begun(begun: Sequence[Row], sources: Mapping[Run, Source], output: Path) -> None:
    """Refuse to go on in a folder whose rows are about other weights."""
    there = {row["run"]: row["source"] for row in begun if row.get("source") is not None}
    for run, source in sources.items():
        was, now = there.get(run.id, source.summary), source.summary
        if differing := [
            f"{name} {was.get(name)} there, {now[name]} now" for name in now if was.get(name) != now[name]
        ]:
            raise ValueError(
                f"--output: {output} holds {run.id} with other weights ({'; '.join(differing)}), choose another folder"
            )


if __name__ == "__main__":
    sys.exit(main())
