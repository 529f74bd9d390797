"""From the options of experiments.evaluate to finished runs, data and settings: what can be refused is refused here."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments import data
from experiments.data import SegmentationData
from experiments.execution import comparison
from experiments.execution.comparison import say
from experiments.execution.prepare import check_contrasts
from experiments.execution.runs import Source, finished_run
from experiments.records.grid import NotApplicable, Run, grid
from experiments.records.options import Axes, EvaluateOptions, choose_device
from experiments.records.results import RESULTS, Row, differing, run_of, runs_in
from experiments.records.settings import Settings
from experiments.reporting.rows import condition
from experiments.training.train import processes


def prepare(
    options: EvaluateOptions, console: Console
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
    with console.status("loading data"):
        loaded = data.load(options.data, native=options.scoring.score_at == "native")
    digest, (height, width) = data.data_id(loaded), loaded.train.images.shape[-2:]
    if digest != settings.data_id:
        raise ValueError(
            f"--data must be what {options.folder} was trained on, {settings.data} at {settings.height}x"
            f"{settings.width} with data_id {settings.data_id}, got {loaded.name} at {height}x{width} with {digest}"
        )
    settings = replace(settings, groups_id=data.groups_id(loaded))
    begun = comparison.check_output(options.output, settings, trained=False)
    _check_begun(begun, sources, options.output)
    sizes = options.inference.sizes(settings.height, settings.width)
    runs, missing = comparison.runnable(list(sources), missing, sizes, len(loaded.class_names), console)
    check_contrasts(options.contrasts, [*runs, *(run_of(row) for row in begun)], settings)
    return {run: sources[run] for run in runs}, missing, loaded, settings


def _chosen(options: EvaluateOptions, console: Console) -> list[Row]:
    """The last row of each finished run asked for; says which of the others have no weights to evaluate."""
    if not (found := runs_in(options.folder)):
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


def _plan(rows: Sequence[Row], options: EvaluateOptions) -> tuple[dict[Run, Source], list[NotApplicable]]:
    """Every run asked for with its finished one, and those that cannot exist."""
    sources: dict[Run, Source] = {}
    missing: dict[Run, NotApplicable] = {}
    for row in rows:
        trained, source = run_of(row), finished_run(options.folder, row)
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
            sources[run] = source
    return sources, list(missing.values())


def _axes(trained: Run, options: EvaluateOptions) -> Axes:
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


def _settings(rows: Sequence[Row], options: EvaluateOptions) -> Settings:
    """Settings of the evaluation: those of training, with the inference and scoring asked for."""
    try:
        of_training = list(dict.fromkeys(map(Settings.of, rows)))
    except ValueError as error:
        raise ValueError(f"{options.folder / RESULTS}: {error}") from error
    if len(of_training) > 1:
        raise ValueError(f"--where must choose runs that were trained alike, got {len(of_training)} ways of training")
    settings = of_training[0]
    precision = options.precision or settings.precision
    changed = {"inference": options.inference, "scoring": options.scoring, "evaluate_at": ()}
    return replace(settings, **changed, precision=precision, device=choose_device(options.device, precision))


def _check_begun(begun: Sequence[Row], sources: Mapping[Run, Source], output: Path) -> None:
    """Refuse to go on in a folder whose rows are about other weights."""
    there = {row["run"]: row["source"] for row in begun if row.get("source") is not None}
    for run, source in sources.items():
        if run.id in there and there[run.id] != source.summary:
            listing = differing(there[run.id], source.summary)
            raise ValueError(f"--output: {output} holds {run.id} with other weights ({listing}), choose another folder")
