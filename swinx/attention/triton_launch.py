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
    """Tokens of the tile that a program owns; number tiles of width tokens, the last of last, cover a window."""

    own: int
    number: int
    width: int
    last: int


class Launch(NamedTuple):
    """Warps of a program, stages of its loads, and registers of a thread (None: as many as the compiler wants)."""

    warps: int
    stages: int
    registers: int | None


def next_power_of_2(value: int) -> int:
    """The smallest power of two that is no smaller; the matrix unit takes no side below 16."""
    return max(16, 1 << (value - 1).bit_length())


def tiles(tokens: int) -> Tiles:
    """Tiles for windows of 1 to 256 tokens: 49 in one of 64, and 144 in 64 + 64 + 16, not 256."""
    own = min(next_power_of_2(tokens), ONE_TILE)
    count = -(-tokens // own)
    return Tiles(own, count, own, next_power_of_2(tokens - (count - 1) * own))


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


def options(parameters: Launch) -> dict[str, int | None]:
    """Launch parameters in Triton's words. Without fusion of products and sums, kernels need fewer registers."""
    warps, stages, registers = parameters
    return {"num_warps": warps, "num_stages": stages, "maxnreg": registers, "enable_fp_fusion": False}
