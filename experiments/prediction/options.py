"""What experiments.predict takes. Nothing here imports torch: --help need not wait for it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from experiments.records.options import PLAIN, Inference, Precision, Size, check, unset


@dataclass(frozen=True)
class Options:
    """What to predict, by what and how. ValueError names the option whose value cannot be used."""

    weights: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="WEIGHTS")]
    """last.pt of a run"""
    images: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="IMAGES")]
    """a picture, or a folder, searched with its sub-folders"""
    output: Path
    """folder for the results"""
    short_side: Annotated[int | None, unset("INT")] = None
    """scale pictures to this shorter side in pixels (default: that of the training images)"""
    size: Annotated[Size | None, unset("HEIGHT WIDTH")] = None
    """resize pictures to this height and width instead, whatever their aspect"""
    native: bool = False
    """leave pictures at their own size, and predict tiles"""
    inference: tyro.conf.OmitArgPrefixes[Inference] = PLAIN
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Precision = "32"
    """bf16 and 16 are mixed precision; 16 needs cuda"""

    def __post_init__(self) -> None:
        ways = {"--short-side": self.short_side, "--size": self.size, "--native": self.native or None}
        given = [name for name, value in ways.items() if value is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other: each says at what size a picture is seen")
        rules = {
            "short_side": (self.short_side is None or self.short_side >= 1, "at least 1"),
            "size": (self.size is None or min(self.size) >= 1, "height and width of at least 1"),
        }
        check(self, rules)
