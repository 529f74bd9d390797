"""Window geometry of a grid and of its lattices: pure functions of sizes, no parameters.

Shapes: B images, H W grid, d period, L lattice extent, w window side (wh, ww), N = wh * ww tokens in a window,
n windows along an axis of one lattice, M = d * d * n_h * n_w windows of one image.

Windows of an image are ordered (phase row, phase column, window row, window column), tokens of a window row-major.
Everything that depends on H or W is arithmetic on integers and tensors without a branch, so that one compiled graph
serves every image size.
"""

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


def slot_coordinates(size: int, window: int, shift: int, dilation: int, device: torch.device) -> Tensor:
    """Grid coordinate held by each window slot along one axis after padding and rolling.

    Slot (p, i, a) is token a of window i of phase p. The lattice is padded at its end to a multiple of the window and
    then rolled by the shift, so rolled position r holds lattice row (r + shift) mod (n * w).

    Returns:
        (d, n, w) int64; a value >= size is a padding token.
    """
    count = windows_per_lattice(size, window, dilation)
    rolled = torch.arange(count * window, device=device)
    row = (rolled + shift) % (count * window)
    phase = torch.arange(dilation, device=device)
    return (phase[:, None] + dilation * row[None, :]).view(dilation, count, window)


def token_slots(size: int, window: int, shift: int, dilation: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Inverse of `slot_coordinates`: (phase, window, position in the window) of each coordinate, each (size,) int64."""
    count = windows_per_lattice(size, window, dilation)
    coordinate = torch.arange(size, device=device)
    # + count * window before the modulo: TorchScript integers and tensors agree on the remainder of positive values
    rolled = (coordinate // dilation - shift + count * window) % (count * window)
    return coordinate % dilation, rolled // window, rolled % window


def window_index(
    height: int, width: int, window_size: tuple[int, int], shift: tuple[int, int], dilation: int, device: torch.device
) -> Tensor:
    """Flat grid index y * W + x of every window slot; H * W marks a padding token.

    Returns:
        (M, N) int64.
    """
    y = slot_coordinates(height, window_size[0], shift[0], dilation, device)
    x = slot_coordinates(width, window_size[1], shift[1], dilation, device)
    y = y[:, None, :, None, :, None]  # (d, 1, n_h, 1, wh, 1)
    x = x[None, :, None, :, None, :]  # (1, d, 1, n_w, 1, ww)
    index = torch.where((y < height) & (x < width), y * width + x, height * width)
    return index.reshape(-1, window_size[0] * window_size[1])


def slot_index(
    height: int, width: int, window_size: tuple[int, int], shift: tuple[int, int], dilation: int, device: torch.device
) -> Tensor:
    """Inverse of `window_index`: position of every grid token in the flattened (M, N) slots.

    Returns:
        (H * W,) int64.
    """
    p, i, a = token_slots(height, window_size[0], shift[0], dilation, device)
    q, j, b = token_slots(width, window_size[1], shift[1], dilation, device)
    count_h = windows_per_lattice(height, window_size[0], dilation)
    count_w = windows_per_lattice(width, window_size[1], dilation)
    tokens = window_size[0] * window_size[1]
    rows = (p * dilation * count_h + i) * count_w * tokens + a * window_size[1]
    columns = (q * count_h * count_w + j) * tokens + b
    return (rows[:, None] + columns[None, :]).reshape(-1)


def axis_regions(size: int, window: int, shift: int, dilation: int, device: torch.device) -> Tensor:
    """Region of each slot along one axis of the padded, rolled lattice: (n, w) int64.

    The roll wraps the first `shift` rows to the end: they get a region of their own, as do the rows beside them. With
    shift 0 no window holds two regions.
    """
    count = windows_per_lattice(size, window, dilation)
    length = count * window
    rolled = torch.arange(length, device=device)
    regions = (rolled >= length - window).long() + (rolled >= length - shift).long()
    return regions.view(count, window)


def region_ids(
    height: int, width: int, window_size: tuple[int, int], shift: tuple[int, int], dilation: int, device: torch.device
) -> Tensor:
    """Region of every window slot, from the padded lattice: tokens see each other inside one region only.

    Returns:
        (M, N) int64.
    """
    rows = axis_regions(height, window_size[0], shift[0], dilation, device)[:, None, :, None]
    columns = axis_regions(width, window_size[1], shift[1], dilation, device)[None, :, None, :]
    one_lattice = (3 * rows + columns).reshape(-1, window_size[0] * window_size[1])
    return one_lattice.repeat(dilation * dilation, 1)


def visible_pairs(
    height: int,
    width: int,
    window_size: tuple[int, int],
    shift: tuple[int, int],
    dilation: int,
    attend_padding: bool,
    device: torch.device,
) -> Tensor:
    """Whether slot i of a window attends to slot j.

    Where padding is not attended it forms a region of its own: no query is left without a key, so no row of the
    softmax is undefined.

    Returns:
        (M, N, N) bool.
    """
    regions = region_ids(height, width, window_size, shift, dilation, device)
    if not attend_padding:
        index = window_index(height, width, window_size, shift, dilation, device)
        regions = torch.where(index == height * width, -1, regions)
    return regions[:, :, None] == regions[:, None, :]


def relative_position_index(window_size: tuple[int, int]) -> Tensor:
    """Row of the relative position bias table for each pair of window tokens: (N, N) int64."""
    rows = torch.arange(window_size[0])
    columns = torch.arange(window_size[1])
    dy = rows[:, None] - rows[None, :] + window_size[0] - 1  # (wh, wh)
    dx = columns[:, None] - columns[None, :] + window_size[1] - 1  # (ww, ww)
    index = dy[:, None, :, None] * (2 * window_size[1] - 1) + dx[None, :, None, :]
    return index.reshape(window_size[0] * window_size[1], -1)
