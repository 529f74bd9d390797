"""The window attention operation: its contract, its validation and the choice of implementation.

Shapes: B images, H W grid, h heads, D head_dim, N = wh * ww tokens in a window, d period.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from swinx.attention import gathered, ops, reference
from swinx.windows import WindowGeometry, needs_padding, window_plan

AttentionImpl = Literal["auto", "reference", "bmm", "sdpa", "triton"]
IMPLEMENTATIONS: tuple[str, ...] = get_args(AttentionImpl)
MAX_BMM_TOKENS = 64  # measured: bmm wins at 49 tokens, SDPA at 144


def check_implementation(impl: str) -> None:
    """Refuse a name that is no implementation, and one that cannot run here whatever the input.

    Raises:
        ValueError: unknown name.
        NotImplementedError: "triton" without the package.
    """
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl must be one of {', '.join(IMPLEMENTATIONS)}, got {impl!r}")
    missing = ops.triton_missing() if impl == "triton" else None
    if missing is not None:
        raise NotImplementedError(f"impl='triton': {missing}; choose 'auto', 'reference', 'bmm' or 'sdpa'")


def resolve_implementation(
    impl: AttentionImpl,
    device: torch.device,
    dtype: torch.dtype,
    window_size: tuple[int, int],
    head_dim: int,
    recording: bool,
    contiguous: bool = True,
) -> AttentionImpl:
    """The implementation that runs: impl itself, or what `auto` stands for.

    auto is triton on a GPU where the kernels take the case (`swinx.attention.ops.unsupported`), the code is not to be
    exported, and it is not float32 training before compute capability 9.0; and else sdpa on every device but the CPU,
    and in compiled and exported code (compiled evaluation of an encoder on the CPU asks again when it runs). In eager
    code on the CPU it is bmm where gradients are recorded, as SDPA with a bias that needs a gradient falls back to
    slower products. Without gradients it is bmm for windows of up to 64 tokens in float32 or float64 on several
    threads, of which SDPA makes little use; else sdpa.

    Raises:
        NotImplementedError: impl="triton" for a case that the kernels do not take.
    """
    if impl == "triton":
        reason = ops.unsupported(device, dtype, window_size, head_dim, contiguous)
        if reason is not None:
            raise NotImplementedError(f"impl='triton': {reason}")
    if impl != "auto":
        return impl
    if device.type == "cuda" and not torch.compiler.is_exporting():
        refused = ops.unsupported(device, dtype, window_size, head_dim, contiguous)
        return "sdpa" if refused or (recording and ops.slow(device, dtype)) else "triton"
    if device.type != "cpu" or torch.compiler.is_compiling():
        return "sdpa"
    if recording:
        return "bmm"
    if dtype not in (torch.float32, torch.float64) or window_size[0] * window_size[1] > MAX_BMM_TOKENS:
        return "sdpa"
    return "bmm" if torch.get_num_threads() > 1 else "sdpa"


def attention_dtype(x: Tensor) -> torch.dtype:
    """What attention computes in: the dtype of x, or that of autocast, which leaves float64 alone."""
    device = x.device.type
    lowered = torch.is_autocast_enabled(device) and x.dtype != torch.float64
    return torch.get_autocast_dtype(device) if lowered else x.dtype


def window_attention(
    qkv: Tensor,
    bias: Tensor,
    *,
    window_size: tuple[int, int],
    shift: tuple[int, int] = (0, 0),
    dilation: int = 1,
    pad_qkv: Tensor | None = None,
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
        dilation: period d of the grid.
        pad_qkv: (3, h, D), what a padding token projects to; padding is then attended, as in the official
            segmentation code. None: padding is not attended.
        impl: "auto", "reference" (the readable one), "bmm" (batched products), "sdpa" or "triton";
            `resolve_implementation` says what auto takes.

    Returns:
        (B, H, W, h * D), dtype of qkv (for sdpa and triton under autocast that of autocast, which leaves float64
        alone). Softmax runs in at least float32; sdpa follows torch.

    Raises:
        ValueError: a shape, dtype, device or value outside these rules.
        NotImplementedError: impl="triton" for a case that the kernels do not take, or without the package; the kernels
            under forward-mode differentiation.
    """
    check_implementation(impl)
    _check(qkv, bias, window_size, shift, dilation, pad_qkv)
    batch, height, width, _, heads, head_dim = qkv.shape
    if qkv.numel() == 0:
        return qkv[:, :, :, 2].reshape(batch, height, width, heads * head_dim)  # empty, and still part of the graph
    shifted = shift != (0, 0)
    tensors = [qkv, bias] if pad_qkv is None else [qkv, bias, pad_qkv]
    recording = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    geometry = WindowGeometry(batch, height, width, window_size, shift, dilation)
    contiguous = qkv.stride(5) == 1 or head_dim == 1
    dtype = attention_dtype(qkv)
    resolved = resolve_implementation(impl, qkv.device, dtype, window_size, head_dim, recording, contiguous)
    if resolved == "reference":
        return reference.window_attention(qkv, bias, geometry, pad_qkv, shifted)
    if resolved == "triton":
        return ops.attend(qkv, bias, pad_qkv, geometry)
    plan = window_plan(geometry, shifted, pad_qkv is not None, needs_padding(geometry), qkv.device)
    return gathered.window_attention(qkv, bias, plan, pad_qkv, resolved == "bmm")


def _check(
    qkv: Tensor,
    bias: Tensor,
    window_size: tuple[int, int],
    shift: tuple[int, int],
    dilation: int,
    pad_qkv: Tensor | None,
) -> None:
    if not isinstance(qkv, Tensor) or not isinstance(bias, Tensor):
        raise ValueError(f"qkv and bias must be tensors, got {type(qkv).__name__} and {type(bias).__name__}")
    if qkv.ndim != 6 or qkv.shape[3] != 3 or qkv.shape[5] == 0:
        raise ValueError(f"qkv must be (B, H, W, 3, heads, head_dim), got shape {tuple(qkv.shape)}")
    if not qkv.is_floating_point():
        raise ValueError(f"qkv must have a floating dtype, got {qkv.dtype}")
    for name, pair in (("window_size", window_size), ("shift", shift)):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2 or any(type(side) is not int for side in pair):
            raise ValueError(f"{name} must be two integers, got {pair!r}")
    if min(window_size) < 1:
        raise ValueError(f"window_size must be positive, got {window_size}")
    if any(not 0 <= amount < side for amount, side in zip(shift, window_size, strict=True)):
        raise ValueError(f"shift must be at least 0 and below window_size {window_size} along each axis, got {shift}")
    if type(dilation) is not int or dilation < 1:
        raise ValueError(f"dilation must be a positive integer, got {dilation!r}")
    heads, tokens = qkv.shape[4], window_size[0] * window_size[1]
    if bias.shape != (heads, tokens, tokens):
        raise ValueError(f"bias must be (heads, N, N) = {(heads, tokens, tokens)}, got shape {tuple(bias.shape)}")
    if pad_qkv is not None and pad_qkv.shape != qkv.shape[3:]:
        raise ValueError(f"pad_qkv must be (3, heads, head_dim) = {tuple(qkv.shape[3:])}, got {tuple(pad_qkv.shape)}")
    for name, tensor in (("bias", bias), ("pad_qkv", pad_qkv)):
        if tensor is None:
            continue
        if not tensor.is_floating_point():
            raise ValueError(f"{name} must have a floating dtype, got {tensor.dtype}")
        if tensor.device != qkv.device:
            raise ValueError(f"{name} must be on the device of qkv, {qkv.device}, got {tensor.device}")
