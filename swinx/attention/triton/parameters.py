"""How each kernel is cut into tiles and launched.

Tiles and splits depend on shapes alone, as sums are taken tile by tile: equal inputs give equal bits on every device of
an architecture. Launch parameters stand in a table (`table`) for windows of one tile and of several, heads of up to 32
channels and of more, 16 and 32 bits, and the generations of GPUs; every case takes the entry it falls under.

Shapes: N tokens in a window, h heads, D head_dim.
"""

from typing import Literal, NamedTuple

import torch

from .table import TABLE

Kernel = Literal["forward", "backward", "query", "key"]

ONE_TILE = 64  # largest window whose backward pass is one kernel
ALL_REGISTERS = 255
GENERATIONS = (8, 9, 10)  # Ampere and Ada, Hopper, Blackwell; a newer one takes the last


class Tiles(NamedTuple):
    """Tokens of the tile that a program owns; number tiles of width tokens, the last of last, cover a window."""

    own: int
    number: int
    width: int
    last: int


class Launch(NamedTuple):
    """Warps of a program, stages of its loads, registers of a thread (None: as many as the compiler wants), programs.

    Programs are as many as are resident at once on a large GPU of the generation. What a program does before its first
    window costs more than one window, so more programs would cost more than they balance.
    """

    warps: int
    stages: int
    registers: int | None
    programs: int


def next_power_of_2(value: int) -> int:
    """The smallest power of two that is no smaller; the matrix unit takes no side below 16."""
    return max(16, 1 << (value - 1).bit_length())


def tiles(tokens: int) -> Tiles:
    """Tiles for windows of 1 to 256 tokens: 49 in one of 64, and 144 in 64 + 64 + 16, not 256."""
    own = min(next_power_of_2(tokens), ONE_TILE)
    count = -(-tokens // own)
    return Tiles(own, count, own, next_power_of_2(tokens - (count - 1) * own))


def splits(programs: int, heads: int, own_tiles: int, windows: int) -> int:
    """Programs that share the windows of one head and tile."""
    return max(1, min(windows, programs // (heads * own_tiles)))


def table_key(
    kernel: Kernel, tokens: int, head_dim: int, itemsize: int, generation: int
) -> tuple[str, int, int, int, int]:
    """The entry that a case falls under: kernel, N up to, D up to, bits, first digits of the compute capability."""
    known = max(entry for entry in GENERATIONS if entry <= generation)
    return kernel, 64 if tokens <= ONE_TILE else 256, 32 if head_dim <= 32 else 128, 16 if itemsize == 2 else 32, known


def fitting_stages(wanted: int, tokens: int, head_dim: int, dtype: torch.dtype, shared: int) -> int:
    """How many stages fit into so many bytes of shared memory. With one every case fits into 99 KiB.

    With three, loads run a whole window ahead; with two they are waited for as the next window begins.
    """
    tile = -(-tokens // 16) * 16 * next_power_of_2(head_dim) * dtype.itemsize
    # Upper bounds, measured by `tests/benchmarks/kernel_resources.py`: tiles of a stage, and of what is kept besides.
    besides = 2 if tokens <= ONE_TILE else 1
    return max(1, min(wanted, (shared // tile - besides) // 4))


def launch(kernel: Kernel, tokens: int, head_dim: int, dtype: torch.dtype, generation: int, shared: int) -> Launch:
    """Parameters for windows of this many tokens, on a GPU with so many bytes of shared memory for a program."""
    key = table_key(kernel, tokens, head_dim, dtype.itemsize, generation)
    warps, stages, registers, programs = TABLE[key]
    if tokens <= 32:
        warps, registers = 1 if tokens <= 16 else 2, None
    if registers is None and dtype.itemsize >= 4 and head_dim > 32:
        registers = ALL_REGISTERS  # without a limit the compiler may give up and keep 40: Triton 3.8 on sm_120 does
    return Launch(warps, fitting_stages(stages, tokens, head_dim, dtype, shared), registers, programs)


def precision(dtype: torch.dtype, device: torch.device) -> str:
    """How float32 is multiplied: three tf32 products on a GPU, one where torch.set_float32_matmul_precision allows it.

    Three keep 22 of 24 bits (Ootomo and Yokota 2022, https://arxiv.org/abs/2203.03341). Without the matrix unit the
    backward kernel finds no registers: thousands of spills.
    """
    if dtype != torch.float32 or device.type == "cpu":
        return "ieee"
    # Since torch 2.9 there is a new name, beside which the old one may raise.
    new: str | None = getattr(torch.backends.cuda.matmul, "fp32_precision", None)
    if new == "none":  # then the setting for all operations counts
        new = getattr(torch.backends, "fp32_precision", None)
    allowed = new == "tf32" if new is not None else torch.get_float32_matmul_precision() != "highest"
    return "tf32" if allowed else "tf32x3"


def options(parameters: Launch) -> dict[str, int | bool | None]:
    """Launch parameters in Triton's words. Without fusion of products and sums, kernels need fewer registers."""
    warps, stages, registers, _ = parameters
    return {"num_warps": warps, "num_stages": stages, "maxnreg": registers, "enable_fp_fusion": False}
