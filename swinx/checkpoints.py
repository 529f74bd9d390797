"""Load weights in any layout in which Swin is published, checked before the first one changes.

Shapes: h heads, S = 2 w - 1 side of a bias table of window side w.
"""

from __future__ import annotations

import os
import re
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from segmentation_models_pytorch.base import SegmentationModel
from torch import Tensor, nn

from swinx.checkpoint_files import existing, read_checkpoint
from swinx.checkpoint_layouts import (
    BLOCK,
    COORDINATES,
    DROPPED,
    OTHER_FAMILIES,
    TABLE,
    VERSION_MARKS,
    WITHIN,
    counted_window,
    refuse_foreign,
    take_apart,
    to_our_names,
    without_wrappers,
)
from swinx.config import Pair, WindowSize
from swinx.stems import adapt_input_weight, input_convolutions

if TYPE_CHECKING:
    from swinx.encoder import SwinXEncoder

_LEVEL_NORM = re.compile(r"^norms\.\d+\.")
_FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_MAX_ENTRY = 2**24  # elements; the encoder's own largest entry may be larger


def load_checkpoint(encoder: nn.Module, path: str | Path) -> None:
    """Load pretrained weights from a file into an encoder, in place.

    Reads safetensors, and what torch.save wrote as plain tensors (never executing a pickle), in any of these layouts:
    official classification, official segmentation, timm, smp's `tu-swin`, mmsegmentation, MoBY and SimMIM, ours, and
    whole models with our encoder, under whatever name a training gave it, also out of data parallel or compiled
    training, and training files with their optimiser and options; of a file that holds averaged weights too
    (`state_dict_ema`, `model_ema`), these, as timm does. A file of several encoders, such as a student and a teacher,
    is refused unless it names one as smp, Lightning or data parallel do. Bias tables of another window are resized
    (bicubic) and kernels for another number of image channels adapted, each with a warning. An official file of Swin V2
    that counts offsets in other windows than the encoder is loaded with a warning; timm's files do not tell. The
    encoder is changed only if the whole checkpoint fits.

    Args:
        encoder: `model.encoder` of one of smp's models, that of a `tu-swinx_…` too, or another module that holds one
            SwinXEncoder; compiled or data parallel too.
        path: of the file.

    Raises:
        TypeError: encoder holds no SwinXEncoder or several, or is a whole model of smp's, or path is no path.
        FileNotFoundError: no such file.
        ValueError: unreadable, of another family or size, incomplete, or with entries that are not finite, dense,
            floating tensors; the message lists every mismatch.
    """
    from swinx.models import encoders_in, unwrapped  # which import this file

    module = unwrapped(encoder) if isinstance(encoder, nn.Module) else encoder
    # A whole model is refused, as its decoder would stay untrained without a word.
    known = isinstance(module, nn.Module) and not isinstance(module, SegmentationModel)
    found = encoders_in(module) if known else []
    if len(found) != 1:
        given = type(module).__name__
        rule = "a SwinXEncoder or a module that holds one (of an smp model: model.encoder)"
        raise TypeError(f"encoder must be {rule}, got {given}")
    if not isinstance(path, (str, os.PathLike)):
        advice = "; for weights in memory call encoder.load_state_dict(weights)" if isinstance(path, Mapping) else ""
        raise TypeError(f"path must be the path of a file, got {type(path).__name__}{advice}")
    path = existing(path, "path")
    try:
        found[0].load_state_dict(read_checkpoint(path))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def convert_state_dict(
    state_dict: Mapping[str, Any], encoder: SwinXEncoder, strict: bool = True, assign: bool = False
) -> OrderedDict[str, Any]:
    """A state dict in any known layout as one that fits the encoder key by key.

    What a foreign checkpoint cannot hold (norms of levels, convolutions of a stem), and the norms of levels that one of
    our classifiers has not, keep the encoder's present values. Stages beyond the encoder's depth are left out, and so
    are norms of levels where the encoder is a classifier's, which has the last alone. Without strict, entries may be
    missing or unexpected. Everything is checked here, before the first weight changes; assign: whether entries are to
    take the place of the weights.

    Raises:
        ValueError: another family or size, or missing, unexpected, misshapen or unfit entries (all are listed).
    """
    if not isinstance(state_dict, Mapping):
        raise ValueError(f"state_dict must be a mapping of names to tensors, got {type(state_dict).__name__}")
    target = encoder.state_dict()
    keys = {WITHIN.sub("", key): key for key in target}  # also where something was put around a module
    given = without_wrappers({key: value for key, value in state_dict.items() if isinstance(key, str)})
    # Its own, or one of the same kind: adapters, packed weights and all.
    exact = given.keys() == keys.keys() or (not strict and given.keys() <= keys.keys())
    weights = given if exact else without_wrappers(take_apart(state_dict).backbone)
    known = sum(key in keys for key in weights)
    # Only our files have norms of levels under this name; at depth 1 they hold a stem and nothing else.
    own = (
        exact
        or any(_LEVEL_NORM.match(key) for key in weights)
        or all(key.startswith("patch_embed.") for key in weights)
        or (not strict and known == len(weights))
    )
    if not exact:
        _refuse_other_families(weights, encoder, own or known == len(weights) or (not strict and known > 0))
    wanted = {plain: target[key] for plain, key in keys.items()}
    refuse_unfit(weights, wanted)
    level_norms = {match[0] for key in weights if (match := _LEVEL_NORM.match(key))}
    if not own:
        _compare_units(weights, encoder)
        weights = to_our_names(weights)
    weights = _within_depth(weights, encoder)
    if {match[0] for key in wanted if (match := _LEVEL_NORM.match(key))} == {"norms.3."}:  # of our classifiers
        weights = {key: value for key, value in weights.items() if key in wanted or not _LEVEL_NORM.match(key)}
    if strict:
        _check_architecture(weights, wanted, encoder)
    kept: tuple[str, ...] = ()
    if not own:
        weights = _without_foreign_stem(weights, encoder)
        kept = ("norms.", "patch_embed." if _inline(encoder) else "patch_embed.conv")
    elif strict and level_norms == {"norms.3."}:  # of our classifiers, which have no other
        kept = ("norms.",)
    for key, value in wanted.items():
        if key.startswith(kept):
            weights.setdefault(key, value)
    weights = _resize_tables(weights, encoder)
    weights = _adapt_input(weights, encoder)
    _check_complete(weights, wanted, strict, assign)
    if assign:  # a parameter of its own memory, whatever the entry was a view of
        weights = {key: v.clone() if isinstance(v, Tensor) and 0 in v.stride() else v for key, v in weights.items()}
    converted = OrderedDict((keys.get(key, key), value) for key, value in weights.items())
    if exact and hasattr(state_dict, "_metadata"):  # versions, which modules like quantised ones ask for
        converted._metadata = state_dict._metadata  # type: ignore[attr-defined]  # torch keeps it there
    return converted


