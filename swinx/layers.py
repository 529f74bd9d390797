"""The layers that a Swin stage is made of: window attention, MLP, block, merging; of Swin V1 and of V2.

Shapes: B images, H W grid, C channels, h heads, D = C // h head_dim, N = wh * ww tokens in a window, e period coming
in. Tokens are whole grids, channels last, (B, H, W, C), or the rows (T, C) of a slice; a plan (`swinx.plans`) says in
which windows they are. Parameter names are timm's, so that its checkpoints load by name.
"""

import math

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from swinx.attention.backends import attend
from swinx.plans import WindowPlan

MAX_LOGIT_SCALE = math.log(100.0)
CPB_HIDDEN = 512  # width of V2's position MLP
# Compiled by torch 2.6, the projection's bias gets no gradient from a padding token that is gathered afterwards.
GATHERS_FIRST = torch.__version__.startswith("2.6.")


def bias_of_pairs(offsets: Tensor, window_size: tuple[int, int]) -> Tensor:
    """Bias of each pair of window tokens, from that of each offset: (h, 2 wh - 1, 2 ww - 1) -> (h, N, N).

    Entry (a, b), (a', b') of the result is offsets[:, a - a' + wh - 1, b - b' + ww - 1]. Each row of the
    result is a window of the offsets read backwards, and the first row is the last window.
    """
    pairs = offsets.flip(1, 2).unfold(1, window_size[0], 1).unfold(2, window_size[1], 1)  # (h, wh, ww, wh, ww)
    return pairs.flatten(1, 2).flatten(2).flip(1)


