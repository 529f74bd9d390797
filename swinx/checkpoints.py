"""Read the checkpoint layouts in which Swin weights are published and turn them into ours.

Shapes: C channels, o output features, h heads, S = 2 w - 1 side of a bias table of window side w.
Ours is timm's naming (merge at the start of a stage) with one LayerNorm per level: `norms.0` to `norms.3`.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from swinx.config import window_pair
from swinx.stems import adapt_input_weight

if TYPE_CHECKING:
    from swinx.encoder import SwinXEncoder

_WRAPPERS = ("state_dict", "model")
# In this order: data parallel, Lightning, torch.compile, then the encoder's place in a segmentation model.
_PREFIXES = ("module.", "model.", "_orig_mod.", "backbone.", "encoder.model.", "encoder.")
_OTHER_FAMILIES = {
    "logit_scale": "Swin V2",
    "cpb_mlp": "Swin V2",
    "spatial_mlp": "Swin-MLP",
    "_moe_layer": "Swin-MoE",
    "absolute_pos_embed": "Swin with absolute position embedding",
}
_DROPPED = re.compile(r"(^|\.)(attn_mask|relative_position_index)$|^head\.|^mask_token$")
_BLOCK = re.compile(r"^layers\.(\d+)\.blocks\.(\d+)\.")
_TABLE = re.compile(r"^layers\.(\d+)\.blocks\.(\d+)\.attn\.relative_position_bias_table$")
_ANY_TABLE = re.compile(r"^(layers[._]|stages\.)\d+\.blocks\.\d+\.attn\.(w_msa\.)?relative_position_bias_table$")


def load_checkpoint(encoder: SwinXEncoder, path: str | Path) -> None:
    """Load pretrained weights from a file into an encoder, in place.

    Reads `.safetensors`, and `.pth` or `.pt` as plain tensors (never executing a pickle), in any of these layouts:
    official classification, official segmentation (bare or under `backbone.`), timm, smp's `tu-swin`, mmsegmentation,
    MoBY and SimMIM, ours, and whole smp models with our encoder, also out of data parallel, Lightning or compiled
    training. Bias tables of another window are resized (bicubic) and kernels for another number of image channels
    adapted, each with a warning. The encoder is changed only if the whole checkpoint fits.

    Raises:
        TypeError: encoder is not a SwinXEncoder.
        FileNotFoundError: no such file.
        ValueError: unreadable, of another family or size, or incomplete; the message lists every mismatch.
    """
    if not hasattr(encoder, "patch_embed") or not hasattr(encoder, "config"):
        given = type(encoder).__name__
        raise TypeError(f"encoder must be a SwinXEncoder (of an smp model: model.encoder), got {given}")
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path must be a checkpoint file, got {path}")
    try:
        encoder.load_state_dict(_read(path))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _read(path: Path) -> Mapping[str, Any]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError:
        raise
    except Exception as error:  # a truncated file alone makes torch raise any of six types, an OSError among them
        if code := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise ValueError(
                f"holds more than tensors ({code[1]}), and reading it would run code from the file; "
                "save its state dict alone"
            ) from error
        raise ValueError(f"is damaged or no checkpoint ({type(error).__name__}: {error})") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"must hold a state dict, got {type(content).__name__}")
    return content


def convert_state_dict(state_dict: Mapping[str, Any], encoder: SwinXEncoder, strict: bool = True) -> dict[str, Tensor]:
    """A state dict in any known layout as one that fits the encoder key by key.

    What a foreign checkpoint cannot hold (norms of levels, convolutions of a stem) keeps the encoder's present values.
    Stages beyond the encoder's depth are left out. Without strict, entries may be missing or unexpected.

    Raises:
        ValueError: another family or size, or missing, unexpected or misshapen entries (all are listed).
    """
    weights = _unwrap(state_dict)
    # Only our files have norms of levels under this name; at depth 1 they hold a stem and nothing else.
    own = "norms.0.weight" in weights or all(key.startswith("patch_embed.") for key in weights)
    _refuse_other_families(weights, own)
    if not own:
        weights = _rename(weights)
    weights = _within_depth(weights, len(encoder.layers))
    _check_architecture(weights, encoder)
    target = encoder.state_dict()
    if not own:
        weights = _without_foreign_stem(weights, encoder)
        for key in target:
            if key.startswith(("norms.", "patch_embed." if _inline(encoder) else "patch_embed.conv")):
                weights.setdefault(key, target[key])
    weights = _resize_tables(weights, encoder)
    weights = _adapt_input(weights, encoder)
    _check_complete(weights, target, strict)
    return weights


def _unwrap(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """The entries of the backbone, without the wrappers and prefixes that training code puts around them."""
    for wrapper in _WRAPPERS:
        if isinstance(state_dict.get(wrapper), Mapping):
            state_dict = state_dict[wrapper]
    weights = {key: value for key, value in state_dict.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if not weights:
        places = " or ".join(repr(wrapper) for wrapper in _WRAPPERS)
        begin = list(state_dict)[:5]
        raise ValueError(f"the checkpoint holds no tensors, bare or under {places}: it begins with {begin}")
    while found := [prefix for prefix in _PREFIXES if any(key.startswith(prefix) for key in weights)]:
        prefix = found[0]
        weights = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    return weights


def _refuse_other_families(weights: Mapping[str, Tensor], own: bool) -> None:
    for mark, family in _OTHER_FAMILIES.items():
        if any(mark in key for key in weights):
            raise ValueError(f"the checkpoint is {family}, which this encoder is not (entry {mark!r})")
    if not (own or any(_ANY_TABLE.match(key) for key in weights)):
        raise ValueError(f"the checkpoint is no Swin Transformer in a known layout: it begins with {list(weights)[:5]}")


def _rename(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Foreign names to ours."""
    if any(key.startswith("stages.") for key in weights):
        weights = _from_mmseg(weights)
    weights = {re.sub(r"^layers_(\d+)\.", r"layers.\1.", key): value for key, value in weights.items()}
    # Official checkpoints merge at the end of a stage, timm and we at the start of the next.
    ends_with_merge = any(key.startswith("layers.0.downsample.") for key in weights)
    renamed = {}
    for key, value in weights.items():
        if _DROPPED.search(key):
            continue
        if ends_with_merge:
            key = re.sub(r"^layers\.(\d+)\.downsample\.", lambda m: f"layers.{int(m[1]) + 1}.downsample.", key)
        key = re.sub(r"^norm(\d)\.", r"norms.\1.", key)
        key = re.sub(r"^norm\.", "norms.3.", key)
        renamed[key] = value
    return renamed


