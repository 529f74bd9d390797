"""What distinguishes one Swin encoder from another: a frozen configuration, and the table of variants."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from numbers import Number, Real
from typing import Any, Literal, NamedTuple, get_args

Stem = Literal["shared", "branch", "inline", "none"]
STEMS: tuple[str, ...] = get_args(Stem)
Version = Literal["v1", "v2"]
VERSIONS: tuple[str, ...] = get_args(Version)
OUTPUT_STRIDES = (8, 16, 32)
PATCH_SIZE = 4
STAGES = 4
_MOST_SHOWN = 200  # characters of a value in an error
_PLAIN = (Number, str, bytes, list, tuple, dict, type, type(None))

Pair = tuple[int, int]
# One window for all stages, as its side or as (wh, ww); or four of them, one per stage.
WindowSize = int | Pair | tuple[int | Pair, int | Pair, int | Pair, int | Pair]


class StageConfig(NamedTuple):
    """One stage of an encoder.

    version: as in `SwinConfig`. dim: channels. num_heads: attention heads. window_size: (wh, ww), in lattice tokens.
    pretrained_window_size: (wh, ww) in whose units v2 counts offsets. drop_path_rates: stochastic depth of each block.
    """

    version: Version
    dim: int
    num_heads: int
    window_size: Pair
    pretrained_window_size: Pair
    drop_path_rates: tuple[float, ...]


@dataclass(frozen=True)
class SwinConfig:
    """Architecture of one Swin encoder (Liu et al. 2021, https://arxiv.org/abs/2103.14030).

    Lists are taken for tuples.

    embed_dim: channels of stage 1, doubled at each following stage. depths: blocks per stage. num_heads: attention
    heads per stage. window_size: window side, or (wh, ww), in lattice tokens; or four of these, one per stage.
    drop_path_rate: stochastic depth of the last block, rising linearly from 0. stem: what makes level 1, one of shared,
    branch, inline, none. version: "v1", or "v2" (Liu et al. 2022, https://arxiv.org/abs/2111.09883).
    pretrained_window_size: for v2, the window in whose units its position bias counts offsets, in the forms of
    window_size; None: window_size itself. output_stride: 8 and 16 make an encoder that is dilated from the start.

    Raises:
        ValueError: a value outside these rules.
    """

    embed_dim: int
    depths: tuple[int, int, int, int]
    num_heads: tuple[int, int, int, int]
    window_size: WindowSize
    drop_path_rate: float
    stem: Stem = "shared"
    version: Version = "v1"
    pretrained_window_size: WindowSize | None = None
    output_stride: int = 32

    def __post_init__(self) -> None:
        for name in ("depths", "num_heads", "window_size", "pretrained_window_size"):
            object.__setattr__(self, name, _tuples(getattr(self, name)))  # tuples compare and hash
        for name, choices in (("stem", STEMS), ("version", VERSIONS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {shown(getattr(self, name))}")
        for name, value in (("depths", self.depths), ("num_heads", self.num_heads)):
            if not isinstance(value, tuple) or len(value) != STAGES or any(not _positive(item) for item in value):
                raise ValueError(f"{name} must be four positive integers, one per stage, got {shown(value)}")
        _windows("window_size", self.window_size)
        if self.pretrained_window_size is not None:
            if self.version == "v1":
                given = shown(self.pretrained_window_size)
                raise ValueError(f"pretrained_window_size must be None for version 'v1', got {given}")
            _windows("pretrained_window_size", self.pretrained_window_size)
        if type(self.embed_dim) is not int or self.embed_dim < 2:
            raise ValueError(f"embed_dim must be an integer of at least 2, got {shown(self.embed_dim)}")
        for stage, heads in enumerate(self.num_heads, start=1):
            channels = self.embed_dim * 2 ** (stage - 1)
            if channels % heads:
                raise ValueError(
                    f"num_heads must divide the channels of each stage: stage {stage} has {channels} channels, "
                    f"got {heads} heads"
                )
        if not isinstance(self.drop_path_rate, Real) or not 0.0 <= self.drop_path_rate < 1.0:
            given = shown(self.drop_path_rate)
            raise ValueError(f"drop_path_rate must be a number of at least 0 and below 1, got {given}")
        object.__setattr__(self, "drop_path_rate", float(self.drop_path_rate))  # numpy's cannot be stored as JSON
        check_output_stride(self.output_stride)

    @property
    def stages(self) -> tuple[StageConfig, ...]:
        """What each of the four stages is made of."""
        windows = _windows("window_size", self.window_size)
        pretrained = self.pretrained_window_size
        pretrained_windows = windows if pretrained is None else _windows("pretrained_window_size", pretrained)
        blocks = sum(self.depths)
        rates = tuple(self.drop_path_rate * index / max(blocks - 1, 1) for index in range(blocks))
        first = [sum(self.depths[:index]) for index in range(STAGES)]
        return tuple(
            StageConfig(
                self.version,
                self.embed_dim * 2**index,
                self.num_heads[index],
                windows[index],
                pretrained_windows[index],
                rates[first[index] : first[index] + self.depths[index]],
            )
            for index in range(STAGES)
        )


def changed(base: SwinConfig, changes: Mapping[str, Any]) -> SwinConfig:
    """A configuration with other values of some fields.

    A Swin V2 with another window keeps counting offsets in windows of its base, with which the weights were trained,
    unless pretrained_window_size is among the changes. A Swin V1 of it counts none.

    Raises:
        ValueError: an unknown field, or a value that SwinConfig refuses.
    """
    known = [field.name for field in fields(SwinConfig)]
    if unknown := [key for key in changes if key not in known]:
        raise ValueError(f"changes must be among {', '.join(known)}, got {', '.join(unknown)}")
    if "window_size" in changes and changes.get("version", base.version) == base.version == "v2":
        changes = {"pretrained_window_size": base.pretrained_window_size or base.window_size} | dict(changes)
    if changes.get("version") == "v1":
        changes = {"pretrained_window_size": None} | dict(changes)
    return replace(base, **changes)


def check_output_stride(output_stride: int) -> None:
    """Refuse what is no output stride.

    Raises:
        ValueError: not 8, 16 or 32.
    """
    if type(output_stride) is not int or output_stride not in OUTPUT_STRIDES:
        raise ValueError(f"output_stride must be 8, 16 or 32, got {shown(output_stride)}")


def shown(value: object) -> str:
    """A value as an error shows it: a plain one as it is written, shortened; of any other, as of a model, its type."""
    if not isinstance(value, _PLAIN):
        return type(value).__name__
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else text[:_MOST_SHOWN] + "..."


def _positive(value: object) -> bool:
    return type(value) is int and value >= 1


def _tuples(value: object) -> object:
    return tuple(_tuples(item) for item in value) if isinstance(value, (list, tuple)) else value


def _windows(name: str, value: object) -> tuple[Pair, ...]:
    """(wh, ww) of every stage."""
    per_stage = value if isinstance(value, tuple) and len(value) == STAGES else (value,) * STAGES
    pairs = tuple(window if isinstance(window, tuple) else (window, window) for window in per_stage)
    if any(len(pair) != 2 or not all(_positive(side) for side in pair) for pair in pairs):
        raise ValueError(f"{name} must be a positive integer or a pair of them, or four of these, got {shown(value)}")
    return pairs


# swinx_n and swinx_v2_n are for CPU work and tests. They have no published weights that their inline stem could lose;
# whether that stem pays from scratch is open (docs/benchmarks/ablate-stem-swinx_n-cpu-2026-11-24.md).
VARIANTS: dict[str, SwinConfig] = {
    "swinx_n": SwinConfig(32, (2, 2, 2, 2), (1, 2, 4, 8), 8, 0.05, stem="inline"),
    "swinx_t": SwinConfig(96, (2, 2, 6, 2), (3, 6, 12, 24), 7, 0.2),
    "swinx_s": SwinConfig(96, (2, 2, 18, 2), (3, 6, 12, 24), 7, 0.3),
    "swinx_b": SwinConfig(128, (2, 2, 18, 2), (4, 8, 16, 32), 7, 0.3),
    "swinx_b_w12": SwinConfig(128, (2, 2, 18, 2), (4, 8, 16, 32), 12, 0.3),
    "swinx_l": SwinConfig(192, (2, 2, 18, 2), (6, 12, 24, 48), 7, 0.3),
    "swinx_l_w12": SwinConfig(192, (2, 2, 18, 2), (6, 12, 24, 48), 12, 0.3),
    # Swin S3 (Chen et al. 2021, https://arxiv.org/abs/2111.14725): a window per stage.
    "swinx_s3_t": SwinConfig(96, (2, 2, 6, 2), (3, 6, 12, 24), (7, 7, 14, 7), 0.2),
    "swinx_s3_s": SwinConfig(96, (2, 2, 18, 2), (3, 6, 12, 24), (14, 14, 14, 7), 0.3),
    "swinx_s3_b": SwinConfig(96, (2, 2, 30, 2), (3, 6, 12, 24), (7, 7, 14, 7), 0.3),
    # Swin V2. Where the published window exceeds the grid of stage 4 at the published size, weights have the smaller.
    "swinx_v2_n": SwinConfig(32, (2, 2, 2, 2), (1, 2, 4, 8), 8, 0.05, stem="inline", version="v2"),
    "swinx_v2_t": SwinConfig(96, (2, 2, 6, 2), (3, 6, 12, 24), 8, 0.2, version="v2"),
    "swinx_v2_s": SwinConfig(96, (2, 2, 18, 2), (3, 6, 12, 24), 8, 0.3, version="v2"),
    "swinx_v2_b": SwinConfig(128, (2, 2, 18, 2), (4, 8, 16, 32), 8, 0.3, version="v2"),
    "swinx_v2_t_w16": SwinConfig(96, (2, 2, 6, 2), (3, 6, 12, 24), (16, 16, 16, 8), 0.2, version="v2"),
    "swinx_v2_s_w16": SwinConfig(96, (2, 2, 18, 2), (3, 6, 12, 24), (16, 16, 16, 8), 0.3, version="v2"),
    "swinx_v2_b_w16": SwinConfig(128, (2, 2, 18, 2), (4, 8, 16, 32), (16, 16, 16, 8), 0.3, version="v2"),
    "swinx_v2_b_w12": SwinConfig(128, (2, 2, 18, 2), (4, 8, 16, 32), (12, 12, 12, 6), 0.3, version="v2"),
    "swinx_v2_l_w12": SwinConfig(192, (2, 2, 18, 2), (6, 12, 24, 48), (12, 12, 12, 6), 0.3, version="v2"),
}
for _size in ("b", "l"):  # pretrained with window 12, fine-tuned with a larger one
    _base = VARIANTS[f"swinx_v2_{_size}_w12"]
    VARIANTS |= {
        f"swinx_v2_{_size}_w{name}": replace(_base, window_size=window, pretrained_window_size=_base.window_size)
        for name, window in (("12to16", (16, 16, 16, 8)), ("12to24", (24, 24, 24, 12)))
    }
