"""Window attention through torch's scaled_dot_product_attention: one gather in, one gather out.

Shapes: B images, H W grid, h heads, D head_dim, C = h * D channels, N tokens in a window, M windows of one image.
TorchScript compiles this file, and nothing in it branches on H or W.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from swinx.windows import WindowPlan


def window_attention(qkv: Tensor, bias: Tensor, plan: WindowPlan, pad_qkv: Tensor | None) -> Tensor:
    """See `swinx.window_attention` for the contract; plan holds the window geometry of qkv's grid."""
    batch, height, width, _, heads, head_dim = qkv.shape
    rows = qkv.reshape(batch * height * width, 3, heads, head_dim)
    if plan.padded:
        padding = torch.zeros_like(rows[:1]) if pad_qkv is None else pad_qkv.to(qkv.dtype)[None]
        rows = torch.cat([rows, padding])
    return attend_rows(rows, bias, plan).view(batch, height, width, heads * head_dim)


def attend_rows(rows: Tensor, bias: Tensor, plan: WindowPlan) -> Tensor:
    """Attention of a list of tokens, the last of which is the padding token where the plan needs one.

    Mixed precision: torch's, that is, softmax in float32 and products accumulated in float32; the bias is rounded to
    the dtype of rows.

    Args:
        rows: (B * H * W + 1, 3, h, D), or (B * H * W, 3, h, D) for a plan without padding.
        bias: (h, N, N).
        plan: window geometry.

    Returns:
        (B * H * W, C).
    """
    _, _, heads, head_dim = rows.shape
    slots = rows.flatten(1).index_select(0, plan.gather)  # whole rows: one copy each
    q, k, v = slots.view(-1, bias.shape[1], 3, heads, head_dim).permute(2, 0, 3, 1, 4).unbind(0)
    mask = bias.to(q.dtype)[None]  # (1, h, N, N)
    visible = plan.visible
    if visible is not None:
        mask = mask.masked_fill(~visible[:, None], float("-inf"))  # (B * M, h, N, N)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out.transpose(1, 2).reshape(-1, heads * head_dim).index_select(0, plan.scatter)