def _from_mmseg(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """mmsegmentation >= 0.16 to the official layout.

    Its merge unfolds channel by channel with taps in row-major order; Swin's concatenates tap by tap, column-major.
    """
    names = {
        "stages.": "layers.",
        "attn.w_msa.": "attn.",
        "ffn.layers.0.0.": "mlp.fc1.",
        "ffn.layers.1.": "mlp.fc2.",
        "patch_embed.projection.": "patch_embed.proj.",
    }
    converted = {}
    for key, value in weights.items():
        if ".downsample." in key and value.ndim and value.shape[-1] % 4 == 0:  # (..., 4C) as (C, 4) -> (4, C)
            value = value.reshape(*value.shape[:-1], -1, 4).transpose(-1, -2)[..., [0, 2, 1, 3], :].flatten(-2)
        for theirs, ours in names.items():
            key = key.replace(theirs, ours)
        converted[key] = value
    return converted


def _within_depth(weights: Mapping[str, Tensor], stages: int) -> dict[str, Tensor]:
    """Without the stages and norms that the encoder's depth leaves out."""

    def kept(key: str) -> bool:
        match = re.match(r"^(?:layers|norms)\.(\d+)\.", key)
        return match is None or int(match[1]) < stages

    return {key: value for key, value in weights.items() if kept(key)}


def _check_architecture(weights: Mapping[str, Tensor], encoder: SwinXEncoder) -> None:
    """Compare embed_dim, depths and heads before entries, so that a wrong size is named and not listed key by key."""
    config, stages = encoder.config, len(encoder.layers)
    first = weights.get("layers.0.blocks.0.norm1.weight")
    depths = [0] * stages
    heads = list(config.num_heads[:stages])  # where no table says otherwise: a missing one is listed later
    for key, value in weights.items():
        if match := _BLOCK.match(key):
            stage = int(match[1])
            depths[stage] = max(depths[stage], int(match[2]) + 1)
            if _TABLE.match(key) and value.ndim == 2:
                heads[stage] = value.shape[1]
    embed_dim = config.embed_dim if first is None else first.numel()
    found = (embed_dim, tuple(depths), tuple(heads))
    wanted = (config.embed_dim, tuple(config.depths[:stages]), tuple(config.num_heads[:stages]))
    if found != wanted:
        described = "embed_dim {}, depths {}, num_heads {}"
        raise ValueError(f"the checkpoint has {described.format(*found)}; the encoder has {described.format(*wanted)}")


def _inline(encoder: SwinXEncoder) -> bool:
    return encoder.config.stem == "inline"


def _without_foreign_stem(weights: dict[str, Tensor], encoder: SwinXEncoder) -> dict[str, Tensor]:
    if not _inline(encoder):
        return weights
    warnings.warn("stem 'inline' has no patch embedding: the checkpoint's is not used", stacklevel=5)
    return {key: value for key, value in weights.items() if not key.startswith("patch_embed.")}


def _resize_tables(weights: dict[str, Tensor], encoder: SwinXEncoder) -> dict[str, Tensor]:
    """Bias tables for the encoder's window: (S_h * S_w, h), bicubic over the S_h x S_w plane.

    A table that belongs to no square window stays as it is, to be listed with the other mismatches.
    """
    window = window_pair(encoder.config.window_size)
    sides = (2 * window[0] - 1, 2 * window[1] - 1)
    resized = dict(weights)
    found: set[int] = set()
    for key, table in weights.items():
        if not _TABLE.match(key) or table.ndim != 2 or table.shape[0] == sides[0] * sides[1]:
            continue
        side = round(table.shape[0] ** 0.5)
        if side * side != table.shape[0] or side % 2 == 0:
            continue
        plane = table.t().reshape(1, -1, side, side)
        plane = F.interpolate(plane.float(), size=sides, mode="bicubic", align_corners=False)
        resized[key] = plane.reshape(table.shape[1], -1).t().to(table.dtype)
        found.add((side + 1) // 2)
    if found:
        windows = ", ".join(f"{side} x {side}" for side in sorted(found))
        warnings.warn(
            f"relative position bias tables resized from window {windows} to {window[0]} x {window[1]}", stacklevel=5
        )
    return resized


def _adapt_input(weights: dict[str, Tensor], encoder: SwinXEncoder) -> dict[str, Tensor]:
    """Kernels that read the image, for the encoder's number of channels."""
    adapted = dict(weights)
    for name, module in encoder.patch_embed.named_modules(prefix="patch_embed"):
        key = f"{name}.weight"
        if module not in encoder.patch_embed.input_convolutions() or key not in weights:
            continue
        if weights[key].ndim != module.weight.ndim:
            continue
        old, new = weights[key].shape[1], module.weight.shape[1]
        if old != new:
            warnings.warn(f"{key} adapted from {old} to {new} image channels", stacklevel=5)
            adapted[key] = adapt_input_weight(weights[key], new)
    return adapted


def _check_complete(weights: Mapping[str, Tensor], target: Mapping[str, Tensor], strict: bool) -> None:
    problems = [f"missing {key}" for key in target if strict and key not in weights]
    problems += [f"unexpected {key}" for key in weights if strict and key not in target]
    problems += [
        f"{key} has shape {tuple(weights[key].shape)}, the encoder's {tuple(value.shape)}"
        for key, value in target.items()
        if key in weights and weights[key].shape != value.shape
    ]
    if problems:
        raise ValueError("the checkpoint does not fit the encoder:\n  " + "\n  ".join(problems))
