"""The implementations of window attention: what each takes, and when `auto` chooses it.

Shapes: h heads, D head_dim, N tokens in a window, T tokens and S slots of a plan (see `swinx.plans`).
"""

import functools
import os
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from ..plans import WindowPlan, is_exporting, is_transformed
from . import reference, sdpa
from .triton import first_use, operator, records, support

AttentionImpl = Literal["auto", "reference", "sdpa", "triton"]
IMPLEMENTATIONS: tuple[str, ...] = get_args(AttentionImpl)
VARIABLE = "SWINX_ATTENTION"
MAX_REFERENCE_TOKENS = 64  # measured: batched products win at 49 tokens, SDPA at 144


class Case(NamedTuple):
    """What decides whether an implementation can run, and whether `auto` takes it.

    dtype: what attention computes in. recording: whether gradients are recorded. cosine: the scores of Swin V2.
    contiguous: whether the last dimension of qkv has stride 1.
    """

    device: torch.device
    dtype: torch.dtype
    window_size: tuple[int, int]
    head_dim: int
    recording: bool
    cosine: bool = False
    contiguous: bool = True


class Backend(NamedTuple):
    """One implementation.

    attend: (qkv, bias, plan, cosine_scale) -> out, see `attend`. indexed: whether it is given window slots in their
    order, for which plans hold index tensors; else tokens, which it finds itself. refuses: why it cannot run a case,
    naming what it takes, or None. chosen: whether `auto` takes it for a case that no implementation before it took.
    """

    attend: Callable[[Tensor, Tensor, WindowPlan, Tensor | None], Tensor]
    indexed: bool
    refuses: Callable[[Case], str | None]
    chosen: Callable[[Case], bool]


def _in_windows(
    attention: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None, float], Tensor],
    qkv: Tensor,
    bias: Tensor,
    plan: WindowPlan,
    cosine_scale: Tensor | None,
) -> Tensor:
    _, _, heads, head_dim = qkv.shape
    if plan.by_head is None:
        q, k, v = qkv.reshape(-1, bias.shape[1], 3, heads, head_dim).permute(2, 0, 3, 1, 4).unbind(0)
    else:
        rows, shape = qkv.reshape(-1, head_dim), (-1, heads, bias.shape[1], head_dim)
        indices = plan.by_head  # by name: strict export of torch 2.8 fails on a slice of it
        q, k, v = (rows.index_select(0, i).view(shape) for i in (indices.queries, indices.keys, indices.values))
    scale = head_dim**-0.5
    if cosine_scale is not None:
        q = (_unit(q) * cosine_scale[:, None, None]).to(v.dtype)
        k = _unit(k).to(v.dtype)
        scale = 1.0
    out = attention(q, k, v, bias, plan.visible, scale)
    if plan.by_head is None:
        return out.transpose(1, 2).reshape(-1, heads * head_dim)
    return out.reshape(-1, head_dim).index_select(0, plan.by_head.results).view(-1, heads * head_dim)


