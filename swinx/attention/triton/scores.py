"""Scores of one window inside a kernel: scaled products, bias, and what hides one token from another.

Scores are kept in units of log2, so that the softmax needs no multiplication before its exponential. Kernels are
compiled without the fusion of products and sums, and say where they want it: equal bits from every version of Triton.
The scores of Swin V2 are products of unit vectors: queries and keys are divided by their lengths as they come in, and
their gradients go back through that division.

Shapes: R rows and T columns of a tile; queries by keys, or keys by queries in the kernel for the gradients of keys.
"""

import triton
import triton.language as tl

from .places import token_wraps

LOG2E = tl.constexpr(1.4426950408889634)
SHORTEST = tl.constexpr(1e-12)  # what torch.nn.functional.normalize divides by at least


@triton.jit
def exactly(VALUE: tl.constexpr, ACC: tl.constexpr):
    """A number in the type of what it is multiplied by: before Triton 3.9 a bare one is float32 beside float64 too."""
    return tl.full((), VALUE, ACC)


@triton.jit
def score_scale(cosine, head, SCALE: tl.constexpr, COSINE: tl.constexpr, ACC: tl.constexpr):
    """What products are multiplied by: the head's scale of cosines, read at the pointer cosine, or else SCALE."""
    if COSINE:
        scale = tl.load(cosine + head).to(ACC)
    else:
        scale = exactly(SCALE, ACC)
    return scale


@triton.jit
def unit(rows, COSINE: tl.constexpr, ACC: tl.constexpr):
    """(R, DP) vectors divided by their lengths, and what each was multiplied by (R,); as they are unless COSINE.

    A zero vector stays one, and so does its gradient.
    """
    inverse = tl.full((rows.shape[0],), 1.0, ACC)
    if COSINE:
        wide = rows.to(ACC)
        length = tl.sqrt(tl.sum(wide * wide, axis=1))
        inverse = tl.where(length > 0.0, 1.0 / tl.maximum(length, SHORTEST), 0.0)
        rows = (wide * inverse[:, None]).to(rows.dtype)
    return rows, inverse


@triton.jit
def unit_gradient(grad, rows, inverse, COSINE: tl.constexpr, ACC: tl.constexpr):
    """Gradient (R, DP) of vectors from that of their unit vectors, which rows and inverse are as `unit` gave them."""
    if COSINE:
        wide = rows.to(ACC)
        # None where a vector was divided by SHORTEST and not by its length.
        along = tl.where(inverse < 1.0 / SHORTEST, tl.sum(wide * grad, axis=1), 0.0)
        grad = (grad - wide * along[:, None]) * inverse[:, None]
    return grad


@triton.jit
def load_bias(bias, queries, keys, N: tl.constexpr, ACC: tl.constexpr):
    """One head's (N, N) bias at queries and keys that broadcast; -inf for keys past the window.

    Queries past it have none: with a bias of -inf they might see no key, and their NaN would reach sums over queries.
    """
    values = tl.load(bias + queries * N + tl.minimum(keys, N - 1), mask=queries < N, other=0.0)
    return tl.where(keys < N, values.to(ACC) * exactly(LOG2E, ACC), float("-inf"))


