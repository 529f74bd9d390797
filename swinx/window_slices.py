"""Slices of a grid's windows, for evaluation on the CPU.

Blocks of a stage touch disjoint windows one by one, so a few windows can go through a whole block before the next few
start. What a slice needs in between stays in cache, where a whole grid's hidden layer or queries, keys and values would
be fresh memory from the operating system at every block.

Shapes: B images, H W grid, N tokens in a window, T tokens in a slice, m windows in a slice, M windows of one image.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from swinx.windows import WindowPlan

# Chosen on 32 MB of last-level cache: at 96 channels the hidden layer of the MLP takes 3 MB.
TOKENS_PER_SLICE = 2048


class WindowSlice(NamedTuple):
    """A few windows of a batch of grids.

    tokens: (T,) flat token numbers (image * H + y) * W + x, in the order of the window slots that hold them. gather:
    (m * N,) which of the T tokens each slot holds, T for padding; scatter: (T,) its inverse; both None where there is
    no padding and slots are tokens. visible: (m, N, N), see `swinx.windows.visible_pairs`, or None where all pairs are
    visible.
    """

    tokens: Tensor
    gather: Tensor | None
    scatter: Tensor | None
    visible: Tensor | None


def window_slices(plan: WindowPlan, window_tokens: int) -> list[WindowSlice]:
    """Cut the windows of a plan into slices of about TOKENS_PER_SLICE tokens.

    Windows that need neither padding nor a mask come first, so that as few slices as possible pay for either.

    Args:
        plan: for the whole batch.
        window_tokens: N.
    """
    count = plan.scatter.shape[0]
    slots = plan.gather.view(-1, window_tokens)
    plain = (slots < count).all(1)
    if plan.visible is not None:
        plain &= plan.visible.flatten(1).all(1)
    order = torch.cat([plain.nonzero(), (~plain).nonzero()]).flatten()
    parts = -(-slots.numel() // TOKENS_PER_SLICE)
    return [_window_slice(plan, slots, windows) for windows in order.chunk(parts)]


def _window_slice(plan: WindowPlan, slots: Tensor, windows: Tensor) -> WindowSlice:
    visible: Tensor | None = None
    if plan.visible is not None:
        visible = plan.visible[windows]
        if bool(visible.all()):
            visible = None
    tokens = slots[windows].flatten()
    filled = tokens < plan.scatter.shape[0]
    if bool(filled.all()):
        return WindowSlice(tokens, None, None, visible)
    scatter = filled.nonzero().flatten()
    gather = torch.where(filled, filled.cumsum(0) - 1, len(scatter))
    return WindowSlice(tokens[scatter], gather, scatter, visible)
