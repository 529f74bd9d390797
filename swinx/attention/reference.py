"""Attention inside windows as the paper writes it: softmax(q k^T / sqrt(D) + bias) v.

The readable form that faster implementations are measured against. Any device and floating dtype, autograd by torch;
the scores are held in memory.

Shapes: m windows, h heads, N tokens in a window, D head_dim.
"""

import torch
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, visible: Tensor | None, scale: float) -> Tensor:
    """q, k, v (m, h, N, D), bias (h, N, N), visible (m, N, N) bool or None -> (m, h, N, D), dtype of v.

    Mixed precision: both products are computed in the dtype of q, k and v; bias, mask and softmax in at least float32.
    """
    scores = torch.matmul(q * scale, k.transpose(-2, -1))
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) + bias  # (m, h, N, N)
    if visible is not None:
        # Added rather than filled in: an addition has nothing to do in the backward pass.
        hidden = torch.zeros(visible.shape, dtype=scores.dtype, device=scores.device)
        scores = scores + hidden.masked_fill(~visible, float("-inf"))[:, None]
    return torch.matmul(scores.softmax(dim=-1).to(v.dtype), v)
