"""Window geometry of a grid and of its lattices: pure functions of sizes, no parameters.

Shapes: B images, H W grid, d period, w window side (wh, ww), N = wh * ww tokens in a window, n windows along an axis of
one lattice, M = d * d * n_h * n_w windows of one image, S slots.

A slot is a place in a window. Slots are numbered by image, phase (p, q), window (i, j) and token (a, b), the last
running fastest. Token (a, b) of window (i, j) of phase (p, q) holds lattice row (i * wh + a + sh) mod (n_h * wh): the
lattice is padded at its end to a multiple of the window and then rolled by the shift. Its row r is grid row p + d * r.

Rows and columns are computed apart and summed, without a branch on H or W: one program serves every image size.
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


def gather_index(geometry: WindowGeometry, device: torch.device) -> Tensor:
    """Flat token number (image * H + y) * W + x of every window slot; B * H * W marks a padding token.

    Returns:
        (B * M * N,) int64.
    """
    batch, height, width = geometry.batch, geometry.height, geometry.width
    padding = batch * height * width
    y, x = _coordinates(geometry, 0, device), _coordinates(geometry, 1, device)
    rows = torch.where(y < height, y * width, padding)  # either summand alone reaches the padding token
    columns = torch.where(x < width, x, padding)
    images = torch.arange(batch, device=device) * (height * width)
    return _in_slots(images, rows, columns, geometry).clamp(max=padding)


def scatter_index(gather: Tensor, geometry: WindowGeometry) -> Tensor:
    """Inverse of `gather_index`, from its result: the slot that holds each token.

    Returns:
        (B * H * W,) int64.
    """
    count = geometry.batch * geometry.height * geometry.width
    slots = torch.arange(slot_count(geometry), device=gather.device)
    return slots.new_zeros(count + 1).scatter(0, gather, slots)[:count]  # the last entry is for padding


def slot_regions(geometry: WindowGeometry, device: torch.device) -> Tensor:
    """Region of every window slot: tokens of one window see each other inside one region only.

    The roll wraps the first `shift` rows of a lattice to its end, where they share the last window with rows they do
    not touch in the image. With shift 0 no window holds two regions.

    Returns:
        (B * M * N,) int64.
    """
    axes = []
    for axis in (0, 1):
        position = _positions(geometry, axis, device)
        wrapped = position >= _extent(geometry, axis) - geometry.shift[axis]
        axes.append(wrapped.long().expand(geometry.dilation, -1))
    return _in_slots(torch.zeros(geometry.batch, dtype=torch.int64, device=device), 2 * axes[0], axes[1], geometry)


def visible_pairs(gather: Tensor, geometry: WindowGeometry, attend_padding: bool) -> Tensor:
    """Whether slot i of a window attends to slot j, with the result of `gather_index`.

    Where padding is not attended it forms a region of its own: no query is left without a key, so no row of the
    softmax is undefined.

    Returns:
        (B * M, N, N) bool.
    """
    regions = slot_regions(geometry, gather.device)
    if not attend_padding:
        regions = torch.where(gather < geometry.batch * geometry.height * geometry.width, regions, -1)
    regions = regions.view(-1, geometry.window_size[0] * geometry.window_size[1])
    return regions[:, :, None] == regions[:, None, :]


def _extent(geometry: WindowGeometry, axis: int) -> int:
    """Length of an axis of the padded lattice."""
    return lattice_windows(geometry)[axis] * geometry.window_size[axis]


def _positions(geometry: WindowGeometry, axis: int, device: torch.device) -> Tensor:
    """Positions along an axis of a padded and rolled lattice: (n * w,) int64."""
    return torch.arange(_extent(geometry, axis), device=device)


def _coordinates(geometry: WindowGeometry, axis: int, device: torch.device) -> Tensor:
    """Grid row (axis 0) or column of each position of each lattice, past the edge too: (d, n * w) int64."""
    extent = _extent(geometry, axis)
    source = _positions(geometry, axis, device) + geometry.shift[axis]
    # The remainder by a choice: ONNX export takes no remainder by a dynamic size.
    source = torch.where(source < extent, source, source - extent)
    return torch.arange(geometry.dilation, device=device)[:, None] + geometry.dilation * source


def _in_slots(images: Tensor, rows: Tensor, columns: Tensor, geometry: WindowGeometry) -> Tensor:
    """Sums of what each image (B,), row (d, n_h * wh) and column (d, n_w * ww) brings, in the order of slots."""
    _, _, _, (window_h, window_w), _, dilation = geometry
    count_h, count_w = lattice_windows(geometry)
    rows = rows.reshape(dilation, 1, count_h, 1, window_h, 1)
    columns = columns.reshape(1, dilation, 1, count_w, 1, window_w)
    return (images.view(-1, 1, 1, 1, 1, 1, 1) + (rows + columns)).flatten()
