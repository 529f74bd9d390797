"""Forward kernel of window attention: one launch from (B, H, W, 3, h, D) to (B, H, W, h * D).

One program has one head and one tile of queries, and goes through every splits-th window of the batch. Where a tile
holds the whole window, the bias stays in registers. Scores exist for one window at a time and never leave the chip (Dao
et al. 2022, https://arxiv.org/abs/2205.14135); a window is small enough for its softmax to need no running maximum.

Shapes: N = WH * WW tokens in a window, T queries of the program's tile, TILES tiles of WIDTH (the last LAST) keys, DP
head_dim D rounded up to a power of two.
"""

import triton
import triton.language as tl

from .places import (
    ANY_SIZE,
    load_keys,
    load_tokens,
    locate,
    padding_tokens,
    row_offsets,
    store_tokens,
    window_slots,
)
from .scores import LOG2E, exactly, load_bias, score_scale, tile_bias, tile_scores, unit


@triton.jit(do_not_specialize=ANY_SIZE)
def forward_kernel(
    qkv, bias, wraps, pad_qkv, cosine, out, lse,
    windows, splits, heads, height, width, count_h, count_w, shift_h, shift_w, dilation,
    stride_b, stride_y, stride_x, stride_s, stride_h,
    N: tl.constexpr, WH: tl.constexpr, WW: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    T: tl.constexpr, TILES: tl.constexpr, WIDTH: tl.constexpr, LAST: tl.constexpr,
    PADDED: tl.constexpr, ATTENDED: tl.constexpr, SHIFTED: tl.constexpr, ALIGNED: tl.constexpr, WIDE: tl.constexpr,
    SCALE: tl.constexpr, COSINE: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Grid: (h, tiles of queries, splits). lse (h, S) is the log2 of the sum of exp2 of a query's scores.

    It is infinite for slots that hold padding: as queries they have no probability in the backward pass.
    bias is (h, N, N), or where there are several tiles what `lay_out_bias_kernel` made of it.
    """
    head = tl.program_id(0)
    split = tl.program_id(2)
    grid = (height, width, count_h, count_w, shift_h, shift_w, dilation)
    strides = (stride_b, stride_y, stride_x, stride_h)
    queries = tl.program_id(1) * T + tl.arange(0, T)
    channels = tl.arange(0, DP)
    held_q = queries < N
    FULL: tl.constexpr = N % T == 0
    pad_k, pad_v = padding_tokens(pad_qkv, head, heads, D)
    factor = score_scale(cosine, head, SCALE, COSINE, ACC) * exactly(LOG2E, ACC)
    if TILES == 1:
        kept_bias = load_bias(bias + head * N * N, queries[:, None], tl.arange(0, LAST)[None, :], N, ACC)

    for step in range(tl.cdiv(windows - split, splits)):
        index = split + step * splits
        image, window, image_q, y, x, grid_q, offsets = locate(qkv, head, index, queries, grid, strides, WH, WW, WIDE)
        query = load_tokens(image_q, offsets, pad_k, grid_q, held_q, channels, FULL, PADDED, False, ALIGNED, D, DP)
        query, _ = unit(query, COSINE, ACC)

        scores = ()
        values = ()
        for tile in tl.static_range(TILES):
            keys, in_grid, key, value = load_keys(
                image_q + stride_s, stride_y, stride_x, stride_s, pad_k, pad_v, window, grid, channels,
                tile, N, WIDTH, LAST, WH, WW, PADDED, ATTENDED, ALIGNED, WIDE, D, DP,
            )  # fmt: skip
            key, _ = unit(key, COSINE, ACC)
            if TILES == 1:
                score_bias = kept_bias
            else:
                score_bias = tile_bias(bias, head, tl.program_id(1), tile, windows, N, T, TILES, WIDTH, LAST)
            score = tile_scores(
                query, key, score_bias, factor, queries, keys, grid_q, in_grid, window, grid, wraps,
                WH, WW, TILES > 1, SHIFTED, PADDED and not ATTENDED, PRECISION,
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

        tokens = row_offsets(y, x, width, 1, WIDE)
        first = image * height * width * heads + head
        image_o = out + first * D
        store_tokens(image_o, tokens * heads * D, result, grid_q, held_q, channels, FULL, PADDED, ALIGNED, D, DP)
        if TILES > 1:
            log_sum = highest + tl.log2(total)
            if PADDED:
                log_sum = tl.where(grid_q, log_sum, float("inf"))
            tl.store(lse + window_slots(head, index, windows, N) + queries, log_sum, mask=held_q)
