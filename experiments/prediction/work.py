"""Predicting pictures in batches.

Shapes: B pictures of a batch, K classes, h w pixels of what the model sees of a picture.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from experiments.decoders import size_rule
from experiments.evaluation.inference import Inference, probabilities
from experiments.prediction.folder import Record, remove_prediction, write_prediction
from experiments.prediction.pictures import PictureError, Scaling, by_size, read_picture
from experiments.prediction.pixels import full_resolution
from experiments.weights import Trained

# Probabilities held at once, 1 GiB of float32: batches of large pictures are cut to fit.
BATCH_VALUES = 2**28


@dataclass(frozen=True)
class Job:
    """What is to be done, how and where. pictures: all, by name; todo: those of them that are not finished."""

    trained: Trained
    scaling: Scaling
    inference: Inference
    precision: str
    batch_size: int
    device: torch.device
    record: Record
    output: Path
    pictures: dict[str, Path]
    todo: dict[str, Path]


@dataclass(frozen=True)
class Loaded:
    """A picture, and what the model sees of it: (3, h, w) uint8."""

    name: str
    picture: Image.Image
    seen: Tensor


def run(job: Job, on_picture: Callable[[], None]) -> dict[str, str]:
    """Predict and write all pictures to do; returns the problems of those that cannot be, by name.

    on_picture is called after each picture, written or failed. A picture that fails leaves no file behind.

    Raises:
        OSError: a result could not be written.
    """
    problems: dict[str, str] = {}

    def fail(name: str, error: PictureError) -> None:
        problems[name] = str(error)
        remove_prediction(job.output, name)  # of an earlier state of the picture
        on_picture()

    for batch in _batches(job, fail):
        images = torch.stack([item.seen for item in batch]).to(job.device)
        planes = probabilities(job.trained.model, images, job.inference, precision=job.precision)
        for item, plane in zip(batch, planes, strict=True):
            try:
                ids, confidence = full_resolution(plane, item.picture.height, item.picture.width)
            except PictureError as error:
                fail(item.name, error)
                continue
            write_prediction(job.output, item.name, item.picture, ids, confidence, job.trained.colors[:-1])
            on_picture()
    return problems


def check_size(trained: Trained, inference: Inference, height: int, width: int) -> None:
    """Raise PictureError where the model cannot work on what it would see of a picture scaled to this size."""
    for scale in inference.scales:
        seen = [max(1, round(scale * side)) for side in (height, width)]
        if inference.tile is not None:
            seen = [min(pair) for pair in zip(seen, inference.tile, strict=True)]
        rule = size_rule(trained.cell.decoder, trained.cell.output_stride, seen[0], seen[1])
        if rule is not None:
            raise PictureError(f"is too small as the model sees it: {rule}")


def _batches(job: Job, fail: Callable[[str, PictureError], None]) -> Iterator[list[Loaded]]:
    """Pictures that the model sees at one size, at most batch_size of them; those that cannot be loaded fail."""
    batch: list[Loaded] = []
    for name, path in by_size(job.todo.items()):
        try:
            item = _load(name, path, job)
        except PictureError as error:
            fail(name, error)
            continue
        fitting = max(1, BATCH_VALUES // (len(job.trained.class_names) * item.seen[0].numel()))
        if batch and (batch[0].seen.shape != item.seen.shape or len(batch) >= min(job.batch_size, fitting)):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def _load(name: str, path: Path, job: Job) -> Loaded:
    picture = read_picture(path)
    height, width = job.scaling.working_size(picture.height, picture.width)
    check_size(job.trained, job.inference, height, width)
    # Resized as folders of training data are; a size that is right already changes nothing.
    scaled = picture.resize((width, height), Image.Resampling.BILINEAR)
    return Loaded(name, picture, torch.from_numpy(np.array(scaled)).permute(2, 0, 1))
