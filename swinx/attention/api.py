"""The window attention operation: its contract and its validation.

Shapes: B images, H W grid, h heads, D head_dim, N = wh * ww tokens in a window, d period.
"""

import torch
from torch import Tensor

from ..plans import WindowPlan, window_indices
from ..windows import WindowGeometry, needs_padding
from . import contract
from .backends import (
    BACKENDS,
    AttentionImpl,
    Case,
    attend,
    attention_dtype,
    check_implementation,
    resolve_implementation,
)
from .triton import operator


def window_attention(
    qkv: Tensor,
    bias: Tensor,
    *,
    window_size: tuple[int, int],
    shift: tuple[int, int] = (0, 0),
    dilation: int = 1,
    pad_qkv: Tensor | None = None,
    cosine_scale: Tensor | None = None,
    impl: AttentionImpl = "auto",
) -> Tensor:
    """Shifted-window attention on the lattices of a grid (Liu et al. 2021, https://arxiv.org/abs/2103.14030).

    For each phase (p, q), 0 <= p, q < dilation, the lattice qkv[:, p::dilation, q::dilation] is padded at bottom and
    right to a multiple of the window, rolled by the shift, cut into windows, and each window attends to itself:
    softmax(q k^T / sqrt(D) + bias) v, between tokens of the same region only. All lattices share the geometry of the
    first, ceil(H / dilation) x ceil(W / dilation).

    Args:
        qkv: (B, H, W, 3, h, D) floating, on the unpadded grid. B, H or W may be 0.
        bias: (h, N, N), added to the scaled scores.
        window_size: (wh, ww), in lattice tokens.
        shift: (sh, sw), 0 <= shift < window along each axis, in lattice tokens.
        dilation: period d of the grid, up to MAX_DILATION. Where it exceeds both sides of the grid, every token is a
            lattice of its own; in eager code no more lattices are visited than the longer side has.
        pad_qkv: (3, h, D), what a padding token projects to; padding is then attended, as in the official
            segmentation code. None: padding is not attended.
        cosine_scale: (h,). Scores are the cosines of queries and keys times it, and not q k^T / sqrt(D): Swin V2 (Liu
            et al. 2022, https://arxiv.org/abs/2111.09883). A vector of length 0 has a cosine of 0, and
            one shorter than 1e-12 is divided by that.
        impl: "auto", "reference" (the readable one), "sdpa" or "triton"; `swinx.attention.backends` says what auto
            takes.

    Returns:
        (B, H, W, h * D), dtype of qkv (under autocast that of autocast, which leaves float64 and empty inputs
        alone). Softmax runs in at least float32; sdpa follows torch.

    Raises:
        ValueError: a shape, dtype, device, layout or value outside these rules.
        NotImplementedError: impl="triton" for a case that the kernels do not take, or without the package; the kernels
            under forward-mode differentiation.
        RuntimeError: impl="triton" where the kernels fail on three small inputs of the same kind, at the first use of
            that kind on a device: they cannot run, or are further from float64 than rounding explains. Nothing is tried
            in compiled or traced code, in a dispatch mode, or during the capture of a CUDA graph.
    """
    check_implementation(impl)
    contract.check(qkv, bias, pad_qkv, cosine_scale, window_size, shift, dilation)
    window_size, shift = (window_size[0], window_size[1]), (shift[0], shift[1])  # lists are taken too
    batch, height, width, _, heads, head_dim = qkv.shape
    if qkv.numel() == 0:
        return qkv[:, :, :, 2].reshape(batch, height, width, heads * head_dim)  # empty, and still part of the graph
    if not torch.compiler.is_compiling():  # where sizes may be symbols that must not be asked
        dilation = min(dilation, max(height, width))
    tensors = [tensor for tensor in (qkv, bias, pad_qkv, cosine_scale) if tensor is not None]
    recording = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    recording = recording and not torch.jit.is_tracing()  # whose check runs without gradients
    geometry = WindowGeometry(batch, height, width, window_size, shift, dilation)
    contiguous = qkv.stride(5) == 1 or head_dim == 1
    cosine = cosine_scale is not None
    case = Case(qkv.device, attention_dtype(qkv), window_size, head_dim, recording, cosine, contiguous)
    resolved = resolve_implementation(impl, case)
    if not BACKENDS[resolved].indexed:
        return operator.attend(qkv, bias, pad_qkv, cosine_scale, geometry)
    padded = needs_padding(geometry)
    indices = window_indices(geometry, shift != (0, 0), pad_qkv is not None or not padded, qkv.device)
    plan = WindowPlan(resolved, geometry, padded, *indices)
    gather, scatter = indices[:2]
    tokens = qkv.reshape(batch * height * width, 3, heads, head_dim)
    if plan.padded:
        padding = torch.zeros_like(tokens[:1]) if pad_qkv is None else pad_qkv.to(qkv.dtype)[None]
        tokens = torch.cat([tokens, padding])
    out = attend(tokens.index_select(0, gather), bias, plan, cosine_scale).index_select(0, scatter)
    return out.view(batch, height, width, heads * head_dim)
