"""Window plans as an operator of their own, for torch.compile.

Traced op by op, the integer arithmetic of a plan is inlined into every gather that reads it: the compiler takes minutes
to simplify it, and the kernel repeats it for every channel. As one opaque operator it is computed once per stage.
Exported programs hold the plain operations instead, so that they run without swinx.

Shapes: B images, H W grid, N tokens in a window, M windows of one image.
"""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from swinx import windows
from swinx.windows import WindowGeometry, WindowPlan


@functools.lru_cache(maxsize=16)  # the stages of two image sizes
def kept_window_plan(geometry: WindowGeometry, shifted: bool, device: torch.device) -> WindowPlan:
    """A plan with attended padding, kept for the next call: small images spend 2 % of their time on making it."""
    padded = windows.needs_padding(geometry)
    with torch.inference_mode(False):  # a plan made in inference mode could not be used in training
        return windows.window_plan(geometry, shifted, True, padded, device)


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
    geometry = WindowGeometry(batch, height, width, window, amount, dilation)
    # A CUDA graph owns what it computes, so plans are kept on the CPU only; the caller may overwrite what it gets.
    if device.type == "cpu":
        plan = kept_window_plan(geometry, shifted, device)
        plan = plan._replace(gather=plan.gather.clone(), scatter=plan.scatter.clone())
    else:
        plan = windows.window_plan(geometry, shifted, True, True, device)
    visible = torch.empty(0, dtype=torch.bool, device=device) if plan.visible is None else plan.visible.clone()
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
    geometry = WindowGeometry(batch, height, width, (window_size[0], window_size[1]), (shift[0], shift[1]), dilation)
    tokens = window_size[0] * window_size[1]
    visible = (windows.window_count(geometry), tokens, tokens) if shifted else (0,)
    return (
        torch.empty(windows.slot_count(geometry), dtype=torch.int64, device=device),
        torch.empty(batch * height * width, dtype=torch.int64, device=device),
        torch.empty(visible, dtype=torch.bool, device=device),
    )


def window_plan(geometry: WindowGeometry, shifted: bool, device: torch.device) -> WindowPlan:
    """`swinx.windows.window_plan` with attended padding, through the operator."""
    gather, scatter, visible = _window_plan(*geometry, shifted, device)
    return WindowPlan(gather, scatter, visible if shifted else None, True)
