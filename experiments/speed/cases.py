"""What the attention benchmark measures: shapes of Swin's stages, and which of them by default.

Shape letters: B images, H W grid, h heads, D head_dim, N tokens in a window, C = h * D.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch
from torch import Tensor

from swinx.config import VARIANTS
from swinx.windows import WindowGeometry, cyclic_shift

DType = Literal["bf16", "fp16", "fp32"]
DTYPES: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
HEAD_DIM = 32


@dataclass(frozen=True)
class Case:
    """Window attention as one stage (1 to 4) of a variant runs it on a batch of square images."""

    variant: str
    size: int
    stage: int
    batch: int
    window: int
    shifted: bool = True
    dilation: int = 1
    dtype: DType = "bf16"

    @property
    def side(self) -> int:
        """Grid rows, and columns: patches of 4 pixels, halved at every stage."""
        return self.size // (4 << (self.stage - 1))

    @property
    def heads(self) -> int:
        """Attention heads of the stage."""
        return VARIANTS[self.variant].num_heads[self.stage - 1]

    @property
    def tokens(self) -> int:
        """Tokens of the batch, without padding."""
        return self.batch * self.side * self.side

    @property
    def shift(self) -> int:
        """Cyclic shift, 0 where one window covers a lattice."""
        return cyclic_shift(self.side, self.window, self.dilation) if self.shifted else 0

    @property
    def name(self) -> str:
        """Stable name."""
        shift = "shift" if self.shifted else "plain"
        return (
            f"{self.variant}-{self.size}-stage{self.stage}-b{self.batch}-w{self.window}-{shift}"
            f"-d{self.dilation}-{self.dtype}"
        )

    @property
    def geometry(self) -> WindowGeometry:
        """The case as the library describes it."""
        window, shift = (self.window, self.window), (self.shift, self.shift)
        return WindowGeometry(self.batch, self.side, self.side, window, shift, self.dilation)

    def inputs(self, device: torch.device) -> list[Tensor]:
        """qkv (B, H, W, 3, h, D) in the case's dtype; bias (h, N, N) and pad_qkv (3, h, D) in float32; leaves."""
        generator = torch.Generator().manual_seed(0)
        tokens = self.window * self.window

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        qkv = random(self.batch, self.side, self.side, 3, self.heads, HEAD_DIM).to(device, DTYPES[self.dtype])
        bias = random(self.heads, tokens, tokens).to(device)
        # Exact in every dtype, so that all providers attend to the same padding.
        pad_qkv = random(3, self.heads, HEAD_DIM).bfloat16().float().to(device)
        return [tensor.requires_grad_() for tensor in (qkv, bias, pad_qkv)]

    def bytes_moved(self, backward: bool) -> int:
        """Least bytes between memory and chip: forward reads qkv and writes out; backward adds qkv, dout and dqkv."""
        channels = self.heads * HEAD_DIM * DTYPES[self.dtype].itemsize
        return self.tokens * channels * (4 + 7 if backward else 4)


def headline() -> list[Case]:
    """Large stages for throughput, a small one for overhead; every dtype, window and period once."""
    large = Case("swinx_t", 512, 1, 16, 8)
    return [
        Case("swinx_t", 224, 1, 32, 7),
        large,
        Case("swinx_b", 512, 1, 16, 12),
        Case("swinx_t", 512, 1, 16, 7),
        Case("swinx_t", 512, 1, 16, 8, shifted=False),
        Case("swinx_t", 512, 1, 16, 8, dilation=2),
        Case("swinx_t", 512, 1, 16, 8, dilation=4),
        Case("swinx_b", 512, 1, 16, 7),
        Case("swinx_b", 512, 2, 16, 7),
        Case("swinx_t", 224, 3, 32, 7),
        Case("swinx_t", 224, 1, 1, 7),
        Case("swinx_t", 224, 1, 64, 7),
        Case("swinx_t", 224, 1, 32, 7, dtype="fp16"),
        Case("swinx_t", 224, 1, 32, 7, dtype="fp32"),
        Case("swinx_b", 512, 1, 16, 12, dtype="fp32"),
    ]


# The headline cases that every provider runs; the others leave out what has to be compiled anew for each.
COMPARED = tuple(case.name for case in headline()[:3])


def small() -> list[Case]:
    """For the CPU: a second or two each."""
    return [
        Case("swinx_t", 224, 1, 1, 7, dtype="fp32"),
        Case("swinx_t", 224, 3, 2, 7, dtype="fp32"),
        Case("swinx_t", 256, 1, 1, 8, dilation=2, dtype="fp32"),
        Case("swinx_t", 192, 1, 1, 12, dtype="fp32"),
    ]


def full() -> Iterator[Case]:
    """Every stage of two variants, every window, shift, period, dtype and batch: hours."""
    axes = product(("swinx_t", "swinx_b"), (224, 512), (1, 2, 3, 4), (1, 16, 32, 64), (7, 8, 12), (False, True))
    for variant, size, stage, batch, window, shifted in axes:
        for dilation, dtype in product((1, 2, 4), ("bf16", "fp16", "fp32")):
            yield Case(variant, size, stage, batch, window, shifted, dilation, dtype)
