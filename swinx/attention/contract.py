"""What window attention takes: checked by the public function, and by the raw operator of the kernels.

Shapes: B images, H W grid, h heads, D head_dim, N = wh * ww tokens in a window.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MAX_DILATION = 64  # bounds the lattices of a grid that is much longer than wide


def check(
    qkv: Tensor,
    bias: Tensor,
    pad_qkv: Tensor | None,
    cosine_scale: Tensor | None,
    window_size: Sequence[int],
    shift: Sequence[int],
    dilation: int,
) -> None:
    """Refuse arguments of window attention that do not belong together: see `swinx.window_attention`.

    Raises:
        ValueError: with the argument, the rule and what was given.
    """
    others = [("bias", bias)]
    if pad_qkv is not None:
        others.append(("pad_qkv", pad_qkv))
    if cosine_scale is not None:
        others.append(("cosine_scale", cosine_scale))
    for name, tensor in (("qkv", qkv), *others):
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{name} must be a tensor, got {type(tensor).__name__}")
        if tensor.is_nested or tensor.layout is not torch.strided:
            raise ValueError(f"{name} must be dense, got {'a nested one' if tensor.is_nested else tensor.layout}")
        if tensor.dtype not in DTYPES:
            raise ValueError(f"{name} must have a floating dtype of 16, 32 or 64 bits, got {tensor.dtype}")
    shape = qkv.shape
    if len(shape) != 6 or shape[3] != 3 or shape[5] == 0:
        raise ValueError(f"qkv must be (B, H, W, 3, heads, head_dim), got shape {tuple(qkv.shape)}")
    for name, pair in (("window_size", window_size), ("shift", shift)):
        if not isinstance(pair, (tuple, list)) or [type(side) for side in pair] != [int, int]:
            raise ValueError(f"{name} must be two integers, got {pair!r}")
    if min(window_size) < 1:
        raise ValueError(f"window_size must be positive, got {window_size}")
    if not (0 <= shift[0] < window_size[0] and 0 <= shift[1] < window_size[1]):
        raise ValueError(f"shift must be at least 0 and below window_size {window_size} along each axis, got {shift}")
    if type(dilation) is not int or not 1 <= dilation <= MAX_DILATION:
        raise ValueError(f"dilation must be an integer from 1 to {MAX_DILATION}, got {dilation!r}")
    heads, tokens = shape[4], window_size[0] * window_size[1]
    if bias.shape != (heads, tokens, tokens):
        raise ValueError(f"bias must be (heads, N, N) = {(heads, tokens, tokens)}, got shape {tuple(bias.shape)}")
    if pad_qkv is not None and pad_qkv.shape != shape[3:]:
        raise ValueError(f"pad_qkv must be (3, heads, head_dim) = {tuple(qkv.shape[3:])}, got {tuple(pad_qkv.shape)}")
    if cosine_scale is not None and cosine_scale.shape != (heads,):
        raise ValueError(f"cosine_scale must be (heads,) = {(heads,)}, got shape {tuple(cosine_scale.shape)}")
    device = qkv.device
    for name, tensor in others:
        if tensor.device != device:
            raise ValueError(f"{name} must be on the device of qkv, {device}, got {tensor.device}")
