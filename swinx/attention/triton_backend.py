"""Launches the Triton kernels of window attention. Imported only when they run.

Shapes: B images, H W grid, h heads, D head_dim, N tokens in a window.
"""

import math
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from swinx import windows
from swinx.attention import triton_launch
from swinx.attention.triton_backward import backward_kernel
from swinx.attention.triton_backward_tiled import key_kernel, query_kernel
from swinx.attention.triton_forward import forward_kernel
from swinx.attention.triton_launch import ONE_TILE, Kernel
from swinx.windows import WindowGeometry

WIDE_FROM = 2**31  # elements


def forward(qkv: Tensor, bias: Tensor, pad_qkv: Tensor | None, geometry: WindowGeometry) -> tuple[Tensor, Tensor]:
    """out (B, H, W, h * D), and for the backward pass of windows of more than ONE_TILE tokens lse (B, H, W, h).

    lse is the log2 of the sum of exp2 of a query's scores in units of log2; empty for smaller windows.
    """
    batch, height, width, _, heads, head_dim = qkv.shape
    out = _empty(qkv, batch, height, width, heads * head_dim)
    sums = (batch, height, width, heads) if bias.shape[1] > ONE_TILE else (0,)
    lse = _empty(qkv, *sums, dtype=_accumulator(qkv))
    if qkv.numel() > 0:
        call = _Call(qkv, bias, pad_qkv, geometry)
        grid, numbers = call.numbers("forward")
        with torch.cuda.device_of(qkv):
            forward_kernel[grid](
                qkv, bias.contiguous(), call.padding, out, lse, *numbers, **call.constants, **call.tiles,
                STORE_LSE=call.tokens > ONE_TILE, **call.options("forward"),
            )  # fmt: skip
    return out, lse


