"""Trained weights in another cell, such as a finer output stride: evaluated as they are, without training."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from experiments import evaluation
from experiments.cell_rows import RESULT_FIELDS, head, measure
from experiments.cells import Cell
from experiments.data import SegmentationData
from experiments.models import build_model
from experiments.records import Row
from experiments.settings import Settings
from experiments.training import Segmenter
from experiments.weights import Trained, load_weights

# What a row tells of the cell whose weights it is about.
TOLD = ("cell", "commit", "dirty", "command", "time", "host", "torch", "swinx", "precision")


@dataclass(frozen=True)
class Source:
    """A trained cell: its row, and the file of its weights."""

    row: Row
    weights: Path

    @property
    def told(self) -> Row:
        """What rows of its weights say of it."""
        return {name: self.row[name] for name in TOLD}


def evaluate_again(
    cell: Cell, source: Source, data: SegmentationData, settings: Settings, output: Path, origin: Row
) -> Row:
    """Evaluate the weights of source as the model of cell, write side files below output/cells and return the row.

    The two differ in output stride, dilation rule and alignment alone, so that one state_dict fits both; weights
    trained under the rule "enlarged" fit their own cell alone. The row has the fields of a trained cell's, those of
    training empty, and weights_of. status is "diverged" where predictions are not finite.

    Raises:
        ValueError, OSError: the weights cannot be read, or are those of another cell or for other classes.
    """
    device = torch.device(settings.device)
    folder = output / "cells" / cell.id
    folder.mkdir(parents=True, exist_ok=True)
    memory = evaluation.PeakMemory(device)
    trained = load_weights(source.weights, "cpu")
    if trained.cell.id != source.row["cell"]:
        raise ValueError(f"{source.weights} holds weights of {trained.cell.id}, not of {source.row['cell']}")
    if trained.class_names != tuple(data.class_names):
        raise ValueError(f"{source.weights} is for classes {', '.join(trained.class_names)}, not those of the data")
    model = _as_cell(trained, cell).to(device).eval()
    # As many images at once as the process had that evaluated after training.
    share = replace(settings, batch_size=max(1, settings.batch_size // (source.row["world_size"] or 1)))
    results: Row = {"status": "ok", "error": None, **dict.fromkeys(RESULT_FIELDS)}
    try:
        results |= measure(model, data, share, device, folder)
        scope = f"{memory.scope}, without training"
        results |= {"peak_memory_mb": round(memory.megabytes(), 1), "peak_memory_scope": scope}
        evaluation.save_predictions(
            folder, model, data, device, inference=settings.inference, precision=settings.precision
        )
    except FloatingPointError as error:
        results |= {"status": "diverged", "error": str(error)}
    return {
        **head(cell, settings, origin),
        "threads": torch.get_num_threads(),
        "world_size": 1,
        "weights_of": source.told,
        **results,
    }


def _as_cell(trained: Trained, cell: Cell) -> Segmenter:
    """The trained weights as the model of cell."""
    if cell == trained.cell:
        return trained.model
    state = trained.model.model.state_dict()
    return Segmenter(build_model(cell, len(trained.class_names), state=state))
