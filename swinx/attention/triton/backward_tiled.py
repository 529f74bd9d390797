"""Backward kernels of window attention for windows of more tokens than one tile holds: one for q, one for k and v.

In one kernel the scores and three gradients of 144 tokens would not fit into registers. The forward pass left the
log-sum-exp of each query's scores, so that each tile has its probabilities without the rest of the window. The kernel
of the queries runs first and leaves delta = sum(dO * O), which equals rowsum(P * dP), to that of the keys. Formulas and
the order of sums are those of `backward`.

Shapes: N = WH * WW tokens in a window, T tokens of the tile that a program owns, TILES tiles of WIDTH (the last LAST)
tokens of the other side, DP head_dim D rounded up to a power of two.
"""

import triton
import triton.language as tl

from .places import (
    ANY_SIZE,
    holds_padding,
    load_keys,
    load_sums,
    load_tokens,
    locate,
    padding_tokens,
    row_offsets,
    store_tokens,
    tile_tokens,
    token_places,
    window_slots,
)
from .scores import (
    LOG2E,
    add_padding_gradient,
    clear_padding_gradient,
    exactly,
    score_scale,
    store_bias_gradient,
    tile_bias,
    tile_scores,
    unit,
    unit_gradient,
)


@triton.jit(do_not_specialize=ANY_SIZE)
def query_kernel(
    qkv, bias, wraps, pad_qkv, cosine, out, lse, grad_out, grad_qkv, grad_bias, grad_cosine, delta_out,
    windows, splits, heads, height, width, count_h, count_w, shift_h, shift_w, dilation,
    stride_b, stride_y, stride_x, stride_s, stride_h,
    N: tl.constexpr, WH: tl.constexpr, WW: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    T: tl.constexpr, TILES: tl.constexpr, WIDTH: tl.constexpr, LAST: tl.constexpr,
    PADDED: tl.constexpr, ATTENDED: tl.constexpr, SHIFTED: tl.constexpr, ALIGNED: tl.constexpr, WIDE: tl.constexpr,
    SCALE: tl.constexpr, COSINE: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Grid: (h, tiles of queries, splits). bias is what `lay_out_bias_kernel` made of it.

    Writes dq into grad_qkv, delta (h, S), grad_bias (splits, h, N, N), grad_cosine (splits, tiles, h).
    """
    head = tl.program_id(0)
    split = tl.program_id(2)
    grid = (height, width, count_h, count_w, shift_h, shift_w, dilation)
    strides = (stride_b, stride_y, stride_x, stride_h)
    own = tl.program_id(1)
    queries = own * T + tl.arange(0, T)
    channels = tl.arange(0, DP)
    held_q = queries < N
    FULL: tl.constexpr = N % T == 0
    pad_k, pad_v = padding_tokens(pad_qkv, head, heads, D)
    scale = score_scale(cosine, head, SCALE, COSINE, ACC)
    sum_cosine = tl.zeros((T,), dtype=ACC)
    sums = ()
    for tile in tl.static_range(TILES):
        sums = sums + (tl.zeros((T, tile_tokens(tile, N, WIDTH, LAST).shape[0]), dtype=ACC),)

    for step in range(tl.cdiv(windows - split, splits)):
        index = split + step * splits
        image, window, image_q, y, x, grid_q, offsets = locate(qkv, head, index, queries, grid, strides, WH, WW, WIDE)
        query = load_tokens(image_q, offsets, pad_k, grid_q, held_q, channels, FULL, PADDED, False, ALIGNED, D, DP)
        query, inverse_q = unit(query, COSINE, ACC)
        rows = row_offsets(y, x, width, 1, WIDE) * heads
        first = image * height * width * heads + head
        image_o = grad_out + first * D
        grad = load_tokens(image_o, rows * D, pad_k, grid_q, held_q, channels, FULL, PADDED, False, ALIGNED, D, DP)
        image_o = out + first * D
        result = load_tokens(image_o, rows * D, pad_k, grid_q, held_q, channels, FULL, PADDED, False, ALIGNED, D, DP)
        slots = window_slots(head, index, windows, N)
        log_sum = tl.load(lse + slots + queries, mask=held_q, other=float("inf"))
        delta = tl.sum(grad.to(ACC) * result.to(ACC), axis=1)
        tl.store(delta_out + slots + queries, delta, mask=held_q)

        grad_q = tl.zeros((T, DP), dtype=ACC)
        new_sums = ()
        for tile in tl.static_range(TILES):
            keys, in_grid, key, value = load_keys(
                image_q + stride_s, stride_y, stride_x, stride_s, pad_k, pad_v, window, grid, channels,
                tile, N, WIDTH, LAST, WH, WW, PADDED, ATTENDED, ALIGNED, WIDE, D, DP,
            )  # fmt: skip
            key, _ = unit(key, COSINE, ACC)
            score_bias = tile_bias(bias, head, own, tile, windows, N, T, TILES, WIDTH, LAST)
            scores = tile_scores(
                query, key, score_bias, scale * exactly(LOG2E, ACC), queries, keys, grid_q, in_grid, window, grid,
                wraps, WH, WW, True, SHIFTED, PADDED and not ATTENDED, PRECISION,
            )  # fmt: skip
            probabilities = tl.exp2(scores - log_sum[:, None])
            grad_p = tl.dot(grad, tl.trans(value), input_precision=PRECISION)
            grad_s = probabilities * (grad_p - delta[:, None])
            grad_q = tl.dot(grad_s.to(key.dtype), key, grad_q, input_precision=PRECISION)
            new_sums = new_sums + (sums[tile] + grad_s,)
        sums = new_sums
        if COSINE:
            sum_cosine += tl.sum(grad_q * query.to(ACC), axis=1)
        grad_q = unit_gradient(grad_q * scale, query, inverse_q, COSINE, ACC)
        image_g = grad_qkv + (3 * (first - head) + head) * D
        store_tokens(image_g, 3 * rows * D, grad_q, grid_q, held_q, channels, FULL, PADDED, ALIGNED, D, DP)

    head_grad = grad_bias + (split * heads + head) * N * N
    for tile in tl.static_range(TILES):
        keys = tile_tokens(tile, N, WIDTH, LAST)
        store_bias_gradient(head_grad, sums[tile], queries[:, None], keys[None, :], N)
    if COSINE:
        share = grad_cosine + (split * tl.num_programs(1) + own) * heads + head
        tl.store(share, tl.sum(sum_cosine, axis=0))


@triton.jit(do_not_specialize=ANY_SIZE)
def key_kernel(
    qkv, bias, wraps, pad_qkv, cosine, lse, delta_in, grad_out, grad_qkv, grad_padding,
    windows, splits, heads, height, width, count_h, count_w, shift_h, shift_w, dilation,
    stride_b, stride_y, stride_x, stride_s, stride_h,
    N: tl.constexpr, WH: tl.constexpr, WW: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    T: tl.constexpr, TILES: tl.constexpr, WIDTH: tl.constexpr, LAST: tl.constexpr,
    PADDED: tl.constexpr, ATTENDED: tl.constexpr, SHIFTED: tl.constexpr, ALIGNED: tl.constexpr, WIDE: tl.constexpr,
    SCALE: tl.constexpr, COSINE: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Grid: (h, tiles of keys, splits). Writes dk and dv into grad_qkv, and grad_padding (splits, tiles, 2, h, D).

    Scores are keys by queries here, and so is the bias.
    """
    head = tl.program_id(0)
    own = tl.program_id(1)
    split = tl.program_id(2)
    grid = (height, width, count_h, count_w, shift_h, shift_w, dilation)
    strides = (stride_b, stride_y, stride_x, stride_h)
    keys = own * T + tl.arange(0, T)
    channels = tl.arange(0, DP)
    held_k = keys < N
    FULL: tl.constexpr = N % T == 0
    pad_k, pad_v = padding_tokens(pad_qkv, head, heads, D)
    scale = score_scale(cosine, head, SCALE, COSINE, ACC)
    if PADDED and ATTENDED:
        share_k = grad_padding + (2 * (split * tl.num_programs(1) + own) * heads + head) * D
        share_v = share_k + heads * D
        clear_padding_gradient(share_k, share_v, channels, D, DP, ACC)

    for step in range(tl.cdiv(windows - split, splits)):
        index = split + step * splits
        image, window, image_q, y_k, x_k, grid_k, offsets_k = locate(
            qkv, head, index, keys, grid, strides, WH, WW, WIDE
        )
        image_k = image_q + stride_s
        image_v = image_k + stride_s
        key = load_tokens(image_k, offsets_k, pad_k, grid_k, held_k, channels, FULL, PADDED, ATTENDED, ALIGNED, D, DP)
        value = load_tokens(image_v, offsets_k, pad_v, grid_k, held_k, channels, FULL, PADDED, ATTENDED, ALIGNED, D, DP)
        key, inverse_k = unit(key, COSINE, ACC)
        first = image * height * width * heads + head
        slots = window_slots(head, index, windows, N)

        grad_k = tl.zeros((T, DP), dtype=ACC)
        grad_v = tl.zeros((T, DP), dtype=ACC)
        for tile in tl.static_range(TILES):
            queries = tile_tokens(tile, N, WIDTH, LAST)
            y, x, in_grid = token_places(queries, window, grid, WH, WW)
            offsets = row_offsets(y, x, stride_y, stride_x, WIDE)
            query = load_tokens(
                image_q, offsets, pad_k, in_grid, queries < N, channels,
                (tile + 1) * WIDTH <= N or tile * WIDTH + LAST == N, PADDED, False, ALIGNED, D, DP,
            )  # fmt: skip
            query, _ = unit(query, COSINE, ACC)
            rows = row_offsets(y, x, width, 1, WIDE) * heads
            grad = load_tokens(
                grad_out + first * D, rows * D, pad_k, in_grid, queries < N, channels,
                (tile + 1) * WIDTH <= N or tile * WIDTH + LAST == N, PADDED, False, ALIGNED, D, DP,
            )  # fmt: skip
            # No probability for what is no query: the sum of padding is infinite in memory.
            log_sum = load_sums(lse + slots, tile, N, WIDTH, LAST, float("inf"))
            delta = load_sums(delta_in + slots, tile, N, WIDTH, LAST, 0.0)
            score_bias = tile_bias(bias, head, own, tile, windows, N, T, TILES, WIDTH, LAST)
            scores = tile_scores(
                key, query, score_bias, scale * exactly(LOG2E, ACC), keys, queries, grid_k, in_grid, window, grid,
                wraps, WH, WW, True, SHIFTED, False, PRECISION,
            )  # fmt: skip  # padding needs no hiding here: no gradient of a padding key is kept, nor any of its queries
            probabilities = tl.exp2(scores - log_sum[None, :])
            grad_v = tl.dot(probabilities.to(grad.dtype), grad, grad_v, input_precision=PRECISION)
            grad_p = tl.dot(value, tl.trans(grad), input_precision=PRECISION)
            grad_s = probabilities * (grad_p - delta[None, :])
            grad_k = tl.dot(grad_s.to(query.dtype), query, grad_k, input_precision=PRECISION)
        grad_k = unit_gradient(grad_k * scale, key, inverse_k, COSINE, ACC)

        image_g = grad_qkv + (3 * (first - head) + heads + head) * D
        places = 3 * row_offsets(y_k, x_k, width, 1, WIDE) * heads * D
        store_tokens(image_g, places, grad_k, grid_k, held_k, channels, FULL, PADDED, ALIGNED, D, DP)
        store_tokens(image_g + heads * D, places, grad_v, grid_k, held_k, channels, FULL, PADDED, ALIGNED, D, DP)
        if PADDED and ATTENDED:
            if holds_padding(window, grid, WH, WW):
                add_padding_gradient(share_k, grad_k, held_k & ~grid_k, channels, D)
                add_padding_gradient(share_v, grad_v, held_k & ~grid_k, channels, D)
