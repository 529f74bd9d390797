"""The layouts in which Swin weights are published: their names, and ours.

Ours is timm's naming (merge at the start of a stage) with one LayerNorm per level: `norms.0` to `norms.3`. Shapes: C
channels.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from swinx.checkpoint_files import plain

# Where a training file has averaged weights too, these: as timm's own loader does.
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model", "net", "module")
# What every encoder has: what its names begin with is what these begin with.
_ANCHOR = re.compile(r"^(|.*?\.)patch_embed\.", re.DOTALL)
# For files of several encoders, or of parts of one. In this order: data parallel, Lightning, torch.compile, then where
# the encoder is in a segmentation model.
_PREFIXES = ("module.", "model.", "_orig_mod.", "backbone.", "encoder.model.", "encoder.")
# Put around a module, each adds its name to the keys below it.
WITHIN = re.compile(r"(^|(?<=\.))(_orig_mod|_checkpoint_wrapped_module)\.")
DROPPED = re.compile(r"(^|\.)(attn_mask|relative_position_index|relative_coords_table)$|^head\.|^mask_token$")
OTHER_FAMILIES = {
    "spatial_mlp": "Swin-MLP",
    "_moe_layer": "Swin-MoE",
    "absolute_pos_embed": "Swin with absolute position embedding",
}
# What tells the scores of one version from those of the other.
VERSION_MARKS = {"v1": ("relative_position_bias_table",), "v2": ("logit_scale", "cpb_mlp")}
BLOCK = re.compile(r"^layers\.(\d+)\.blocks\.(\d+)\.")
TABLE = re.compile(r"^layers\.(\d+)\.blocks\.(\d+)\.attn\.relative_position_bias_table$")
COORDINATES = re.compile(r"^layers\.(\d+)\.blocks\.0\.attn\.relative_coords_table$")
KNOWN = re.compile(r"^(layers[._]|stages\.)\d+\.blocks\.\d+\.attn\.(w_msa\.)?(\w*bias_table|logit_scale)$")
Layout = Literal["timm", "official", "mmseg"]
LAYOUTS: tuple[str, ...] = get_args(Layout)
_MMSEG_NAMES = {
    "stages.": "layers.",
    "attn.w_msa.": "attn.",
    "ffn.layers.0.0.": "mlp.fc1.",
    "ffn.layers.1.": "mlp.fc2.",
    "patch_embed.projection.": "patch_embed.proj.",
}
_TAPS = [0, 2, 1, 3]  # of a merge: column-major to row-major, and back


class Entries(NamedTuple):
    """A checkpoint taken apart.

    wrapper: the key of the mapping that holds the entries, "" if none. prefix: what all names of the backbone begin
    with. entries: all of them, under their names. backbone: its own, without the prefix.
    """

    wrapper: str
    prefix: str
    entries: dict[str, Tensor]
    backbone: dict[str, Tensor]


def without_wrappers(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Keys without the names of what was put around modules inside."""
    named: dict[str, Any] = {}
    for key, value in weights.items():
        name = WITHIN.sub("", key)
        if name in named:
            raise ValueError(f"the checkpoint holds {name[:200]} twice, with and without a wrapper's name in its key")
        named[name] = value
    return named


