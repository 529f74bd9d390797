"""Window plans: what attention needs to know of the windows of the tokens that it is given.

A plan is for a whole batch of grids, or for a few of their windows: a slice. Blocks touch disjoint windows, so a slice
can go through a whole block before the next one starts, and what it needs in between stays in cache.

Shapes: B images, H W grid, C channels, N tokens in a window, M windows of one image, T tokens and S slots of a plan, a
multiple of N. A whole grid has T = B * H * W and S = B * M * N.
"""

import functools
import sys
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import exports, windows
from .exports import HeadIndices
from .windows import WindowGeometry

# Of the operators. Named after the package that this file lies in: a copy of it in another one registers its own.
NAMESPACE = __name__.rpartition(".")[0].replace(".", "_")
# Chosen on 32 MB of last-level cache: at 96 channels the hidden layer of the MLP takes 3 MB.
TOKENS_PER_SLICE = 2048


class WindowPlan(NamedTuple):
    """The windows of T tokens.

    impl: implementation of attention, never "auto". geometry: of the whole batch of grids. padded: whether one more
    token, the padding token, is to be projected after the T others. gather: (S,) number of the token that each slot
    holds, T for padding; scatter: (T,) the slot that holds each token; both None where slots are tokens, and for
    implementations that find the tokens themselves. visible: (S / N, N, N), whether slot i of a window attends to slot
    j, or None where all do. rows: (T,) flat numbers (image * H + y) * W + x of a slice's tokens; None for whole grids.
    bias: (h, N, N) position bias of the block, where it was computed once for all slices. by_head: in exported
    programs, instead of gather and scatter.
    """

    impl: str
    geometry: WindowGeometry
    padded: bool
    gather: Tensor | None = None
    scatter: Tensor | None = None
    visible: Tensor | None = None
    rows: Tensor | None = None
    bias: Tensor | None = None
    by_head: HeadIndices | None = None


def is_plain(x: Tensor) -> bool:
    """Whether x is an ordinary tensor in eager code: its sizes may be asked, and what is made for them may be kept.

    Not so in compiled, exported and traced code, for tensor subclasses (fake tensors among them), in dispatch modes
    (a FLOP counter), and inside transformations: vmap, grad, forward-mode differentiation.
    """
    # torch has no public name for the modes.
    return _may_ask_sizes(x) and torch._C._len_torch_dispatch_stack() == 0 and not is_transformed()


def _may_ask_sizes(x: Tensor) -> bool:
    plain = type(x) in (Tensor, torch.nn.Parameter)
    return plain and not torch.compiler.is_compiling() and not torch.jit.is_tracing()


def is_exporting() -> bool:
    """Whether torch.export traces what runs now."""
    # What torch.compiler.is_exporting() returns; that itself is always true in compiled code of torch 2.11.
    flag: bool | None = getattr(torch.compiler, "_is_exporting_flag", None)
    if flag is not None:
        return flag
    return getattr(sys.modules.get("torch.export._trace"), "_EXPORT_FLAGS", None) is not None  # torch 2.6


def is_transformed() -> bool:
    """Whether a transformation runs: vmap, grad and their kin, or forward-mode differentiation."""
    # torch has no public names for these; its own autograd.Function asks in the same way.
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def grid_plan(
    geometry: WindowGeometry, num_heads: int, shifted: bool, impl: str, indexed: bool, x: Tensor
) -> WindowPlan:
    """The plan of whole grids x (B, H, W, C), with attended padding.

    Args:
        geometry: of x.
        num_heads: of the attention.
        shifted: whether the shift can be other than (0, 0); in compiled code it is a symbol that must not be asked.
        impl: see `WindowPlan`.
        indexed: whether impl wants index tensors.
    """
    padded = not _may_ask_sizes(x) or windows.needs_padding(geometry)
    if not indexed:
        return WindowPlan(impl, geometry, padded)
    if is_plain(x):
        return WindowPlan(impl, geometry, padded, *_kept_indices(geometry, shifted, x.device))
    if is_exporting():
        by_head, visible = exports.head_indices(geometry, num_heads, shifted, x.device)
        return WindowPlan(impl, geometry, padded, visible=visible, by_head=by_head)
    if torch.compiler.is_compiling():
        gather, scatter, visible = _indices_operator(*geometry, shifted, x.device)
        return WindowPlan(impl, geometry, padded, gather, scatter, visible if shifted else None)
    return WindowPlan(impl, geometry, padded, *window_indices(geometry, shifted, True, x.device))


