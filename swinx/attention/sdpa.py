"""Window attention through torch's scaled_dot_product_attention: one gather in, one gather out.

Shapes: B images, H W grid, T = H * W tokens, h heads, D head_dim, N tokens in a window, M windows of one image.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from swinx import windows


def window_attention(
    qkv: Tensor,
    bias: Tensor,
    window_size: tuple[int, int],
    shift: tuple[int, int],
    dilation: int,
    pad_qkv: Tensor | None,
    shifted: bool,
) -> Tensor:
    """See `swinx.window_attention` for the contract and `attend` for shifted.

    No branch here depends on H or W, and TorchScript compiles this function.
    """
    batch, height, width, _, heads, head_dim = qkv.shape
    tokens = window_size[0] * window_size[1]
    channels = heads * head_dim
    index = windows.window_index(height, width, window_size, shift, dilation, qkv.device)

    # Padding tokens are read from one row behind the grid's.
    if pad_qkv is None:
        padding = torch.zeros(1, 1, 3 * channels, dtype=qkv.dtype, device=qkv.device)
    else:
        padding = pad_qkv.to(qkv.dtype).reshape(1, 1, 3 * channels)
    rows = torch.cat([qkv.reshape(batch, height * width, 3 * channels), padding.expand(batch, 1, -1)], dim=1)
    slots = rows.index_select(1, index.flatten())
    q, k, v = slots.view(-1, tokens, 3, heads, head_dim).permute(2, 0, 3, 1, 4).unbind(0)

    mask = bias.to(q.dtype)[None]  # (1, h, N, N)
    if shifted or pad_qkv is None:
        visible = windows.visible_pairs(height, width, window_size, shift, dilation, pad_qkv is not None, qkv.device)
        mask = mask.masked_fill(~visible[:, None], float("-inf"))  # (M, h, N, N)
        mask = mask.repeat(batch, 1, 1, 1)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    out = out.transpose(1, 2).reshape(batch, -1, channels)
    inverse = windows.slot_index(height, width, window_size, shift, dilation, qkv.device)
    return out.index_select(1, inverse).view(batch, height, width, channels)
