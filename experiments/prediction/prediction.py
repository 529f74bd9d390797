"""Pictures through a trained model, into a folder that an interrupted command can go on with.

masks/NAME.png         palette picture: pixels are class ids, shown in the colours of the classes
overlays/NAME.png      the colours over the picture
confidence/NAME.png    8-bit grey: 255 times the probability of the class in the mask, rounded
classes.json           [{"id": 0, "name": ..., "color": [r, g, b]}, ...]
prediction.json        what predicted, and where the results come from

Shapes: h w pixels of what the model sees of a picture.
"""

import json
import os
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.progress import track

from experiments.data.images import ImageError, read_image
from experiments.data.reading import available_memory
from experiments.evaluation.inference import probabilities
from experiments.prediction import pictures
from experiments.prediction.options import Options
from experiments.records.files import digest, locked, remove_torn, write_whole
from experiments.records.grid import size_rule
from experiments.records.messages import IncompleteError, printable, shortened
from experiments.records.options import PLAIN, Inference, Size, check, choose_device
from experiments.records.results import Row, differing, provenance
from experiments.training.weights import Trained, load_weights

CLASSES, RECORD = "classes.json", "prediction.json"
# The most pixels that a picture may be enlarged to: a few rows that are very long would become an enormous image.
MOST_ENLARGED = 2**24


@dataclass(frozen=True)
class Job:
    """What is to be done. short_side: pictures are scaled to it; None where options say another way. found: all, by
    name; todo: those of them that are not finished. record: what decides the pixels of a result, and the folder that
    the pictures are in."""

    options: Options
    device: torch.device
    trained: Trained
    inference: Inference
    short_side: int | None
    found: dict[str, Path]
    todo: dict[str, Path]
    record: Row

    def seen(self, height: int, width: int) -> Size:
        """Height and width that the model sees of a picture; raises ImageError where it cannot work on them."""
        if self.short_side is not None:
            factor = self.short_side / min(height, width)
            height, width = max(1, round(height * factor)), max(1, round(width * factor))
            if factor > 1 and height * width > MOST_ENLARGED:
                raise ImageError(f"would be enlarged to {height}x{width}; --native predicts it as it is")
        height, width = self.options.size or (height, width)
        run = self.trained.run
        for view in self.inference.sizes(height, width):
            if rule := size_rule(run.decoder, run.output_stride, *view):
                raise ImageError(f"is too small as the model sees it: {rule}")
        return height, width


def run(options: Options) -> int:
    """The command behind experiments.predict; returns 0, or raises what prepare and predict raise.

    Raises:
        IncompleteError: pictures have no result.
    """
    job = prepare(options)
    names, colors = job.trained.class_names, job.trained.colors
    classes = [{"id": i, "name": name, "color": colors[i]} for i, name in enumerate(names)]
    trained = f"{job.trained.run.id}, trained on {job.trained.data} at {job.trained.height}x{job.trained.width}"
    ways = ", ".join(f"{name} {value}" for name, value in job.record.items() if value)
    with locked(options.output):
        check_output(options.output, job.record)  # once more: another command may have been quicker
        remove_torn(options.output)
        write_whole(options.output / RECORD, json.dumps(job.record | provenance(job.device), indent=1) + "\n")
        write_whole(options.output / CLASSES, json.dumps(classes, indent=1) + "\n")
        print(printable(f"{trained}, sees {len(job.todo)} pictures: {ways}"), flush=True)
        problems = predict(job)
    before = f", {len(job.found) - len(job.todo)} finished before" if len(job.todo) < len(job.found) else ""
    print(printable(f"{len(job.todo) - len(problems)} predicted{before}: {options.output}"))
    if problems:
        lines = shortened([f"{printable(str(job.found[name]))} {problem}" for name, problem in problems.items()])
        count = f"{len(problems)} of {len(job.found)} pictures have no result:"
        raise IncompleteError("\n  ".join([count, *lines]))
    return 0


