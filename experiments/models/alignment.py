"""Levels of a dilated encoder, resampled to where decoders take their tokens to be.

Decoders take token i of a level of stride s to be centred at (i + 1/2) s input pixels. A dilated token stands where its
four taps and their taps are centred: at offset + i s with the offset of the nominal stride, D = offset / s - 1/2 tokens
further to the right and down (`swinx.encoder.LevelInfo`). For a patch embedding D is 1/2 at period 2 and 3/2 at 4.

Shapes: B images, C channels, H W grid of a level.
"""

import math

import torch
from torch import Tensor, nn

from swinx import SwinXEncoder


def centre_levels(encoder: SwinXEncoder) -> None:
    """Make an encoder resample its dilated levels to the centres that decoders assume; in place, without parameters.

    The image, level 1 and undilated levels stay as they are, also where a stem sets them off by a pixel or two: that is
    the same at every output stride. A forward hook does it, so state_dict keys stay, and make_dilated may follow.

    Raises:
        ValueError: the encoder does so already.
    """
    if _centred in encoder._forward_hooks.values():
        raise ValueError("encoder must not be centred already, got one whose levels are")
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
