"""Window attention on window slots: one gather in, torch's own operations between, one gather out.

Two ways in between: torch's scaled_dot_product_attention ("sdpa"), or two batched matrix products around a softmax
("bmm"), which holds the scores in memory.

Shapes: B images, H W grid, h heads, D head_dim, C = h * D channels, N tokens in a window, M windows of one image,
S slots, a multiple of N. TorchScript compiles this file, and nothing in it branches on H or W.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from swinx.windows import WindowPlan


def window_attention(qkv: Tensor, bias: Tensor, plan: WindowPlan, pad_qkv: Tensor | None, bmm: bool) -> Tensor:
    """See `swinx.window_attention` for the contract; plan holds the window geometry of qkv's grid."""
    batch, height, width, _, heads, head_dim = qkv.shape
    rows = qkv.reshape(batch * height * width, 3, heads, head_dim)
    if plan.padded:
        padding = torch.zeros_like(rows[:1]) if pad_qkv is None else pad_qkv.to(qkv.dtype)[None]
        rows = torch.cat([rows, padding])
    slots = rows.index_select(0, plan.gather)
    out = attend_slots(slots, bias, plan.visible, bmm).index_select(0, plan.scatter)
    return out.view(batch, height, width, heads * head_dim)


def attend_slots(slots: Tensor, bias: Tensor, visible: Tensor | None, bmm: bool) -> Tensor:
    """Attention inside windows.

    Args:
        slots: (S, 3, h, D), windows one after the other.
        bias: (h, N, N).
        visible: (S / N, N, N), see `swinx.windows.visible_pairs`, or None where all pairs are visible.
        bmm: whether by batched products.

    Returns:
        (S, C).
    """
    _, _, heads, head_dim = slots.shape
    q, k, v = slots.view(-1, bias.shape[1], 3, heads, head_dim).permute(2, 0, 3, 1, 4).unbind(0)
    out = _bmm(q, k, v, bias, visible) if bmm else _sdpa(q, k, v, bias, visible)
    return out.transpose(1, 2).reshape(-1, heads * head_dim)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, visible: Tensor | None) -> Tensor:
    """(S / N, h, N, D) each. Mixed precision is torch's: softmax and accumulation in float32, bias rounded to q's."""
    mask = bias.to(q.dtype)[None]  # (1, h, N, N)
    if visible is not None:
        mask = mask.masked_fill(~visible[:, None], float("-inf"))  # (S / N, h, N, N)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def _bmm(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, visible: Tensor | None) -> Tensor:
    """(S / N, h, N, D) each. Mixed precision as in the reference: bias and softmax in at least float32."""
    scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-2, -1))
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) + bias  # (S / N, h, N, N)
    if visible is not None:
        # Added rather than filled in: an addition has nothing to do in the backward pass.
        hidden = torch.zeros(visible.shape, dtype=scores.dtype, device=scores.device)
        scores = scores + hidden.masked_fill(~visible, float("-inf"))[:, None]
    return torch.matmul(scores.softmax(dim=-1).to(v.dtype), v)
