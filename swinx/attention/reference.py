"""Window attention as the paper writes it: pad, split into lattices, roll, partition, attend, and back.

The readable oracle that faster implementations are measured against. Any device and floating dtype, autograd by torch.

Shapes: B images, H W grid, h heads, D head_dim, N tokens in a window, d period (p q one phase), (i j) windows of a
lattice, (a b) tokens of a window.
"""

import torch
from einops import rearrange
from torch import Tensor

from swinx import windows
from swinx.windows import WindowGeometry


def window_attention(
    qkv: Tensor, bias: Tensor, geometry: WindowGeometry, pad_qkv: Tensor | None, shifted: bool
) -> Tensor:
    """See `swinx.window_attention` for the contract. shifted: whether the shift can be other than (0, 0).

    Mixed precision: scores and the product with v are computed in the dtype of qkv, bias, mask and softmax in at least
    float32, and probabilities are rounded to the dtype of qkv.
    """
    batch, height, width, window_size, shift, d = geometry
    count_h, count_w = windows.lattice_windows(geometry)
    grid = _pad(qkv, d * count_h * window_size[0], d * count_w * window_size[1], pad_qkv)
    lattices = rearrange(grid, "B (y p) (x q) s h D -> (B p q) y x s h D", p=d, q=d)
    if shifted:
        lattices = torch.roll(lattices, (-shift[0], -shift[1]), dims=(1, 2))
    q, k, v = rearrange(lattices, "l (i a) (j b) s h D -> s (l i j) h (a b) D", i=count_h, j=count_w)

    if shifted or pad_qkv is None:
        image = WindowGeometry(1, height, width, window_size, shift, d)
        visible = windows.visible_pairs(image, pad_qkv is not None, qkv.device)
        bias = bias.masked_fill(~visible[:, None], float("-inf"))  # (M, h, N, N) for the M windows of an image
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    scores = rearrange(rearrange(scores, "(B M) h n m -> B M h n m", B=batch) + bias, "B M h n m -> (B M) h n m")
    out = scores.softmax(dim=-1).to(v.dtype) @ v

    lattices = rearrange(
        out, "(l i j) h (a b) D -> l (i a) (j b) (h D)", i=count_h, j=count_w, a=window_size[0], b=window_size[1]
    )
    if shifted:
        lattices = torch.roll(lattices, shift, dims=(1, 2))
    grid = rearrange(lattices, "(B p q) y x C -> B (y p) (x q) C", p=d, q=d)
    return grid[:, :height, :width]


def _pad(qkv: Tensor, height: int, width: int, pad_qkv: Tensor | None) -> Tensor:
    """Fill the grid at bottom and right to (height, width) with padding tokens."""
    if qkv.shape[1:3] == (height, width):
        return qkv
    shape = (qkv.shape[0], height, width, *qkv.shape[3:])
    padded = qkv.new_zeros(shape) if pad_qkv is None else pad_qkv.to(qkv.dtype).expand(shape).clone()
    padded[:, : qkv.shape[1], : qkv.shape[2]] = qkv
    return padded
