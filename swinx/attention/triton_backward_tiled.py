"""Backward kernels of window attention for windows of more tokens than one tile holds: one for q, one for k and v.

In one kernel the scores and three gradients of 144 tokens would not fit into registers. The forward pass left the
log-sum-exp of each query's scores, so that each tile has its probabilities without the rest of the window. The kernel
of the queries runs first and leaves delta = sum(dO * O), which equals rowsum(P * dP), to that of the keys. Formulas and
the order of sums are those of `triton_backward`.

Shapes: N = WH * WW tokens in a window, T tokens of the tile that a program owns, S0 + S1 >= N tokens of the other side
in two tiles (S1 may be 0), DP head_dim D rounded up to a power of two.
"""

import triton
import triton.language as tl

from swinx.attention.triton_places import load_tokens, row_offsets, store_tokens, token_places, window_place
from swinx.attention.triton_scores import load_bias, store_bias_gradient, store_padding_gradient, tile_scores


@triton.jit
def _query_side(
    query, grad, log_sum, delta, tile_bias, queries, in_grid_q, keys, held, image_k, pad_k, pad_v, channels,
    p, q, i, j, heads, height, width, count_h, count_w, shift_h, shift_w, dilation, stride_y, stride_x, stride_s,
    FULL: tl.constexpr, WH: tl.constexpr, WW: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    PADDED: tl.constexpr, ATTENDED: tl.constexpr, SHIFTED: tl.constexpr, WIDE: tl.constexpr,
    SCALE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What a tile of keys adds to dq, (T, DP) before the scale, and dS (T, S)."""
    y, x, in_grid = token_places(keys, p, q, i, j, height, width, count_h, count_w, shift_h, shift_w, dilation, WH, WW)
    offsets = row_offsets(y, x, stride_y, stride_x, WIDE)
    key = load_tokens(image_k, offsets, pad_k, in_grid, held, channels, FULL, PADDED, ATTENDED, D, DP)
    value = load_tokens(image_k + stride_s, offsets, pad_v, in_grid, held, channels, FULL, PADDED, ATTENDED, D, DP)
    scores = tile_scores(
        query, key, tile_bias, queries, keys, in_grid_q, in_grid, i, j, count_h, count_w, shift_h, shift_w,
        WH, WW, SHIFTED, PADDED and not ATTENDED, SCALE, PRECISION,
    )  # fmt: skip
    probabilities = tl.exp2(scores - log_sum[:, None])
    grad_p = tl.dot(grad, tl.trans(value), input_precision=PRECISION)
    grad_s = probabilities * (grad_p - delta[:, None])
    return tl.dot(grad_s.to(key.dtype), key, input_precision=PRECISION), grad_s


@triton.jit
def query_kernel(
    qkv, bias, pad_qkv, out, lse, grad_out, grad_qkv, grad_bias, delta_out,
    windows, splits, heads, height, width, count_h, count_w, shift_h, shift_w, dilation,
    stride_b, stride_y, stride_x, stride_s, stride_h,
    N: tl.constexpr, WH: tl.constexpr, WW: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    T: tl.constexpr, S0: tl.constexpr, S1: tl.constexpr,
    PADDED: tl.constexpr, ATTENDED: tl.constexpr, SHIFTED: tl.constexpr, WIDE: tl.constexpr,
    SCALE: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Grid: (h, tiles of queries, splits). Writes dq into grad_qkv, delta (B, H, W, h), grad_bias (splits, h, N, N)."""
    head = tl.program_id(0)
    split = tl.program_id(2)
    queries = tl.program_id(1) * T + tl.arange(0, T)
    keys0 = tl.arange(0, S0)
    channels = tl.arange(0, DP)
    held_q = queries < N
    head_bias = bias + head * N * N
    bias0 = load_bias(head_bias, queries[:, None], keys0[None, :], N, ACC)
    sum0 = tl.zeros((T, S0), dtype=ACC)
    if S1 > 0:
        keys1 = S0 + tl.arange(0, S1)
        bias1 = load_bias(head_bias, queries[:, None], keys1[None, :], N, ACC)
        sum1 = tl.zeros((T, S1), dtype=ACC)
    pad_k = pad_qkv + (heads + head) * D
    pad_v = pad_qkv + (2 * heads + head) * D
    FULL: tl.constexpr = N % T == 0

    for step in range(tl.cdiv(windows - split, splits)):
        image, p, q, i, j = window_place(split + step * splits, count_h, count_w, dilation)
        image = image.to(tl.int64)
        image_q = qkv + image * stride_b + head * stride_h
        y, x, in_grid = token_places(
            queries, p, q, i, j, height, width, count_h, count_w, shift_h, shift_w, dilation, WH, WW
        )
        offsets = row_offsets(y, x, stride_y, stride_x, WIDE)
        query = load_tokens(image_q, offsets, pad_k, in_grid, held_q, channels, FULL, PADDED, False, D, DP)
        tokens = row_offsets(y, x, width, 1, WIDE) * heads
        first = image * height * width * heads + head
        grad = load_tokens(
            grad_out + first * D, tokens * D, pad_k, in_grid, held_q, channels, FULL, PADDED, False, D, DP
        )
        result = load_tokens(out + first * D, tokens * D, pad_k, in_grid, held_q, channels, FULL, PADDED, False, D, DP)
        real = held_q & in_grid
        log_sum = tl.load(lse + first + tokens, mask=real, other=float("inf"))  # no probability for what is no query
        delta = tl.sum(grad.to(ACC) * result.to(ACC), axis=1)
        tl.store(delta_out + first + tokens, delta, mask=real)

        grad_q, grad_s = _query_side(
            query, grad, log_sum, delta, bias0, queries, in_grid, keys0, keys0 < N, image_q + stride_s, pad_k, pad_v,
            channels, p, q, i, j, heads, height, width, count_h, count_w, shift_h, shift_w, dilation,
            stride_y, stride_x, stride_s,
            N >= S0, WH, WW, D, DP, PADDED, ATTENDED, SHIFTED, WIDE, SCALE, PRECISION,
        )  # fmt: skip
        sum0 += grad_s
        if S1 > 0:
            more, grad_s1 = _query_side(
                query, grad, log_sum, delta, bias1, queries, in_grid, keys1, keys1 < N, image_q + stride_s, pad_k,
                pad_v, channels, p, q, i, j, heads, height, width, count_h, count_w, shift_h, shift_w, dilation,
                stride_y, stride_x, stride_s,
                N == S0 + S1, WH, WW, D, DP, PADDED, ATTENDED, SHIFTED, WIDE, SCALE, PRECISION,
            )  # fmt: skip
            grad_q += more
            sum1 += grad_s1
        grad_image = grad_qkv + (3 * (first - head) + head) * D
        store_tokens(grad_image, 3 * tokens * D, grad_q * SCALE, in_grid, held_q, channels, FULL, PADDED, D, DP)

    head_grad = grad_bias + (split * heads + head) * N * N
    store_bias_gradient(head_grad, sum0, queries[:, None], keys0[None, :], N)
    if S1 > 0:
        store_bias_gradient(head_grad, sum1, queries[:, None], keys1[None, :], N)


@triton.jit
def _key_side(
    key, value, tile_bias, keys, in_grid_k, queries, image_q, grad_image, lse, delta_in, channels,
    p, q, i, j, heads, height, width, count_h, count_w, shift_h, shift_w, dilation, stride_y, stride_x,
    FULL: tl.constexpr, N: tl.constexpr, WH: tl.constexpr, WW: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    PADDED: tl.constexpr, ATTENDED: tl.constexpr, SHIFTED: tl.constexpr, WIDE: tl.constexpr,
    SCALE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What a tile of queries adds to dk, before the scale, and to dv: (T, DP) each. Scores are keys by queries."""
    y, x, in_grid = token_places(
        queries, p, q, i, j, height, width, count_h, count_w, shift_h, shift_w, dilation, WH, WW
    )
    held = queries < N
    offsets = row_offsets(y, x, stride_y, stride_x, WIDE)
    query = load_tokens(image_q, offsets, image_q, in_grid, held, channels, FULL, PADDED, False, D, DP)
    tokens = row_offsets(y, x, width, 1, WIDE) * heads
    grad = load_tokens(grad_image, tokens * D, grad_image, in_grid, held, channels, FULL, PADDED, False, D, DP)
    log_sum = tl.load(lse + tokens, mask=held & in_grid, other=float("inf"))  # no probability for what is no query
    delta = tl.load(delta_in + tokens, mask=held & in_grid, other=0.0)
    scores = tile_scores(
        key, query, tile_bias, keys, queries, in_grid_k, in_grid, i, j, count_h, count_w, shift_h, shift_w,
        WH, WW, SHIFTED, PADDED and not ATTENDED, SCALE, PRECISION,
    )  # fmt: skip
    probabilities = tl.exp2(scores - log_sum[None, :])
    grad_v = tl.dot(probabilities.to(grad.dtype), grad, input_precision=PRECISION)
    grad_p = tl.dot(value, tl.trans(grad), input_precision=PRECISION)
    grad_s = probabilities * (grad_p - delta[None, :])
    return tl.dot(grad_s.to(query.dtype), query, input_precision=PRECISION), grad_v


@triton.jit
def key_kernel(
    qkv, bias, pad_qkv, lse, delta, grad_out, grad_qkv, grad_padding,
    windows, splits, heads, height, width, count_h, count_w, shift_h, shift_w, dilation,
    stride_b, stride_y, stride_x, stride_s, stride_h,
    N: tl.constexpr, WH: tl.constexpr, WW: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    T: tl.constexpr, S0: tl.constexpr, S1: tl.constexpr,
    PADDED: tl.constexpr, ATTENDED: tl.constexpr, SHIFTED: tl.constexpr, WIDE: tl.constexpr,
    SCALE: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Grid: (h, tiles of keys, splits). Writes dk and dv into grad_qkv, and grad_padding (splits, tiles, 2, h, D)."""
    head = tl.program_id(0)
    tile = tl.program_id(1)
    split = tl.program_id(2)
    keys = tile * T + tl.arange(0, T)
    queries0 = tl.arange(0, S0)
    channels = tl.arange(0, DP)
    held_k = keys < N
    head_bias = bias + head * N * N
    bias0 = load_bias(head_bias, queries0[None, :], keys[:, None], N, ACC)
    if S1 > 0:
        queries1 = S0 + tl.arange(0, S1)
        bias1 = load_bias(head_bias, queries1[None, :], keys[:, None], N, ACC)
    pad_k = pad_qkv + (heads + head) * D
    pad_v = pad_qkv + (2 * heads + head) * D
    FULL: tl.constexpr = N % T == 0
    if PADDED and ATTENDED:
        sum_pad_k = tl.zeros((DP,), dtype=ACC)
        sum_pad_v = tl.zeros((DP,), dtype=ACC)

    for step in range(tl.cdiv(windows - split, splits)):
        image, p, q, i, j = window_place(split + step * splits, count_h, count_w, dilation)
        image = image.to(tl.int64)
        image_q = qkv + image * stride_b + head * stride_h
        image_k = image_q + stride_s
        y, x, in_grid = token_places(
            keys, p, q, i, j, height, width, count_h, count_w, shift_h, shift_w, dilation, WH, WW
        )
        offsets = row_offsets(y, x, stride_y, stride_x, WIDE)
        key = load_tokens(image_k, offsets, pad_k, in_grid, held_k, channels, FULL, PADDED, ATTENDED, D, DP)
        value = load_tokens(
            image_k + stride_s, offsets, pad_v, in_grid, held_k, channels, FULL, PADDED, ATTENDED, D, DP
        )
        first = image * height * width * heads + head

        grad_k, grad_v = _key_side(
            key, value, bias0, keys, in_grid, queries0, image_q, grad_out + first * D, lse + first, delta + first,
            channels, p, q, i, j, heads, height, width, count_h, count_w, shift_h, shift_w, dilation,
            stride_y, stride_x,
            N >= S0, N, WH, WW, D, DP, PADDED, ATTENDED, SHIFTED, WIDE, SCALE, PRECISION,
        )  # fmt: skip
        if S1 > 0:
            more_k, more_v = _key_side(
                key, value, bias1, keys, in_grid, queries1, image_q, grad_out + first * D, lse + first, delta + first,
                channels, p, q, i, j, heads, height, width, count_h, count_w, shift_h, shift_w, dilation,
                stride_y, stride_x,
                N == S0 + S1, N, WH, WW, D, DP, PADDED, ATTENDED, SHIFTED, WIDE, SCALE, PRECISION,
            )  # fmt: skip
            grad_k += more_k
            grad_v += more_v
        grad_k *= SCALE
        grad_image = grad_qkv + (3 * (first - head) + heads + head) * D
        places = 3 * row_offsets(y, x, width, 1, WIDE) * heads * D
        store_tokens(grad_image, places, grad_k, in_grid, held_k, channels, FULL, PADDED, D, DP)
        store_tokens(grad_image + heads * D, places, grad_v, in_grid, held_k, channels, FULL, PADDED, D, DP)
        if PADDED and ATTENDED:
            padding = (held_k & ~in_grid)[:, None]
            sum_pad_k += tl.sum(tl.where(padding, grad_k, 0.0), axis=0)
            sum_pad_v += tl.sum(tl.where(padding, grad_v, 0.0), axis=0)

    if PADDED and ATTENDED:
        share = grad_padding + (2 * (split * tl.num_programs(1) + tile) * heads + head) * D
        store_padding_gradient(share, heads, sum_pad_k, sum_pad_v, channels, D)
