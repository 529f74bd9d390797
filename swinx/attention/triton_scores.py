"""Scores of one window inside a kernel: scaled products, bias, and what hides one token from another.

Scores are kept in units of log2, so that the softmax needs no multiplication before its exponential.

Shapes: R rows and T columns of a tile; queries by keys, or keys by queries in the kernel for the gradients of keys.
"""

import triton
import triton.language as tl

from swinx.attention.triton_places import token_regions

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def load_bias(bias, queries, keys, N: tl.constexpr, ACC: tl.constexpr):
    """One head's (N, N) bias at queries and keys that broadcast; -inf for keys past the window."""
    values = tl.load(bias + queries * N + keys, mask=(queries < N) & (keys < N), other=0.0)
    return tl.where(keys < N, values.to(ACC) * LOG2E, float("-inf"))


@triton.jit
def tile_scores(
    left, right, bias, rows, columns, in_grid_rows, in_grid_columns,
    i, j, count_h, count_w, shift_h, shift_w,
    WH: tl.constexpr, WW: tl.constexpr, SHIFTED: tl.constexpr, HIDE_PADDING: tl.constexpr,
    SCALE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """(R, T) scores of tokens rows by tokens columns of window (i, j); -inf between different regions.

    Only windows at the end of a shifted lattice hold more than one region. Padding that is not attended is one more.
    """
    scores = tl.dot(left, tl.trans(right), input_precision=PRECISION) * (SCALE * LOG2E) + bias
    if SHIFTED:
        if (i == count_h - 1) | (j == count_w - 1):
            row_region = token_regions(rows, i, j, count_h, count_w, shift_h, shift_w, WH, WW)
            column_region = token_regions(columns, i, j, count_h, count_w, shift_h, shift_w, WH, WW)
            scores = tl.where(row_region[:, None] == column_region[None, :], scores, float("-inf"))
    if HIDE_PADDING:
        scores = tl.where(in_grid_rows[:, None] == in_grid_columns[None, :], scores, float("-inf"))
    return scores


@triton.jit
def store_bias_gradient(grad_bias, values, queries, keys, N: tl.constexpr):
    """Write one program's share of one head's (N, N), at queries and keys that broadcast."""
    tl.store(grad_bias + queries * N + keys, values, mask=(queries < N) & (keys < N))


@triton.jit
def store_padding_gradient(grad_padding, heads, grad_k, grad_v, channels, D: tl.constexpr):
    """Write one program's share for one head's padding key and value, (DP,) each, into (2, h, D)."""
    tl.store(grad_padding + channels, grad_k, mask=channels < D)
    tl.store(grad_padding + heads * D + channels, grad_v, mask=channels < D)
