"""What distinguishes one Swin encoder from another: a frozen configuration, and the table of variants."""

from dataclasses import dataclass
from typing import Literal, get_args

Stem = Literal["shared", "branch", "inline", "none"]
STEMS: tuple[str, ...] = get_args(Stem)
OUTPUT_STRIDES = (8, 16, 32)
PATCH_SIZE = 4


def window_pair(window_size: int | tuple[int, int]) -> tuple[int, int]:
    """(wh, ww) of a window given as one side or as both.

    Raises:
        ValueError: not one or two positive integers.
    """
    pair = window_size if isinstance(window_size, tuple) else (window_size, window_size)
    if len(pair) != 2 or any(type(side) is not int or side < 1 for side in pair):
        raise ValueError(f"window_size must be a positive integer or a pair of them, got {window_size!r}")
    return pair[0], pair[1]


@dataclass(frozen=True)
class SwinConfig:
    """Architecture of one Swin encoder (Liu et al. 2021, https://arxiv.org/abs/2103.14030).

    embed_dim: channels of stage 1, doubled at each following stage. depths: blocks per stage. num_heads: attention
    heads per stage. window_size: window side, or (wh, ww), in lattice tokens. drop_path_rate: stochastic depth of the
    last block, rising linearly from 0. stem: what makes level 1, one of shared, branch, inline, none.

    Raises:
        ValueError: a value outside these rules.
    """

    embed_dim: int
    depths: tuple[int, int, int, int]
    num_heads: tuple[int, int, int, int]
    window_size: int | tuple[int, int]
    drop_path_rate: float
    stem: Stem = "shared"

    def __post_init__(self) -> None:
        for name in ("depths", "num_heads", "window_size"):
            if isinstance(getattr(self, name), list):  # tuples compare and hash
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.stem not in STEMS:
            raise ValueError(f"stem must be one of {', '.join(STEMS)}, got {self.stem!r}")
        window_pair(self.window_size)
        for name, value in (("depths", self.depths), ("num_heads", self.num_heads)):
            if (
                not isinstance(value, tuple)
                or len(value) != 4
                or any(type(item) is not int or item < 1 for item in value)
            ):
                raise ValueError(f"{name} must be four positive integers, one per stage, got {value!r}")
        if type(self.embed_dim) is not int or self.embed_dim < 2:
            raise ValueError(f"embed_dim must be an integer of at least 2, got {self.embed_dim!r}")
        for stage, heads in enumerate(self.num_heads, start=1):
            channels = self.embed_dim * 2 ** (stage - 1)
            if channels % heads:
                raise ValueError(
                    f"num_heads must divide the channels of each stage: stage {stage} has {channels} channels, "
                    f"got {heads} heads"
                )
        if not isinstance(self.drop_path_rate, (int, float)) or not 0.0 <= self.drop_path_rate < 1.0:
            raise ValueError(f"drop_path_rate must be at least 0 and below 1, got {self.drop_path_rate!r}")


# swinx_n is for CPU work and tests. It has no published weights that its inline stem could lose; whether that stem pays
# from scratch is open (docs/benchmarks/ablate-stem-swinx_n-cpu-2026-11-24.md).
VARIANTS: dict[str, SwinConfig] = {
    "swinx_n": SwinConfig(32, (2, 2, 2, 2), (1, 2, 4, 8), 8, 0.05, stem="inline"),
    "swinx_t": SwinConfig(96, (2, 2, 6, 2), (3, 6, 12, 24), 7, 0.2),
    "swinx_s": SwinConfig(96, (2, 2, 18, 2), (3, 6, 12, 24), 7, 0.3),
    "swinx_b": SwinConfig(128, (2, 2, 18, 2), (4, 8, 16, 32), 7, 0.3),
    "swinx_b_w12": SwinConfig(128, (2, 2, 18, 2), (4, 8, 16, 32), 12, 0.3),
    "swinx_l": SwinConfig(192, (2, 2, 18, 2), (6, 12, 24, 48), 7, 0.3),
    "swinx_l_w12": SwinConfig(192, (2, 2, 18, 2), (6, 12, 24, 48), 12, 0.3),
}
