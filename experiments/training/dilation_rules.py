"""What experiments change about a dilated encoder: how its stages attend, and where the tokens of its levels stand.

A dilated stage of period d keeps the grid of the stage before it. Its dense merge is the same under every rule; the
rules differ in the windows of its blocks.

- exact: windows of w x w tokens that lie d apart. Phase (0, 0) is the network at output stride 32.
- dense: windows of w x w neighbours. Each window covers 1 / d of the extent that the weights were made for.
- enlarged: windows of (d * w) x (d * w) neighbours, which cover that extent with all d * d lattices at once. There are
  d * d times as many scores as under the other rules, and the bias tables grow.

Alignment: decoders take token i of a level of stride s to be centred at (i + 1/2) s input pixels. A dilated token
stands where its four taps and their taps are centred: at offset + i s with the offset of the nominal stride, D =
offset / s - 1/2 tokens further to the right and down (`swinx.encoder.LevelInfo`). For a patch embedding D is 1/2 at
period 2 and 3/2 at 4. "centred" resamples the levels to where decoders take them to be.

Shapes: B images, C channels, H W grid of a level; h heads, w own window side, d period; a bias table of window side w
has (2 w - 1)^2 rows and h columns.
"""

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.records.grid import DILATIONS
from swinx import SwinXEncoder
from swinx.layers import WindowAttention, WindowAttentionV2
from swinx.stage import SwinStage


def set_rule(encoder: SwinXEncoder, rule: str) -> None:
    """Make the dilated stages of an exact encoder attend by a rule, in place; other stages do not change.

    Comes last: after make_dilated, and after the encoder's weights are loaded. state_dict keys never change, and
    "dense" changes no shape either. "enlarged" resizes the bias table of each dilated block (see `enlarged_table`) from
    (2 w - 1)^2 to (2 d w - 1)^2 rows for each head; Swin V2 computes its bias for any window, and keeps its shapes.
    Raises ValueError for an unknown rule, and where one was set before.
    """
    if rule not in DILATIONS:
        raise ValueError(f"rule must be one of {', '.join(DILATIONS)}, got {rule!r}")
    stages = cast(list[SwinStage], list(encoder.layers))
    if any(stage.period == 1 and merge.stride == 1 for stage in stages for merge in stage.merges()):
        raise ValueError(f"encoder must attend exactly before its rule is set to {rule!r}, got one with another rule")
    for stage in stages:
        if rule == "exact" or stage.period == 1:
            continue
        if rule == "enlarged":
            _enlarge(stage)
        stage.period = 1  # of the windows; the merge keeps its spacing


def _enlarge(stage: SwinStage) -> None:
    """Windows d times larger per side, and bias tables for them."""
    own, d = stage.window_size, stage.period
    stage.window_size = (d * own[0], d * own[1])
    for module in stage.modules():
        if isinstance(module, WindowAttentionV2):  # counts offsets in units of the pretraining's largest one
            height, width = module.pretrained_window_size
            module.pretrained_window_size = (d * max(height - 1, 1) + 1, d * max(width - 1, 1) + 1)
        elif isinstance(module, WindowAttention):
            table = module.relative_position_bias_table
            resized = enlarged_table(table.detach(), own, d)
            module.relative_position_bias_table = nn.Parameter(resized, requires_grad=table.requires_grad)


def enlarged_table(table: Tensor, window_size: tuple[int, int], period: int) -> Tensor:
    """The bias table of a window d times larger: ((2 wh - 1)(2 ww - 1), h) -> ((2 d wh - 1)(2 d ww - 1), h).

    An offset of k tokens on the dense grid is one of k / d tokens on the lattice, so the entry for (y, x) is the own
    table at (y / d, x / d): at multiples of d an own entry, in between bicubic (a = -0.75, torch's), with the border
    repeated outside, where at most 1 - 1 / d lattice tokens are asked for. Resizing by the sides of the tables, as is
    done for another window at the same spacing, would stretch offsets by (2 d w - 1) / (2 w - 1) > d.
    """
    height, width = 2 * window_size[0] - 1, 2 * window_size[1] - 1
    plane = table.t().reshape(1, -1, height, width)
    y = _places(window_size[0], period, plane)
    x = _places(window_size[1], period, plane)
    # grid_sample takes (x, y) in units of half the plane, -1 and 1 being its outer edges.
    grid = torch.stack(torch.meshgrid(y / height, x / width, indexing="ij")[::-1], dim=-1)[None]
    resized = F.grid_sample(plane, grid, mode="bicubic", padding_mode="border", align_corners=False)
    return resized.flatten(2)[0].t().contiguous()


def _places(window: int, period: int, like: Tensor) -> Tensor:
    """Twice the lattice offset of every dense offset along one axis of the larger window: (2 d w - 1,)."""
    reach = period * window - 1
    return torch.arange(-reach, reach + 1, device=like.device, dtype=like.dtype) * (2 / period)


def centre_levels(encoder: SwinXEncoder) -> None:
    """Make an encoder resample its dilated levels to the centres that decoders assume; in place, without parameters.

    The image, level 1 and undilated levels stay as they are, also where a stem sets them off by a pixel or two: that is
    the same at every output stride. A forward hook does it, so state_dict keys stay, and make_dilated may follow.
    """
    encoder.register_forward_hook(_centred)


def _centred(encoder: nn.Module, inputs: tuple[Tensor, ...], levels: list[Tensor]) -> list[Tensor]:
    assert isinstance(encoder, SwinXEncoder)  # a hook's signature cannot say so
    return [
        level if info.period == 1 else shifted_back(level, info.offset / info.stride - 0.5)
        for level, info in zip(levels, encoder.feature_info, strict=True)
    ]


def shifted_back(level: Tensor, tokens: float) -> Tensor:
    """A level (B, C, H, W) at places (y - tokens, x - tokens), tokens >= 0, of the same shape.

    Bilinear; before the first row and column the first is repeated.
    """
    whole = math.floor(tokens)
    for axis in (2, 3):
        near, far = _moved(level, axis, whole), _moved(level, axis, whole + 1)
        level = torch.lerp(near, far, tokens - whole)
    return level


def _moved(level: Tensor, axis: int, count: int) -> Tensor:
    """Token max(i - count, 0) at place i. By concatenation: its gradient adds up in a fixed order on every device."""
    count = min(count, level.shape[axis])
    first = level.narrow(axis, 0, 1)
    return torch.cat([first] * count + [level.narrow(axis, 0, level.shape[axis] - count)], dim=axis)