@triton.jit(do_not_specialize=["shift_h", "shift_w"])
def lay_out_bias_kernel(
    bias, out, wraps, shift_h, shift_w,
    N: tl.constexpr, WH: tl.constexpr, WW: tl.constexpr, T: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr, KEYS_FIRST: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Grid: (h, ROWS). (h, N, N) -> h * ROWS * COLUMNS as `load_bias` gives it, queries by keys or keys by queries.

    Windows of several tiles read it anew for each window: it is too large for registers, and cached. Each T rows are
    in the order in which the matrix unit leaves a product to T / 16 warps, from 8 columns to the next 8. Thread
    4 * a + b of a warp has columns 2 * b and 2 * b + 1 of rows a and a + 8 of the warp's 16: four values, one load of
    16 bytes, and no exchange between threads. Only the cost of `tile_bias` depends on this order.

    WIDTH: COLUMNS rounded up to a power of two, and so at least ROWS. Also writes wraps (ROWS,) int32: `token_wraps`
    of every token.

    Source: accumulators of wgmma and of mma.m16n8k16 in NVIDIA's PTX ISA.
    """
    head = tl.program_id(0)
    row = tl.program_id(1)
    columns = tl.arange(0, WIDTH)
    if KEYS_FIRST:
        keys = tl.full((WIDTH,), 0, tl.int32) + row
        queries = columns
    else:
        keys = columns
        queries = tl.full((WIDTH,), 0, tl.int32) + row
    values = load_bias(bias + head * N * N, queries, keys, N, ACC)
    tile = (head * ROWS + row // T * T) * COLUMNS
    warp = columns // 8 * (T // 16) + row % T // 16
    thread = warp * 32 + row % 8 * 4 + columns % 8 // 2
    tl.store(out + tile + thread * 4 + row // 8 % 2 * 2 + columns % 2, values, mask=columns < COLUMNS)
    if (head == 0) & (row == 0):
        tl.store(wraps + columns, token_wraps(columns, shift_h, shift_w, WH, WW), mask=columns < ROWS)


@triton.jit
def tile_bias(
    bias, head, own, tile: tl.constexpr, windows,
    N: tl.constexpr, T: tl.constexpr, TILES: tl.constexpr, WIDTH: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """(T, C) bias of the own-th tile of rows and a tile of C columns, from what `lay_out_bias_kernel` wrote."""
    ROWS: tl.constexpr = (N + T - 1) // T * T
    COLUMNS: tl.constexpr = (TILES - 1) * WIDTH + LAST
    C: tl.constexpr = LAST if tile == TILES - 1 else WIDTH
    pointers = bias + (head * ROWS + own * T) * COLUMNS + tile * T * WIDTH + tl.arange(0, T * C)
    # Always so, which the compiler cannot know: it would copy what stands in no branch to shared memory, window by
    # window, as it does with tokens, and find too little of it.
    if windows > 0:
        values = tl.load(pointers)
    else:
        values = tl.zeros(pointers.shape, dtype=bias.dtype.element_ty)
    # Dimensions: 8 columns each, warps, a, b, rows a and a + 8, columns 2 * b and 2 * b + 1.
    values = tl.reshape(values, (C // 8, T // 16, 8, 4, 2, 2))
    return tl.reshape(tl.permute(values, (1, 4, 2, 0, 3, 5)), (T, C))


@triton.jit
def tile_scores(
    left, right, bias, factor, rows, columns, in_grid_rows, in_grid_columns, window, grid, wraps,
    WH: tl.constexpr, WW: tl.constexpr, TILED: tl.constexpr, SHIFTED: tl.constexpr, HIDE_PADDING: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """(R, T) scores of tokens rows by tokens columns of one window; -inf between different regions.

    factor: scale of the products, in units of log2. Only windows at the end of a shifted lattice hold more than one
    region: its own rows and columns, and those that the roll brings there. Padding that is not attended is one more.
    wraps: where TILED, what `lay_out_bias_kernel` wrote of the tokens, read by the few windows that need it: computed
    here it would stay in registers for all of them.
    """
    scores = tl.fma(tl.dot(left, tl.trans(right), input_precision=PRECISION), factor, bias)
    if SHIFTED:
        _, _, count_h, count_w, shift_h, shift_w, _ = grid
        _, _, i, j = window
        ends = 2 * (i == count_h - 1).to(tl.int32) + (j == count_w - 1).to(tl.int32)
        if ends > 0:
            if TILED:
                row_wraps = tl.load(wraps + rows)
                column_wraps = tl.load(wraps + columns)
            else:
                row_wraps = token_wraps(rows, shift_h, shift_w, WH, WW)
                column_wraps = token_wraps(columns, shift_h, shift_w, WH, WW)
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
    tl.debug_barrier()  # what adds to them may be other threads


@triton.jit
def add_padding_gradient(share, values, padding, channels, D: tl.constexpr):
    """Add the rows of (T, DP) values that are padding to one program's share (D,) in memory, which it alone writes.

    Few windows hold padding; in registers the sum would push others out. An atomic addition needs no barrier between a
    program's windows, which would keep loads from running ahead; with one program on an address its order is fixed.
    """
    total = tl.sum(tl.where(padding[:, None], values, 0.0), axis=0)
    tl.atomic_add(share + channels, total, mask=channels < D, sem="relaxed")
