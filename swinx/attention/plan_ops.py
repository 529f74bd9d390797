"""Window plans as an operator of their own, for torch.compile.

Traced op by op, the integer arithmetic of a plan is inlined into every gather that reads it: the compiler takes minutes
to simplify it, and the kernel repeats it for every channel. As one opaque operator it is computed once per stage.
Exported programs hold the plain operations instead, so that they run without swinx.

Shapes: B images, H W grid, N tokens in a window, M windows of one image.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from swinx import windows
from swinx.windows import WindowPlan


@torch.library.custom_op("swinx::window_plan", mutates_args=())
def _window_plan(
    batch: int,
    height: int,
    width: int,
    window_size: Sequence[int],
    shift: Sequence[int],
    dilation: int,
    shifted: bool,
    device: torch.device,
) -> tuple[Tensor, Tensor, Tensor]:
    """gather (B * M * N,), scatter (B * H * W,) and visible (B * M, N, N), which is empty without a shift."""
    window, amount = (window_size[0], window_size[1]), (shift[0], shift[1])
    plan = windows.window_plan(batch, height, width, window, amount, dilation, shifted, True, True, device)
    visible = torch.empty(0, dtype=torch.bool, device=device) if plan.visible is None else plan.visible
    return plan.gather, plan.scatter, visible


@_window_plan.register_fake
def _(
    batch: int,
    height: int,
    width: int,
    window_size: Sequence[int],
    shift: Sequence[int],
    dilation: int,
    shifted: bool,
    device: torch.device,
) -> tuple[Tensor, Tensor, Tensor]:
    count = windows.window_count(batch, height, width, (window_size[0], window_size[1]), dilation)
    tokens = window_size[0] * window_size[1]
    visible = (count, tokens, tokens) if shifted else (0,)
    return (
        torch.empty(count * tokens, dtype=torch.int64, device=device),
        torch.empty(batch * height * width, dtype=torch.int64, device=device),
        torch.empty(visible, dtype=torch.bool, device=device),
    )


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
    """`swinx.windows.window_plan` with attended padding, through the operator."""
    gather, scatter, visible = _window_plan(batch, height, width, window_size, shift, dilation, shifted, device)
    return WindowPlan(gather, scatter, visible if shifted else None, True)
