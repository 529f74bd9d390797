"""Forward kernel of window attention: one launch from (B, H, W, 3, h, D) to (B, H, W, h * D).

One program has one head and one tile of queries, keeps their bias in registers and goes through every splits-th window
of the batch. Scores exist for one window at a time and never leave the chip (Dao et al. 2022,
https://arxiv.org/abs/2205.14135); a window is small enough for its softmax to need no running maximum.

Shapes: N = WH * WW tokens in a window, T queries of the program's tile, KEYS tiles of WIDTH (the last LAST) keys, DP
head_dim D rounded up to a power of two.
"""

import triton
import triton.language as tl

from swinx.attention.triton_places import (
    ANY_SIZE,
    load_keys,
    load_tokens,
    row_offsets,
    store_tokens,
    tile_tokens,
    token_places,
    window_place,
)
from swinx.attention.triton_scores import load_bias, tile_scores


@triton.jit(do_not_specialize=ANY_SIZE)
def forward_kernel(
    qkv, bias, pad_qkv, out, lse,
    windows, splits, heads, height, width, count_h, count_w, shift_h, shift_w, dilation,
    stride_b, stride_y, stride_x, stride_s, stride_h,
    N: tl.constexpr, WH: tl.constexpr, WW: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    T: tl.constexpr, TILES: tl.constexpr, WIDTH: tl.constexpr, LAST: tl.constexpr,
    PADDED: tl.constexpr, ATTENDED: tl.constexpr, SHIFTED: tl.constexpr, ALIGNED: tl.constexpr, WIDE: tl.constexpr,
    SCALE: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr, STORE_LSE: tl.constexpr,
):  # fmt: skip
    """Grid: (h, tiles of queries, splits). lse (B, H, W, h) is the log2 of the sum of exp2 of a query's scores."""
    head = tl.program_id(0)
    split = tl.program_id(2)
    grid = (height, width, count_h, count_w, shift_h, shift_w, dilation)
    queries = tl.program_id(1) * T + tl.arange(0, T)
    channels = tl.arange(0, DP)
    held_q = queries < N
    biases = ()
    for tile in tl.static_range(TILES):
        keys = tile_tokens(tile, N, WIDTH, LAST)
        biases = biases + (load_bias(bias + head * N * N, queries[:, None], keys[None, :], N, ACC),)
    pad_k = pad_qkv + (heads + head) * D
    pad_v = pad_qkv + (2 * heads + head) * D

    for step in range(tl.cdiv(windows - split, splits)):
        image, window = window_place(split + step * splits, grid)
        image = image.to(tl.int64)
        image_q = qkv + image * stride_b + head.to(tl.int64) * stride_h
        y_q, x_q, grid_q = token_places(queries, window, grid, WH, WW)
        offsets_q = row_offsets(y_q, x_q, stride_y, stride_x, WIDE)
        query = load_tokens(
            image_q, offsets_q, pad_k, grid_q, held_q, channels, N % T == 0, PADDED, False, ALIGNED, D, DP
        )

        scores = ()
        values = ()
        for tile in tl.static_range(TILES):
            keys, in_grid, key, value = load_keys(
                image_q + stride_s, stride_y, stride_x, stride_s, pad_k, pad_v, window, grid, channels,
                tile, N, WIDTH, LAST, WH, WW, PADDED, ATTENDED, ALIGNED, WIDE, D, DP,
            )  # fmt: skip
            score = tile_scores(
                query, key, biases[tile], queries, keys, grid_q, in_grid, window, grid,
                WH, WW, SHIFTED, PADDED and not ATTENDED, SCALE, PRECISION,
            )  # fmt: skip
            if tile == 0:
                highest = tl.max(score, axis=1)
            else:
                highest = tl.maximum(highest, tl.max(score, axis=1))
            scores = scores + (score,)
            values = values + (value,)

        total = tl.zeros((T,), dtype=ACC)
        result = tl.zeros((T, DP), dtype=ACC)
        for tile in tl.static_range(TILES):
            powers = tl.exp2(scores[tile] - highest[:, None])
            total += tl.sum(powers, axis=1)
            result = tl.dot(powers.to(values[tile].dtype), values[tile], result, input_precision=PRECISION)
        result *= (1.0 / total)[:, None]

        tokens = row_offsets(y_q, x_q, width, 1, WIDE)
        first = image * height * width * heads + head
        store_tokens(out + first * D, tokens * heads * D, result, grid_q, held_q, channels, N % T == 0, PADDED, D, DP)
        if STORE_LSE:
            tl.store(lse + first + tokens * heads, highest + tl.log2(total), mask=held_q & grid_q)