def backward(
    grad_out: Tensor,
    qkv: Tensor,
    bias: Tensor,
    pad_qkv: Tensor | None,
    out: Tensor | None,
    lse: Tensor | None,
    geometry: WindowGeometry,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of qkv (contiguous), bias, and pad_qkv (empty without one). Large windows need out and lse."""
    grad_qkv = _empty(qkv, *qkv.shape)
    grad_pad = qkv.new_zeros(0) if pad_qkv is None else torch.zeros_like(pad_qkv, memory_format=torch.contiguous_format)
    if qkv.numel() == 0:
        return grad_qkv, torch.zeros_like(bias, memory_format=torch.contiguous_format), grad_pad
    call = _Call(qkv, bias, pad_qkv, geometry)
    bias, grad_out = bias.contiguous(), grad_out.contiguous()
    with torch.cuda.device_of(qkv):
        if out is None or lse is None:
            shares = _backward_one_tile(call, grad_out, bias, grad_qkv)
        else:
            shares = _backward_tiled(call, grad_out, bias, out, lse, grad_qkv)
    if pad_qkv is not None and call.constants["PADDED"]:
        grad_pad[1:] = shares[1].sum(0)
    return grad_qkv, shares[0].sum(0).to(bias.dtype), grad_pad


def _backward_one_tile(call: "_Call", grad_out: Tensor, bias: Tensor, grad_qkv: Tensor) -> tuple[Tensor, Tensor]:
    """Fills grad_qkv; every program's share of the gradients of bias and padding, along the first dimension."""
    grid, numbers = call.numbers("backward")
    bias_shares = call.new_shares(grid[2], *bias.shape)
    padding_shares = call.new_shares(grid[2], 2, *call.qkv.shape[4:])
    backward_kernel[grid[0], grid[2]](
        call.qkv, bias, call.padding, grad_out, grad_qkv, bias_shares, padding_shares, *numbers, **call.constants,
        T=call.tiles["T"], **call.options("backward"),
    )  # fmt: skip
    return bias_shares, padding_shares


def _backward_tiled(
    call: "_Call", grad_out: Tensor, bias: Tensor, out: Tensor, lse: Tensor, grad_qkv: Tensor
) -> tuple[Tensor, Tensor]:
    """As `_backward_one_tile`, for windows of several tiles."""
    delta = _empty(lse, *lse.shape)
    grid, numbers = call.numbers("query")
    bias_shares = call.new_shares(grid[2], *bias.shape)
    query_kernel[grid](
        call.qkv, bias, call.padding, out, lse, grad_out, grad_qkv, bias_shares, delta, *numbers, **call.constants,
        **call.tiles, **call.options("query"),
    )  # fmt: skip
    grid, numbers = call.numbers("key")
    padding_shares = call.new_shares(grid[1] * grid[2], 2, *call.qkv.shape[4:])
    key_kernel[grid](
        call.qkv, bias, call.padding, lse, delta, grad_out, grad_qkv, padding_shares, *numbers, **call.constants,
        **call.tiles, **call.options("key"),
    )  # fmt: skip
    return bias_shares, padding_shares


def _empty(like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """Memory that a kernel fills: every element of it, which the tests see by poisoning it here."""
    return like.new_empty(shape, dtype=dtype)


def _accumulator(qkv: Tensor) -> torch.dtype:
    return torch.promote_types(qkv.dtype, torch.float32)


def _precision(qkv: Tensor) -> str:
    """How float32 is multiplied: three tf32 products on a GPU, one where torch.set_float32_matmul_precision allows it.

    Three keep 22 of 24 bits (Ootomo and Yokota 2022, https://arxiv.org/abs/2203.03341). Without the matrix unit the
    backward kernel finds no registers: thousands of spills.
    """
    if qkv.dtype != torch.float32 or qkv.device.type == "cpu":
        return "ieee"
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def _gpu(device: torch.device) -> tuple[int, int]:
    """Generation, and bytes of shared memory for a program; what the interpreter is told does not matter."""
    if device.type == "cpu":
        return triton_launch.GENERATIONS[-1], 0
    properties = torch.cuda.get_device_properties(device)
    # torch 2.14 has the attribute, and does not tell type checkers.
    shared: int = properties.shared_memory_per_block_optin  # type: ignore[attr-defined, unused-ignore]
    return properties.major, shared


class _Call:
    """What all kernels take of one call: everything but the tensors and the tiles."""

    def __init__(self, qkv: Tensor, bias: Tensor, pad_qkv: Tensor | None, geometry: WindowGeometry) -> None:
        _, height, width, _, heads, head_dim = qkv.shape
        self.qkv, self.geometry, self.tokens = qkv, geometry, bias.shape[1]
        own, count, width_of_tile, last = triton_launch.tiles(self.tokens)
        self.tiles = {"T": own, "TILES": count, "WIDTH": width_of_tile, "LAST": last}
        self.padding = qkv if pad_qkv is None else pad_qkv.to(qkv.dtype).contiguous()
        strides = [abs(stride) for stride in qkv.stride()]
        span = max((height - 1) * strides[1] + (width - 1) * strides[2], 3 * height * width * heads * head_dim)
        self.constants: dict[str, Any] = {
            "N": self.tokens,
            "WH": geometry.window_size[0],
            "WW": geometry.window_size[1],
            "D": head_dim,
            "DP": triton_launch.next_power_of_2(head_dim),
            "PADDED": windows.needs_padding(geometry),
            "ATTENDED": pad_qkv is not None,
            "SHIFTED": geometry.shift != (0, 0),
            "ALIGNED": self._aligned(),
            "WIDE": span >= WIDE_FROM,
            "SCALE": 1 / math.sqrt(head_dim),
            "PRECISION": _precision(qkv),
            "ACC": tl.float64 if qkv.dtype == torch.float64 else tl.float32,
        }

    def _aligned(self) -> bool:
        """Whether every token of every head, padding too, starts at a multiple of 16 bytes."""
        starts = [self.qkv.data_ptr(), self.padding.data_ptr()]
        steps = [*self.qkv.stride()[:5], self.qkv.shape[5]]
        return all(start % 16 == 0 for start in starts) and all(s * self.qkv.itemsize % 16 == 0 for s in steps)

    def numbers(self, kernel: Kernel) -> tuple[tuple[int, int, int], tuple[int, ...]]:
        """Launch grid (heads, tiles, splits), and the integers of a kernel in their order."""
        _, height, width, _, shift, dilation = self.geometry
        heads, count = self.qkv.shape[4], windows.window_count(self.geometry)
        own_tiles = -(-self.tokens // self.tiles["T"])
        splits = triton_launch.splits(kernel, heads, own_tiles, count)
        counts = windows.lattice_windows(self.geometry)
        numbers = (count, splits, heads, height, width, *counts, *shift, dilation, *self.qkv.stride()[:5])
        return (heads, own_tiles, splits), numbers

    def options(self, kernel: Kernel) -> dict[str, int | None]:
        """Launch parameters in Triton's words."""
        head_dim, dtype = self.qkv.shape[5], self.qkv.dtype
        generation, shared = _gpu(self.qkv.device)
        return triton_launch.options(triton_launch.launch(kernel, self.tokens, head_dim, dtype, generation, shared))

    def new_shares(self, *shape: int) -> Tensor:
        """Memory for what each program adds to a sum."""
        return _empty(self.qkv, *shape, dtype=_accumulator(self.qkv))