def _mismatch(problems: list[str]) -> ValueError:
    return ValueError("the checkpoint does not fit the encoder:\n  " + "\n  ".join(problems))


def refuse_unfit(weights: Mapping[str, Any], target: Mapping[str, Any]) -> None:
    """Entries that are no plain tensors of floating numbers, before anything is computed with them."""
    largest = max([_MAX_ENTRY, *(value.numel() for value in target.values() if isinstance(value, Tensor))])
    problems = []
    for key, value in weights.items():
        if key in target:
            wanted = target[key]
            if not isinstance(wanted, Tensor) or wanted.is_quantized:
                if not _alike(value, wanted):
                    problems.append(f"{key} must be like the encoder's {type(wanted).__name__}")
                continue
        elif DROPPED.search(key):
            continue
        else:
            wanted = None
        if not isinstance(value, Tensor):
            problems.append(f"{key[:200]} must be a tensor, got {type(value).__name__}")
        elif fault := _fault(value, wanted, largest):
            problems.append(f"{key[:200]} must be {fault}")
    if problems:
        raise _mismatch(problems)


def _alike(value: Any, wanted: Any) -> bool:
    """Whether packed weights have the parts, dtypes and shapes of others."""
    if type(value) is not type(wanted):
        return False
    if isinstance(wanted, (tuple, list)):
        return len(value) == len(wanted) and all(_alike(*pair) for pair in zip(value, wanted, strict=True))
    return not isinstance(wanted, Tensor) or (value.dtype, value.shape) == (wanted.dtype, wanted.shape)


