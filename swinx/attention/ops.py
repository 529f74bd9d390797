"""The Triton kernels as an operator of torch: schema, fake, autograd, autocast rule, FLOP formulas.

Imports torch alone; the kernels come when they run. As an opaque operator, window attention compiles into one graph
for all image sizes and stands in exported programs.

Shapes: B images, H W grid, h heads, D head_dim, N tokens in a window.
"""

import importlib
import importlib.util
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.flop_counter import register_flop_formula

from swinx import windows
from swinx.attention.triton_launch import ONE_TILE
from swinx.windows import WindowGeometry

MAX_SIDE = 16
MAX_HEAD_DIM = 128
MIN_CAPABILITY = (8, 0)  # Ampere: bfloat16 in the matrix units
MIN_TRITON = {10: (3, 9)}  # Blackwell: 3.6 compiles some float32 kernels into a trap


def triton_too_old(generation: int) -> str | None:
    """Why the installed Triton does not serve GPUs of a generation (first part of the compute capability), or None."""
    floor = max((version for start, version in MIN_TRITON.items() if generation >= start), default=None)
    if floor is None:
        return None
    found: str = importlib.import_module("triton").__version__
    if tuple(int(part) for part in found.split(".")[:2]) >= floor:
        return None
    needed = ".".join(map(str, floor))
    return f"on GPUs of compute capability {generation}.x it takes Triton {needed} and newer, got {found}"


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch leaves it without types
def slow(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether training is expected to be slower than SDPA: float32 before Hopper, with thousands of spills."""
    return dtype == torch.float32 and torch.cuda.get_device_capability(device)[0] < 9


def triton_missing() -> str | None:
    """Why the kernels cannot run at all here, or None."""
    return None if importlib.util.find_spec("triton") else "the package triton is not installed"


def unsupported(
    device: torch.device, dtype: torch.dtype, window_size: tuple[int, int], head_dim: int, contiguous: bool = True
) -> str | None:
    """Why the kernels do not take a case, naming what they take, or None.

    contiguous: whether the last dimension of qkv has stride 1.
    """
    reason = _device_reason(device)
    if reason is not None:
        return reason
    interpreted = device.type == "cpu"
    # The interpreter multiplies the raw bits of bfloat16; the matrix units have no float64 path worth a kernel.
    types = (torch.float16, torch.float32, torch.float64 if interpreted else torch.bfloat16)
    if dtype not in types:
        where = "in Triton's interpreter" if interpreted else "on a GPU"
        return f"{where} it takes {', '.join(str(d).removeprefix('torch.') for d in types)}, got {dtype}"
    if max(window_size) > MAX_SIDE:
        return f"it takes windows of up to {MAX_SIDE} tokens a side, got {window_size}"
    if head_dim > MAX_HEAD_DIM:
        return f"it takes a head_dim of up to {MAX_HEAD_DIM}, got {head_dim}"
    return None if contiguous else "it takes a qkv whose last dimension is contiguous"


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch leaves it without types
def _device_reason(device: torch.device) -> str | None:
    missing = triton_missing()
    if missing is not None:
        return missing
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":
        return None
    if device.type != "cuda" or torch.version.cuda is None:
        return (
            f"it takes tensors on an NVIDIA GPU (or, with TRITON_INTERPRET=1 in the environment, the CPU), got {device}"
        )
    capability = torch.cuda.get_device_capability(device)
    if capability < MIN_CAPABILITY:
        return f"it takes GPUs of compute capability {MIN_CAPABILITY} and above, got {capability}"
    return triton_too_old(capability[0])


def attend(qkv: Tensor, bias: Tensor, pad_qkv: Tensor | None, geometry: WindowGeometry) -> Tensor:
    """out (B, H, W, h * D) of the operator.

    Raises:
        NotImplementedError: forward-mode differentiation, of which the operator would drop the tangents.
    """
    if not torch.compiler.is_compiling():
        tangents = [forward_ad.unpack_dual(tensor).tangent for tensor in (qkv, bias, pad_qkv) if tensor is not None]
        if any(tangent is not None for tangent in tangents):
            raise NotImplementedError("impl='triton': it has no forward-mode derivative; choose impl='reference'")
    out: Tensor = window_attention(qkv, bias, pad_qkv, geometry.window_size, geometry.shift, geometry.dilation)[0]
    return out


@torch.library.custom_op("swinx::window_attention", mutates_args=())
def window_attention(
    qkv: Tensor,
    bias: Tensor,
    pad_qkv: Tensor | None,
    window_size: Sequence[int],
    shift: Sequence[int],
    dilation: int,
) -> tuple[Tensor, Tensor]:
    """(B, H, W, 3, h, D), (h, N, N), (3, h, D) -> out (B, H, W, h * D), lse; see `triton_backend.forward`."""
    from swinx.attention import triton_backend

    return triton_backend.forward(qkv, bias, pad_qkv, _geometry(qkv.shape, window_size, shift, dilation))


@window_attention.register_fake
def _(
    qkv: Tensor, bias: Tensor, pad_qkv: Tensor | None, window_size: Sequence[int], shift: Sequence[int], dilation: int
) -> tuple[Tensor, Tensor]:
    batch, height, width, _, heads, head_dim = qkv.shape
    sums = (batch, height, width, heads) if bias.shape[1] > ONE_TILE else (0,)
    dtype = torch.promote_types(qkv.dtype, torch.float32)
    return qkv.new_empty(batch, height, width, heads * head_dim), qkv.new_empty(sums, dtype=dtype)


@torch.library.custom_op("swinx::window_attention_backward", mutates_args=())
def window_attention_backward(
    grad_out: Tensor,
    qkv: Tensor,
    bias: Tensor,
    pad_qkv: Tensor | None,
    out: Tensor | None,
    lse: Tensor | None,
    window_size: Sequence[int],
    shift: Sequence[int],
    dilation: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of qkv, bias and pad_qkv; see `triton_backend.backward`."""
    from swinx.attention import triton_backend

    geometry = _geometry(qkv.shape, window_size, shift, dilation)
    return triton_backend.backward(grad_out, qkv, bias, pad_qkv, out, lse, geometry)


@window_attention_backward.register_fake
def _(
    grad_out: Tensor, qkv: Tensor, bias: Tensor, pad_qkv: Tensor | None, *rest: object
) -> tuple[Tensor, Tensor, Tensor]:
    grad_pad = qkv.new_empty(0) if pad_qkv is None else pad_qkv.new_empty(pad_qkv.shape)
    return qkv.new_empty(qkv.shape), bias.new_empty(bias.shape), grad_pad


def _geometry(qkv: Sequence[int], window_size: Sequence[int], shift: Sequence[int], dilation: int) -> WindowGeometry:
    """Of the shape of qkv."""
    return windows.window_geometry(qkv[0], qkv[1], qkv[2], window_size, shift, dilation)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    qkv, bias, pad_qkv, *ctx.rule = inputs
    out, lse = output
    tiled = bias.shape[1] > ONE_TILE  # smaller windows compute everything again
    ctx.save_for_backward(qkv, bias, pad_qkv, out if tiled else None, lse if tiled else None)
    ctx.mark_non_differentiable(lse)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_out is None:
        return (None,) * 6
    qkv, bias, pad_qkv, out, lse = ctx.saved_tensors
    grad_qkv, grad_bias, grad_pad = window_attention_backward(grad_out, qkv, bias, pad_qkv, out, lse, *ctx.rule)
    return grad_qkv, grad_bias, None if pad_qkv is None else grad_pad, None, None, None


window_attention.register_autograd(_backward, setup_context=_save_for_backward)


def _autocast_rule(device: str) -> Any:
    def rule(qkv: Tensor, bias: Tensor, pad_qkv: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor]:
        if qkv.dtype != torch.float64:
            qkv = qkv.to(torch.get_autocast_dtype(device))
        with torch.autocast(device, enabled=False):
            result: tuple[Tensor, Tensor] = window_attention(qkv, bias, pad_qkv, *rest)
        return result

    return rule


# As for torch's own attention, qkv takes the dtype of autocast. The bias keeps its own: scores are float32.
_library = torch.library.Library("swinx", "FRAGMENT")
for _device in ("cuda", "cpu"):
    _library.impl("window_attention", _autocast_rule(_device), f"Autocast{_device.upper()}")


def _score_flops(qkv: Sequence[int], window_size: Sequence[int], shift: Sequence[int], dilation: int) -> int:
    """FLOPs of one product over all windows, scores or values, padding included: 2 * windows * h * N * N * D."""
    _, _, _, _, heads, head_dim = qkv
    geometry = _geometry(qkv, window_size, shift, dilation)
    tokens = window_size[0] * window_size[1]
    return 2 * windows.window_count(geometry) * heads * tokens * tokens * head_dim


@register_flop_formula(torch.ops.swinx.window_attention)
def _flops(
    qkv: Sequence[int], bias: object, pad_qkv: object, *rule: Any, out_shape: object = None, **kwargs: object
) -> int:
    """Scores, and probabilities by values."""
    return 2 * _score_flops(qkv, *rule)


@register_flop_formula(torch.ops.swinx.window_attention_backward)
def _backward_flops(
    grad: object, qkv: Sequence[int], bias: object, pad_qkv: object, out: object, lse: object, *rule: Any,
    out_shape: object = None, **kwargs: object,
) -> int:  # fmt: skip
    """Scores again, and the gradients of probabilities, q, k and v."""
    return 5 * _score_flops(qkv, *rule)