def prepare(options: Options) -> Job:
    """Everything that can be refused as a whole is refused here, before anything is written.

    Raises:
        ValueError, OSError: bad input; the message names option, rule and value.
    """
    device = torch.device(choose_device(options.device, options.precision))
    check_inputs(options)
    found = pictures.find_pictures(options.images, options.output)
    trained = load_weights(options.weights, device)
    whole = trained.height, trained.width
    short_side = None if options.native or options.size else options.short_side or trained.short_side
    tile = options.inference.tile or trained.crop or (whole if options.native else None)
    inference = replace(options.inference, tile=tile)
    tiled = tile is not None or inference.overlap == PLAIN.overlap
    check(inference, {"overlap": (tiled, "left out where pictures are not seen by tiles")})
    images = options.images.parent if options.images.is_file() else options.images
    record = {"weights": digest(options.weights), "images": str(images.resolve()), "short_side": short_side}
    record |= {"size": options.size, "precision": options.precision, **asdict(inference)}
    check_output(options.output, record)
    todo = {name: path for name, path in found.items() if not finished(options.output, name, path)}
    return Job(options, device, trained, inference, short_side, found, todo, record)


def check_inputs(options: Options) -> None:
    """Raise FileNotFoundError for what is not there, the weights or the pictures, in one message."""
    rules = {
        "WEIGHTS must be a file, such as runs/ID/last.pt": (options.weights, options.weights.is_file()),
        "IMAGES must be a folder or a file": (options.images, options.images.exists()),
    }
    problems = [
        f"{rule}, got {path}, which {'is a folder' if path.is_dir() else 'does not exist'}"
        for rule, (path, there) in rules.items()
        if not there
    ]
    if problems:
        raise FileNotFoundError("\n".join(problems))


def check_output(output: Path, record: Row) -> None:
    """Raise ValueError where output has something in it, but no results of this record."""
    if not output.exists() or all(path.name.startswith(".") for path in output.iterdir()):
        return
    try:
        there = dict(json.loads((output / RECORD).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        rule = "--output must be new, empty or of this command"
        raise ValueError(f"{rule}, got {output}, whose {RECORD} is no JSON object: {error}") from error
    if listing := differing(there, json.loads(json.dumps(record))):
        raise ValueError(f"--output must be another folder, got {output}, which holds another prediction ({listing})")


def finished(output: Path, name: str, picture: Path) -> bool:
    """Whether the three files of a picture are there and none is older than its last change."""
    results = [pictures.result(output, kind, name) for kind in pictures.KINDS]
    if not all(os.path.isfile(path) for path in (picture, *results)):  # unlike Path's, False for a name that cannot be
        return False
    source = picture.stat()
    changed = max(source.st_mtime_ns, source.st_ctime_ns)  # a copy may keep the time of what it is a copy of
    return all(path.stat().st_mtime_ns >= changed for path in results)


def predict(job: Job) -> dict[str, str]:
    """Predict and write all pictures to do; returns the problems of those that cannot be, by name.

    A picture that fails leaves no file behind.

    Raises:
        OSError: a result could not be written.
    """
    problems: dict[str, str] = {}
    for name, path in track(job.todo.items(), "predicting", transient=True, disable=not sys.stdout.isatty()):
        try:
            picture = read_image(path, upright=True)
            height, width = job.seen(picture.height, picture.width)
            # Logits and probabilities, of the largest view.
            needed = int(8 * len(job.trained.class_names) * height * width * max(1, *job.inference.scales) ** 2)
            if needed > available_memory():
                raise ImageError(f"needs {needed / 1e9:.1f} GB as the model sees it, {height}x{width}: too much here")
            # Resized as folders of training data are; a size that is right already changes nothing.
            scaled = torch.from_numpy(np.array(picture.resize((width, height), Image.Resampling.BILINEAR)))
            images = scaled.permute(2, 0, 1)[None].to(job.device)
            (planes,) = probabilities(job.trained.model, images, job.inference, precision=job.options.precision)
            ids, confidence = pictures.full_resolution(planes, picture.height, picture.width)
            pictures.write_results(job.options.output, name, picture, ids, confidence, job.trained.colors[:-1])
        except (ImageError, torch.OutOfMemoryError) as error:
            advice = "" if isinstance(error, ImageError) else "; a smaller --tile needs less memory"
            problems[name] = f"{error}{advice}"
            for kind in pictures.KINDS:
                earlier = pictures.result(job.options.output, kind, name)
                if os.path.lexists(earlier):  # of an earlier state of the picture
                    earlier.unlink()
    return problems
