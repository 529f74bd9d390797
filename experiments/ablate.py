"""Ablations: a comparison with a question, its runs and its planned contrasts.

    python -m experiments.ablate stem
    python -m experiments.ablate dilation --data camvid --root PATH --size 192 256 --steps 1000 --output runs/dilation

Each takes every option of experiments.compare_decoders and differs in its defaults. Three seeds each, so that
differences can be tested. A new ablation is a new entry of ABLATIONS: axes of the grid and planned contrasts.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from experiments import compare_decoders
from experiments.records.options import Axes, CompareOptions


@dataclass(frozen=True)
class Ablation:
    """A question, what is known about its design, and the axes and planned contrasts that answer it."""

    question: str
    design: str
    axes: Axes
    contrasts: tuple[str, ...]


ABLATIONS = {
    "stem": Ablation(
        "What does a real stride-2 level buy?",
        "Unet reads level 1, which the stem makes. FPN does not and is the control: there none and shared are one "
        "network from the same random numbers, branch is that network from others, and inline alone computes something "
        "else.",
        Axes(decoders=("Unet", "FPN"), stems=("none", "shared", "branch", "inline")),
        ("shared-stem=none@Unet", "branch-stem=none@Unet", "inline-stem=none@Unet", "inline-shared@FPN"),
    ),
    "dilation": Ablation(
        "Do finer levels pay, and does exactness?",
        "Both decoders take every stride, so that one network differs in its stride alone. Segformer gathers no "
        "context of its own, so what a rule does to the encoder's reach shows there; Unet's convolutions can make up "
        "for it. Enlarged windows at stride 8 hold up to 1024 tokens and take most of the time.",
        Axes(("Unet", "Segformer"), output_strides=(32, 16, 8), dilations=("exact", "dense", "enlarged")),
        ("exact-dense@os16", "exact-dense@os8", "exact+os16-os32", "exact+os8-os32"),
    ),
    "alignment": Ablation(
        "Do decoders mind that dilated tokens stand off-centre?",
        "Dilated levels as they are, and resampled to the centres that decoders assume.",
        Axes(("Unet", "Segformer"), output_strides=(16, 8), alignments=("none", "centred")),
        ("centred-alignment=none@os16", "centred-alignment=none@os8"),
    ),
    "window": Ablation(
        "How large should attention windows be?",
        "7 and 12 are the windows of published weights, 8 is swinx_n's own, 4 halves its reach. FPN gathers no context "
        "beyond 3x3 convolutions, so what the windows do not reach stays unseen.",
        Axes(decoders=("FPN",), windows=(4, 7, 8, 12)),
        ("w8-w4", "w12-w8", "w8-w7"),
    ),
}


def options_of(name: str) -> CompareOptions:
    """The options of an ablation, unless others are given."""
    axes, output = replace(ABLATIONS[name].axes, seeds=(0, 1, 2)), Path("runs") / f"ablate_{name}"
    return CompareOptions(axes=axes, contrasts=ABLATIONS[name].contrasts, output=output)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status of experiments.compare_decoders."""
    defaults = {name: (f"{one.question} {one.design}", options_of(name)) for name, one in ABLATIONS.items()}
    prog = "python -m experiments.ablate"
    options = tyro.extras.overridable_config_cli(defaults, args=arguments, prog=prog, description=__doc__)
    # A changed grid may lack what the contrasts of the ablation name: the report says so.
    planned = [given.contrasts for _, given in defaults.values()]
    return compare_decoders.run(options, strict=options.contrasts not in planned)


if __name__ == "__main__":
    sys.exit(main())
