"""A Swin stage: merge, then blocks that share one grid.

Shapes: B images, H W grid, C channels, T tokens of a slice. Grids are channels last, (B, H, W, C).
"""

from types import NoneType
from typing import Any, cast

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules import module as hooks
from torch.utils.checkpoint import checkpoint

from swinx import plans, windows
from swinx.attention.backends import BACKENDS, AttentionImpl, Case, attention_dtype, resolve_implementation
from swinx.config import StageConfig
from swinx.layers import (
    Mlp,
    PatchMerging,
    SwinBlock,
    SwinBlockV2,
    WindowAttention,
    WindowAttentionV2,
    arguments,
)
from swinx.windows import WindowGeometry

_GLOBAL_HOOKS = ("_global_forward_hooks", "_global_forward_pre_hooks")
_OWN = (WindowAttention, WindowAttentionV2, SwinBlock, SwinBlockV2, PatchMerging, Mlp, DropPath)
_TORCHS = (nn.LayerNorm, nn.Linear, nn.Identity, nn.ReLU, nn.Sequential, nn.ModuleList)
_METHODS = ("__call__", "forward", "project", "position_bias", "cosine_scale", "_add")


def _methods(kind: type[nn.Module]) -> list[Any]:
    return [getattr(kind, name, None) for name in _METHODS]


# What a stage is made of: types with the methods that each had when it was imported, and names of attributes.
_KINDS = {kind: _methods(kind) for kind in (*_OWN, *_TORCHS)}
_ATTRIBUTES = {
    *vars(nn.Module()),
    *("num_heads", "pretrained_window_size", "drop_prob", "scale_by_keep", "spacing", "stride", "norm_last"),
    *("shifted", "normalized_shape", "eps", "elementwise_affine", "in_features", "out_features", "inplace"),
}
_BLOCKS = (SwinBlock, SwinBlockV2, nn.Identity)  # the last in place of one that is left out
_PLAIN = (nn.Parameter, FakeTensor, NoneType)  # torch.export runs with fake ones


