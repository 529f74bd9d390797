"""Window plans as operators of their own, for torch.compile.

Traced op by op, the integer arithmetic of a plan is inlined into every gather that reads it: the compiler spends minutes
on simplifying it and the kernel repeats it for every channel. As one opaque operator it is computed once per stage.
Exported programs hold the plain operations instead, so that they run without swinx.

Shapes: B images, H W grid, N tokens in a window, M windows of one image.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from swinx import windows
from swinx.windows import WindowPlan


def _pair(values: Sequence[int]) -> tuple[int, int]:
    return values[0], values[1]


@torch.library.custom_op("swinx::gather_index", mutates_args=())
def _gather_index(
    batch: int,
    height: int,
    width: int,
    window_size: Sequence[int],
    shift: Sequence[int],
    dilation: int,
    device: torch.device,
) -> Tensor:
    return windows.gather_index(batch, height, width, _pair(window_size), _pair(shift), dilation, device)


@_gather_index.register_fake
def _(
    batch: int,
    height: int,
    width: int,
    window_size: Sequence[int],
    shift: Sequence[int],
    dilation: int,
    device: torch.device,
) -> Tensor:
    count = windows.window_count(batch, height, width, _pair(window_size), dilation)
    return torch.empty(count * window_size[0] * window_size[1], dtype=torch.int64, device=device)


@torch.library.custom_op("swinx::scatter_index", mutates_args=())
def _scatter_index(
    batch: int,
    height: int,
    width: int,
    window_size: Sequence[int],
    shift: Sequence[int],
    dilation: int,
    device: torch.device,
) -> Tensor:
    return windows.scatter_index(batch, height, width, _pair(window_size), _pair(shift), dilation, device)


@_scatter_index.register_fake
def _(
    batch: int,
    height: int,
    width: int,
    window_size: Sequence[int],
    shift: Sequence[int],
    dilation: int,
    device: torch.device,
) -> Tensor:
    return torch.empty(batch * height * width, dtype=torch.int64, device=device)


@torch.library.custom_op("swinx::visible_pairs", mutates_args=())
def _visible_pairs(
    batch: int,
    height: int,
    width: int,
    window_size: Sequence[int],
    shift: Sequence[int],
    dilation: int,
    device: torch.device,
) -> Tensor:
    return windows.visible_pairs(batch, height, width, _pair(window_size), _pair(shift), dilation, True, device)


@_visible_pairs.register_fake
def _(
    batch: int,
    height: int,
    width: int,
    window_size: Sequence[int],
    shift: Sequence[int],
    dilation: int,
    device: torch.device,
) -> Tensor:
    count = windows.window_count(batch, height, width, _pair(window_size), dilation)
    tokens = window_size[0] * window_size[1]
    return torch.empty(count, tokens, tokens, dtype=torch.bool, device=device)


def window_plan(
    batch: int,
    height: int,
    width: int,
    window_size: tuple[int, int],
    shift: tuple[int, int],
    dilation: int,
    shifted: bool,
    device: torch.device,
) -> WindowPlan:
    """`swinx.windows.window_plan` with attended padding, through the operators."""
    geometry = (batch, height, width, window_size, shift, dilation)
    visible = _visible_pairs(*geometry, device) if shifted else None
    return WindowPlan(_gather_index(*geometry, device), _scatter_index(*geometry, device), visible, True)