def _fault(value: Tensor, wanted: Tensor | None, largest: int) -> str | None:
    """What an entry must be and is not; wanted: what it is for, where that is known."""
    if value.is_nested:
        return "a plain tensor, got a nested one"
    if value.is_quantized:
        return f"a plain tensor, got a quantised one of {value.dtype}"
    # An encoder of such tensors, as FSDP2 makes it, takes its own.
    alike = wanted is not None and type(value) is type(wanted) and value.dtype == wanted.dtype
    if type(value) not in (Tensor, nn.Parameter) and not alike:
        return f"a plain tensor, got {type(value).__name__}"
    if value.layout is not torch.strided:
        return f"dense, got layout {value.layout}"
    if value.device.type == "meta":
        return "on a device that holds data, got meta"
    if wanted is not None and not wanted.is_floating_point():
        return None if value.dtype == wanted.dtype else f"of {wanted.dtype}, got {value.dtype}"
    if value.dtype not in _FLOATING:
        return f"of a floating dtype of 16, 32 or 64 bits, got {value.dtype}"
    if value.numel() > largest or value.numel() == 0:
        return f"of 1 to {largest} elements, got shape {tuple(value.shape)}"
    return None


def _refuse_other_families(weights: Mapping[str, Tensor], encoder: SwinXEncoder, known: bool) -> None:
    version = encoder.config.version
    other = "v2" if version == "v1" else "v1"
    families = OTHER_FAMILIES | {mark: f"Swin {other.upper()}" for mark in VERSION_MARKS[other]}
    refuse_foreign(weights, families, "which this encoder is not", known)


def _within_depth(weights: Mapping[str, Tensor], encoder: SwinXEncoder) -> dict[str, Tensor]:
    """Without the stages and norms that the encoder's depth leaves out."""
    left_out = range(len(encoder.layers), len(encoder.config.depths))

    def kept(key: str) -> bool:
        match = re.match(r"^(?:layers|norms)\.(\d+)\.", key)
        return match is None or int(match[1]) not in left_out

    return {key: value for key, value in weights.items() if kept(key)}


def _check_architecture(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor], encoder: SwinXEncoder) -> None:
    """Compare embed_dim, depths and heads before entries, so that a wrong size is named and not listed key by key."""
    given, own = _architecture(weights, encoder), _architecture(wanted, encoder)
    if given != own:
        described = "embed_dim {}, depths {}, num_heads {}"
        raise ValueError(f"the checkpoint has {described.format(*given)}; the encoder has {described.format(*own)}")


def _architecture(weights: Mapping[str, Tensor], encoder: SwinXEncoder) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """embed_dim, depths and heads of entries for an encoder, which may have lost blocks and heads."""
    config, stages = encoder.config, len(encoder.layers)
    first = weights.get("layers.0.blocks.0.norm1.weight")
    depths = [0] * stages
    heads = list(config.num_heads[:stages])  # where no table says otherwise: a missing one is listed later
    for key, value in weights.items():
        if match := BLOCK.match(key):
            stage = int(match[1])
            if stage >= stages:
                continue  # listed with the other unexpected entries
            depths[stage] = max(depths[stage], int(match[2]) + 1)
            if TABLE.match(key) and value.ndim == 2:
                heads[stage] = value.shape[1]
            elif key.endswith("attn.logit_scale") and value.ndim == 3:
                heads[stage] = value.shape[0]
    return config.embed_dim if first is None else first.numel(), tuple(depths), tuple(heads)


def _inline(encoder: SwinXEncoder) -> bool:
    return encoder.config.stem == "inline"


def _without_foreign_stem(weights: dict[str, Tensor], encoder: SwinXEncoder) -> dict[str, Tensor]:
    if not _inline(encoder):
        return weights
    warnings.warn("stem 'inline' has no patch embedding: the checkpoint's is not used", stacklevel=5)
    return {key: value for key, value in weights.items() if not key.startswith("patch_embed.")}


