"""Which cells can run at all: asked before any training, by building each model once."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from experiments.cells import Cell, NotApplicable, own_stem
from experiments.decoders import size_rule
from experiments.models.build import build_model
from experiments.training.segmenter import Segmenter


def applicable(cells: Sequence[Cell], height: int, width: int, classes: int) -> tuple[list[Cell], list[NotApplicable]]:
    """Split cells into those that can train on images of height x width pixels, and those that cannot, with the rule.

    Sizes that a decoder refuses are known (`experiments.decoders`). Beyond that each distinct model is built untrained
    and run on one blank image in evaluation: encoders of other libraries fail there in their own ways, and the rule is
    then the type and first line of their error.

    Raises:
        Exception: what a model with an encoder of swinx's raises: all of them work, so that is a bug and no rule.
    """
    able: list[Cell] = []
    unable: list[NotApplicable] = []
    failures: dict[Cell, str | None] = {}
    for cell in cells:
        rule = size_rule(cell.decoder, cell.output_stride, height, width)
        if rule is None:
            model = replace(cell, seed=0)
            if model not in failures:
                failures[model] = _failure(model, height, width, classes)
            rule = failures[model]
        if rule is None:
            able.append(cell)
        else:
            unable.append(NotApplicable(cell, rule))
    return able, unable


def _failure(cell: Cell, height: int, width: int, classes: int) -> str | None:
    """Why a cell's model does not give logits of the image's size; None where it does."""
    images = torch.zeros(1, 3, height, width, dtype=torch.uint8)
    try:
        with torch.inference_mode():
            logits = Segmenter(build_model(cell, classes)).eval()(images)
    except Exception as error:
        if own_stem(cell.encoder) is not None:
            raise
        # Whatever the type: nothing in common is promised, and the words are kept for the reader.
        lines = str(error).strip().splitlines() or ["no message"]
        return f"{type(error).__name__}: {lines[0]}"
    if logits.shape[-2:] != (height, width):
        return f"logits have {logits.shape[-2]}x{logits.shape[-1]} pixels for images of {height}x{width}"
    return None