def take_apart(state_dict: Mapping[str, Any]) -> Entries:
    """The entries of the backbone, without the wrappers and prefixes that training code puts around them.

    Raises:
        ValueError: no tensors where they could be, or several encoders with nothing to choose one by.
    """
    within = ""
    for wrapper in _WRAPPERS:
        inner = plain(state_dict.get(wrapper))
        if isinstance(inner, Mapping) and any(isinstance(value, (Tensor, Mapping)) for value in inner.values()):
            state_dict, within = inner, wrapper
    entries = {key: value for key, value in state_dict.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if not entries:
        keys = " or ".join(repr(wrapper) for wrapper in _WRAPPERS)
        begin = list(state_dict)[:5]
        raise ValueError(f"the checkpoint holds no tensors, bare or under {keys}: it begins with {begin}")
    prefix = _prefix(entries)
    backbone = {key.removeprefix(prefix): value for key, value in entries.items() if key.startswith(prefix)}
    return Entries(within, prefix, entries, backbone)


def _prefix(entries: Mapping[str, Any]) -> str:
    """What the names of the encoder begin with: of several encoders, or parts of one, by the names that we know."""
    found = sorted({match[1] for key in entries if (match := _ANCHOR.match(key))})
    if len(found) == 1:
        return found[0]
    whole, keys = "", list(entries)
    while prefix := next((prefix for prefix in _PREFIXES if any(key.startswith(prefix) for key in keys)), ""):
        keys = [key.removeprefix(prefix) for key in keys if key.startswith(prefix)]
        whole += prefix
    if found and whole not in found:
        shown = ", ".join(repr(prefix[:200]) for prefix in found[:5])
        raise ValueError(
            f"the checkpoint holds {len(found)} encoders, under {shown}: save the state dict of the one that is meant"
        )
    return whole


def counted_window(coordinates: Tensor) -> tuple[int | None, int | None]:
    """The window (ph, pw) in whose units official files of Swin V2 count offsets; None where an axis does not tell.

    coordinates: (1, 2 wh - 1, 2 ww - 1, 2), for an offset o of window side p: sign(o) log2(1 + 8 |o| / (p - 1)) / 3.
    """
    farthest = torch.tensor([side // 2 for side in coordinates.shape[1:3]], dtype=torch.float64)
    units = 8 * farthest / (torch.exp2(3 * coordinates[0, -1, -1].double().cpu()) - 1)
    height, width = (round(unit) + 1 if 0.5 <= unit < math.inf else None for unit in units.tolist())
    return height, width


def refuse_foreign(weights: Mapping[str, Any], families: Mapping[str, str], rule: str, known: bool = False) -> None:
    """Refuse what is not for us. families: their names by a mark in names of entries; rule: why they are refused.

    Raises:
        ValueError: one of the families, or, unless known, no Swin Transformer in a layout that is known here.
    """
    for mark, family in families.items():
        if any(mark in key for key in weights):
            raise ValueError(f"the checkpoint is {family}, {rule} (entry {mark!r})")
    if not (known or any(KNOWN.match(key) for key in weights)):
        begin = [key[:200] for key in list(weights)[:5]]
        raise ValueError(f"the checkpoint is no Swin Transformer in a known layout: it begins with {begin}")


def to_our_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Foreign names to ours."""
    if any(key.startswith("stages.") for key in weights):
        weights = _from_mmseg(weights)
    weights = {re.sub(r"^layers_(\d+)\.", r"layers.\1.", key): value for key, value in weights.items()}
    # Official checkpoints merge at the end of a stage, timm and we at the start of the next.
    ends_with_merge = any(key.startswith("layers.0.downsample.") for key in weights)
    renamed = {}
    for key, value in weights.items():
        if DROPPED.search(key):
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
    converted = {}
    for key, value in weights.items():
        if ".downsample." in key and value.ndim and value.shape[-1] % 4 == 0:  # (..., 4C) as (C, 4) -> (4, C)
            value = value.reshape(*value.shape[:-1], -1, 4).transpose(-1, -2)[..., _TAPS, :].flatten(-2)
        for theirs, ours in _MMSEG_NAMES.items():
            key = key.replace(theirs, ours)
        converted[key] = value
    return converted


def from_our_names(weights: Mapping[str, Tensor], layout: Layout) -> tuple[dict[str, Tensor], list[str]]:
    """Our names to those of another layout, and which of ours it does not have.

    weights: of an encoder, of which norms of levels may be missing, and `head.fc` of a classifier. Official and timm's
    layouts have the norm of the last level alone; mmsegmentation's has all of them, and no head. None has the
    convolutions of a stem.

    Raises:
        ValueError: the stem "inline", which has no patch embedding, or Swin V2 for mmsegmentation, which has none.
    """
    if weights["patch_embed.proj.weight"].shape[-1] != 4:
        raise ValueError("the checkpoint has the stem inline, which no other layout has: it has no patch embedding")
    if layout == "mmseg" and any(mark in key for key in weights for mark in VERSION_MARKS["v2"]):
        raise ValueError("the checkpoint is Swin V2, which mmsegmentation does not have")
    renamed: dict[str, Tensor] = {}
    left_out: list[str] = []
    for key, value in weights.items():
        norm, last, head = (key.startswith(part) for part in ("norms.", "norms.3.", "head."))
        missing = head if layout == "mmseg" else norm and not last
        if missing or key.startswith("patch_embed.conv"):
            left_out.append(key)
        elif layout == "mmseg":
            name, value = _to_mmseg(key, value)
            renamed[f"backbone.{name}"] = value
        else:
            key = re.sub(r"^norms\.3\.", "norm.", key)
            renamed[_merge_at_the_end(key).replace("head.fc.", "head.") if layout == "official" else key] = value
    return renamed, left_out


def _merge_at_the_end(key: str) -> str:
    return re.sub(r"^layers\.(\d+)\.downsample\.", lambda match: f"layers.{int(match[1]) - 1}.downsample.", key)


def _to_mmseg(key: str, value: Tensor) -> tuple[str, Tensor]:
    if ".downsample." in key:  # (..., 4C) as (4, C) -> (C, 4)
        value = value.reshape(*value.shape[:-1], 4, -1)[..., _TAPS, :].transpose(-1, -2).flatten(-2)
    key = re.sub(r"^norms\.", "norm", _merge_at_the_end(key))
    for theirs, ours in _MMSEG_NAMES.items():
        key = key.replace(ours, theirs)
    return key, value
