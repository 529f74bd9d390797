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

from experiments import compare_decoders
from experiments.records.options import CompareOptions

SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Ablation:
    """A question, what is known about its design, and the options that answer it."""

    question: str
    design: str
    options: CompareOptions


def _options(**changes: object) -> CompareOptions:
    return replace(CompareOptions(), seeds=SEEDS, **changes)  # type: ignore[arg-type]  # fields of CompareOptions


ABLATIONS = {
    "stem": Ablation(
        "What does a real stride-2 level buy?",
        "Unet reads level 1, which the stem makes. FPN does not and is the control: there none and shared are one "
        "network from the same random numbers, branch is that network from others, and inline alone computes something "
        "else.",
        _options(
            decoders=("Unet", "FPN"),
            stems=("none", "shared", "branch", "inline"),
            contrasts=("shared-stem=none@Unet", "branch-stem=none@Unet", "inline-stem=none@Unet", "inline-shared@FPN"),
        ),
    ),
    "dilation": Ablation(
        "Do finer levels pay, and does exactness?",
        "Both decoders take every stride, so that one network differs in its stride alone. Segformer gathers no "
        "context of its own, so what a rule does to the encoder's reach shows there; Unet's convolutions can make up "
        "for it. Enlarged windows at stride 8 hold up to 1024 tokens and take most of the time.",
        _options(
            decoders=("Unet", "Segformer"),
            output_strides=(32, 16, 8),
            dilations=("exact", "dense", "enlarged"),
            contrasts=("exact-dense@os16", "exact-dense@os8", "exact+os16-os32", "exact+os8-os32"),
        ),
    ),
    "alignment": Ablation(
        "Do decoders mind that dilated tokens stand off-centre?",
        "Dilated levels as they are, and resampled to the centres that decoders assume.",
        _options(
            decoders=("Unet", "Segformer"),
            output_strides=(16, 8),
            alignments=("none", "centred"),
            contrasts=("centred-alignment=none@os16", "centred-alignment=none@os8"),
        ),
    ),
    "window": Ablation(
        "How large should attention windows be?",
        "7 and 12 are the windows of published weights, 8 is swinx_n's own, 4 halves its reach. FPN gathers no context "
        "beyond 3x3 convolutions, so what the windows do not reach stays unseen.",
        _options(decoders=("FPN",), windows=(4, 7, 8, 12), contrasts=("w8-w4", "w12-w8", "w8-w7")),
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status of experiments.compare_decoders."""
    name, *rest = [*(sys.argv[1:] if arguments is None else arguments), ""]
    if name not in ABLATIONS:
        listing = "\n".join(f"  {each:<10} {ablation.question}" for each, ablation in ABLATIONS.items())
        if name in ("-h", "--help"):
            print(f"usage: python -m experiments.ablate NAME [OPTIONS]\n\n{listing}")
            return 0
        print(f"error: NAME must be one of these, got {name or 'none'}:\n{listing}", file=sys.stderr)
        return 2
    ablation = ABLATIONS[name]
    defaults = replace(ablation.options, output=Path("runs") / f"ablate_{name}")
    prog = f"python -m experiments.ablate {name}"
    description = f"{ablation.question} {ablation.design} Takes every option of experiments.compare_decoders."
    return compare_decoders.main(rest[:-1], defaults, prog, description)


if __name__ == "__main__":
    sys.exit(main())