def _resize_tables(weights: dict[str, Tensor], encoder: SwinXEncoder) -> dict[str, Tensor]:
    """Bias tables for the windows of the encoder's stages: (S_h * S_w, h), bicubic over the S_h x S_w plane.

    A table that belongs to no square window stays as it is, to be listed with the other mismatches.
    """
    windows = [stage.window_size for stage in encoder.config.stages]
    resized = dict(weights)
    changes: set[str] = set()
    for key, table in weights.items():
        match = TABLE.match(key)
        if not match or table.ndim != 2:
            continue
        height, width = windows[int(match[1])]
        sides = (2 * height - 1, 2 * width - 1)
        side = round(table.shape[0] ** 0.5)
        if table.shape[0] == sides[0] * sides[1] or side * side != table.shape[0] or side % 2 == 0:
            continue
        plane = table.t().reshape(1, -1, side, side)
        high = plane.to(torch.promote_types(plane.dtype, torch.float32))
        plane = F.interpolate(high, size=sides, mode="bicubic", align_corners=False)
        resized[key] = plane.reshape(table.shape[1], -1).t().to(table.dtype).contiguous()
        own = (side + 1) // 2
        changes.add(f"from window {own} x {own} to {height} x {width}")
    if changes:
        warnings.warn(f"relative position bias tables resized {', '.join(sorted(changes))}", stacklevel=5)
    return resized


def _compare_units(weights: Mapping[str, Tensor], encoder: SwinXEncoder) -> None:
    """Warn where a file of Swin V2 says that it counts offsets in other windows than the encoder does."""
    own = [stage.pretrained_window_size for stage in encoder.config.stages]
    given = list(own)
    for key, table in weights.items():
        match = COORDINATES.match(key)
        stage = int(match[1]) if match else len(encoder.layers)
        if stage < len(encoder.layers) and _fault(table, None, _MAX_ENTRY) is None and table.shape[3:] == (2,):
            # A window of one token has no unit, and ours is then that of two.
            pairs = zip(own[stage], counted_window(table), strict=True)
            height, width = (ours if theirs in (None, max(ours, 2)) else theirs for ours, theirs in pairs)
            given[stage] = height, width
    if given != own:
        theirs, ours = _shortest(given), _shortest(own)
        warnings.warn(
            f"the checkpoint counts offsets in windows of {theirs}, the encoder in windows of {ours}: to count as the "
            f"checkpoint does, register a variant with window_size={encoder.config.window_size}, "
            f"pretrained_window_size={theirs}",
            stacklevel=5,
        )


def _shortest(windows: list[Pair]) -> WindowSize:
    """The windows of the four stages as SwinConfig takes them."""
    sides = [height if height == width else (height, width) for height, width in windows]
    return sides[0] if len(set(sides)) == 1 else (sides[0], sides[1], sides[2], sides[3])


def _adapt_input(weights: dict[str, Tensor], encoder: SwinXEncoder) -> dict[str, Tensor]:
    """Kernels that read the image, for the encoder's number of channels."""
    adapted = dict(weights)
    for name, module in input_convolutions(encoder.patch_embed).items():
        key = f"patch_embed.{name}.weight"
        kernel, wanted = weights.get(key), module._parameters.get("weight")
        if kernel is None or wanted is None or kernel.ndim != wanted.ndim:
            continue
        old, new = kernel.shape[1], wanted.shape[1]
        if old != new:
            warnings.warn(f"{key} adapted from {old} to {new} image channels", stacklevel=5)
            adapted[key] = adapt_input_weight(kernel, new)
    return adapted


def _check_complete(weights: Mapping[str, Any], target: Mapping[str, Any], strict: bool, assign: bool) -> None:
    problems = []
    if strict:
        problems += [f"missing {key}" for key in target if key not in weights]
        problems += [f"unexpected {key[:200]}" for key in weights if key not in target]
    for key, wanted in target.items():
        value = weights.get(key)
        if not isinstance(value, Tensor) or not isinstance(wanted, Tensor) or wanted.is_quantized:
            continue
        if value is wanted:  # kept, for want of one in the checkpoint
            if value.device.type == "meta":
                problems.append(f"{key} is neither in the checkpoint nor in the encoder, which is on the device meta")
        elif value.shape != wanted.shape:
            problems.append(f"{key} has shape {tuple(value.shape)}, the encoder's {tuple(wanted.shape)}")
        elif wanted.device.type == "meta" and not assign:
            problems.append(f"{key} would be lost on the encoder's device meta: pass assign=True, or use to_empty")
        elif not torch.isfinite(value if assign else value.to(wanted.dtype)).all():
            problems.append(f"{key} must be finite in {value.dtype if assign else wanted.dtype}")
    if problems:
        raise _mismatch(problems)
