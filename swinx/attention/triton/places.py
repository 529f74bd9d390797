"""Where the tokens of a window are: `swinx.windows` as address arithmetic inside a kernel.

Padding, lattice and cyclic shift cost a few integer operations for each token and no copy.

Shapes: T tokens of one tile (any of a window's N = WH * WW, from a start on; a tile may reach past N), DP head_dim D
rounded up to a power of two, S slots of the batch (`swinx.windows`). Everything is int32 but the offsets of images and
of windows, and of rows where an image is that large. The scalars of a launch are one tuple, grid = (height, width,
count_h, count_w, shift_h, shift_w, dilation), and those of a window another, window = (p, q, i, j): window (i, j) among
count_h x count_w of the lattice of phase (p, q).
"""

import triton
import triton.language as tl

# Arguments that no kernel is compiled anew for: every image size runs the same machine code.
ANY_SIZE = ["windows", "splits", "heads", "height", "width", "count_h", "count_w", "shift_h", "shift_w"]


@triton.jit
def locate(qkv, head, index, tokens, grid, strides, WH: tl.constexpr, WW: tl.constexpr, WIDE: tl.constexpr):
    """Where (T,) tokens of a window of the batch are.

    Its image (int64), (p, q, i, j), the pointer to that image's queries of a head; the tokens' rows and columns in the
    grid, whether they are in it, and their offsets from the pointer. strides: of image, row, column, head.
    """
    stride_b, stride_y, stride_x, stride_h = strides
    image, window = window_place(index, grid)
    image = image.to(tl.int64)
    queries = qkv + image * stride_b + head.to(tl.int64) * stride_h
    y, x, in_grid = token_places(tokens, window, grid, WH, WW)
    return image, window, queries, y, x, in_grid, row_offsets(y, x, stride_y, stride_x, WIDE)


@triton.jit
def padding_tokens(pad_qkv, head, heads, D: tl.constexpr):
    """Pointers to the key and the value of a padding token (3, h, D)."""
    return pad_qkv + (heads + head) * D, pad_qkv + (2 * heads + head) * D


@triton.jit
def window_place(index, grid):
    """Image of a window of the batch, and (p, q, i, j)."""
    _, _, count_h, count_w, _, _, dilation = grid
    j = index % count_w
    rest = index // count_w
    i = rest % count_h
    rest = rest // count_h
    q = rest % dilation
    rest = rest // dilation
    return rest // dilation, (rest % dilation, q, i, j)


@triton.jit
def tile_tokens(tile: tl.constexpr, N: tl.constexpr, WIDTH: tl.constexpr, LAST: tl.constexpr):
    """Tokens of a tile of a window: WIDTH of them, or LAST where fewer than WIDTH are left of N."""
    if (tile + 1) * WIDTH <= N:
        tokens = tile * WIDTH + tl.arange(0, WIDTH)
    else:
        tokens = tile * WIDTH + tl.arange(0, LAST)
    return tokens


