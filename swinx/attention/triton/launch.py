"""Launches the Triton kernels of window attention. Imported only when they run.

Shapes: B images, H W grid, h heads, D head_dim, N tokens in a window, S slots (`swinx.windows`).
"""

import functools
import math
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from ... import windows
from ...windows import WindowGeometry
from . import parameters
from .backward import backward_kernel
from .backward_tiled import key_kernel, query_kernel
from .forward import forward_kernel
from .parameters import ONE_TILE, Kernel
from .scores import lay_out_bias_kernel

WIDE_FROM = 2**31  # elements
ALIGNMENT = 16  # bytes: what one instruction loads


def forward(
    qkv: Tensor, bias: Tensor, pad_qkv: Tensor | None, cosine_scale: Tensor | None, geometry: WindowGeometry
) -> tuple[Tensor, Tensor]:
    """out (B, H, W, h * D), and for the backward pass of windows of more than ONE_TILE tokens lse (h, S).

    lse is the log2 of the sum of exp2 of a query's scores in units of log2, infinite for slots that hold padding; empty
    for smaller windows.
    """
    batch, height, width, _, heads, head_dim = qkv.shape
    out = _empty(qkv, batch, height, width, heads * head_dim)
    sums = (heads, windows.slot_count(geometry)) if bias.shape[1] > ONE_TILE else (0,)
    lse = _empty(qkv, *sums, dtype=_accumulator(qkv))
    if qkv.numel() > 0:
        call = _Call(qkv, bias, pad_qkv, cosine_scale, geometry)
        grid, numbers, options = call.plan("forward")
        with torch.cuda.device_of(qkv):
            forward_kernel[grid](
                *call.tensors(keys_first=False), out, lse, *numbers, **call.constants, **call.tiles,
                **options,
            )  # fmt: skip
    return out, lse


