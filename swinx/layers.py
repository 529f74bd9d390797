"""The layers of a Swin stage: window attention, block, merging.

Shapes: B images, H W grid, C channels, h heads, D = C // h head_dim, N tokens in a window, e period coming in.
Grids are channels last, (B, H, W, C). Parameter names are timm's, so that its checkpoints load by name.
"""

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from swinx import windows
from swinx.attention import plan_ops, reference, sdpa
from swinx.attention.api import AttentionImpl, resolve_implementation
from swinx.windows import WindowPlan


# Sizes of the slices in which evaluation on the CPU runs, measured on 32 MB of last-level cache: the hidden layer of
# 2,048 tokens takes 3 MB at 96 channels; the queries, keys and values of 2^20 values take 12 MB.
TOKENS_PER_SLICE = 2048
VALUES_PER_SLICE = 2**20


class WindowAttention(nn.Module):
    """Window attention with relative position bias: projection in, attention inside windows, projection out.

    The projection runs on the unpadded grid: a padding token is the zero vector after norm1, so one zero token, or the
    bias that it projects to, stands for all of them.
    """

    relative_position_index: Tensor

    def __init__(self, dim: int, num_heads: int, window_size: tuple[int, int], shifted: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.window_size = window_size
        self.shifted = shifted
        self.dilation = 1
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        table_rows = (2 * window_size[0] - 1) * (2 * window_size[1] - 1)
        self.relative_position_bias_table = nn.Parameter(torch.empty(table_rows, num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", windows.relative_position_index(window_size), persistent=False)

    def position_bias(self) -> Tensor:
        """(h, N, N), gathered from the table."""
        return self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)

    def shift(self, height: int, width: int) -> tuple[int, int]:
        """The shift on a grid of that size, in lattice tokens."""
        if not self.shifted:
            return (0, 0)
        return (
            windows.cyclic_shift(height, self.window_size[0], self.dilation),
            windows.cyclic_shift(width, self.window_size[1], self.dilation),
        )

    def plan(self, x: Tensor) -> WindowPlan:
        """Window geometry of a grid (B, H, W, C) as index tensors."""
        batch, height, width, _ = x.shape
        window_size, shift, d = self.window_size, self.shift(height, width), self.dilation
        if torch.jit.is_scripting():
            padded = windows.needs_padding(height, width, window_size, d)
        elif torch.compiler.is_exporting():
            padded = True
        elif torch.compiler.is_compiling():
            return plan_ops.window_plan(batch, height, width, window_size, shift, d, self.shifted, x.device)
        else:
            padded = windows.needs_padding(height, width, window_size, d)
        return windows.window_plan(batch, height, width, window_size, shift, d, self.shifted, True, padded, x.device)

    def forward(self, x: Tensor, plan: WindowPlan | None) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C), through sdpa where there is a plan and through the reference where not."""
        batch, height, width, dim = x.shape
        head_dim = dim // self.num_heads
        bias = self.position_bias()
        if plan is not None:
            tokens = x.reshape(-1, dim)
            if plan.padded:
                tokens = F.pad(tokens, (0, 0, 0, 1))  # the padding token
            rows = self.qkv(tokens).view(-1, 3, self.num_heads, head_dim)
            out = sdpa.attend_rows(rows, bias, plan).view(batch, height, width, dim)
        else:
            qkv = self.qkv(x).view(batch, height, width, 3, self.num_heads, head_dim)
            out = self._reference(qkv, bias)
        return self.proj(out)

    @torch.jit.unused  # TorchScript has no einops
    def _reference(self, qkv: Tensor, bias: Tensor) -> Tensor:
        shift = self.shift(qkv.shape[1], qkv.shape[2])
        pad_qkv = self.qkv.bias.view(qkv.shape[3:])
        return reference.window_attention(qkv, bias, self.window_size, shift, self.dilation, pad_qkv, self.shifted)


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

    def forward(self, x: Tensor, plan: WindowPlan | None) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C); see `WindowAttention.forward` for plan."""
        attention = self.attn(self.norm1(x), plan)
        if self.attn.qkv.weight.requires_grad:
            attention = self.drop_path(attention)
        x = x + attention
        mlp = self.mlp(self.norm2(x))
        if self.mlp.fc1.weight.requires_grad:
            mlp = self.drop_path(mlp)
        return x + mlp

    @torch.jit.unused
    def infer_(self, x: Tensor, plan: WindowPlan | None) -> None:
        """`forward` for evaluation without gradients on the CPU, in place on a contiguous x.

        The MLP runs on a slice of tokens at a time: its hidden layer, the largest tensor of the network, then stays in
        cache, where a whole one would be fresh memory from the operating system at every block.
        """
        x += self.attn(self.norm1(x), plan)
        for tokens in x.view(-1, x.shape[-1]).split(TOKENS_PER_SLICE):
            tokens += self.mlp(self.norm2(tokens))


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
        self.impl: AttentionImpl = "auto"
        self.grad_checkpointing = False

    @torch.jit.unused
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
        if not torch.jit.is_scripting() and self._infers(x):
            return self._infer(x)
        plans: dict[bool, WindowPlan] = {}
        planned = torch.jit.is_scripting() or self._planned(x)
        for block in self.blocks:
            plan: WindowPlan | None = None
            if planned:
                if block.attn.shifted not in plans:
                    plans[block.attn.shifted] = block.attn.plan(x)  # all blocks of a stage share one grid
                plan = plans[block.attn.shifted]
            if torch.jit.is_scripting():
                x = block(x, plan)
            elif self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, plan, use_reentrant=False)
            else:
                x = block(x, plan)
        return x

    @torch.jit.unused
    def _recording(self, x: Tensor) -> bool:
        trained = x.requires_grad or any(parameter.requires_grad for parameter in self.blocks.parameters())
        return torch.is_grad_enabled() and trained

    @torch.jit.unused
    def _planned(self, x: Tensor) -> bool:
        """Whether attention goes through sdpa, which reads a plan."""
        return resolve_implementation(self.impl, x.device, self._recording(x)) == "sdpa"

    @torch.jit.unused
    def _infers(self, x: Tensor) -> bool:
        compiling = torch.compiler.is_compiling() or torch.jit.is_tracing()
        return x.device.type == "cpu" and not (self.training or compiling or self._recording(x))

    @torch.jit.unused
    def _infer(self, x: Tensor) -> Tensor:
        """Blocks on a few images at a time, see `SwinBlock.infer_`."""
        x = x.clone(memory_format=torch.contiguous_format)  # the grid belongs to the caller
        per_image = max(x[0].numel(), 1)
        fitting = max(VALUES_PER_SLICE // per_image, 1)
        images = max(count for count in range(1, fitting + 1) if x.shape[0] % count == 0)
        planned = self._planned(x)
        plans: dict[bool, WindowPlan] = {}
        for part in x.split(images):
            for block in self.blocks:
                if planned and block.attn.shifted not in plans:
                    plans[block.attn.shifted] = block.attn.plan(part)
                block.infer_(part, plans.get(block.attn.shifted))
        return x