@triton.jit
def token_places(tokens, window, grid, WH: tl.constexpr, WW: tl.constexpr):
    """Grid rows and columns of (T,) tokens of a window, and whether they are in the grid.

    What is not is padding. A token past the window repeats one of its last row: every address and region exists.
    """
    height, width, count_h, count_w, shift_h, shift_w, dilation = grid
    p, q, i, j = window
    row = i * WH + tl.minimum(tokens // WW, WH - 1) + shift_h
    column = j * WW + tokens % WW + shift_w
    y = p + dilation * tl.where(row >= count_h * WH, row - count_h * WH, row)
    x = q + dilation * tl.where(column >= count_w * WW, column - count_w * WW, column)
    return y, x, (y < height) & (x < width)


@triton.jit
def holds_padding(window, grid, WH: tl.constexpr, WW: tl.constexpr):
    """Whether a window has tokens outside the grid: they follow the last row and column of a lattice."""
    height, width, count_h, count_w, shift_h, shift_w, dilation = grid
    p, q, i, j = window
    row = tl.minimum(i * WH + shift_h, (count_h - 1) * WH) + WH - 1
    column = tl.minimum(j * WW + shift_w, (count_w - 1) * WW) + WW - 1
    return (p + dilation * row >= height) | (q + dilation * column >= width)


@triton.jit
def token_wraps(tokens, shift_h, shift_w, WH: tl.constexpr, WW: tl.constexpr):
    """(T,) 2 for tokens whose row the roll brings into the last windows from the lattice's start, + 1 for columns."""
    wrapped_row = tl.minimum(tokens // WW, WH - 1) >= WH - shift_h
    wrapped_column = tokens % WW >= WW - shift_w
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
    FULL: tl.constexpr, PADDED: tl.constexpr, ATTENDED: tl.constexpr, ALIGNED: tl.constexpr,
    D: tl.constexpr, DP: tl.constexpr,
):  # fmt: skip
    """(T, DP) elements of tokens at offsets (T,) from the pointer image.

    Padding is read from the pointer padding if ATTENDED, else it is zero. Zero as well: tokens past the window (not
    held; none where the tile is FULL) and channels past D. ALIGNED: all rows start at multiples of 16 bytes.
    """
    pointers = image + offsets
    rows = held
    if PADDED:
        if ATTENDED:
            pointers = tl.where(in_grid, pointers, padding)
        else:
            rows = held & in_grid
    if ALIGNED:
        # Not to be seen from strides that are no multiples of 16 elements (24 channels), nor, for Triton 3.9, from a
        # choice between two pointers; without it single elements are loaded.
        pointers = tl.multiple_of(pointers, 16)
    pointers = pointers[:, None] + channels[None, :]
    if D != DP:
        values = tl.load(pointers, mask=rows[:, None] & (channels < D)[None, :], other=0.0)
    elif FULL and (ATTENDED or not PADDED):
        values = tl.load(pointers)
    else:
        values = tl.load(pointers, mask=rows[:, None], other=0.0)
    return values


@triton.jit
def load_keys(
    image_k, stride_y, stride_x, stride_s, pad_k, pad_v, window, grid, channels,
    tile: tl.constexpr, N: tl.constexpr, WIDTH: tl.constexpr, LAST: tl.constexpr, WH: tl.constexpr, WW: tl.constexpr,
    PADDED: tl.constexpr, ATTENDED: tl.constexpr, ALIGNED: tl.constexpr, WIDE: tl.constexpr,
    D: tl.constexpr, DP: tl.constexpr,
):  # fmt: skip
    """A tile of keys of a window: its tokens (T,), whether they are in the grid, keys and values (T, DP)."""
    FULL: tl.constexpr = (tile + 1) * WIDTH <= N or tile * WIDTH + LAST == N
    keys = tile_tokens(tile, N, WIDTH, LAST)
    y, x, in_grid = token_places(keys, window, grid, WH, WW)
    offsets = row_offsets(y, x, stride_y, stride_x, WIDE)
    image_v = image_k + stride_s
    key = load_tokens(image_k, offsets, pad_k, in_grid, keys < N, channels, FULL, PADDED, ATTENDED, ALIGNED, D, DP)
    value = load_tokens(image_v, offsets, pad_v, in_grid, keys < N, channels, FULL, PADDED, ATTENDED, ALIGNED, D, DP)
    return keys, in_grid, key, value


@triton.jit
def window_slots(head, index, windows, N: tl.constexpr):
    """Elements (int64) from the start of (h, S) to the slots of a window of the batch.

    What is known of each query is kept in the order of slots: finding a query's place in the grid costs more than to
    read it, and in the kernel of the keys every thread would have to.
    """
    return (head.to(tl.int64) * windows + index) * N


@triton.jit
def load_sums(sums, tile: tl.constexpr, N: tl.constexpr, WIDTH: tl.constexpr, LAST: tl.constexpr, BEYOND: tl.constexpr):
    """What is kept of a tile of a window's queries, from the pointer sums: (T,), BEYOND for tokens past the window."""
    queries = tile_tokens(tile, N, WIDTH, LAST)
    if (tile + 1) * WIDTH <= N or tile * WIDTH + LAST == N:
        values = tl.load(sums + queries)
    else:
        values = tl.load(sums + queries, mask=queries < N, other=BEYOND)
    return values


@triton.jit
def store_tokens(
    image, offsets, values, in_grid, held, channels,
    FULL: tl.constexpr, PADDED: tl.constexpr, ALIGNED: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
):  # fmt: skip
    """Write (T, DP) values, rounded to the pointers' type, where a token is held and in the grid."""
    pointers = image + offsets
    if ALIGNED:
        pointers = tl.multiple_of(pointers, 16)
    pointers = pointers[:, None] + channels[None, :]
    values = values.to(image.dtype.element_ty)
    if D != DP:
        tl.store(pointers, values, mask=(held & in_grid)[:, None] & (channels < D)[None, :])
    elif FULL and not PADDED:
        tl.store(pointers, values)
    else:
        tl.store(pointers, values, mask=(held & in_grid)[:, None])
