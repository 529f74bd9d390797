"""What experiments.pretrain takes. Nothing here imports torch: --help need not wait for it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from experiments.records.options import DataOptions, Precision, Recipe, Size, check, unset


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of experiments.pretrain.

    Raises:
        ValueError: a value outside the rules of its field; the message names the option.
    """

    data: tyro.conf.OmitArgPrefixes[DataOptions] = field(default_factory=DataOptions)
    encoder: str = "swinx_n"
    """one of swinx's"""
    stem: Annotated[Literal["shared", "branch", "inline", "none"] | None, unset("NAME")] = None
    """shared, branch, inline, none (default: the encoder's own)"""
    window: Annotated[int | None, unset("INT")] = None
    """window side in tokens (default: the encoder's own)"""
    seeds: tuple[int, ...] = (0,)
    """each makes a file of its own"""
    hidden: float = 0.6
    """share of patches of 32x32 pixels that the encoder does not see"""
    steps: int = 1500
    """training steps"""
    batch_size: int = 4
    """images of a batch"""
    precision: Precision = "32"
    """bf16 and 16 are mixed precision; 16 needs cuda"""
    learning_rate: float = 1e-3
    """peak of AdamW's, after a linear warmup and before a cosine to zero"""
    crop: Annotated[Size | None, unset("HEIGHT WIDTH")] = None
    """height and width trained on (default: the size of the images)"""
    zoom: tuple[float, float] = (1.0, 2.0)
    """range of the random enlargement before the crop"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    output: Path = Path("runs/pretrain")
    """folder for the weights, seedN.safetensors of each seed, and results.jsonl"""

    def __post_init__(self) -> None:
        different = len(set(self.seeds)) == len(self.seeds) > 0 and min(self.seeds) >= 0
        rules = {
            "seeds": (different, "one or more different numbers from 0"),
            "hidden": (0 < self.hidden < 1, "above 0 and below 1"),
            "steps": (self.steps >= 1, "at least 1"),
            "batch_size": (self.batch_size >= 1, "at least 1"),
        }
        check(self, rules)
        check(self.data, {"groups": (self.data.groups is None, "left out: no test image is scored")})
        self.recipe()

    def recipe(self) -> Recipe:
        """How weights are trained: without changes of colour, which are what the encoder is to predict."""
        return Recipe(learning_rate=self.learning_rate, crop=self.crop, zoom=self.zoom, color=0.0)
