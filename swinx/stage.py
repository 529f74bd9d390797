"""A Swin stage: merge, then blocks that share one grid, and the ways in which they run.

Shapes: B images, H W grid, C channels. Grids are channels last, (B, H, W, C).
"""

import functools
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from swinx import windows
from swinx.attention import plan_ops
from swinx.attention.api import AttentionImpl, resolve_implementation
from swinx.layers import PatchMerging, SwinBlock
from swinx.windows import WindowGeometry, WindowPlan

# Values of a grid that attention takes at once in evaluation on the CPU: their queries, keys and values take 12 MB.
VALUES_PER_SLICE = 2**20


@functools.lru_cache(maxsize=16)  # the stages of two image sizes
def _eager_plan(
    batch: int,
    height: int,
    width: int,
    window_size: tuple[int, int],
    shift: tuple[int, int],
    period: int,
    shifted: bool,
    device: torch.device,
) -> WindowPlan:
    """A plan kept for the next call: small images spend 2 % of their time on making it."""
    padded = windows.needs_padding(height, width, window_size, period)
    with torch.inference_mode(False):  # a plan made in inference mode could not be used in training
        return windows.window_plan(batch, height, width, window_size, shift, period, shifted, True, padded, device)


class SwinStage(nn.Module):
    """Merge (except in the first stage), then blocks, every second one shifted."""

    def __init__(
        self, dim: int, num_heads: int, window_size: tuple[int, int], drop_path_rates: list[float], merge: bool
    ) -> None:
        super().__init__()
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
            geometries = self.geometries(x, planned=True)
            for index, block in enumerate(self.blocks):
                x = block(x, geometries[index % 2])
            return x
        return self._run(x)

    def geometries(self, x: Tensor, planned: bool) -> list[WindowGeometry]:
        """Window geometry on the grid x of the blocks without shift and of those with one."""
        return [self.geometry(x, False, planned), self.geometry(x, True, planned)]

    def geometry(self, x: Tensor, shifted: bool, planned: bool) -> WindowGeometry:
        """Window geometry on the grid x, with a plan where planned."""
        batch, height, width, _ = x.shape
        window, period = self.window_size, self.period
        shift = (0, 0)
        if shifted:
            shift = (
                windows.cyclic_shift(height, window[0], period),
                windows.cyclic_shift(width, window[1], period),
            )
        plan: WindowPlan | None = None
        if planned and torch.jit.is_scripting():
            padded = windows.needs_padding(height, width, window, period)
            plan = windows.window_plan(batch, height, width, window, shift, period, shifted, True, padded, x.device)
        elif planned:
            plan = self._plan(x, shift, shifted)
        return WindowGeometry(window, shift, period, shifted, plan)

    @torch.jit.unused
    def _plan(self, x: Tensor, shift: tuple[int, int], shifted: bool) -> WindowPlan:
        batch, height, width, _ = x.shape
        window, period = self.window_size, self.period
        compiled = torch.compiler.is_compiling()
        if compiled and not torch.compiler.is_exporting():
            return plan_ops.window_plan(batch, height, width, window, shift, period, shifted, x.device)
        if compiled or torch.jit.is_tracing() or type(x) is not Tensor:  # a fake tensor's plan must not be kept
            return windows.window_plan(batch, height, width, window, shift, period, shifted, True, True, x.device)
        return _eager_plan(batch, height, width, window, shift, period, shifted, x.device)

    @torch.jit.unused
    def _run(self, x: Tensor) -> Tensor:
        trained = x.requires_grad or any(parameter.requires_grad for parameter in self.blocks.parameters())
        recording = torch.is_grad_enabled() and trained
        planned = resolve_implementation(self.impl, x.device, recording) == "sdpa"
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
        if x.device.type == "cpu" and not (self.training or recording or traced or self._hooked()):
            return self._infer(x, planned)
        geometries = self.geometries(x, planned)
        for index, block in enumerate(self.blocks):
            if self.grad_checkpointing and recording:
                x = checkpoint(block, x, geometries[index % 2], use_reentrant=False)
            else:
                x = block(x, geometries[index % 2])
        return x

    @torch.jit.unused
    def _hooked(self) -> bool:
        """Whether somebody listens to a module inside: hooks must see whole grids."""
        return any(module._forward_hooks or module._forward_pre_hooks for module in self.blocks.modules())

    @torch.jit.unused
    def _infer(self, x: Tensor, planned: bool) -> Tensor:
        """Blocks on a few images at a time, see `SwinBlock.infer_`."""
        if isinstance(self.downsample, nn.Identity):
            x = x.clone(memory_format=torch.contiguous_format)  # the grid belongs to the caller
        fitting = max(VALUES_PER_SLICE // max(x[0].numel(), 1), 1)
        images = max(count for count in range(1, fitting + 1) if x.shape[0] % count == 0)
        geometries = self.geometries(x[:images], planned)
        for part in x.split(images):
            for index, block in enumerate(self.blocks):
                cast(SwinBlock, block).infer_(part, geometries[index % 2])
        return x
