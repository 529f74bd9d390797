"""Weights of a trained cell in one file, with all that prediction needs: plain containers and tensors, no code."""

import io
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from experiments.cells import Cell
from experiments.data import SegmentationData
from experiments.models import build_model
from experiments.records import write_whole
from experiments.training.segmenter import Segmenter

FORMAT = "swinx-experiments-1"
ENTRIES = ("cell", "data", "class_names", "colors", "ignore_index", "height", "width", "step", "val_miou", "state_dict")
SHOWN = 20  # mismatches spelled out in one error; the rest are counted


@dataclass(frozen=True)
class Trained:
    """A trained model and what it was trained on.

    model: on the device asked for, in eval mode, images (B, 3, H, W) uint8 -> logits (B, K, H, W). class_names has K
    entries, colors K + 1 (RGB 0..255, the last one for ignored pixels). height and width are those of the training
    images in pixels, crop is the size that was cut out of them for training, None where they were seen whole; data is
    the name of their set. step counts training steps; val_miou (percent) is that of these weights, None where it was
    not measured.
    """

    model: Segmenter
    cell: Cell
    class_names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    ignore_index: int
    height: int
    width: int
    data: str
    step: int
    val_miou: float | None
    crop: tuple[int, int] | None = None


def save_weights(
    path: Path,
    model: Segmenter,
    cell: Cell,
    data: SegmentationData,
    *,
    step: int,
    val_miou: float | None,
    crop: tuple[int, int] | None = None,
) -> None:
    """Write model, a trained model of cell, as a file for load_weights; whole or not at all.

    Raises:
        OSError: the file could not be written; an older one is as it was.
    """
    height, width = data.train.images.shape[-2:]
    # Copies: torch.save would write the whole storage behind a tensor that is a view.
    state = {name: tensor.detach().cpu().clone() for name, tensor in model.model.state_dict().items()}
    content = {
        "format": FORMAT,
        "cell": asdict(cell),
        "data": data.name,
        "class_names": list(data.class_names),
        "colors": [list(color) for color in data.colors],
        "ignore_index": data.ignore_index,
        "height": height,
        "width": width,
        "step": step,
        "val_miou": val_miou,
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
        ValueError: the file is no torch file, is damaged, holds code or something else than a trained cell, or names a
            model that cannot be built here or that its tensors do not fit (each mismatch is listed).
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; weights of a trained cell are wanted, such as cells/ID/best.pt")
    try:
        return _rebuild(_entries(_read(path)), device)
    except ValueError as error:
        raise ValueError(f"{path} {error}") from error


def _read(path: Path) -> object:
    """What the file holds. Raises ValueError with a sentence that goes on after the path."""
    with path.open("rb") as file:  # by name, a file that may not be read would pass for no archive
        archived = zipfile.is_zipfile(file)
    if not archived:
        raise ValueError("is not a torch file, or was cut off; weights of a trained cell are wanted")
    try:
        with zipfile.ZipFile(path) as archive:  # torch itself reads tensors without looking at their checksums
            damaged = archive.testzip()
        content: object = None if damaged else torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f" ({code[1]})" if code else ""
        raise ValueError(f"holds more than tensors{what}: reading it would run code from the file") from error
    except Exception as error:  # zipfile and torch raise half a dozen types for files that are damaged or foreign
        raise ValueError(f"is not a torch file, or is damaged ({type(error).__name__}: {error})") from error
    if damaged:
        raise ValueError(f"is damaged: the checksum of its entry {damaged} is wrong")
    return content


def _entries(content: object) -> Mapping[str, Any]:
    """The entries of a file of this format. Raises ValueError that says what a file of another kind is."""
    tag = content.get("format") if isinstance(content, Mapping) else None
    if tag != FORMAT or not isinstance(content, Mapping):
        raise ValueError(f"is {_kind(content)}; weights of a trained cell (format {FORMAT}) are wanted")
    if missing := [name for name in ENTRIES if name not in content]:
        raise ValueError(f"lacks {', '.join(missing)}, which the format {FORMAT} has")
    return content


def _kind(content: object) -> str:
    """What a torch file of another kind is, in words."""
    if not isinstance(content, Mapping):
        return f"a torch file that holds a {type(content).__name__}"
    if isinstance(content.get("format"), str):
        return f"of the format {content['format']}"
    if "pytorch-lightning_version" in content:
        return "a Lightning checkpoint, made for resuming a training run"
    names = [str(name) for name in content]
    if names and all(isinstance(value, Tensor) for value in content.values()):
        return f"a bare state dict ({len(names)} tensors, first {names[0]}), which does not say what model it is of"
    return f"a torch file with the entries {', '.join(names[:5]) or 'none'}{', ...' if len(names) > 5 else ''}"


def _rebuild(entries: Mapping[str, Any], device: torch.device | str) -> Trained:
    cell = _cell(entries["cell"])
    try:
        model = build_model(cell, len(entries["class_names"]))
    except Exception as error:  # encoders of other libraries fail in their own ways
        problem = f"{type(error).__name__}: {error}"
        raise ValueError(f"names the model {cell.id}, which cannot be built here ({problem})") from error
    _load_state(model, entries["state_dict"], cell)
    return Trained(
        model=Segmenter(model).eval().to(device),
        cell=cell,
        class_names=tuple(entries["class_names"]),
        colors=tuple((red, green, blue) for red, green, blue in entries["colors"]),
        ignore_index=entries["ignore_index"],
        height=entries["height"],
        width=entries["width"],
        data=entries["data"],
        step=entries["step"],
        val_miou=entries["val_miou"],
        crop=None if entries.get("crop") is None else tuple(entries["crop"]),  # older files have no such entry
    )


def _cell(values: Mapping[str, Any]) -> Cell:
    """The cell of its fields; those that older files lack take their defaults."""
    known = {field.name: field for field in fields(Cell)}
    if unknown := [name for name in values if name not in known]:
        raise ValueError(f"names fields of a cell that are not known here: {', '.join(unknown)}")
    if missing := [name for name, field in known.items() if field.default is MISSING and name not in values]:
        raise ValueError(f"lacks fields of its cell: {', '.join(missing)}")
    return Cell(**values)


def _load_state(model: nn.Module, state: Mapping[str, Tensor], cell: Cell) -> None:
    """Load all tensors, or raise ValueError that lists those that do not fit."""
    target = model.state_dict()
    problems = [f"missing {name}" for name in target if name not in state]
    problems += [f"unexpected {name}" for name in state if name not in target]
    problems += [
        f"{name} has shape {tuple(state[name].shape)}, the model's {tuple(tensor.shape)}"
        for name, tensor in target.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if problems:
        if len(problems) > SHOWN:
            problems[SHOWN:] = [f"and {len(problems) - SHOWN} more"]
        raise ValueError("\n  ".join([f"holds tensors that do not fit the model {cell.id}:", *problems]))
    model.load_state_dict(state)
