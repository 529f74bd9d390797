"""Where the tokens of a window are: `swinx.windows` as address arithmetic inside a kernel.

Padding, lattice and cyclic shift cost a few integer operations for each token and no copy.

Shapes: T tokens of one tile (any of a window's N = WH * WW, from a start on; a tile may reach past N), DP head_dim D
rounded up to a power of two. Everything is int32 but the offsets of images, and of rows where an image is that large.
"""

import triton
import triton.language as tl


@triton.jit
def window_place(window, count_h, count_w, dilation):
    """Scalars of one window: image, phase (p, q), and place (i, j) among count_h x count_w windows of its lattice."""
    j = window % count_w
    rest = window // count_w
    i = rest % count_h
    rest = rest // count_h
    q = rest % dilation
    rest = rest // dilation
    return rest // dilation, rest % dilation, q, i, j


@triton.jit
def token_places(
    tokens, p, q, i, j, height, width, count_h, count_w, shift_h, shift_w, dilation, WH: tl.constexpr, WW: tl.constexpr
):
    """Grid rows and columns of (T,) tokens of window (i, j) of phase (p, q), and whether they are in the grid.

    What is not is padding. A token past the window repeats one of its last row: every address and region exists.
    """
    row = i * WH + tl.minimum(tokens // WW, WH - 1) + shift_h
    column = j * WW + tokens % WW + shift_w
    y = p + dilation * tl.where(row >= count_h * WH, row - count_h * WH, row)
    x = q + dilation * tl.where(column >= count_w * WW, column - count_w * WW, column)
    return y, x, (y < height) & (x < width)


@triton.jit
def token_regions(tokens, i, j, count_h, count_w, shift_h, shift_w, WH: tl.constexpr, WW: tl.constexpr):
    """Regions (T,) of tokens: the roll brings the first rows and columns of a lattice into its last windows."""
    wrapped_row = (i == count_h - 1) & (tl.minimum(tokens // WW, WH - 1) >= WH - shift_h)
    wrapped_column = (j == count_w - 1) & (tokens % WW >= WW - shift_w)
    return 2 * wrapped_row.to(tl.int32) + wrapped_column.to(tl.int32)


@triton.jit
def row_offsets(y, x, stride_y, stride_x, WIDE: tl.constexpr):
    """Elements (T,) from the start of an image to its tokens; WIDE where an image spans 2^31 elements and more."""
    if WIDE:
        offsets = y.to(tl.int64) * stride_y + x.to(tl.int64) * stride_x
    else:
        offsets = y * stride_y + x * stride_x
    return offsets


@triton.jit
def load_tokens(
    image, offsets, padding, in_grid, held, channels,
    FULL: tl.constexpr, PADDED: tl.constexpr, ATTENDED: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
):  # fmt: skip
    """(T, DP) elements of tokens at offsets (T,) from the pointer image.

    Padding is read from the pointer padding if ATTENDED, else it is zero. Zero as well: tokens past the window (not
    held; none where the tile is FULL) and channels past D.
    """
    pointers = image + offsets
    rows = held
    if PADDED:
        if ATTENDED:
            pointers = tl.where(in_grid, pointers, padding)
        else:
            rows = held & in_grid
    pointers = pointers[:, None] + channels[None, :]
    if D != DP:
        values = tl.load(pointers, mask=rows[:, None] & (channels < D)[None, :], other=0.0)
    elif FULL and (ATTENDED or not PADDED):
        values = tl.load(pointers)
    else:
        values = tl.load(pointers, mask=rows[:, None], other=0.0)
    return values


@triton.jit
def store_tokens(
    image, offsets, values, in_grid, held, channels,
    FULL: tl.constexpr, PADDED: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
):  # fmt: skip
    """Write (T, DP) values, rounded to the pointers' type, where a token is held and in the grid."""
    pointers = (image + offsets)[:, None] + channels[None, :]
    values = values.to(image.dtype.element_ty)
    if D != DP:
        tl.store(pointers, values, mask=(held & in_grid)[:, None] & (channels < D)[None, :])
    elif FULL and not PADDED:
        tl.store(pointers, values)
    else:
        tl.store(pointers, values, mask=(held & in_grid)[:, None])
