"""How each kernel is cut into tiles and launched: a small static table.

Tiles and splits depend on shapes alone, as sums are taken tile by tile: equal inputs give equal bits on every device of
an architecture. Warps, stages and registers are chosen from the compiler's register and spill counts
(`experiments/kernel_resources.py`); no entry has been timed on a GPU yet.

Shapes: N tokens in a window, h heads.
"""

from typing import Literal, NamedTuple

import torch

Kernel = Literal["forward", "backward", "query", "key"]

ONE_TILE = 64  # largest window whose backward pass is one kernel
PROGRAMS = {"forward": 2112, "backward": 1056, "query": 528, "key": 528}  # aimed at: 16, 8 and 4 for each of 132 SMs


class Tiles(NamedTuple):
    """Tokens of the tile that a program owns, and of the two tiles that cover a window (the second may be 0)."""

    own: int
    other: tuple[int, int]


class Launch(NamedTuple):
    """Warps of a program, stages of its loads, and registers of a thread (None: as many as the compiler wants)."""

    warps: int
    stages: int
    registers: int | None


def next_power_of_2(value: int) -> int:
    """The smallest power of two that is no smaller; the matrix unit takes no side below 16."""
    return max(16, 1 << (value - 1).bit_length())


def tiles(tokens: int) -> Tiles:
    """Tiles for windows of 1 to 256 tokens: 49 -> 64, and 144 -> 128 + 16, not 256."""
    whole = next_power_of_2(tokens)
    if tokens <= ONE_TILE:
        return Tiles(whole, (whole, 0))
    first = whole // 2
    rest = next_power_of_2(tokens - first)
    if first + rest == whole and whole <= 128:
        return Tiles(64, (whole, 0))
    return Tiles(64, (first, rest))


def splits(kernel: Kernel, heads: int, own_tiles: int, windows: int) -> int:
    """Programs that share the windows of one head and tile."""
    return max(1, min(windows, PROGRAMS[kernel] // (heads * own_tiles)))


def launch(kernel: Kernel, tokens: int, dtype: torch.dtype) -> Launch:
    """Parameters for a kernel on windows of this many tokens."""
    wide = dtype.itemsize >= 4
    if tokens <= 32:
        return Launch(1 if not wide else 2, 2, None)
    if tokens <= ONE_TILE:
        return Launch(4, 2, None)
    return Launch(8 if wide or kernel != "forward" else 4, 2, None)
