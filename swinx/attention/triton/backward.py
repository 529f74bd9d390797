"""Backward kernel of window attention for windows of one tile: all gradients in one launch.

Scores are computed again from qkv and bias, so the forward pass leaves nothing else behind. Each program adds up the
gradient of its head's bias, and of what padding tokens project to, over its windows in their order: the sum over
programs has a fixed order too, and equal inputs give equal bits.

With P = softmax(S), S = scale * q k^T + bias, O = P v, and dX the gradient of X: dv = P^T dO, dP = dO v^T,
dS = P * (dP - rowsum(P * dP)), dq = scale * dS k, dk = scale * dS^T q, dbias = dS.

Shapes: N = WH * WW tokens in a window, T >= N tokens of its tile, DP head_dim D rounded up to a power of two.
"""

import triton
import triton.language as tl

from .places import (
    ANY_SIZE,
    holds_padding,
    load_tokens,
    locate,
    padding_tokens,
    row_offsets,
    store_tokens,
)
from .scores import (
    LOG2E,
    add_padding_gradient,
    clear_padding_gradient,
    exactly,
    load_bias,
    score_scale,
    store_bias_gradient,
    tile_scores,
    unit,
    unit_gradient,
)


@triton.jit(do_not_specialize=ANY_SIZE)
def backward_kernel(
    qkv, bias, pad_qkv, cosine, grad_out, grad_qkv, grad_bias, grad_padding, grad_cosine,
    windows, splits, heads, height, width, count_h, count_w, shift_h, shift_w, dilation,
    stride_b, stride_y, stride_x, stride_s, stride_h,
    N: tl.constexpr, WH: tl.constexpr, WW: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, T: tl.constexpr,
    PADDED: tl.constexpr, ATTENDED: tl.constexpr, SHIFTED: tl.constexpr, ALIGNED: tl.constexpr, WIDE: tl.constexpr,
    SCALE: tl.constexpr, COSINE: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Grid: (h, 1, splits).

    Writes grad_qkv (contiguous), grad_bias (splits, h, N, N), grad_padding (splits, 2, h, D), grad_cosine (splits, h).
    """
    head = tl.program_id(0)
    split = tl.program_id(2)
    grid = (height, width, count_h, count_w, shift_h, shift_w, dilation)
    strides = (stride_b, stride_y, stride_x, stride_h)
    tokens = tl.arange(0, T)
    channels = tl.arange(0, DP)
    held = tokens < N
    FULL: tl.constexpr = N == T
    pad_k, pad_v = padding_tokens(pad_qkv, head, heads, D)
    scale = score_scale(cosine, head, SCALE, COSINE, ACC)
    kept_bias = load_bias(bias + head * N * N, tokens[:, None], tokens[None, :], N, ACC)
    sum_bias = tl.zeros((T, T), dtype=ACC)
    sum_cosine = tl.zeros((T,), dtype=ACC)
    if PADDED and ATTENDED:
        share_k = grad_padding + (2 * split * heads + head) * D
        share_v = share_k + heads * D
        clear_padding_gradient(share_k, share_v, channels, D, DP, ACC)

    for step in range(tl.cdiv(windows - split, splits)):
        index = split + step * splits
        image, window, image_q, y, x, in_grid, offsets = locate(qkv, head, index, tokens, grid, strides, WH, WW, WIDE)
        image_k = image_q + stride_s
        image_v = image_k + stride_s
        query = load_tokens(image_q, offsets, pad_k, in_grid, held, channels, FULL, PADDED, False, ALIGNED, D, DP)
        key = load_tokens(image_k, offsets, pad_k, in_grid, held, channels, FULL, PADDED, ATTENDED, ALIGNED, D, DP)
        value = load_tokens(image_v, offsets, pad_v, in_grid, held, channels, FULL, PADDED, ATTENDED, ALIGNED, D, DP)
        places = row_offsets(y, x, width, 1, WIDE) * heads * D
        first = image * height * width * heads * D
        image_o = grad_out + first + head * D
        grad = load_tokens(image_o, places, pad_k, in_grid, held, channels, FULL, PADDED, False, ALIGNED, D, DP)
        query, inverse_q = unit(query, COSINE, ACC)
        key, inverse_k = unit(key, COSINE, ACC)

        scores = tile_scores(
            query, key, kept_bias, scale * exactly(LOG2E, ACC), tokens, tokens, in_grid, in_grid, window, grid, bias,
            WH, WW, False, SHIFTED, PADDED and not ATTENDED, PRECISION,
        )  # fmt: skip
        powers = tl.exp2(scores - tl.max(scores, axis=1)[:, None])
        probabilities = powers * (1.0 / tl.sum(powers, axis=1))[:, None]
        # Each gradient is stored as soon as it is known: registers are what this kernel is short of.
        image_g = grad_qkv + 3 * first + head * D
        grad_v = tl.dot(tl.trans(probabilities.to(grad.dtype)), grad, input_precision=PRECISION)
        store_tokens(image_g + 2 * heads * D, 3 * places, grad_v, in_grid, held, channels, FULL, PADDED, ALIGNED, D, DP)
        grad_p = tl.dot(grad, tl.trans(value), input_precision=PRECISION)
        delta = tl.sum(probabilities * grad_p, axis=1)
        grad_s = probabilities * (grad_p - delta[:, None])
        sum_bias += grad_s
        rounded = grad_s.to(query.dtype)
        grad_q = tl.dot(rounded, key, input_precision=PRECISION)
        if COSINE:
            sum_cosine += tl.sum(grad_q * query.to(ACC), axis=1)
        grad_q = unit_gradient(grad_q * scale, query, inverse_q, COSINE, ACC)
        store_tokens(image_g, 3 * places, grad_q, in_grid, held, channels, FULL, PADDED, ALIGNED, D, DP)
        grad_k = tl.dot(tl.trans(rounded), query, input_precision=PRECISION) * scale
        grad_k = unit_gradient(grad_k, key, inverse_k, COSINE, ACC)
        store_tokens(image_g + heads * D, 3 * places, grad_k, in_grid, held, channels, FULL, PADDED, ALIGNED, D, DP)
        if PADDED and ATTENDED:
            if holds_padding(window, grid, WH, WW):
                add_padding_gradient(share_k, grad_k, held & ~in_grid, channels, D)
                add_padding_gradient(share_v, grad_v, held & ~in_grid, channels, D)

    store_bias_gradient(grad_bias + (split * heads + head) * N * N, sum_bias, tokens[:, None], tokens[None, :], N)
    if COSINE:
        tl.store(grad_cosine + split * heads + head, tl.sum(sum_cosine, axis=0))
