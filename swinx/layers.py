"""The layers of a Swin stage: window attention, block, merging.

Shapes: B images, H W grid, C channels, h heads, D = C // h head_dim, N tokens in a window, e period coming in.
Grids are channels last, (B, H, W, C). Parameter names are timm's, so that its checkpoints load by name.
"""

import torch
import torch.nn.functional as F
from timm.layers import DropPath, trunc_normal_
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from swinx import windows
from swinx.attention import AttentionImpl, api, sdpa


class WindowAttention(nn.Module):
    """Window attention with relative position bias: projection in, `window_attention`, projection out.

    The projection runs on the unpadded grid: a padding token is the zero vector after norm1, so it projects to the
    bias of the projection, which is passed on as pad_qkv.
    """

    relative_position_index: Tensor

    def __init__(self, dim: int, num_heads: int, window_size: tuple[int, int], shifted: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.window_size = window_size
        self.shifted = shifted
        self.dilation = 1
        self.impl: AttentionImpl = "auto"
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        table_rows = (2 * window_size[0] - 1) * (2 * window_size[1] - 1)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(table_rows, num_heads))
        trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", windows.relative_position_index(window_size), persistent=False)

    def position_bias(self) -> Tensor:
        """(h, N, N), gathered from the table."""
        return self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        batch, height, width, dim = x.shape
        head_dim = dim // self.num_heads
        qkv = self.qkv(x).view(batch, height, width, 3, self.num_heads, head_dim)
        pad_qkv = self.qkv.bias.view(3, self.num_heads, head_dim)
        bias = self.position_bias()
        shift = (0, 0)
        if self.shifted:
            shift = (
                windows.cyclic_shift(height, self.window_size[0], self.dilation),
                windows.cyclic_shift(width, self.window_size[1], self.dilation),
            )
        if torch.jit.is_scripting():  # TorchScript has neither einops nor a choice at run time
            out = sdpa.window_attention(qkv, bias, self.window_size, shift, self.dilation, pad_qkv, self.shifted)
        else:
            out = api.attend(
                qkv, bias, self.window_size, shift, self.dilation, pad_qkv, shifted=self.shifted, impl=self.impl
            )
        return self.proj(out)


class Mlp(nn.Module):
    """Linear to four times the width, exact GELU, linear back."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return self.fc2(F.gelu(self.fc1(x)))


class SwinBlock(nn.Module):
    """x + attention(norm1(x)), then x + mlp(norm2(x)), with stochastic depth on both branches.

    Stochastic depth (Huang et al. 2016) regularises the training of this block, so it is off where the block's weights
    are frozen: smp's `freeze_encoder` leaves the encoder in training mode even after `model.eval()`, and a frozen
    encoder must give the same features twice.
    """

    def __init__(
        self, dim: int, num_heads: int, window_size: tuple[int, int], shifted: bool, drop_path_rate: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, num_heads, window_size, shifted)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        attention = self.attn(self.norm1(x))
        if self.attn.qkv.weight.requires_grad:
            attention = self.drop_path(attention)
        x = x + attention
        mlp = self.mlp(self.norm2(x))
        if self.mlp.fc1.weight.requires_grad:
            mlp = self.drop_path(mlp)
        return x + mlp


class PatchMerging(nn.Module):
    """Concatenate 2 x 2 neighbours, normalise, and project from 4C to 2C channels.

    Strided, it halves the grid. Dense, it keeps the grid: the four taps are one incoming period e apart, so that each
    phase of the result is the strided merge of one shift of an incoming lattice. Taps are ordered (0, 0), (1, 0),
    (0, 1), (1, 1) as (row, column), and zeros follow the grid at bottom and right, before the norm.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.spacing = 1  # e
        self.stride = 2  # 1: dense
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), 2C) strided, (B, H, W, 2C) dense."""
        e = self.spacing
        # Padding an even grid too adds nothing: its last window would need two more rows.
        x = F.pad(x, (0, 0, 0, e, 0, e))
        taps = x.unfold(1, e + 1, self.stride)[..., ::e].unfold(2, e + 1, self.stride)[..., ::e]
        x = taps.permute(0, 1, 2, 5, 4, 3).flatten(3)  # (B, H', W', C, row, column) -> (..., column, row, C)
        return self.reduction(self.norm(x))


class SwinStage(nn.Module):
    """Merge (except in the first stage), then blocks, every second one shifted."""

    def __init__(
        self, dim: int, num_heads: int, window_size: tuple[int, int], drop_path_rates: list[float], merge: bool
    ) -> None:
        super().__init__()
        self.downsample = PatchMerging(dim // 2) if merge else nn.Identity()
        self.blocks = nn.ModuleList(
            SwinBlock(dim, num_heads, window_size, shifted=index % 2 == 1, drop_path_rate=rate)
            for index, rate in enumerate(drop_path_rates)
        )
        self.grad_checkpointing = False

    def set_period(self, incoming: int, period: int) -> None:
        """Dilate: attend on lattices of the given period; merge densely where it exceeds the incoming one."""
        if isinstance(self.downsample, PatchMerging):
            self.downsample.spacing = incoming
            self.downsample.stride = 2 if period == incoming else 1
        for block in self.blocks:
            block.attn.dilation = period

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H', W', C')."""
        x = self.downsample(x)
        for block in self.blocks:
            if torch.jit.is_scripting():
                x = block(x)
            elif self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x
