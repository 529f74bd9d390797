"""Forward kernel of window attention: one launch from (B, H, W, 3, h, D) to (B, H, W, h * D).

One program has one head and one tile of queries, keeps their bias in registers and goes through every splits-th window
of the batch. Scores exist for one window at a time and never leave the chip (Dao et al. 2022,
https://arxiv.org/abs/2205.14135); a window is small enough for its softmax to need no running maximum.

Shapes: N = WH * WW tokens in a window, QT queries of one tile, K0 + K1 >= N keys in two tiles (K1 may be 0), DP
head_dim D rounded up to a power of two.
"""

import triton
import triton.language as tl

from swinx.attention.triton_places import load_tokens, row_offsets, store_tokens, token_places, window_place
from swinx.attention.triton_scores import load_bias, tile_scores


@triton.jit
def forward_kernel(
    qkv, bias, pad_qkv, out, lse,
    windows, splits, heads, height, width, count_h, count_w, shift_h, shift_w, dilation,
    stride_b, stride_y, stride_x, stride_s, stride_h,
    N: tl.constexpr, WH: tl.constexpr, WW: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    QT: tl.constexpr, K0: tl.constexpr, K1: tl.constexpr,
    PADDED: tl.constexpr, ATTENDED: tl.constexpr, SHIFTED: tl.constexpr, WIDE: tl.constexpr, STORE_LSE: tl.constexpr,
    SCALE: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Grid: (h, tiles of queries, splits). lse (B, H, W, h) is the log2 of the sum of exp2 of a query's scores."""
    head = tl.program_id(0)
    split = tl.program_id(2)
    queries = tl.program_id(1) * QT + tl.arange(0, QT)
    keys0 = tl.arange(0, K0)
    channels = tl.arange(0, DP)
    held_q = queries < N
    held0 = keys0 < N
    head_bias = bias + head * N * N
    bias0 = load_bias(head_bias, queries[:, None], keys0[None, :], N, ACC)
    if K1 > 0:
        keys1 = K0 + tl.arange(0, K1)
        held1 = keys1 < N
        bias1 = load_bias(head_bias, queries[:, None], keys1[None, :], N, ACC)
    pad_k = pad_qkv + (heads + head) * D
    pad_v = pad_qkv + (2 * heads + head) * D
    HIDE: tl.constexpr = PADDED and not ATTENDED

    for step in range(tl.cdiv(windows - split, splits)):
        image, p, q, i, j = window_place(split + step * splits, count_h, count_w, dilation)
        image = image.to(tl.int64)
        image_q = qkv + image * stride_b + head * stride_h
        image_k = image_q + stride_s
        image_v = image_k + stride_s

        y_q, x_q, grid_q = token_places(
            queries, p, q, i, j, height, width, count_h, count_w, shift_h, shift_w, dilation, WH, WW
        )
        offsets_q = row_offsets(y_q, x_q, stride_y, stride_x, WIDE)
        query = load_tokens(image_q, offsets_q, pad_k, grid_q, held_q, channels, N % QT == 0, PADDED, False, D, DP)

        y0, x0, grid0 = token_places(
            keys0, p, q, i, j, height, width, count_h, count_w, shift_h, shift_w, dilation, WH, WW
        )
        offsets0 = row_offsets(y0, x0, stride_y, stride_x, WIDE)
        key0 = load_tokens(image_k, offsets0, pad_k, grid0, held0, channels, N >= K0, PADDED, ATTENDED, D, DP)
        value0 = load_tokens(image_v, offsets0, pad_v, grid0, held0, channels, N >= K0, PADDED, ATTENDED, D, DP)
        scores0 = tile_scores(
            query, key0, bias0, queries, keys0, grid_q, grid0, i, j, count_h, count_w, shift_h, shift_w,
            WH, WW, SHIFTED, HIDE, SCALE, PRECISION,
        )  # fmt: skip
        highest = tl.max(scores0, axis=1)
        if K1 > 0:
            y1, x1, grid1 = token_places(
                keys1, p, q, i, j, height, width, count_h, count_w, shift_h, shift_w, dilation, WH, WW
            )
            offsets1 = row_offsets(y1, x1, stride_y, stride_x, WIDE)
            key1 = load_tokens(image_k, offsets1, pad_k, grid1, held1, channels, False, PADDED, ATTENDED, D, DP)
            value1 = load_tokens(image_v, offsets1, pad_v, grid1, held1, channels, False, PADDED, ATTENDED, D, DP)
            scores1 = tile_scores(
                query, key1, bias1, queries, keys1, grid_q, grid1, i, j, count_h, count_w, shift_h, shift_w,
                WH, WW, SHIFTED, HIDE, SCALE, PRECISION,
            )  # fmt: skip
            highest = tl.maximum(highest, tl.max(scores1, axis=1))

        powers0 = tl.exp2(scores0 - highest[:, None])
        total = tl.sum(powers0, axis=1)
        result = tl.dot(powers0.to(value0.dtype), value0, input_precision=PRECISION)
        if K1 > 0:
            powers1 = tl.exp2(scores1 - highest[:, None])
            total += tl.sum(powers1, axis=1)
            result += tl.dot(powers1.to(value1.dtype), value1, input_precision=PRECISION)
        result *= (1.0 / total)[:, None]

        tokens = row_offsets(y_q, x_q, width, 1, WIDE)
        first = image * height * width * heads + head
        store_tokens(out + first * D, tokens * heads * D, result, grid_q, held_q, channels, N % QT == 0, PADDED, D, DP)
        if STORE_LSE:
            tl.store(lse + first + tokens * heads, highest + tl.log2(total), mask=held_q & grid_q)
