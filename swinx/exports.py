"""Window indices of exported programs.

ONNX has no remainder by a dynamic size, and torch.export ties a program to sizes above 1 wherever a dimension is a
number of windows. Here that number is one that torch.export knows nothing of. Rows are gathered head by head, so that
no transposition is left for ONNX Runtime.

Shapes: B images, H W grid, T = B * H * W tokens, h heads, D head_dim, N tokens in a window, m windows of a batch.
"""

from typing import NamedTuple, cast

import torch
from torch import Tensor

from .windows import WindowGeometry, floor_divmod, lattice_windows, window_count, wrap


class HeadIndices(NamedTuple):
    """Where attention finds what each head reads, and where its results are, (i,) int64 each.

    queries, keys, values: for the (m, h, N) slots of heads, the row in the ((T + 1) * 3 * h, D) of T tokens and the
    padding token. results: for the (T, h) heads of tokens, the row in the (m * h * N, D) of attention.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    results: Tensor


def head_indices(
    geometry: WindowGeometry, num_heads: int, shifted: bool, device: torch.device
) -> tuple[HeadIndices, Tensor | None]:
    """Of whole grids with attended padding: indices, and visible (m, N, N) or None, see `swinx.plans.WindowPlan`."""
    batch, height, width, window_size, _, dilation = geometry
    count_h, count_w = lattice_windows(geometry)
    rest, j = floor_divmod(torch.arange(_unknown(window_count(geometry)), device=device)[:, None], count_w)
    image, i = floor_divmod(rest, count_h)
    slots = torch.arange(window_size[0] * window_size[1], device=device)
    a, b = floor_divmod(slots, window_size[1])
    row, wrapped_row = _lattice_position(geometry, 0, i, a)
    column, wrapped_column = _lattice_position(geometry, 1, j, b)
    y, x = dilation * row, dilation * column
    if dilation > 1:
        rest, q = floor_divmod(image, dilation)
        image, p = floor_divmod(rest, dilation)
        y, x = y + p, x + q
    count = batch * height * width
    tokens = _stored(torch.where((y < height) & (x < width), (image * height + y) * width + x, count))  # (m, N)
    visible: Tensor | None = None
    if shifted:
        region = _stored(2 * wrapped_row + wrapped_column)
        visible = region[:, :, None] == region[:, None, :]
    heads = torch.arange(num_heads, device=device)
    queries = (tokens[:, None] * (3 * num_heads) + heads[:, None]).flatten()
    windows = torch.arange(tokens.shape[0], device=device)[:, None]
    first_heads = (windows * (num_heads * len(slots)) + slots).flatten()
    # The last entry is for what padding tokens hold.
    places = queries.new_zeros(count + 1).scatter(0, tokens.flatten(), first_heads)[:count]
    results = (places[:, None] + heads * len(slots)).flatten()
    return HeadIndices(queries, queries + num_heads, queries + 2 * num_heads, results), visible


def _lattice_position(geometry: WindowGeometry, axis: int, window: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """Lattice row (axis 0) or column of each slot, and whether the roll brought it from the other end: (m, N) each."""
    extent = lattice_windows(geometry)[axis] * geometry.window_size[axis]
    position = window * geometry.window_size[axis] + inside + geometry.shift[axis]
    return wrap(position, extent), position >= extent


def _stored(index: Tensor) -> Tensor:
    """The same numbers, which Inductor writes to memory once; else every gather computes them anew for each channel."""
    flat = index.flatten()
    places = torch.arange(flat.shape[0], device=index.device)
    return torch.zeros_like(flat).scatter(0, places, flat).view(index.shape)


def _unknown(size: int) -> int:
    """A dynamic size as a number of unknown value; a static one as it is."""
    return cast(int, torch.tensor(size).item())