class SwinStage(nn.Module):
    """Merge (except in the first stage), then blocks, of which every second one is made shifted."""

    def __init__(self, config: StageConfig, merge: bool) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.window_size = config.window_size
        self.cosine = config.version == "v2"
        self.period = 1
        self.impl: AttentionImpl = "auto"
        self.grad_checkpointing = False
        dim = config.dim
        self.downsample = PatchMerging(dim // 2, norm_last=self.cosine) if merge else nn.Identity()
        self.blocks = nn.ModuleList(
            _make_block(config, rate, index % 2 == 1) for index, rate in enumerate(config.drop_path_rates)
        )

    def merges(self) -> list[PatchMerging]:
        """The merge, also where something was put around it; none in a first stage."""
        return [module for module in self.downsample.modules() if isinstance(module, PatchMerging)]

    def set_period(self, incoming: int, period: int) -> None:
        """Dilate: attend on lattices of a period; merge densely where it exceeds the one of the grid coming in."""
        self.period = period
        for merge in self.merges():
            merge.spacing = incoming
            merge.stride = 2 if period == incoming else 1

    def geometry(self, x: Tensor, shifted: bool) -> WindowGeometry:
        """Window geometry on the grid x."""
        batch, height, width, _ = x.shape
        window, period = self.window_size, self.period
        shift = (0, 0)
        if shifted:
            shift = (
                windows.cyclic_shift(height, window[0], period),
                windows.cyclic_shift(width, window[1], period),
            )
        return WindowGeometry(batch, height, width, window, shift, period)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H', W', C').

        In evaluation on the CPU, a few windows at a time go through a whole block, as a slice. Only tokens and windows
        can be cut so: where anything in the stage is not what it was made of, whole grids go through.
        """
        x = self.downsample(x)
        # torch.jit.trace compares what it recorded with a second run, which it makes without gradients.
        recording = torch.is_grad_enabled() and not torch.jit.is_tracing()
        recording = recording and (x.requires_grad or any(weight.requires_grad for weight in self.blocks.parameters()))
        head_dim = x.shape[3] // self.num_heads
        case = Case(x.device, attention_dtype(x), self.window_size, head_dim, recording, cosine=self.cosine)
        impl = resolve_implementation(self.impl, case)
        indexed = BACKENDS[impl].indexed
        geometries = [self.geometry(x, shifted) for shifted in (False, True)]
        if indexed and x.device.type == "cpu" and not recording and plans.is_plain(x) and _is_as_made(self):
            return self._in_slices(x, geometries, impl)
        needs = [self._needs(block, index) for index, block in enumerate(self.blocks)]
        made = {
            (shifted, heads): plans.grid_plan(geometries[shifted], heads, shifted, impl, indexed, x)
            for shifted, heads in dict.fromkeys(needs)
        }
        grid = x.shape
        # Between rows and a grid, compilers of exported programs divide by dynamic sizes at every token.
        in_rows = plans.is_exporting() and not torch.compiler.is_dynamo_compiling() and _is_as_made(self)
        if in_rows:
            x = x.reshape(-1, grid[3])
        for block, need in zip(self.blocks, needs, strict=True):
            given = arguments(block, x, made[need])
            if self.grad_checkpointing and recording and not plans.is_transformed():  # which checkpoints do not know
                x = checkpoint(block, *given, use_reentrant=False)
            else:
                x = block(*given)
        return x.view(grid) if in_rows else x

    def _needs(self, block: nn.Module, index: int) -> tuple[bool, int]:
        """Whether the windows of a block are shifted, and its heads, also where something was put around the block.

        A block of another kind, which does not say so, is shifted by its place and has the heads of the stage.
        """
        own = next((module for module in block.modules() if isinstance(module, SwinBlock)), None)
        attn = next((module for module in block.modules() if isinstance(module, WindowAttention)), None)
        return index % 2 == 1 if own is None else own.shifted, self.num_heads if attn is None else attn.num_heads

    def _in_slices(self, x: Tensor, geometries: list[WindowGeometry], impl: str) -> Tensor:
        slices = [
            plans.kept_slices(geometry, shifted, impl, x.device)
            for geometry, shifted in zip(geometries, (False, True), strict=True)
        ]
        if type(self.downsample) is not PatchMerging:  # the grid belongs to the caller
            x = x.clone(memory_format=torch.contiguous_format)
        tokens = x.view(-1, x.shape[3])
        for block in self.blocks:
            if type(block) is nn.Identity:
                continue
            block = cast(SwinBlock, block)
            attended = isinstance(block.attn, WindowAttention)
            bias = block.attn.position_bias(self.window_size) if attended else None
            for part in slices[block.shifted]:
                assert part.rows is not None
                updated = block(tokens.index_select(0, part.rows), part._replace(bias=bias))
                tokens.index_copy_(0, part.rows, updated)
        return x


def _make_block(config: StageConfig, drop_path_rate: float, shifted: bool) -> SwinBlock:
    dim, heads, window = config.dim, config.num_heads, config.window_size
    if config.version == "v2":
        attention = WindowAttentionV2(dim, heads, window, config.pretrained_window_size)
        return SwinBlockV2(dim, attention, drop_path_rate, shifted)
    return SwinBlock(dim, WindowAttention(dim, heads, window), drop_path_rate, shifted)


def _is_as_made(stage: SwinStage) -> bool:
    """Whether merge and blocks hold the modules and plain parameters they were made of, and nobody listens.

    Anything else may need whole grids: a module of another type, a patched method, a hook, a parametrised
    or quantised weight, a norm over more than channels, stochastic depth that is not at rest.
    """
    if any(getattr(hooks, name) for name in _GLOBAL_HOOKS):
        return False
    if any(type(block) not in _BLOCKS for block in stage.blocks):
        return False
    found: list[nn.Module] = [stage.downsample, stage.blocks]
    for module in found:  # grows as it goes; modules() takes twice as long, at every call of the encoder
        if not module.__dict__.keys() <= _ATTRIBUTES or module._forward_hooks or module._forward_pre_hooks:
            return False
        if any(type(parameter) not in _PLAIN for parameter in module._parameters.values()):
            return False
        if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) != 1:
            return False
        if isinstance(module, DropPath) and module.training and module.drop_prob:
            return False
        found.extend(child for child in module._modules.values() if child is not None)
    since = int(plans.is_exporting())  # torch.export puts a __call__ of its own into nn.Module
    kinds = {type(module) for module in found}
    return all(kind in _KINDS and _KINDS[kind][since:] == _methods(kind)[since:] for kind in kinds)
