"""Weights of a trained run in one file, with all that prediction needs: plain containers and tensors, no code.

A file may come from a stranger: it names a known encoder, never a hub, and numbers within limits.
"""

import io
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from experiments.data import SegmentationData
from experiments.records.files import write_whole
from experiments.records.grid import Run, check_encoder
from experiments.records.messages import shortened
from experiments.records.options import LEAST_CROP
from experiments.training.models import Segmenter, build_model
from swinx.checkpoint_files import RefusedFileError, read_checkpoint

FORMAT = "swinx-experiments-3"
ENTRIES = {
    "run": dict,
    "data": str,
    "class_names": list,
    "colors": list,
    "ignore_index": int,
    "height": int,
    "width": int,
    "short_side": int,
    "crop": list | None,
    "state_dict": dict,
}
MOST_CLASSES, MOST_SIDE = 255, 2**15


@dataclass(frozen=True)
class Trained:
    """A trained model and what it was trained on.

    model: on the device asked for, in eval mode, images (B, 3, H, W) uint8 -> logits (B, K, H, W). class_names has K
    entries, colors K + 1 (RGB 0..255, the last one for ignored pixels). height and width are those of the training
    images in pixels, with what pads them; short_side is the shorter side that pictures have at their scale. crop is the
    size that was cut out of them for training, None where they were seen whole; data is the name of their set.
    """

    model: Segmenter
    run: Run
    class_names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    ignore_index: int
    height: int
    width: int
    short_side: int
    data: str
    crop: tuple[int, int] | None = None


def save_weights(
    path: Path,
    model: Segmenter,
    run: Run,
    data: SegmentationData,
    crop: tuple[int, int] | None = None,
) -> None:
    """Write model, a trained model of run, as a file for load_weights; whole or not at all.

    Raises:
        OSError: the file could not be written; an older one is as it was.
    """
    height, width = data.train.images.shape[-2:]
    # Copies: torch.save would write the whole storage behind a tensor that is a view.
    state = {name: tensor.detach().cpu().clone() for name, tensor in model.model.state_dict().items()}
    content = {
        "format": FORMAT,
        "run": asdict(run),
        "data": data.name,
        "class_names": list(data.class_names),
        "colors": list(map(list, data.colors)),
        "ignore_index": data.ignore_index,
        "height": height,
        "width": width,
        "short_side": data.train.short_side or min(height, width),
        "crop": None if crop is None else list(crop),
        "state_dict": state,
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_whole(path, buffer.getvalue())


def load_weights(path: Path, device: torch.device | str) -> Trained:
    """Rebuild the model that save_weights wrote. Nothing in the file is run as code.

    Raises:
        FileNotFoundError: no such file; other OSErrors where it cannot be read.
        ValueError: the file is no torch file, is damaged, holds code or something else than a trained run, or names a
            model that cannot be built here or that its tensors do not fit (each mismatch is listed).
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; weights of a trained run are needed, such as runs/ID/last.pt")
    try:
        content = read_checkpoint(path)
        with zipfile.ZipFile(path) as archive:  # torch reads tensors without looking at their checksums
            if damaged := archive.testzip():
                raise RefusedFileError(f"is damaged: the checksum of its entry {damaged} is wrong")
        return _rebuild(_entries(content), device)
    except ValueError as error:
        raise ValueError(f"{path} {error}") from error


def _entries(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The entries of a file of this format. Raises ValueError that says what is wrong with those of another."""
    if content.get("format") != FORMAT:
        kind = f"of the format {str(content['format'])[:80]}" if "format" in content else "a torch file of another kind"
        raise ValueError(f"is {kind}; weights of a trained run (format {FORMAT}) are needed")
    if wrong := [name for name, kind in ENTRIES.items() if name not in content or not isinstance(content[name], kind)]:
        raise ValueError(f"lacks usable entries {', '.join(wrong)}, which the format {FORMAT} has")
    names, colors, crop = content["class_names"], content["colors"], content["crop"]
    sides = [content["height"], content["width"], content["short_side"], *(crop or ())]
    whole = all(type(side) is int and 1 <= side <= MOST_SIDE for side in sides)
    texts = [name for name in names if isinstance(name, str)]
    triples = [color for color in colors if isinstance(color, list) and list(map(type, color)) == [int, int, int]]
    rules = {
        f"1 to {MOST_CLASSES} different class_names": 1 <= len(names) == len(set(texts)) <= MOST_CLASSES,
        f"{len(names) + 1} RGB colors of 0 to 255": len(colors) == len(triples) == len(names) + 1
        and all(0 <= shade <= 255 for color in triples for shade in color),
        f"an ignore_index of {len(names)} to 255": len(names) <= content["ignore_index"] <= 255,
        f"height, width and short_side of 1 to {MOST_SIDE} pixels and a crop of {LEAST_CROP} to {MOST_SIDE}": whole
        and (crop is None or (len(crop) == 2 and min(crop) >= LEAST_CROP)),
    }
    if broken := [rule for rule, good in rules.items() if not good]:
        raise ValueError(f"must have {broken[0]}")
    return content


def _rebuild(entries: Mapping[str, Any], device: torch.device | str) -> Trained:
    try:
        run = Run(**entries["run"])
        check_encoder(run.encoder)
    except (TypeError, ValueError) as error:
        raise ValueError(f"names a run that is not known here: {str(error)[:300]}") from error
    # First without memory: a few bytes may name a model of gigabytes, whose tensors the file does not have.
    for place in ("meta", "cpu"):
        try:
            with torch.device(place), warnings.catch_warnings(action="ignore"):
                model = build_model(run, len(entries["class_names"]))
        except Exception as error:  # encoders of other libraries fail in their own ways, some on meta alone
            if place == "meta":
                continue
            problem = f"{type(error).__name__}: {error}"
            raise ValueError(f"names the model {run.id}, which cannot be built here ({problem})") from error
        try:
            with warnings.catch_warnings(action="ignore"):  # meta takes no values
                model.load_state_dict(entries["state_dict"])
        except (RuntimeError, AttributeError, TypeError) as error:  # mismatches; the last two: keys that are no texts
            problem = "\n".join(shortened([line[:300] for line in str(error).splitlines()]))
            raise ValueError(f"holds tensors that do not fit the model {run.id}: {problem}") from error
    same = {name: entries[name] for name in ("ignore_index", "height", "width", "short_side", "data")}
    return Trained(
        model=Segmenter(model).eval().to(device),
        run=run,
        class_names=tuple(entries["class_names"]),
        colors=tuple((red, green, blue) for red, green, blue in entries["colors"]),
        crop=entries["crop"] and (entries["crop"][0], entries["crop"][1]),
        **same,
    )