def _unit(x: Tensor) -> Tensor:
    """Vectors (..., D) of length 1, in at least float32; a zero vector stays one.

    So do its gradients: the key of a padding token is zero, and the derivative there, 1 / 1e-12, overflows in float16.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return (x / length.clamp_min(1e-12)).masked_fill(length == 0, 0.0)


def _on_grid(qkv: Tensor, bias: Tensor, plan: WindowPlan, cosine_scale: Tensor | None) -> Tensor:
    batch, height, width = plan.geometry[:3]
    count = batch * height * width
    pad_qkv: Tensor | None = None
    if plan.padded:
        qkv, padding = qkv.split([count, 1])
        pad_qkv = padding[0]
    grid = qkv.view(batch, height, width, *qkv.shape[1:])
    return operator.attend(grid, bias, pad_qkv, cosine_scale, plan.geometry).flatten(0, 2)


def _triton_refuses(case: Case) -> str | None:
    return support.unsupported(case.device, case.dtype, case.window_size, case.head_dim, case.contiguous)


def _triton_unasked(case: Case) -> str | None:
    """Why the kernels are not for a model that did not ask for them by `set_attention`, or None."""
    if is_exporting() or torch.jit.is_tracing() or is_transformed():
        return "exports, traces and transformations hold torch's own operations"
    return _triton_refuses(case)


def _triton_works(case: Case) -> bool:
    """Whether they do at first use, for a model that did not ask for them; warns where they do not."""
    if torch.compiler.is_compiling():
        failed: bool = first_use.failed(case.device)
        return not failed
    reason = first_use.failure(case)
    if reason is not None:
        first_use.warn_once(f"the Triton kernels do not work here, so attention takes another implementation: {reason}")
    return reason is None


def _require_triton(case: Case) -> None:
    """Refuse kernels that were asked for and fail at first use. Compiled and traced code tries nothing.

    Raises:
        RuntimeError: they do, with the case and the reason.
    """
    if torch.compiler.is_compiling() or is_exporting() or torch.jit.is_tracing():
        return
    reason = first_use.failure(case)
    if reason is not None and reason != first_use.CAPTURING:
        height, width = case.window_size
        raise RuntimeError(
            f"impl='triton': the kernels do not work on {case.device} for {case.dtype}, windows of {height} x {width}, "
            f"head_dim {case.head_dim}, {'cosine' if case.cosine else 'scaled'} scores, "
            f"{'with' if case.recording else 'without'} gradients: {reason}. "
            f"`python -m {__package__}.check` tries all kinds of input; choose 'auto', 'reference' or 'sdpa' meanwhile"
        )


def _triton_chosen(case: Case) -> bool:
    """On a GPU of a kind that was tested, where the kernels are known to be faster and nothing hinders them."""
    if case.device.type != "cuda" or not records.tested(case.device):
        return False
    if support.slow(case.dtype, case.recording) or _triton_unasked(case) is not None:
        return False
    return _triton_works(case)


def _reference_chosen(case: Case) -> bool:
    """In exports and in transformations, where SDPA has no rules for what they do; else in eager code on the CPU, where
    it is the faster one.

    SDPA with a bias that needs a gradient falls back to slower products, and it makes little use of several threads for
    small windows in float32 or float64.
    """
    if is_transformed() or is_exporting():
        return True
    if case.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    small = case.window_size[0] * case.window_size[1] <= MAX_REFERENCE_TOKENS
    wide = case.dtype in (torch.float32, torch.float64)
    return case.recording or (small and wide and torch.get_num_threads() > 1)


# In the order in which `auto` asks them; the last takes everything.
BACKENDS: dict[str, Backend] = {
    "triton": Backend(_on_grid, False, _triton_refuses, _triton_chosen),
    "reference": Backend(
        functools.partial(_in_windows, reference.attention), True, lambda case: None, _reference_chosen
    ),
    "sdpa": Backend(functools.partial(_in_windows, sdpa.attention), True, lambda case: None, lambda case: True),
}


def attend(qkv: Tensor, bias: Tensor, plan: WindowPlan, cosine_scale: Tensor | None = None) -> Tensor:
    """Attention inside the windows of a plan.

    Args:
        qkv: (S, 3, h, D) slots where the plan's implementation is indexed; else, and in exported programs, (T, 3, h, D)
            tokens, after them the padding token where the plan is padded.
        bias: (h, N, N), added to the scores.
        cosine_scale: (h,), then scores are the cosines of queries and keys times it (Swin V2); else products by
            D^-0.5.

    Returns:
        (S, h * D), or (T, h * D) where qkv holds tokens.
    """
    return BACKENDS[plan.impl].attend(qkv, bias, plan, cosine_scale)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch leaves it without types
def environment_choice() -> str | None:
    """What the variable SWINX_ATTENTION says in place of `auto`, or None.

    Raises:
        ValueError: no implementation has that name.
    """
    wished = os.environ.get(VARIABLE) or "auto"
    if wished not in IMPLEMENTATIONS:
        raise ValueError(f"{VARIABLE} must be one of {', '.join(IMPLEMENTATIONS)}, got {wished!r}")
    return None if wished == "auto" else wished


def check_implementation(impl: str) -> None:
    """Refuse a name that is no implementation, and one that cannot run here whatever the input.

    Raises:
        ValueError: unknown name.
        NotImplementedError: "triton" without the package.
    """
    if impl not in IMPLEMENTATIONS:
        given = repr(impl[:200]) if isinstance(impl, str) else type(impl).__name__
        raise ValueError(f"impl must be one of {', '.join(IMPLEMENTATIONS)}, got {given}")
    missing = support.triton_missing() if impl == "triton" else None
    if missing is not None:
        raise NotImplementedError(f"impl='triton': {missing}; choose 'auto', 'reference' or 'sdpa'")


def resolve_implementation(impl: AttentionImpl, case: Case) -> str:
    """The implementation that runs: impl itself; for "auto" what the environment names, or the first of BACKENDS that
    takes itself to be the one. What the environment names gives way, with a warning, where it does not take the case.

    Raises:
        NotImplementedError: impl does not take the case.
        RuntimeError: impl is "triton", and the kernels are wrong or cannot run at first use.
        ValueError: the environment names no implementation.
    """
    if impl != "auto":
        reason = BACKENDS[impl].refuses(case)
        if reason is not None:
            raise NotImplementedError(f"impl={impl!r}: {reason}")
        if impl == "triton":
            _require_triton(case)
        return impl
    wished: str | None = environment_choice()
    if wished is not None:
        reason = _triton_unasked(case) if wished == "triton" else BACKENDS[wished].refuses(case)
        if reason is not None:
            first_use.warn_once(f"{VARIABLE}={wished} gives way to auto's choice: {reason}")
        elif wished != "triton" or _triton_works(case):
            return wished
    return next(name for name, backend in BACKENDS.items() if name != wished and backend.chosen(case))


def attention_dtype(x: Tensor) -> torch.dtype:
    """What attention computes in: the dtype of x, or that of autocast, which leaves float64 alone."""
    device = x.device.type
    # torch.amp.is_autocast_available would say so of meta, but breaks the graph in torch 2.6.
    lowered = device != "meta" and torch.is_autocast_enabled(device) and x.dtype != torch.float64
    return torch.get_autocast_dtype(device) if lowered else x.dtype