def backward(
    grad_out: Tensor,
    qkv: Tensor,
    bias: Tensor,
    pad_qkv: Tensor | None,
    cosine_scale: Tensor | None,
    out: Tensor | None,
    lse: Tensor | None,
    geometry: WindowGeometry,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of qkv (contiguous), bias, pad_qkv and cosine_scale, the last two empty where the tensor is None.

    Windows of more than ONE_TILE tokens need out and lse.
    """
    grad_qkv = _empty(qkv, *qkv.shape)
    grad_pad, grad_cosine = (
        qkv.new_zeros(0) if tensor is None else torch.zeros_like(tensor, memory_format=torch.contiguous_format)
        for tensor in (pad_qkv, cosine_scale)
    )
    if qkv.numel() == 0:
        grad_bias = torch.zeros_like(bias, memory_format=torch.contiguous_format)
        return grad_qkv, grad_bias, grad_pad, grad_cosine
    call = _Call(qkv, bias, pad_qkv, cosine_scale, geometry)
    grad_out = _aligned(grad_out.to(qkv.dtype))
    with torch.cuda.device_of(qkv):
        if out is None or lse is None:
            shares = _backward_one_tile(call, grad_out, grad_qkv)
        else:
            shares = _backward_tiled(call, grad_out, _aligned(out), lse.contiguous(), grad_qkv)
    if pad_qkv is not None and call.constants["PADDED"]:
        grad_pad[1:] = shares[1].sum(0)
    if cosine_scale is not None:
        grad_cosine = shares[2].sum(0).to(cosine_scale.dtype)
    return grad_qkv, shares[0].sum(0).to(bias.dtype), grad_pad, grad_cosine


def _backward_one_tile(call: "_Call", grad_out: Tensor, grad_qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fills grad_qkv; every program's share of the gradients of bias, padding and scale, along the first dimension."""
    grid, numbers, options = call.plan("backward")
    bias_shares = call.new_shares(grid[2], *call.bias.shape)
    padding_shares = call.new_shares(grid[2], 2, *call.qkv.shape[4:])
    cosine_shares = call.new_shares(grid[2] if call.constants["COSINE"] else 0, grid[0])
    backward_kernel[grid](
        call.qkv, call.bias, call.padding, call.cosine_scale, grad_out, grad_qkv, bias_shares, padding_shares,
        cosine_shares, *numbers, **call.constants, T=call.tiles["T"], **options,
    )  # fmt: skip
    return bias_shares, padding_shares, cosine_shares


def _backward_tiled(
    call: "_Call", grad_out: Tensor, out: Tensor, lse: Tensor, grad_qkv: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """As `_backward_one_tile`, for windows of several tiles."""
    delta = _empty(lse, *lse.shape)
    grid, numbers, options = call.plan("query")
    bias_shares = call.new_shares(grid[2], *call.bias.shape)
    cosine_shares = call.new_shares(grid[1] * grid[2] if call.constants["COSINE"] else 0, grid[0])
    query_kernel[grid](
        *call.tensors(keys_first=False), out, lse, grad_out, grad_qkv, bias_shares, cosine_shares, delta, *numbers,
        **call.constants, **call.tiles, **options,
    )  # fmt: skip
    grid, numbers, options = call.plan("key")
    padding_shares = call.new_shares(grid[1] * grid[2], 2, *call.qkv.shape[4:])
    key_kernel[grid](
        *call.tensors(keys_first=True), lse, delta, grad_out, grad_qkv, padding_shares, *numbers, **call.constants,
        **call.tiles, **options,
    )  # fmt: skip
    return bias_shares, padding_shares, cosine_shares


def _empty(like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """Memory that a kernel fills: every element of it, which the tests see by poisoning it here."""
    return like.new_empty(shape, dtype=dtype)


def _aligned(tensor: Tensor) -> Tensor:
    """The same values, contiguous and from a multiple of ALIGNMENT on."""
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % ALIGNMENT else tensor


def _accumulator(qkv: Tensor) -> torch.dtype:
    return torch.promote_types(qkv.dtype, torch.float32)


@functools.cache
def _gpu(device: torch.device) -> tuple[int, int]:
    """Generation, and bytes of shared memory for a program; what the interpreter is told does not matter."""
    if device.type == "cpu":
        return parameters.GENERATIONS[-1], 0
    properties = torch.cuda.get_device_properties(device)
    # torch 2.14 has the attribute, and does not tell type checkers.
    shared: int = properties.shared_memory_per_block_optin  # type: ignore[attr-defined, unused-ignore]
    return properties.major, shared


class _Call:
    """What all kernels take of one call."""

    def __init__(
        self,
        qkv: Tensor,
        bias: Tensor,
        pad_qkv: Tensor | None,
        cosine_scale: Tensor | None,
        geometry: WindowGeometry,
    ) -> None:
        _, height, width, _, heads, head_dim = self.shape = qkv.shape
        self.qkv, self.bias, self.geometry, self.tokens = qkv, bias.contiguous(), geometry, bias.shape[1]
        self.strides, self.accumulator = qkv.stride(), _accumulator(qkv)
        self.counts, self.window_count = windows.lattice_windows(geometry), windows.window_count(geometry)
        self.cosine_scale = self.bias if cosine_scale is None else cosine_scale.contiguous()
        own, count, width_of_tile, last = parameters.tiles(self.tokens)
        self.tiles = {"T": own, "TILES": count, "WIDTH": width_of_tile, "LAST": last}
        self.padding = qkv if pad_qkv is None else pad_qkv.to(qkv.dtype).contiguous()
        strides = self.strides
        span = max((height - 1) * strides[1] + (width - 1) * strides[2], 3 * height * width * heads * head_dim)
        self.constants: dict[str, Any] = {
            "N": self.tokens,
            "WH": geometry.window_size[0],
            "WW": geometry.window_size[1],
            "D": head_dim,
            "DP": parameters.next_power_of_2(head_dim),
            "PADDED": windows.needs_padding(geometry),
            "ATTENDED": pad_qkv is not None,
            "SHIFTED": geometry.shift != (0, 0),
            "ALIGNED": self._aligned(),
            "WIDE": span >= WIDE_FROM,
            "SCALE": 1 / math.sqrt(head_dim),
            "COSINE": cosine_scale is not None,
            "PRECISION": parameters.precision(qkv.dtype, qkv.device),
            "ACC": tl.float64 if qkv.dtype == torch.float64 else tl.float32,
        }

    def _aligned(self) -> bool:
        """Whether every token of every head, padding too, starts at a multiple of 16 bytes."""
        bytes_apart = self.qkv.itemsize * math.gcd(*self.strides[:5], self.shape[5])
        return (self.qkv.data_ptr() | self.padding.data_ptr() | bytes_apart) % ALIGNMENT == 0

    def tensors(self, keys_first: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The first arguments of every kernel of tiles; keys_first: for scores that are keys by queries."""
        bias, wraps = (self.bias, self.bias) if self.tokens <= ONE_TILE else self._laid_out_bias(keys_first)
        return self.qkv, bias, wraps, self.padding, self.cosine_scale

    def _laid_out_bias(self, keys_first: bool) -> tuple[Tensor, Tensor]:
        own, count, width, last = self.tiles.values()
        heads, rows, columns = len(self.bias), -(-self.tokens // own) * own, (count - 1) * width + last
        out = _empty(self.bias, heads, rows, columns, dtype=self.accumulator)
        wraps = _empty(self.bias, rows, dtype=torch.int32)
        window = {name: self.constants[name] for name in ("N", "WH", "WW", "ACC")}
        lay_out_bias_kernel[heads, rows](
            self.bias, out, wraps, *self.geometry.shift, T=own, ROWS=rows, COLUMNS=columns,
            WIDTH=parameters.next_power_of_2(columns), KEYS_FIRST=keys_first, **window, num_warps=1,
        )  # fmt: skip
        return out, wraps

    def plan(self, kernel: Kernel) -> tuple[tuple[int, int, int], tuple[int, ...], dict[str, int | bool | None]]:
        """Launch grid (heads, tiles, splits), the integers of a kernel in their order, and Triton's options."""
        _, height, width, _, shift, dilation = self.geometry
        generation, shared = _gpu(self.qkv.device)
        launch = parameters.launch(kernel, self.tokens, self.shape[5], self.qkv.dtype, generation, shared)
        heads, own_tiles = self.shape[4], -(-self.tokens // self.tiles["T"])
        splits = parameters.splits(launch.programs, heads, own_tiles, self.window_count)
        numbers = (self.window_count, splits, heads, height, width, *self.counts, *shift, dilation, *self.strides[:5])
        return (heads, own_tiles, splits), numbers, parameters.options(launch)

    def new_shares(self, *shape: int) -> Tensor:
        """Memory for what each program adds to a sum."""
        return _empty(self.qkv, *shape, dtype=self.accumulator)