class WindowAttention(nn.Module):
    """Window attention with relative position bias: projection in, attention inside windows, projection out.

    The projection runs on the unpadded grid. A padding token is the zero vector: one zero token, projected with the
    others by the same module, serves for all of them.
    """

    def __init__(self, dim: int, num_heads: int, window_size: tuple[int, int]) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        table_rows = (2 * window_size[0] - 1) * (2 * window_size[1] - 1)
        self.relative_position_bias_table = nn.Parameter(torch.empty(table_rows, num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def position_bias(self, window_size: tuple[int, int]) -> Tensor:
        """(h, N, N), from the table."""
        sides = (2 * window_size[0] - 1, 2 * window_size[1] - 1)
        return bias_of_pairs(self.relative_position_bias_table.t().unflatten(1, sides), window_size)

    def project(self, rows: Tensor) -> Tensor:
        """(T, C) -> (T, 3C): queries, keys and values."""
        return self.qkv(rows)

    def cosine_scale(self) -> Tensor | None:
        """(h,) factor of cosine scores; None: scores are scaled products."""
        return None

    def forward(self, x: Tensor, plan: WindowPlan) -> Tensor:
        """(..., C) -> (..., C), the tokens of the plan."""
        rows = x.reshape(-1, x.shape[-1])
        if plan.padded:
            rows = F.pad(rows, (0, 0, 0, 1))
        if plan.padded and not (GATHERS_FIRST and torch.compiler.is_compiling()):
            qkv = _select(self.project(rows), plan.gather)  # whole rows: one copy each
        else:  # gathered before the projection, which makes them three times as wide
            qkv = self.project(_select(rows, plan.gather))
        qkv = qkv.unflatten(-1, (3, self.num_heads, -1))
        bias = self.position_bias(plan.geometry.window_size) if plan.bias is None else plan.bias
        out = attend(qkv, bias, plan, self.cosine_scale())
        return self.proj(_select(out, plan.scatter)).view(x.shape)


def _select(rows: Tensor, index: Tensor | None) -> Tensor:
    return rows if index is None else rows.index_select(0, index)


class WindowAttentionV2(WindowAttention):
    """Window attention of Swin V2 (Liu et al. 2022, https://arxiv.org/abs/2111.09883).

    Scores are cosines times a learned scale of each head, of at most 100. The position bias is computed for any window
    by an MLP on log-spaced offsets, counted in windows of the pretraining. Keys have no bias.
    """

    def __init__(
        self, dim: int, num_heads: int, window_size: tuple[int, int], pretrained_window_size: tuple[int, int]
    ) -> None:
        super().__init__(dim, num_heads, window_size)
        del self.relative_position_bias_table
        self.pretrained_window_size = pretrained_window_size
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.logit_scale = nn.Parameter(torch.full((num_heads, 1, 1), math.log(10.0)))
        self.cpb_mlp = nn.Sequential(nn.Linear(2, CPB_HIDDEN), nn.ReLU(), nn.Linear(CPB_HIDDEN, num_heads, bias=False))

    def position_bias(self, window_size: tuple[int, int]) -> Tensor:
        """(h, N, N), between 0 and 16."""
        dtype = next(self.cpb_mlp.parameters(), self.q_bias).dtype  # quantised layers have no parameters
        axes, high = [], torch.promote_types(dtype, torch.float32)
        for side, pretrained in zip(window_size, self.pretrained_window_size, strict=True):
            offset = torch.arange(1 - side, side, device=self.q_bias.device, dtype=high)
            offset = 8 * offset / max(pretrained - 1, 1)
            axes.append(offset.sign() * torch.log2(1 + offset.abs()) / math.log2(8))
        offsets = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).to(dtype)
        return bias_of_pairs(16 * torch.sigmoid(self.cpb_mlp(offsets)).permute(2, 0, 1), window_size)

    def project(self, rows: Tensor) -> Tensor:
        """(T, C) -> (T, 3C): queries, keys and values."""
        qkv = self.qkv(rows)
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        return qkv + bias.to(qkv.dtype)

    def cosine_scale(self) -> Tensor | None:
        """(h,) factor of the scores."""
        return self.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp().flatten()


class Mlp(nn.Module):
    """Linear to four times the width, exact GELU, linear back."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return self.fc2(F.gelu(self.fc1(x)))


def arguments(module: nn.Module, x: Tensor, plan: WindowPlan) -> tuple[Tensor] | tuple[Tensor, WindowPlan]:
    """What a block or an attention is called with: an nn.Identity that was put in its place takes no plan."""
    return (x,) if type(module) is nn.Identity else (x, plan)


class SwinBlock(nn.Module):
    """x + attention(norm1(x)), then x + mlp(norm2(x)), with stochastic depth (Huang et al. 2016) on both branches.

    shifted: whether its windows are shifted, also where blocks before it are removed.
    """

    def __init__(self, dim: int, attn: WindowAttention, drop_path_rate: float, shifted: bool) -> None:
        super().__init__()
        self.shifted = shifted
        self.norm1 = nn.LayerNorm(dim)
        self.attn = attn
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor, plan: WindowPlan) -> Tensor:
        """(..., C) -> (..., C), the tokens of the plan."""
        x = self._add(x, self.attn(*arguments(self.attn, self.norm1(x), plan)), plan, self.norm1, self.attn)
        return self._add(x, self.mlp(self.norm2(x)), plan, self.norm2, self.mlp)

    def _add(self, x: Tensor, update: Tensor, plan: WindowPlan, *branch: nn.Module) -> Tensor:
        """x + update with stochastic depth, but in training not for a branch whose parameters are all frozen.

        smp's `freeze_encoder` leaves the encoder in training mode even after `model.eval()`, and a frozen encoder must
        give the same features twice. A branch without any parameters is not frozen: FSDP takes them away. The tokens of
        a slice, which were copied for the block, are changed in place.
        """
        weights = [weight for module in branch for weight in module.parameters()] if self.training else []
        if self.training and not weights and torch.is_grad_enabled():  # without gradients all of a replica look frozen
            parts = [part for module in branch for part in module.modules()]
            # Where replicas of nn.DataParallel, which have no parameters, keep theirs.
            weights = [weight for part in parts for weight in getattr(part, "_former_parameters", {}).values()]
        if not weights or any(weight.requires_grad for weight in weights):
            update = self.drop_path(update)
        in_place = plan.rows is not None and torch.result_type(x, update) == x.dtype
        return x.add_(update) if in_place else x + update


class SwinBlockV2(SwinBlock):
    """Block of Swin V2: x + norm1(attention(x)), then x + norm2(mlp(x)). Norms start at zero, blocks as identities."""

    def __init__(self, dim: int, attn: WindowAttention, drop_path_rate: float, shifted: bool) -> None:
        super().__init__(dim, attn, drop_path_rate, shifted)
        for norm in (self.norm1, self.norm2):
            nn.init.zeros_(norm.weight)

    def forward(self, x: Tensor, plan: WindowPlan) -> Tensor:
        """(..., C) -> (..., C), the tokens of the plan."""
        x = self._add(x, self.norm1(self.attn(*arguments(self.attn, x, plan))), plan, self.norm1, self.attn)
        return self._add(x, self.norm2(self.mlp(x)), plan, self.norm2, self.mlp)


class PatchMerging(nn.Module):
    """Concatenate 2 x 2 neighbours, normalise, and project from 4C to 2C channels; V2 projects, then normalises.

    Strided, it halves the grid. Dense, it keeps the grid: the four taps are one incoming period e apart, so that each
    phase of the result is the strided merge of one shift of an incoming lattice. Taps are ordered (0, 0), (1, 0),
    (0, 1), (1, 1) as (row, column), and zeros follow the grid at bottom and right, before the norm.
    """

    def __init__(self, dim: int, norm_last: bool) -> None:
        super().__init__()
        self.spacing = 1  # e
        self.stride = 2  # 1: dense
        self.norm_last = norm_last
        self.norm = nn.LayerNorm(2 * dim if norm_last else 4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), 2C) strided, (B, H, W, 2C) dense."""
        e, (height, width) = self.spacing, x.shape[1:3]
        # Padding an even grid too adds nothing, as its last 2 x 2 would need two more rows; traced code must not ask.
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
        if traced or self.stride == 1 or height % 2 == 1 or width % 2 == 1:
            x = F.pad(x, (0, 0, 0, e, 0, e))
        rows = [x[:, row : row + height : self.stride] for row in (0, e)]
        x = torch.cat([part[:, :, column : column + width : self.stride] for column in (0, e) for part in rows], -1)
        return self.norm(self.reduction(x)) if self.norm_last else self.reduction(self.norm(x))
