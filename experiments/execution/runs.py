"""One run from start to rows: build, train, evaluate, write what belongs to it; and trained weights re-evaluated."""

import json
import secrets
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy
import torch

from experiments.data import SegmentationData
from experiments.evaluation import cost, metrics
from experiments.records.counts import Arrays, ImageCounts, pack
from experiments.records.files import digest, plain_file, write_whole
from experiments.records.grid import NotApplicable, Run
from experiments.records.options import Inference
from experiments.records.results import RESULT_FIELDS, Row, now, run_of, runs_in
from experiments.records.settings import Settings
from experiments.reporting.examples import save_predictions
from experiments.training.losses import objective
from experiments.training.models import Segmenter, build_model, encoder_weights
from experiments.training.train import CHECKPOINT, Training, fit, processes
from experiments.training.weights import load_weights, save_weights

WEIGHTS = "last.pt"  # of a finished run, in its folder
# Points kept of a loss curve, so that a long run does not swell the report.
CURVE_POINTS = 500
# Latencies are compared only where one process measured them.
SITTING = secrets.token_hex(4)
# What a row says of the finished run whose weights it began with or evaluates.
SOURCE_FIELDS = ("run", "step", "commit", "time", "command", "host", "precision", "source")


@dataclass(frozen=True)
class Source:
    """A finished run: its row, and the file of its weights."""

    row: Row
    weights: Path

    @property
    def summary(self) -> Row:
        """What rows of its weights say of it."""
        return {name: self.row.get(name) for name in SOURCE_FIELDS}


def finished_run(folder: Path, row: Row) -> Source:
    """The finished run of a row of a folder. Raises FileNotFoundError where its weights are gone."""
    weights = folder / "runs" / row["run"] / WEIGHTS
    if not plain_file(weights, folder):
        raise FileNotFoundError(f"{weights}: no such file; the weights of a finished run are needed")
    return Source(row, weights)


def find_source(folder: Path, run: Run) -> Source:
    """The one finished run of a folder whose weights fit run, with its seed.

    Raises:
        ValueError, FileNotFoundError: there is none, or several; or its weights are gone.
    """
    finished = {row["run"]: row for row in runs_in(folder) if row["status"] == "ok" and row.get("trained", True)}
    fitting = {name: row for name, row in finished.items() if run_of(row).weights_fit(run)}
    found = [fitting[run.id]] if run.id in fitting else list(fitting.values())
    if len(found) != 1:
        names = ", ".join(fitting) or f"none among {', '.join(finished) or 'none'}"
        raise ValueError(f"{folder} must have one finished run whose weights fit {run.id}, got {names}")
    return finished_run(folder, found[0])


