"""Window geometry of a grid and of its lattices: pure functions of sizes, no parameters.

Shapes: B images, H W grid, d period, w window side (wh, ww), N = wh * ww tokens in a window, n windows along an axis of
one lattice, M = d * d * n_h * n_w windows of one image, S slots.

A slot is a place in a window. Slots are numbered by image, phase (p, q), window (i, j) and token (a, b), the last
running fastest. Everything is arithmetic on flat slot and token numbers, without a branch on H or W and without a
dimension that is 1 for small images only: one compiled graph serves every image size.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


def windows_per_lattice(size: int, window: int, dilation: int) -> int:
    """Windows that cover one axis of a lattice: all lattices of a grid share the extent ceil(size / dilation)."""
    extent = (size + dilation - 1) // dilation
    return (extent + window - 1) // window


def cyclic_shift(size: int, window: int, dilation: int) -> int:
    """Shift of a shifted block along one axis: window // 2, or 0 where a single window covers the lattice.

    A shift inside a single window would only cut it into regions that do not see each other. Needs size >= 1.
    """
    count = windows_per_lattice(size, window, dilation)
    return (window // 2) * (1 - 1 // count)  # 1 // count is 1 for a single window, else 0: no branch on a size


class WindowGeometry(NamedTuple):
    """The windows of a batch of grids: B, H, W, (wh, ww), (sh, sw) in lattice tokens, and the period d."""

    batch: int
    height: int
    width: int
    window_size: tuple[int, int]
    shift: tuple[int, int]
    dilation: int


def window_geometry(
    batch: int, height: int, width: int, window_size: Sequence[int], shift: Sequence[int], dilation: int
) -> WindowGeometry:
    """From the lists that operators of torch take."""
    return WindowGeometry(batch, height, width, (window_size[0], window_size[1]), (shift[0], shift[1]), dilation)


def lattice_windows(geometry: WindowGeometry) -> tuple[int, int]:
    """Windows along the two axes of one lattice: (n_h, n_w)."""
    return (
        windows_per_lattice(geometry.height, geometry.window_size[0], geometry.dilation),
        windows_per_lattice(geometry.width, geometry.window_size[1], geometry.dilation),
    )


def window_count(geometry: WindowGeometry) -> int:
    """Windows of a batch, over all its lattices: B * M."""
    count_h, count_w = lattice_windows(geometry)
    return geometry.batch * geometry.dilation * geometry.dilation * count_h * count_w


def slot_count(geometry: WindowGeometry) -> int:
    """Slots of a batch: B * M * N."""
    return window_count(geometry) * geometry.window_size[0] * geometry.window_size[1]


def needs_padding(geometry: WindowGeometry) -> bool:
    """Whether the windows have more slots than the grids have tokens."""
    return slot_count(geometry) > geometry.batch * geometry.height * geometry.width


def slot_coordinates(slots: Tensor, geometry: WindowGeometry) -> tuple[Tensor, Tensor, Tensor]:
    """Where window slots read from: image, grid row and grid column of each, (S,) int64 each.

    Token (a, b) of window (i, j) of phase (p, q) holds lattice row (i * wh + a + sh) mod (n_h * wh): the lattice is
    padded at its end to a multiple of the window and then rolled by the shift. A row >= H or column >= W is padding.
    """
    _, _, _, window_size, shift, dilation = geometry
    count_h, count_w = lattice_windows(geometry)
    rest, b = floor_divmod(slots, window_size[1])
    rest, a = floor_divmod(rest, window_size[0])
    rest, j = floor_divmod(rest, count_w)
    rest, i = floor_divmod(rest, count_h)
    rest, q = floor_divmod(rest, dilation)
    image, p = floor_divmod(rest, dilation)
    row = wrap(i * window_size[0] + a + shift[0], count_h * window_size[0])
    column = wrap(j * window_size[1] + b + shift[1], count_w * window_size[1])
    return image, p + dilation * row, q + dilation * column


def slot_regions(slots: Tensor, geometry: WindowGeometry) -> Tensor:
    """Region of each window slot, (S,) int64: tokens of one window see each other inside one region only.

    The roll wraps the first `shift` rows of a lattice to its end, where they share the last window with rows they do
    not touch in the image. With shift 0 no window holds two regions.
    """
    _, _, _, window_size, shift, _ = geometry
    count_h, count_w = lattice_windows(geometry)
    rest, b = floor_divmod(slots, window_size[1])
    rest, a = floor_divmod(rest, window_size[0])
    rest, j = floor_divmod(rest, count_w)
    _, i = floor_divmod(rest, count_h)
    wrapped_row = (i == count_h - 1) & (a >= window_size[0] - shift[0])
    wrapped_column = (j == count_w - 1) & (b >= window_size[1] - shift[1])
    return 2 * wrapped_row.long() + wrapped_column.long()


def floor_divmod(value: Tensor, divisor: int) -> tuple[Tensor, Tensor]:
    """Quotient and remainder, without the operation that ONNX lacks for dynamic sizes."""
    quotient = value // divisor
    return quotient, value - quotient * divisor


def wrap(value: Tensor, extent: int) -> Tensor:
    """value modulo extent, for values below 2 * extent."""
    return torch.where(value < extent, value, value - extent)


def gather_index(geometry: WindowGeometry, device: torch.device) -> Tensor:
    """Flat token number (image * H + y) * W + x of every window slot; B * H * W marks a padding token.

    Returns:
        (B * M * N,) int64.
    """
    batch, height, width = geometry.batch, geometry.height, geometry.width
    image, y, x = slot_coordinates(all_slots(geometry, device), geometry)
    return torch.where((y < height) & (x < width), (image * height + y) * width + x, batch * height * width)


def all_slots(geometry: WindowGeometry, device: torch.device) -> Tensor:
    """Numbers of all window slots of a batch: (B * M * N,) int64."""
    return torch.arange(slot_count(geometry), device=device)


def scatter_index(geometry: WindowGeometry, device: torch.device) -> Tensor:
    """Inverse of `gather_index`: the slot that holds each token.

    Returns:
        (B * H * W,) int64.
    """
    batch, height, width, window_size, shift, dilation = geometry
    count_h, count_w = lattice_windows(geometry)
    rest, x = floor_divmod(torch.arange(batch * height * width, device=device), width)
    image, y = floor_divmod(rest, height)
    row, p = floor_divmod(y, dilation)
    column, q = floor_divmod(x, dilation)
    # A choice and not a remainder: torch 2.15 compiles the remainder into a failed assertion where sizes are static.
    row = torch.where(row < shift[0], row + count_h * window_size[0], row) - shift[0]
    column = torch.where(column < shift[1], column + count_w * window_size[1], column) - shift[1]
    i, a = floor_divmod(row, window_size[0])
    j, b = floor_divmod(column, window_size[1])
    window = (((image * dilation + p) * dilation + q) * count_h + i) * count_w + j
    return (window * window_size[0] + a) * window_size[1] + b


def visible_pairs(geometry: WindowGeometry, attend_padding: bool, device: torch.device) -> Tensor:
    """Whether slot i of a window attends to slot j.

    Where padding is not attended it forms a region of its own: no query is left without a key, so no row of the
    softmax is undefined.

    Returns:
        (B * M, N, N) bool.
    """
    slots = all_slots(geometry, device)
    regions = slot_regions(slots, geometry)
    if not attend_padding:
        _, y, x = slot_coordinates(slots, geometry)
        regions = torch.where((y < geometry.height) & (x < geometry.width), regions, -1)
    regions = regions.view(-1, geometry.window_size[0] * geometry.window_size[1])
    return regions[:, :, None] == regions[:, None, :]
