"""Weights of a trained run in one file, with all that prediction needs: plain containers and tensors, no code.

A file may come from a stranger: it names a known encoder, never a hub, and numbers within limits.
"""

import io
import zipfile
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from experiments.data import SegmentationData
from experiments.records.files import write_whole
from experiments.records.grid import ALIGNMENTS, DECODERS, DILATIONS, Run, check_encoder
from experiments.training.models import Segmenter, build_model
from swinx.checkpoint_files import RefusedFileError, read_checkpoint
from swinx.config import OUTPUT_STRIDES, STEMS

FORMAT = "swinx-experiments-2"
ENTRIES = {
    "run": dict,
    "data": str,
    "class_names": list,
    "colors": list,
    "ignore_index": int,
    "height": int,
    "width": int,
    "step": int,
    "val_miou": float | None,
    "crop": list | None,
    "state_dict": dict,
}
SHOWN = 20  # mismatches spelled out in one error; the rest are counted
MOST_CLASSES, MOST_WINDOW, LEAST_CROP, MOST_SIDE = 255, 64, 16, 2**15


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
    run: Run
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
    run: Run,
    data: SegmentationData,
    *,
    step: int,
    val_miou: float | None,
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
    """The entries of a file of this format. Raises ValueError that says what a file of another kind is."""
    if content.get("format") != FORMAT:
        raise ValueError(f"is {_kind(content)}; weights of a trained run (format {FORMAT}) are needed")
    if wrong := [name for name, kind in ENTRIES.items() if name not in content or not isinstance(content[name], kind)]:
        raise ValueError(f"lacks usable entries {', '.join(wrong)}, which the format {FORMAT} has")
    names, colors, ignored = content["class_names"], content["colors"], content["ignore_index"]
    if not 1 <= len(names) <= MOST_CLASSES or len(set(map(str, names))) < len(names):
        raise ValueError(f"must have 1 to {MOST_CLASSES} different class_names, got {len(names)}")
    shades = [shade for color in colors for shade in color]
    if len(colors) != len(names) + 1 or len(shades) != 3 * len(colors) or not set(shades) <= set(range(256)):
        raise ValueError(f"must have {len(names) + 1} RGB colors of 0 to 255")
    if not len(names) <= ignored <= 255:
        raise ValueError(f"must have an ignore_index of {len(names)} to 255, got {ignored}")
    sides = [content["height"], content["width"], *(content["crop"] or ())]
    # Pictures are predicted by tiles as large as the crop: tiny ones would take for ever.
    least = (1, 1, LEAST_CROP, LEAST_CROP)[: len(sides)]
    good = len(sides) in (2, 4) and all(type(side) is int for side in sides)
    if not good or any(not low <= side <= MOST_SIDE for low, side in zip(least, sides, strict=True)):
        rule = f"height and width of 1 to {MOST_SIDE} pixels and a crop of {LEAST_CROP} to {MOST_SIDE}"
        raise ValueError(f"must have {rule}, got {sides}")
    return content


def _kind(content: Mapping[str, Any]) -> str:
    """What a torch file of another kind is, in words."""
    if isinstance(content.get("format"), str):
        return f"of the format {content['format'][:80]}"
    names = [str(name)[:80] for name in content]
    if names and all(isinstance(value, Tensor) for value in content.values()):
        return f"a bare state dict ({len(names)} tensors, first {names[0]}), which does not say what model it is of"
    return f"a torch file with the entries {', '.join(names[:5]) or 'none'}{', ...' if len(names) > 5 else ''}"


def _rebuild(entries: Mapping[str, Any], device: torch.device | str) -> Trained:
    run = _run(entries["run"])
    try:
        model = build_model(run, len(entries["class_names"]))
    except Exception as error:  # encoders of other libraries fail in their own ways
        problem = f"{type(error).__name__}: {error}"
        raise ValueError(f"names the model {run.id}, which cannot be built here ({problem})") from error
    _load_state(model, entries["state_dict"], run)
    red_green_blue = (tuple(color) for color in entries["colors"])
    return Trained(
        model=Segmenter(model).eval().to(device),
        run=run,
        class_names=tuple(map(str, entries["class_names"])),
        colors=tuple((red, green, blue) for red, green, blue in red_green_blue),
        ignore_index=entries["ignore_index"],
        height=entries["height"],
        width=entries["width"],
        data=entries["data"],
        step=entries["step"],
        val_miou=entries["val_miou"],
        crop=None if entries["crop"] is None else (entries["crop"][0], entries["crop"][1]),
    )


def _run(values: Mapping[str, Any]) -> Run:
    """The run of its fields, each of them among what is known here."""
    names = [part.name for part in fields(Run)]
    if unknown := [str(name)[:80] for name in values if name not in names]:
        raise ValueError(f"names fields of a run that are not known here: {', '.join(unknown[:SHOWN])}")
    if missing := [part.name for part in fields(Run) if part.default is MISSING and part.name not in values]:
        raise ValueError(f"lacks fields of its run: {', '.join(missing)}")
    run = Run(**values)
    choices: dict[str, tuple[object, ...]] = {
        "decoder": tuple(DECODERS),
        "output_stride": OUTPUT_STRIDES,
        "stem": (*STEMS, None),
        "dilation": (*DILATIONS, None),
        "alignment": (*ALIGNMENTS, None),
    }
    for name, known in choices.items():
        if (value := getattr(run, name)) not in known:
            raise ValueError(f"names a {name} that is not one of {', '.join(map(str, known))}: {str(value)[:80]}")
    for name, least, most in (("seed", 0, 2**63), ("window", 1, MOST_WINDOW)):
        value = getattr(run, name)
        if not (isinstance(value, int) and least <= value <= most) and not (name == "window" and value is None):
            raise ValueError(f"must have a {name} of {least} to {most}, got {str(value)[:80]}")
    if not isinstance(run.encoder, str):
        raise ValueError(f"must name an encoder, got {str(run.encoder)[:80]}")
    try:
        check_encoder(run.encoder)
    except ValueError as error:
        raise ValueError(f"names an encoder that is not known here: {run.encoder[:80]}") from error
    return run


def _load_state(model: nn.Module, state: Mapping[str, Tensor], run: Run) -> None:
    """Load all tensors, or raise ValueError that lists those that do not fit."""
    target = model.state_dict()
    problems = [f"missing {name}" for name in target if name not in state]
    problems += [f"unexpected {str(name)[:200]}" for name in state if name not in target]
    problems += [
        f"{name} has shape {tuple(getattr(state[name], 'shape', ()))}, the model's {tuple(tensor.shape)}"
        for name, tensor in target.items()
        if name in state and getattr(state[name], "shape", None) != tensor.shape
    ]
    if problems:
        if len(problems) > SHOWN:
            problems[SHOWN:] = [f"and {len(problems) - SHOWN} more"]
        raise ValueError("\n  ".join([f"holds tensors that do not fit the model {run.id}:", *problems]))
    model.load_state_dict(state)
