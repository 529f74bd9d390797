"""The layers that a Swin stage is made of: window attention, MLP, block, merging.

Shapes: B images, H W grid, C channels, h heads, D = C // h head_dim, N tokens in a window, e period coming in.
Grids are channels last, (B, H, W, C). Parameter names are timm's, so that its checkpoints load by name.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from swinx import windows
from swinx.attention import gathered, ops, reference
from swinx.windows import WindowGeometry, WindowPlan


class BlockWindows(NamedTuple):
    """What the blocks of a stage with the same shift need to know of their windows.

    geometry: sizes. shifted: whether the shift can be other than (0, 0); under compilation it is a symbol that must not
    be asked. impl: implementation of attention, never "auto". plan: index tensors, for "bmm" and "sdpa".
    """

    geometry: WindowGeometry
    shifted: bool
    impl: str
    plan: WindowPlan | None


class WindowAttention(nn.Module):
    """Window attention with relative position bias: projection in, attention inside windows, projection out.

    The projection runs on the unpadded grid: a padding token is the zero vector after norm1, so one zero token, or the
    bias that it projects to, stands for all of them.
    """

    relative_position_index: Tensor

    def __init__(self, dim: int, num_heads: int, window_size: tuple[int, int]) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        table_rows = (2 * window_size[0] - 1) * (2 * window_size[1] - 1)
        self.relative_position_bias_table = nn.Parameter(torch.empty(table_rows, num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", windows.relative_position_index(window_size), persistent=False)

    def position_bias(self) -> Tensor:
        """(h, N, N), gathered from the table."""
        return self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)

    def forward(self, x: Tensor, block_windows: BlockWindows) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        plan = block_windows.plan
        if plan is None:
            return self._on_grid(x, block_windows)
        tokens = x.reshape(-1, x.shape[-1])
        if plan.padded:
            rows = self.qkv(F.pad(tokens, (0, 0, 0, 1)))  # the padding token
            slots = rows.index_select(0, plan.gather)  # whole rows: one copy each
        else:  # gathered before the projection, which makes them three times as wide
            slots = self.qkv(tokens.index_select(0, plan.gather))
        slots = slots.view(slots.shape[0], 3, self.num_heads, x.shape[-1] // self.num_heads)
        out = gathered.attend_slots(slots, self.position_bias(), plan.visible, block_windows.impl == "bmm")
        return self.proj(out.index_select(0, plan.scatter)).view(x.shape)

    @torch.jit.unused  # TorchScript has no einops and no Triton
    def _on_grid(self, x: Tensor, block_windows: BlockWindows) -> Tensor:
        qkv = self.qkv(x).view(*x.shape[:3], 3, self.num_heads, -1)
        pad_qkv = self.qkv.bias.view(qkv.shape[3:])
        bias, (geometry, shifted, impl, _) = self.position_bias(), block_windows
        if impl == "triton":
            return self.proj(ops.attend(qkv, bias, pad_qkv, geometry))
        return self.proj(reference.window_attention(qkv, bias, geometry, pad_qkv, shifted))


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

    Stochastic depth (Huang et al. 2016) regularises the training of a branch, so it is off where the first projection
    of the branch is frozen: smp's `freeze_encoder` leaves the encoder in training mode even after `model.eval()`, and a
    frozen encoder must give the same features twice.
    """

    def __init__(self, dim: int, num_heads: int, window_size: tuple[int, int], drop_path_rate: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, num_heads, window_size)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor, block_windows: BlockWindows) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        attention = self.attn(self.norm1(x), block_windows)
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
        # Padding an even grid too adds nothing, as its last 2 x 2 would need two more rows; traced code must not ask.
        if torch.jit.is_scripting() or self._pads(x):
            x = F.pad(x, (0, 0, 0, e, 0, e))
        taps = x.unfold(1, e + 1, self.stride)[..., ::e].unfold(2, e + 1, self.stride)[..., ::e]
        x = taps.permute(0, 1, 2, 5, 4, 3).flatten(3)  # (B, H', W', C, row, column) -> (..., column, row, C)
        return self.reduction(self.norm(x))

    @torch.jit.unused
    def _pads(self, x: Tensor) -> bool:
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
        return traced or self.stride == 1 or x.shape[1] % 2 == 1 or x.shape[2] % 2 == 1
