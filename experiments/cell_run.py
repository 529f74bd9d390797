"""One cell from start to row: build, train, evaluate, write what belongs to it."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from experiments import evaluation
from experiments.cell_rows import RESULT_FIELDS, evaluated_at_once, head, measure, rounded
from experiments.cells import Cell
from experiments.data import SegmentationData
from experiments.models import build_model
from experiments.records import Row, write_whole
from experiments.settings import Settings
from experiments.training import CHECKPOINT, Processes, Segmenter, Training, fit, processes
from experiments.weights import load_weights, save_weights

# Points kept of a loss curve, so that a long run does not swell the report.
CURVE_POINTS = 500


def run_cell(
    cell: Cell,
    data: SegmentationData,
    settings: Settings,
    output: Path,
    origin: Row,
    on_step: Callable[[float, float], None] = lambda progress, loss: None,
) -> Row | None:
    """Train and evaluate one cell, write its side files below output/cells and return its row.

    Goes on from the cell's training checkpoint where there is one; finish() removes it, once the row is safe. status is
    "ok", or "diverged" where the loss stopped being finite; then error says so and the results are None. Among
    processes that train together, the first evaluates, writes and returns the row; the others return None.
    """
    together = processes()
    device = _device(settings, together)
    folder = output / "cells" / cell.id
    folder.mkdir(parents=True, exist_ok=True)
    memory = evaluation.PeakMemory(device)
    torch.manual_seed(cell.seed)
    model = Segmenter(build_model(cell, len(data.class_names), settings.recipe.weights)).to(device)
    common: dict[str, Any] = {"device": device, "precision": settings.precision}

    def save(name: str, weights: Segmenter, step: int, val_miou: float | None) -> None:
        crop = settings.recipe.crop
        save_weights(folder / f"{name}.pt", weights, cell, data, step=step, val_miou=val_miou, crop=crop)

    results: Row = {"status": "ok", "error": None, **dict.fromkeys(RESULT_FIELDS)}
    try:
        training = fit(
            model,
            data,
            settings.budget,
            settings.recipe,
            folder=folder,
            batch_size=settings.batch_size,
            seed=cell.seed,
            workers=settings.workers,
            loggers=settings.loggers,
            validate=lambda average: evaluation.miou(
                average,
                data.val,
                len(data.class_names),
                data.ignore_index,
                batch_size=evaluated_at_once(settings),
                **common,
            ),
            on_best=lambda average, step, miou: save("best", average, step, miou),
            on_step=on_step,
            **common,
        )
        if together.rank > 0:
            return None
        model.to(device).eval()
        last = training.validations[-1] if training.validations else (training.steps, None)
        save("last", model, training.steps, last[1] if last[0] == training.steps else None)
        if settings.recipe.select == "best":
            if training.best is None:
                raise ValueError("--select best needs labelled pixels in the validation split, got none")
            model = load_weights(folder / "best.pt", device).model
        results |= measure(model, data, settings, device, folder)
        results |= _told(training)
        results |= {"peak_memory_mb": round(memory.megabytes(), 1), "peak_memory_scope": memory.scope}
        evaluation.save_predictions(
            folder, model, data, device, inference=settings.inference, precision=settings.precision
        )
        write_whole(output / "cells" / f"{cell.id}.json", json.dumps(curves(training)))
    except FloatingPointError as error:  # of training, or of predictions that are not finite
        results |= {"status": "diverged", "error": str(error)}
    if together.rank > 0:
        return None
    return {
        **head(cell, settings, origin),
        "threads": torch.get_num_threads(),
        "world_size": together.world,
        **results,
    }


def finish(cell_id: str, output: Path) -> None:
    """Remove what only a continued run of the cell needs; its row is in the results."""
    (output / "cells" / cell_id / CHECKPOINT).unlink(missing_ok=True)


def _device(settings: Settings, together: Processes) -> torch.device:
    return torch.device("cuda", together.local_rank) if settings.device == "cuda" else torch.device("cpu")


def _told(training: Training) -> Row:
    """What the run says of itself."""
    best_step, best = training.best if training.best is not None else (None, None)
    return {
        "images_seen": training.images_seen,
        "train_minutes": round(training.minutes, 3),
        "best_val_miou": rounded(best),
        "best_step": best_step,
        "stopped_step": training.steps,
    }


def curves(training: Training) -> dict[str, Sequence[float | None]]:
    """At most CURVE_POINTS means of neighbouring losses, each with its middle step from 1; and every validation."""
    losses = training.losses
    width = max(1, -(-len(losses) // CURVE_POINTS))
    chunks = [losses[i : i + width] for i in range(0, len(losses), width)]
    return {
        "step": [i * width + (len(chunk) + 1) / 2 for i, chunk in enumerate(chunks)],
        "loss": [round(sum(chunk) / len(chunk), 5) for chunk in chunks],
        "val_step": [step for step, _ in training.validations],
        "val_miou": [rounded(miou) for _, miou in training.validations],
    }
