"""A Swin stage: merge, then blocks that share one grid, and the ways in which they run.

Shapes: B images, H W grid, C channels. Grids are channels last, (B, H, W, C).
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from swinx import inference, windows
from swinx.attention import plan_ops
from swinx.attention.api import AttentionImpl, attention_dtype, resolve_implementation
from swinx.layers import BlockWindows, PatchMerging, SwinBlock
from swinx.windows import WindowGeometry, WindowPlan


class SwinStage(nn.Module):
    """Merge (except in the first stage), then blocks, every second one shifted."""

    def __init__(
        self, dim: int, num_heads: int, window_size: tuple[int, int], drop_path_rates: list[float], merge: bool
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.window_size = window_size
        self.period = 1
        self.impl: AttentionImpl = "auto"
        self.grad_checkpointing = False
        self.downsample = PatchMerging(dim // 2) if merge else nn.Identity()
        self.blocks = nn.ModuleList(SwinBlock(dim, num_heads, window_size, rate) for rate in drop_path_rates)

    @torch.jit.unused
    def set_period(self, incoming: int, period: int) -> None:
        """Dilate: attend on lattices of the given period; merge densely where it exceeds the incoming one."""
        self.period = period
        if isinstance(self.downsample, PatchMerging):
            self.downsample.spacing = incoming
            self.downsample.stride = 2 if period == incoming else 1

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H', W', C')."""
        x = self.downsample(x)
        if torch.jit.is_scripting():
            windows_of = self.block_windows(x, "sdpa")
            for index, block in enumerate(self.blocks):
                x = block(x, windows_of[index % 2])
            return x
        return self._run(x)

    def block_windows(self, x: Tensor, impl: str) -> list[BlockWindows]:
        """Windows on the grid x of the blocks without shift and of those with one."""
        plain, shifted = self.geometry(x, False), self.geometry(x, True)
        if impl == "reference" or impl == "triton":
            return [BlockWindows(plain, False, impl, None), BlockWindows(shifted, True, impl, None)]
        return [
            BlockWindows(plain, False, impl, self._plan(plain, False, x)),
            BlockWindows(shifted, True, impl, self._plan(shifted, True, x)),
        ]

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

    def _plan(self, geometry: WindowGeometry, shifted: bool, x: Tensor) -> WindowPlan:
        if torch.jit.is_scripting():
            return windows.window_plan(geometry, shifted, True, windows.needs_padding(geometry), x.device)
        return self._python_plan(geometry, shifted, x)

    @torch.jit.unused
    def _python_plan(self, geometry: WindowGeometry, shifted: bool, x: Tensor) -> WindowPlan:
        compiled = torch.compiler.is_compiling()
        if compiled and not torch.compiler.is_exporting():
            return plan_ops.window_plan(geometry, shifted, x.device)
        if _traced(x):
            return windows.window_plan(geometry, shifted, True, True, x.device)
        return plan_ops.kept_window_plan(geometry, shifted, x.device)

    @torch.jit.unused
    def _run(self, x: Tensor) -> Tensor:
        trained = x.requires_grad or any(parameter.requires_grad for parameter in self.blocks.parameters())
        recording = torch.is_grad_enabled() and trained
        sliced = (
            x.device.type == "cpu" and self.impl not in ("reference", "triton") and not (self.training or recording)
        )
        if sliced and _compiled(x) and inference.original(self.blocks):
            geometries = [self.geometry(x, False), self.geometry(x, True)]
            return inference.infer_compiled(x, self._blocks(), geometries, self.impl)
        if sliced and not (_traced(x) or inference.hooked(self.blocks)):
            return self._infer(x)
        impl = self._resolved(x, recording)
        windows_of = self.block_windows(x, impl)
        for index, block in enumerate(self.blocks):
            if self.grad_checkpointing and recording:
                x = checkpoint(block, x, windows_of[index % 2], use_reentrant=False)
            else:
                x = block(x, windows_of[index % 2])
        return x

    @torch.jit.unused
    def _resolved(self, x: Tensor, recording: bool) -> AttentionImpl:
        head_dim = x.shape[3] // self.num_heads
        return resolve_implementation(self.impl, x.device, attention_dtype(x), self.window_size, head_dim, recording)

    @torch.jit.unused
    def _blocks(self) -> list[SwinBlock]:
        return [cast(SwinBlock, block) for block in self.blocks]

    @torch.jit.unused
    def _infer(self, x: Tensor) -> Tensor:
        if isinstance(self.downsample, nn.Identity):
            x = x.clone(memory_format=torch.contiguous_format)  # the grid belongs to the caller
        layers = [inference.block_layers(block) for block in self._blocks()]
        geometries = self.geometry(x, False), self.geometry(x, True)
        inference.infer_blocks_(x, layers, self.num_heads, geometries, self._resolved(x, False) == "bmm")
        return x


def _compiled(x: Tensor) -> bool:
    """Whether the operator may stand for the blocks: in compiled code, which keeps no autocast, but not in exports."""
    compiling = torch.compiler.is_compiling() and not torch.compiler.is_exporting()
    return compiling and not torch.is_autocast_enabled(x.device.type)


def _traced(x: Tensor) -> bool:
    """Whether x stands for other tensors: nothing made from it may be kept, and its sizes must not be asked."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or type(x) is not Tensor