def window_indices(
    geometry: WindowGeometry, shifted: bool, attend_padding: bool, device: torch.device
) -> tuple[Tensor, Tensor, Tensor | None]:
    """gather (B * M * N,), scatter (B * H * W,) and visible (B * M, N, N) or None, see `WindowPlan`."""
    visible: Tensor | None = None
    if shifted or not attend_padding:
        visible = windows.visible_pairs(geometry, attend_padding, device)
    return windows.gather_index(geometry, device), windows.scatter_index(geometry, device), visible


@functools.lru_cache(maxsize=16)  # the stages of two image sizes
def _kept_indices(
    geometry: WindowGeometry, shifted: bool, device: torch.device
) -> tuple[Tensor, Tensor, Tensor | None]:
    with torch.inference_mode(False):  # what is made in inference mode could not be used in training
        return window_indices(geometry, shifted, True, device)


@functools.lru_cache(maxsize=16)
def kept_slices(geometry: WindowGeometry, shifted: bool, impl: str, device: torch.device) -> list[WindowPlan]:
    """The plan of whole grids, with attended padding, cut into slices of about TOKENS_PER_SLICE slots.

    Windows that need neither padding nor a mask come first, so that as few slices as possible pay for either.
    """
    with torch.inference_mode(False):
        plan = WindowPlan(impl, geometry, True, *window_indices(geometry, shifted, True, device))
        assert plan.gather is not None
        count = geometry.batch * geometry.height * geometry.width
        slots = plan.gather.view(-1, geometry.window_size[0] * geometry.window_size[1])
        easy = (slots < count).all(1)
        if plan.visible is not None:
            easy &= plan.visible.flatten(1).all(1)
        order = torch.cat([easy.nonzero(), (~easy).nonzero()]).flatten()
        parts = -(-slots.numel() // TOKENS_PER_SLICE)
        return [_slice(plan, slots, chosen, count) for chosen in order.chunk(parts)]


def _slice(plan: WindowPlan, slots: Tensor, chosen: Tensor, count: int) -> WindowPlan:
    """The chosen windows of a plan of count tokens; slots: (B * M, N)."""
    visible = None if plan.visible is None else plan.visible[chosen]
    if visible is not None and bool(visible.all()):
        visible = None
    held = slots[chosen].flatten()
    filled = held < count
    if bool(filled.all()):
        return plan._replace(padded=False, gather=None, scatter=None, visible=visible, rows=held)
    scatter = filled.nonzero().flatten()
    gather = torch.where(filled, filled.cumsum(0) - 1, len(scatter))
    return plan._replace(padded=True, gather=gather, scatter=scatter, visible=visible, rows=held[scatter])


# Traced op by op, the integer arithmetic of a plan is inlined into every gather that reads it: the compiler takes
# minutes to simplify it, and the kernel repeats it for every channel. As one opaque operator it is computed once per
# stage. Exported programs hold the plain operations instead, so that they run without swinx.
# The schema is written out: torch 2.6 reads none from Sequence[int].
@torch.library.custom_op(
    f"{NAMESPACE}::window_indices",
    mutates_args=(),
    schema="(SymInt batch, SymInt height, SymInt width, SymInt[] window_size, SymInt[] shift, SymInt dilation, "
    "bool shifted, Device device) -> (Tensor, Tensor, Tensor)",
)
def _indices_operator(
    batch: int,
    height: int,
    width: int,
    window_size: Sequence[int],
    shift: Sequence[int],
    dilation: int,
    shifted: bool,
    device: torch.device,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `window_indices` with attended padding; visible is empty where nothing is shifted."""
    geometry = windows.window_geometry(batch, height, width, window_size, shift, dilation)
    # A CUDA graph owns what it computes, so indices are kept on the CPU only; the caller may overwrite what it gets.
    if device.type == "cpu":
        gather, scatter, visible = _kept_indices(geometry, shifted, device)
        gather, scatter = gather.clone(), scatter.clone()
    else:
        gather, scatter, visible = window_indices(geometry, shifted, True, device)
    empty = torch.empty(0, dtype=torch.bool, device=device)
    return gather, scatter, empty if visible is None else visible.clone()


@_indices_operator.register_fake
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
    geometry = windows.window_geometry(batch, height, width, window_size, shift, dilation)
    tokens = window_size[0] * window_size[1]
    visible = (windows.window_count(geometry), tokens, tokens) if shifted else (0,)
    return (
        torch.empty(windows.slot_count(geometry), dtype=torch.int64, device=device),
        torch.empty(batch * height * width, dtype=torch.int64, device=device),
        torch.empty(visible, dtype=torch.bool, device=device),
    )