def execute(
    run: Run,
    data: SegmentationData,
    settings: Settings,
    output: Path,
    origin: Row,
    on_step: Callable[[float, float], None] = lambda share, loss: None,
    *,
    trained: Source | None = None,
) -> list[Row]:
    """Train and evaluate one run, write its files below output/runs and return its rows, the last one of its end.

    Goes on from the run's training checkpoint where there is one; finish() removes it, once the rows are safe. trained:
    evaluate these weights as the model of run instead, without training; the two differ in output stride, dilation rule
    and alignment alone. status is "ok", or "diverged" where the loss stopped being finite; then error says so and the
    results are None. Among processes that train together, the first evaluates, writes and returns the rows; the others
    return none.

    Raises:
        ValueError, OSError: weights to begin with cannot be read, or are those of another run or for other classes.
    """
    together = processes()
    device = torch.device("cuda", together.local_rank) if settings.device == "cuda" else torch.device("cpu")
    folder = output / "runs" / run.id
    folder.mkdir(parents=True, exist_ok=True)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    torch.manual_seed(run.seed)
    begun = trained or (None if settings.start is None else find_source(Path(settings.start), run))
    model = _initial(run, begun, data, settings).to(device).eval()
    # One process evaluates, and has the memory for its own share of a batch.
    share = (trained.row.get("world_size") or 1) if trained else together.world
    common: dict[str, Any] = {"batch_size": max(1, settings.batch_size // share), "device": device}
    common["precision"] = settings.precision
    head = {**_head(run, settings, origin), "threads": torch.get_num_threads(), "world_size": together.world}
    head |= {"source": begun and begun.summary} | ({"trained": False} if trained else {})
    head["weights_id"] = trained.row.get("weights_id") if trained else _weights_id(run, settings)
    results: Row = {"status": "ok", "error": None, **dict.fromkeys(RESULT_FIELDS)}
    step, known, fitted, drawn = trained and trained.row["step"], None, {}, {}
    try:
        if trained is None:
            training = _train(model, run, data, settings, folder, on_step, common)
            step, known = training.validations[-1]
            seen = training.steps * settings.recipe.accumulate * settings.batch_size
            fitted = {"images_seen": seen, "train_minutes": round(training.seconds / 60, 3)}
            drawn = curves(training)
        if together.rank == 0:
            measured, counts = measure(model, data, settings, val_miou=known, **common)
            results |= {**measured, **fitted}
            if device.type == "cuda":
                results["peak_memory_mb"] = round(torch.cuda.max_memory_allocated(device) / 1e6, 1)
            save_predictions(folder, model, data, device, settings, counts)
            write_whole(folder / f"step{step}.npz", pack({**counts.arrays(), **drawn}))
    except FloatingPointError as error:  # of training, or of predictions that are not finite
        results |= {"status": "diverged", "error": str(error)}
    if together.rank > 0:
        return []
    head["time"] = now()  # one for all rows: it tells this training from others
    return [*_earlier(folder, head, settings), {**head, "step": step, **results}]


def _weights_id(run: Run, settings: Settings) -> str | None:
    """The digest of the file of encoder weights that run begins with; raises ValueError where that is a new one."""
    file = encoder_weights(settings.recipe.weights, run.seed)
    if not isinstance(file, Path):
        return None
    found = digest(file)
    if dict(settings.weights_ids).get(str(file), found) != found:
        raise ValueError(f"--weights: {file} has changed since the command began")
    return found


def _initial(run: Run, source: Source | None, data: SegmentationData, settings: Settings) -> Segmenter:
    """The model of run on the CPU, untrained or with the weights of source."""
    if source is None:
        weights = encoder_weights(settings.recipe.weights, run.seed)
        return Segmenter(build_model(run, len(data.class_names), weights))
    trained = load_weights(source.weights, "cpu")
    if trained.run.id != source.row["run"]:
        raise ValueError(f"{source.weights} holds weights of {trained.run.id}, not of {source.row['run']}")
    if trained.class_names != data.class_names:
        raise ValueError(f"{source.weights} is for classes {', '.join(trained.class_names)}, not those of the data")
    if run == trained.run:
        return trained.model
    return Segmenter(build_model(run, len(trained.class_names), state=trained.model.model.state_dict()))


def _train(
    model: Segmenter,
    run: Run,
    data: SegmentationData,
    settings: Settings,
    folder: Path,
    on_step: Callable[[float, float], None],
    common: dict[str, Any],
) -> Training:
    """Train model in place; returns what training did.

    Writes last.pt and what is measured on the way into the folder of the run.
    """

    def evaluate(average: Segmenter, step: int) -> None:
        if step != settings.steps:
            results, counts = measure(average, data, settings, **common)
            write_whole(folder / f"step{step}.npz", pack(counts.arrays()))
            write_whole(folder / f"step{step}.json", json.dumps(results))

    training = fit(
        model,
        objective(data, settings.recipe).to(common["device"]),
        data,
        settings,
        seed=run.seed,
        folder=folder,
        device=common["device"],
        validate=lambda average: metrics.miou(average, data.val, data, inference=_validation(settings), **common),
        evaluate=evaluate,
        on_step=on_step,
    )
    if processes().rank == 0:
        save_weights(folder / WEIGHTS, model, run, data, settings.recipe.crop)
    return training


def finish(run_id: str, output: Path) -> None:
    """Remove what only a resumed run needs; its rows are in the results."""
    folder = output / "runs" / run_id
    (folder / CHECKPOINT).unlink(missing_ok=True)
    for path in folder.glob("step*.json"):
        path.unlink()


def not_applicable_row(missing: NotApplicable, settings: Settings, origin: Row) -> Row:
    """The row of a run that cannot exist: status "not applicable", the rule as error, no results."""
    unknown = {"threads": None, "world_size": None, "source": None, "weights_id": None, "step": None}
    status = {"status": "not applicable", "error": missing.rule}
    return {**_head(missing.run, settings, origin), **unknown, **status, **dict.fromkeys(RESULT_FIELDS)}


def measure(
    model: Segmenter,
    data: SegmentationData,
    settings: Settings,
    *,
    batch_size: int,
    device: torch.device,
    precision: str,
    val_miou: float | None = None,
) -> tuple[Row, ImageCounts]:
    """Accuracy and cost of a model by fields of a row, and the counts of each test image.

    val_miou: mean IoU (percent) of these weights at the last validation during training, where it is known.
    """
    common: dict[str, Any] = {"batch_size": batch_size, "device": device, "precision": precision}
    common["inference"] = settings.inference
    if settings.inference != _validation(settings) or val_miou is None:
        val_miou = metrics.miou(model, data.val, data, **common)
    common |= {"native": settings.scoring.score_at == "native"}
    test, counts = metrics.evaluate(model, data.test, data, **common)
    corrupted = {
        kind: metrics.miou(model, data.test, data, corruption=kind, **common) for kind in settings.scoring.corruptions
    }
    image = data.test.images[:1].to(device)
    p20, p50, p80 = cost.latency(model, image, precision)
    scores = {"val_miou": val_miou, "test_miou": test.pop("miou"), "test_f1": test.pop("f1"), **test}
    latencies = {"latency_ms_p20": p20, "latency_ms_p50": p50, "latency_ms_p80": p80}
    row = _rounded({**scores, "corruption_miou": corrupted or None, **latencies})
    parameters, operations = sum(p.numel() for p in model.parameters()), cost.flops(model, image)
    row |= {"params_m": round(parameters / 1e6, 4), "gflops": round(operations / 1e9, 4), "latency_sitting": SITTING}
    return row, counts


def _validation(settings: Settings) -> Inference:
    """How the validation split is predicted during training: by tiles where the test split is, one view of each."""
    return replace(settings.inference, flip=False, scales=(1.0,))


def curves(training: Training) -> Arrays:
    """At most CURVE_POINTS means of neighbouring losses, each with its middle step from 1; and every validation."""
    losses = training.losses
    width = max(1, -(-len(losses) // CURVE_POINTS))
    chunks = [losses[i : i + width] for i in range(0, len(losses), width)]
    values: dict[str, Sequence[float | None]] = {
        "loss_step": [i * width + (len(chunk) + 1) / 2 for i, chunk in enumerate(chunks)],
        "loss": [sum(chunk) / len(chunk) for chunk in chunks],
        "val_step": [step for step, _ in training.validations],
        "val_miou": [miou for _, miou in training.validations],
    }
    return {name: numpy.array(points, dtype=numpy.float64) for name, points in values.items()}


def _head(run: Run, settings: Settings, origin: Row) -> Row:
    """What every row of a run begins with; origin is that of provenance()."""
    return {"kind": "segmentation", "run": run.id, **asdict(run), **settings.as_row(), **origin, "time": now()}


def _earlier(folder: Path, head: Row, settings: Settings) -> list[Row]:
    """The rows of the evaluations before the end, of those steps that training reached."""
    rows = []
    for step in settings.evaluate_at:
        path = folder / f"step{step}.json"
        if path.exists():
            measured = json.loads(path.read_text(encoding="utf-8"))
            results = {**dict.fromkeys(RESULT_FIELDS), **measured}
            rows.append({**head, "step": step, "status": "ok", "error": None, **results})
    return rows


def _rounded(value: Any) -> Any:
    """Scores as rows have them: a number or None, or an object of these."""
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    return None if value is None else round(value, 3)
