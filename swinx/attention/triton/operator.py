"""The Triton kernels as an operator of torch: schema, fake, autograd, autocast rule, FLOP formulas.

Imports torch alone; the kernels come when they run. As an opaque operator, window attention compiles into one graph
for all image sizes and stands in exported programs.

Shapes: B images, H W grid, h heads, D head_dim, N tokens in a window, S slots (`swinx.windows`).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.flop_counter import register_flop_formula

from ... import windows
from ...plans import NAMESPACE
from ...windows import WindowGeometry
from .. import contract
from . import support
from .parameters import ONE_TILE


def attend(
    qkv: Tensor, bias: Tensor, pad_qkv: Tensor | None, cosine_scale: Tensor | None, geometry: WindowGeometry
) -> Tensor:
    """out (B, H, W, h * D) of the operator.

    Raises:
        NotImplementedError: forward-mode differentiation, of which the operator would drop the tangents.
    """
    if not torch.compiler.is_compiling():
        tensors = [tensor for tensor in (qkv, bias, pad_qkv, cosine_scale) if tensor is not None]
        if any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors):
            raise NotImplementedError("impl='triton': it has no forward-mode derivative; choose impl='reference'")
    rule = geometry.window_size, geometry.shift, geometry.dilation
    out: Tensor = window_attention(qkv, bias, pad_qkv, cosine_scale, *rule)[0]
    return out


# Schemas are written out: torch 2.6 reads none from Sequence[int].
_INPUTS = "Tensor qkv, Tensor bias, Tensor? pad_qkv, Tensor? cosine_scale"
_RULE = "SymInt[] window_size, SymInt[] shift, SymInt dilation"


@torch.library.custom_op(
    f"{NAMESPACE}::window_attention", mutates_args=(), schema=f"({_INPUTS}, {_RULE}) -> (Tensor, Tensor)"
)
def window_attention(
    qkv: Tensor,
    bias: Tensor,
    pad_qkv: Tensor | None,
    cosine_scale: Tensor | None,
    window_size: Sequence[int],
    shift: Sequence[int],
    dilation: int,
) -> tuple[Tensor, Tensor]:
    """(B, H, W, 3, h, D), (h, N, N), (3, h, D), (h,) -> out (B, H, W, h * D), lse; see `launch.forward`.

    Raises:
        ValueError: shapes, dtypes or devices that do not belong together.
        NotImplementedError: a case that the kernels do not take.
    """
    from . import launch

    geometry = _checked(qkv, bias, pad_qkv, cosine_scale, window_size, shift, dilation)
    return launch.forward(_with_contiguous_channels(qkv), bias, pad_qkv, cosine_scale, geometry)


@window_attention.register_fake
def _(
    qkv: Tensor,
    bias: Tensor,
    pad_qkv: Tensor | None,
    cosine_scale: Tensor | None,
    window_size: Sequence[int],
    shift: Sequence[int],
    dilation: int,
) -> tuple[Tensor, Tensor]:
    batch, height, width, _, heads, head_dim = qkv.shape
    sums = _sums_shape(qkv, bias, _geometry(qkv.shape, window_size, shift, dilation)) or (0,)
    dtype = torch.promote_types(qkv.dtype, torch.float32)
    return qkv.new_empty(batch, height, width, heads * head_dim), qkv.new_empty(sums, dtype=dtype)


@torch.library.custom_op(
    f"{NAMESPACE}::window_attention_backward",
    mutates_args=(),
    schema=f"(Tensor grad_out, {_INPUTS}, Tensor? out, Tensor? lse, {_RULE}) -> (Tensor, Tensor, Tensor, Tensor)",
)
def window_attention_backward(
    grad_out: Tensor,
    qkv: Tensor,
    bias: Tensor,
    pad_qkv: Tensor | None,
    cosine_scale: Tensor | None,
    out: Tensor | None,
    lse: Tensor | None,
    window_size: Sequence[int],
    shift: Sequence[int],
    dilation: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of qkv, bias, pad_qkv and cosine_scale; see `launch.backward`."""
    from . import launch

    geometry = _checked(qkv, bias, pad_qkv, cosine_scale, window_size, shift, dilation)
    result, sums = (*qkv.shape[:3], qkv.shape[4] * qkv.shape[5]), _sums_shape(qkv, bias, geometry)
    _check_saved("grad_out", grad_out, result, grad_out.dtype, qkv.device)
    _check_saved("out", out, None if sums is None else result, qkv.dtype, qkv.device)
    _check_saved("lse", lse, sums, torch.promote_types(qkv.dtype, torch.float32), qkv.device)
    return launch.backward(grad_out, _with_contiguous_channels(qkv), bias, pad_qkv, cosine_scale, out, lse, geometry)


