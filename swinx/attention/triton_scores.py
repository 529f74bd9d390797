"""Scores of one window inside a kernel: scaled products, bias, and what hides one token from another.

Scores are kept in units of log2, so that the softmax needs no multiplication before its exponential. Kernels are
compiled without the fusion of products and sums, and say where they want it: equal bits from every version of Triton.

Shapes: R rows and T columns of a tile; queries by keys, or keys by queries in the kernel for the gradients of keys.
"""

import triton
import triton.language as tl

from swinx.attention.triton_places import token_wraps

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def exactly(VALUE: tl.constexpr, ACC: tl.constexpr):
    """A number in the type of what it is multiplied by: before Triton 3.9 a bare one is float32 beside float64 too."""
    return tl.full((), VALUE, ACC)


@triton.jit
def load_bias(bias, queries, keys, N: tl.constexpr, ACC: tl.constexpr):
    """One head's (N, N) bias at queries and keys that broadcast; -inf for keys past the window.

    Queries past it have none: with a bias of -inf they might see no key, and their NaN would reach sums over queries.
    """
    values = tl.load(bias + queries * N + tl.minimum(keys, N - 1), mask=queries < N, other=0.0)
    return tl.where(keys < N, values.to(ACC) * exactly(LOG2E, ACC), float("-inf"))


@triton.jit
def tile_scores(
    left, right, bias, rows, columns, in_grid_rows, in_grid_columns, window, grid,
    WH: tl.constexpr, WW: tl.constexpr, SHIFTED: tl.constexpr, HIDE_PADDING: tl.constexpr,
    SCALE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """(R, T) scores of tokens rows by tokens columns of one window; -inf between different regions.

    Only windows at the end of a shifted lattice hold more than one region: its own rows and columns, and those that the
    roll brings there. Padding that is not attended is one more.
    """
    scores = tl.fma(tl.dot(left, tl.trans(right), input_precision=PRECISION), exactly(SCALE * LOG2E, bias.dtype), bias)
    if SHIFTED:
        _, _, count_h, count_w, _, _, _ = grid
        _, _, i, j = window
        ends = 2 * (i == count_h - 1).to(tl.int32) + (j == count_w - 1).to(tl.int32)
        if ends > 0:
            row_wraps = token_wraps(rows, grid, WH, WW)
            column_wraps = token_wraps(columns, grid, WH, WW)
            scores = tl.where(((row_wraps[:, None] ^ column_wraps[None, :]) & ends) == 0, scores, float("-inf"))
    if HIDE_PADDING:
        scores = tl.where(in_grid_rows[:, None] == in_grid_columns[None, :], scores, float("-inf"))
    return scores


@triton.jit
def store_bias_gradient(grad_bias, values, queries, keys, N: tl.constexpr):
    """Write one program's share of one head's (N, N), at queries and keys that broadcast."""
    tl.store(grad_bias + queries * N + keys, values, mask=(queries < N) & (keys < N))


@triton.jit
def clear_padding_gradient(share_k, share_v, channels, D: tl.constexpr, DP: tl.constexpr, ACC: tl.constexpr):
    """Start one program's shares (D,) of the gradients of the padding key and value."""
    tl.store(share_k + channels, tl.zeros((DP,), dtype=ACC), mask=channels < D)
    tl.store(share_v + channels, tl.zeros((DP,), dtype=ACC), mask=channels < D)
    tl.debug_barrier()


@triton.jit
def add_padding_gradient(share, values, padding, channels, D: tl.constexpr):
    """Add the rows of (T, DP) values that are padding to one program's share (D,) in memory, which it alone writes.

    Few windows hold padding; in registers the sum would push others out. Every window's products synchronise the
    program between one sum and the next.
    """
    total = tl.sum(tl.where(padding[:, None], values, 0.0), axis=0)
    tl.store(share + channels, tl.load(share + channels, mask=channels < D, other=0.0) + total, mask=channels < D)
