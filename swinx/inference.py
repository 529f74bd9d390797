"""The blocks of a stage in evaluation on the CPU: a few windows at a time go through a whole block.

Eager evaluation calls `infer_blocks_`; compiled evaluation calls the operator around it, because the code that the
compiler generates for whole grids is slower, and for windows slower still (docs/benchmarks).

Shapes: B images, H W grid, C channels, h heads, N tokens in a window.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from swinx.attention import gathered
from swinx.attention.api import AttentionImpl, resolve_implementation
from swinx.attention.plan_ops import kept_window_plan
from swinx.layers import Mlp, SwinBlock, WindowAttention
from swinx.window_slices import WindowSlice, window_slices
from swinx.windows import WindowGeometry

WEIGHTS = (
    *("norm1.weight", "norm1.bias", "attn.qkv.weight", "attn.qkv.bias", "attn.proj.weight", "attn.proj.bias"),
    *("norm2.weight", "norm2.bias", "mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias"),
)


class BlockLayers(NamedTuple):
    """What a block applies to tokens, each (T, C) -> (T, C'), and its position bias (h, N, N)."""

    norm1: Callable[[Tensor], Tensor]
    qkv: Callable[[Tensor], Tensor]
    bias: Tensor
    proj: Callable[[Tensor], Tensor]
    norm2: Callable[[Tensor], Tensor]
    mlp: Callable[[Tensor], Tensor]


@functools.lru_cache(maxsize=16)  # the stages of two image sizes
def _kept_slices(geometry: WindowGeometry, shifted: bool, device: torch.device) -> list[WindowSlice]:
    plan = kept_window_plan(geometry, shifted, device)
    with torch.inference_mode(False):  # slices made in inference mode could not be used outside it
        return window_slices(plan, geometry.window_size[0] * geometry.window_size[1])


def infer_blocks_(
    x: Tensor, blocks: list[BlockLayers], heads: int, geometries: tuple[WindowGeometry, WindowGeometry], bmm: bool
) -> None:
    """Run blocks in place, without gradients.

    Args:
        x: (B, H, W, C), contiguous.
        blocks: the layers of each.
        heads: h.
        geometries: of the blocks without shift and of those with one, which take turns.
        bmm: see `swinx.attention.gathered`.
    """
    plain, shifted = geometries
    slices = _kept_slices(plain, False, x.device), _kept_slices(shifted, True, x.device)
    rows = x.view(-1, x.shape[3])
    for index, block in enumerate(blocks):
        for part in slices[index % 2]:
            tokens = rows.index_select(0, part.tokens)
            tokens += _attend(block.norm1(tokens), block, heads, part, bmm)
            tokens += block.mlp(block.norm2(tokens))
            rows.index_copy_(0, part.tokens, tokens)


def _attend(tokens: Tensor, block: BlockLayers, heads: int, part: WindowSlice, bmm: bool) -> Tensor:
    if part.gather is None or part.scatter is None:
        slots = block.qkv(tokens).unflatten(1, (3, heads, -1))
        return block.proj(gathered.attend_slots(slots, block.bias, part.visible, bmm))
    rows = block.qkv(F.pad(tokens, (0, 0, 0, 1)))  # the padding token
    slots = rows.index_select(0, part.gather).unflatten(1, (3, heads, -1))
    return block.proj(gathered.attend_slots(slots, block.bias, part.visible, bmm).index_select(0, part.scatter))


def block_layers(block: SwinBlock) -> BlockLayers:
    """The layers of a block as they are, whatever stands in their places."""
    return BlockLayers(block.norm1, block.attn.qkv, block.attn.position_bias(), block.attn.proj, block.norm2, block.mlp)


def original(blocks: nn.Module) -> bool:
    """Whether blocks hold the modules and plain parameters they were made of, and nobody listens.

    Only then do their weights say what they compute: a replaced layer or a quantised weight has a type of its own.
    """
    ours = (nn.ModuleList, SwinBlock, WindowAttention, Mlp, nn.LayerNorm, nn.Linear, DropPath)
    plain = all(type(parameter) is nn.Parameter for parameter in blocks.parameters())
    return plain and not hooked(blocks) and all(type(module) in ours for module in blocks.modules())


def hooked(blocks: nn.Module) -> bool:
    """Whether somebody listens to a module inside: hooks must see whole grids."""
    return any(module._forward_hooks or module._forward_pre_hooks for module in blocks.modules())


def infer_compiled(x: Tensor, blocks: list[SwinBlock], geometries: list[WindowGeometry], impl: AttentionImpl) -> Tensor:
    """`infer_blocks_` through the operator: (B, H, W, C) -> (B, H, W, C). The blocks are `original`."""
    weights = [block.get_parameter(name) for block in blocks for name in WEIGHTS]
    biases = [block.attn.position_bias() for block in blocks]
    plain, shifted = geometries
    return _infer_blocks(x, weights, biases, plain.window_size, shifted.shift, plain.dilation, impl)


@torch.library.custom_op("swinx::infer_blocks", mutates_args=())
def _infer_blocks(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    window_size: Sequence[int],
    shift: Sequence[int],
    dilation: int,
    impl: str,
) -> Tensor:
    """(B, H, W, C) -> (B, H, W, C).

    Args:
        weights: WEIGHTS of each block, one block after the other.
        biases: (h, N, N) of each block.
        shift: of every second block.
    """
    window = (window_size[0], window_size[1])
    batch, height, width, _ = x.shape
    plain = WindowGeometry(batch, height, width, window, (0, 0), dilation)
    blocks = [
        _layers_of(list(weights[i * len(WEIGHTS) : (i + 1) * len(WEIGHTS)]), bias) for i, bias in enumerate(biases)
    ]
    head_dim = x.shape[3] // len(biases[0])
    resolved = resolve_implementation(impl, x.device, x.dtype, window, head_dim, recording=False)  # type: ignore[arg-type]
    out = x.clone(memory_format=torch.contiguous_format)
    infer_blocks_(out, blocks, len(biases[0]), (plain, plain._replace(shift=(shift[0], shift[1]))), resolved == "bmm")
    return out


@_infer_blocks.register_fake
def _(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], *rest: object) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _layers_of(weights: list[Tensor], bias: Tensor) -> BlockLayers:
    norm1_w, norm1_b, qkv_w, qkv_b, proj_w, proj_b, norm2_w, norm2_b, fc1_w, fc1_b, fc2_w, fc2_b = weights
    return BlockLayers(
        lambda x: F.layer_norm(x, norm1_w.shape, norm1_w, norm1_b),
        lambda x: F.linear(x, qkv_w, qkv_b),
        bias,
        lambda x: F.linear(x, proj_w, proj_b),
        lambda x: F.layer_norm(x, norm2_w.shape, norm2_w, norm2_b),
        lambda x: F.linear(F.gelu(F.linear(x, fc1_w, fc1_b)), fc2_w, fc2_b),
    )