@window_attention_backward.register_fake
def _(
    grad_out: Tensor, qkv: Tensor, bias: Tensor, pad_qkv: Tensor | None, cosine_scale: Tensor | None, *rest: object
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_pad, grad_cosine = (
        qkv.new_empty(0) if tensor is None else tensor.new_empty(tensor.shape) for tensor in (pad_qkv, cosine_scale)
    )
    return qkv.new_empty(qkv.shape), bias.new_empty(bias.shape), grad_pad, grad_cosine


def _checked(
    qkv: Tensor,
    bias: Tensor,
    pad_qkv: Tensor | None,
    cosine_scale: Tensor | None,
    window_size: Sequence[int],
    shift: Sequence[int],
    dilation: int,
) -> WindowGeometry:
    """The geometry of a call that the kernels take; whoever calls the operator directly passes no other check."""
    contract.check(qkv, bias, pad_qkv, cosine_scale, list(window_size), list(shift), dilation)
    reason = support.unsupported(qkv.device, qkv.dtype, (window_size[0], window_size[1]), qkv.shape[5])
    if reason is not None:
        raise NotImplementedError(f"{NAMESPACE}::window_attention: {reason}")
    return _geometry(qkv.shape, window_size, shift, dilation)


def _sums_shape(qkv: Tensor, bias: Tensor, geometry: WindowGeometry) -> tuple[int, int] | None:
    """Of lse, (h, S); None for windows of one tile, which need none.

    Not windows by tokens: a dimension that is 1 for small images only would compile into a graph of its own for them.
    """
    return (qkv.shape[4], windows.slot_count(geometry)) if bias.shape[1] > ONE_TILE else None


def _check_saved(
    name: str, tensor: Tensor | None, shape: tuple[int, ...] | None, dtype: torch.dtype, device: torch.device
) -> None:
    given = None if tensor is None else tuple(tensor.shape)
    if given != shape:
        raise ValueError(f"{name} must have shape {shape}, got {given}")
    if tensor is not None and (tensor.dtype, tensor.device) != (dtype, device):
        raise ValueError(f"{name} must be {dtype} on {device}, got {tensor.dtype} on {tensor.device}")


def _geometry(qkv: Sequence[int], window_size: Sequence[int], shift: Sequence[int], dilation: int) -> WindowGeometry:
    """Of the shape of qkv."""
    return windows.window_geometry(qkv[0], qkv[1], qkv[2], window_size, shift, dilation)


def _with_contiguous_channels(qkv: Tensor) -> Tensor:
    return qkv if qkv.stride(-1) == 1 or qkv.shape[-1] == 1 else qkv.contiguous()


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    qkv, bias, pad_qkv, cosine_scale, *ctx.rule = inputs
    out, lse = output
    tiled = bias.shape[1] > ONE_TILE  # smaller windows compute everything again
    ctx.save_for_backward(qkv, bias, pad_qkv, cosine_scale, out if tiled else None, lse if tiled else None)
    ctx.mark_non_differentiable(lse)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_out is None:
        return (None,) * 7
    qkv, bias, pad_qkv, cosine_scale, *saved = ctx.saved_tensors
    gradients = window_attention_backward(grad_out, qkv, bias, pad_qkv, cosine_scale, *saved, *ctx.rule)
    grad_qkv, grad_bias, grad_pad, grad_cosine = gradients
    pad, cosine = None if pad_qkv is None else grad_pad, None if cosine_scale is None else grad_cosine
    return grad_qkv, grad_bias, pad, cosine, None, None, None


window_attention.register_autograd(_backward, setup_context=_save_for_backward)


def _autocast_rule(device: str) -> Any:
    def rule(qkv: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        if qkv.dtype != torch.float64:
            qkv = qkv.to(torch.get_autocast_dtype(device))
        with torch.autocast(device, enabled=False):
            result: tuple[Tensor, Tensor] = window_attention(qkv, *rest)
        return result

    return rule


# As for torch's own attention, qkv takes the dtype of autocast. The bias keeps its own: scores are float32.
_library = torch.library.Library(NAMESPACE, "FRAGMENT")
for _device in ("cuda", "cpu"):
    _library.impl("window_attention", _autocast_rule(_device), f"Autocast{_device.upper()}")


def _score_flops(qkv: Sequence[int], window_size: Sequence[int], shift: Sequence[int], dilation: int) -> int:
    """FLOPs of one product over all windows, scores or values, padding included: 2 * windows * h * N * N * D."""
    _, _, _, _, heads, head_dim = qkv
    geometry = _geometry(qkv, window_size, shift, dilation)
    tokens = window_size[0] * window_size[1]
    return 2 * windows.window_count(geometry) * heads * tokens * tokens * head_dim


@register_flop_formula(getattr(torch.ops, NAMESPACE).window_attention)
def _flops(
    qkv: Sequence[int],
    bias: object,
    pad: object,
    cosine: object,
    *rule: Any,
    out_shape: object = None,
    **kwargs: object,
) -> int:
    """Scores, and probabilities by values."""
    return 2 * _score_flops(qkv, *rule)


@register_flop_formula(getattr(torch.ops, NAMESPACE).window_attention_backward)
def _backward_flops(
    grad: object, qkv: Sequence[int], bias: object, pad: object, cosine: object, out: object, lse: object, *rule: Any,
    out_shape: object = None, **kwargs: object,
) -> int:  # fmt: skip
    """Scores again, and the gradients of probabilities, q, k and v."""
    return 5 * _score_flops(qkv, *rule)
