"""Attention inside windows by torch's scaled_dot_product_attention.

Shapes: m windows, h heads, N tokens in a window, D head_dim.
"""

import torch.nn.functional as F
from torch import Tensor

from ..plans import is_exporting


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, visible: Tensor | None, scale: float) -> Tensor:
    """q, k, v (m, h, N, D), bias (h, N, N), visible (m, N, N) bool or None -> (m, h, N, D), dtype of v.

    Mixed precision is torch's: softmax and accumulation in float32, bias rounded to the dtype of q.
    """
    mask = bias.to(q.dtype)[None]  # (1, h, N, N)
    if visible is not None:
        mask = mask.masked_fill(~visible[:, None], float("-inf"))  # (m, h, N, N)
    elif is_exporting():  # where m is a number of unknown value, with which torch compares the 1
        mask = mask.expand(q.shape[0], -1, -1, -1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
