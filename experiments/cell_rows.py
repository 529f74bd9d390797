"""The row of a cell: where it comes from, and what was measured of its model."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from experiments import evaluation
from experiments.cells import Cell, NotApplicable
from experiments.data import SegmentationData
from experiments.records import Row, now, write_whole
from experiments.settings import Settings
from experiments.training import Segmenter, processes

# None in a row that has no results.
RESULT_FIELDS = (
    *("test_miou", "val_miou", "thin_miou", "test_f1", "pixel_accuracy", "class_iou"),
    *("boundary_f1", "thin_boundary_f1", "ece"),
    *("params_m", "gflops", "latency_ms_p20", "latency_ms_p50", "latency_ms_p80"),
    *("peak_memory_mb", "peak_memory_scope"),
    *("images_seen", "train_minutes", "best_val_miou", "best_step", "stopped_step"),
)


def head(cell: Cell, settings: Settings, origin: Row) -> Row:
    """What every row of a cell begins with; origin is that of provenance()."""
    return {"kind": "segmentation", "cell": cell.id, **asdict(cell), **settings.as_row(), **origin, "time": now()}


def not_applicable_row(missing: NotApplicable, settings: Settings, origin: Row) -> Row:
    """The row of a cell that cannot exist: status "not applicable", the rule as error, no results."""
    return {
        **head(missing.cell, settings, origin),
        "threads": None,
        "world_size": None,
        "status": "not applicable",
        "error": missing.rule,
        **dict.fromkeys(RESULT_FIELDS),
    }


def measure(model: Segmenter, data: SegmentationData, settings: Settings, device: torch.device, folder: Path) -> Row:
    """Accuracy and cost of a trained model, by fields of a row; writes the counts of each test image into folder."""
    classes = len(data.class_names)
    common: dict[str, Any] = {
        "thin_classes": data.thin_classes,
        "batch_size": evaluated_at_once(settings),
        "device": device,
        "precision": settings.precision,
        "inference": settings.inference,
    }
    val = evaluation.evaluate(model, data.val, classes, data.ignore_index, **common).scores
    tested = evaluation.evaluate(model, data.test, classes, data.ignore_index, **common)
    write_whole(folder / "images.json", tested.images.as_json(data.class_names))
    test = tested.scores
    image = data.test.images[:1].to(device)
    p20, p50, p80 = evaluation.latency(model, image, settings.precision)
    return {
        "val_miou": rounded(val.miou),
        "test_miou": rounded(test.miou),
        "thin_miou": rounded(test.thin_miou),
        "test_f1": rounded(test.f1),
        "class_iou": {name: rounded(iou) for name, iou in zip(data.class_names, test.class_iou, strict=True)},
        "pixel_accuracy": rounded(test.pixel_accuracy),
        "boundary_f1": {str(band): rounded(value) for band, value in tested.boundary_f1.items()},
        "thin_boundary_f1": {str(band): rounded(value) for band, value in tested.thin_boundary_f1.items()},
        "ece": rounded(tested.ece),
        "params_m": round(evaluation.parameters(model) / 1e6, 4),
        "gflops": round(evaluation.flops(model, image) / 1e9, 4),
        "latency_ms_p20": round(p20, 3),
        "latency_ms_p50": round(p50, 3),
        "latency_ms_p80": round(p80, 3),
    }


def evaluated_at_once(settings: Settings) -> int:
    """Images of a batch in evaluation: one process does it, and has the memory for its own share of a batch."""
    return max(1, settings.batch_size // processes().world)


def rounded(value: float | None) -> float | None:
    """A score as rows have it."""
    return None if value is None else round(value, 3)
