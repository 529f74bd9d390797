"""The grid of a comparison: its runs, those that cannot exist, and what smp 0.6 lets each decoder do.

A run is one training; a configuration is what it is without its seed.
"""

from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple, get_args

import segmentation_models_pytorch as smp
import timm

from experiments.records.options import Alignment, Axes, Dilation, check
from swinx.config import OUTPUT_STRIDES, STEMS, VARIANTS

DILATIONS: tuple[str, ...] = get_args(Dilation)
ALIGNMENTS: tuple[str, ...] = get_args(Alignment)
# Images are padded to multiples of this, whatever the decoder, so that all see the same pixels.
PAD_MULTIPLE = 32
MOST_WINDOW = 64


@dataclass(frozen=True)
class DecoderRule:
    """What smp 0.6 lets a decoder do.

    strides: accepted output strides. default: the stride where none is asked for. by_argument: whether the constructor
    takes encoder_output_stride; otherwise the built encoder is dilated. min_side: shortest image side that works, for
    the strides that need one. deepest: nominal stride of the deepest level that is read; output strides from there on
    are one and the same network. rates: of DeepLabV3Plus's atrous convolutions at output stride 8, halved at 16 and
    again at 32, so that they reach as many pixels at every stride; None for smp's own, which are equal at all strides.
    """

    strides: tuple[int, ...]
    default: int
    by_argument: bool = False
    min_side: tuple[tuple[int, int], ...] = ()
    deepest: int = 32
    rates: tuple[int, int, int] | None = None


# PSPNet stays at smp's default depth of 3.
DECODERS: dict[str, DecoderRule] = {
    "DeepLabV3": DecoderRule((8, 16), 8, by_argument=True),
    "DeepLabV3Plus": DecoderRule((8, 16), 16, by_argument=True),
    "DeepLabV3PlusScaled": DecoderRule((8, 16, 32), 16, rates=(12, 24, 36)),
    "FPN": DecoderRule((32,), 32),
    "Linknet": DecoderRule((32,), 32),
    "MAnet": DecoderRule((32,), 32),
    "PAN": DecoderRule((16, 32), 16, by_argument=True, min_side=((16, 128), (32, 256))),
    "PSPNet": DecoderRule((8, 16, 32), 32, deepest=8),
    "Segformer": DecoderRule((8, 16, 32), 32),
    "UPerNet": DecoderRule((8, 16, 32), 32),
    "Unet": DecoderRule((8, 16, 32), 32),
    "UnetPlusPlus": DecoderRule((32,), 32),
}


def padded(side: int) -> int:
    """side in pixels, rounded up to a multiple of PAD_MULTIPLE."""
    return -(-side // PAD_MULTIPLE) * PAD_MULTIPLE


def size_rule(decoder: str, output_stride: int, height: int, width: int) -> str | None:
    """The rule that padded images of this height and width in pixels break; None where they break none."""
    minimum = dict(DECODERS[decoder].min_side).get(output_stride, 0)
    if min(padded(height), padded(width)) >= minimum:
        return None
    return (
        f"{decoder} at output stride {output_stride} needs image sides of at least {minimum} pixels, "
        f"got {height}x{width}"
    )


@dataclass(frozen=True)
class Run:
    """One training of the grid.

    stem, dilation and alignment are None for encoders that are not swinx's. window is None for the encoder's own.

    Raises:
        ValueError: a value that no run can have, from a row or a file of weights perhaps; it names field and rule.
    """

    encoder: str
    stem: str | None
    decoder: str
    output_stride: int
    seed: int
    dilation: str | None = "exact"
    window: int | None = None
    alignment: str | None = "none"

    def __post_init__(self) -> None:
        choices: dict[str, tuple[object, ...]] = {
            **{"decoder": tuple(DECODERS), "output_stride": OUTPUT_STRIDES, "stem": (*STEMS, None)},
            **{"dilation": (*DILATIONS, None), "alignment": (*ALIGNMENTS, None)},
        }
        for name, known in choices.items():
            value = getattr(self, name)
            if type(value) not in map(type, known) or value not in known:
                raise ValueError(f"{name} must be among {', '.join(map(str, known))}, got {str(value)[:80]!r}")
        for name, value, least, most in (
            ("seed", self.seed, 0, 2**63 - 1),
            ("window", 1 if self.window is None else self.window, 1, MOST_WINDOW),
        ):
            if type(value) is not int or not least <= value <= most:
                raise ValueError(f"{name} must be a whole number of {least} to {most}, got {str(value)[:80]!r}")
        if not isinstance(self.encoder, str):
            raise ValueError(f"encoder must be text, got {str(self.encoder)[:80]!r}")

    @property
    def id(self) -> str:
        """Stable name, fit for a file: the same run has it in every folder."""
        return f"{self.configuration}-seed{self.seed}"

    @property
    def configuration(self) -> str:
        """The id without the seed."""
        parts = [self.encoder.replace("/", "_"), self.stem, self.decoder, f"os{self.output_stride}"]
        parts += [self.dilation if self.dilation != "exact" else None, f"w{self.window}" if self.window else None]
        parts += [self.alignment if self.alignment != "none" else None]
        return "-".join(part for part in parts if part)

    def weights_fit(self, target: "Run") -> bool:
        """Whether the weights of this run can be those of target, at another output stride, rule or alignment perhaps.

        Enlarged windows have position biases of their own: what was trained under them fits its own run alone.
        """
        if self.dilation == "enlarged":
            return self == target
        readout = {"output_stride": 32, "dilation": None, "alignment": None}
        return replace(self, **readout) == replace(target, **readout)  # type: ignore[arg-type]  # fields of Run


class NotApplicable(NamedTuple):
    """A run that cannot exist, and the rule that says so."""

    run: Run
    rule: str


def grid(axes: Axes) -> tuple[list[Run], list[NotApplicable]]:
    """Every run asked for, and every one that cannot exist.

    Seeds are outermost, so that an early stop leaves a full comparison of the first seed. Combinations that are one
    and the same network, such as a rule of dilation at output stride 32, where nothing is dilated, give one run.

    Raises:
        ValueError: no decoder, encoder or seed, an unknown name, or what no run can have.
    """
    _check(axes)
    runs: dict[Run, None] = {}
    impossible: dict[Run, str] = {}
    for seed, encoder, decoder in product(axes.seeds, axes.encoders, axes.decoders):
        rule = DECODERS[decoder]
        for output_stride, options in product(axes.output_strides or (rule.default,), _encoder_options(encoder, axes)):
            stem, dilation, window, alignment = options
            same = output_stride in rule.strides and output_stride >= rule.deepest
            if same and dilation is not None:
                dilation, alignment = "exact", "none"
            stride = max(rule.strides) if same else output_stride
            run = Run(encoder, stem, decoder, stride, seed, dilation, window, alignment)
            if output_stride in rule.strides:
                runs[run] = None
            else:
                accepted = ", ".join(map(str, rule.strides))
                impossible[run] = f"{decoder} takes output stride {accepted}, got {output_stride}"
    return list(runs), [NotApplicable(run, rule) for run, rule in impossible.items()]


def own_stem(encoder: str) -> str | None:
    """The stem that a swinx encoder comes with; None for any other encoder."""
    return VARIANTS[encoder].stem if encoder in VARIANTS else None


def own_window(encoder: str) -> int | None:
    """The window side that a swinx encoder comes with; None for any other, or one with a window for each stage."""
    size = VARIANTS[encoder].window_size if encoder in VARIANTS else None
    return size if isinstance(size, int) else None


def _encoder_options(encoder: str, axes: Axes) -> list[tuple[str | None, str | None, int | None, str | None]]:
    """(stem, dilation, window, alignment) of each run of an encoder."""
    if encoder not in VARIANTS:
        return [(None, None, None, None)]
    windows = [None if window == own_window(encoder) else window for window in axes.windows] or [None]
    stems, rules = axes.stems or (own_stem(encoder),), axes.dilations or ("exact",)
    return list(product(stems, rules, windows, axes.alignments or ("none",)))


def _check(axes: Axes) -> None:
    check(axes, {name: (len(getattr(axes, name)) > 0, "one or more") for name in ("decoders", "encoders", "seeds")})
    if unknown := [name for name in axes.decoders if name not in DECODERS]:
        raise ValueError(f"--decoders: {', '.join(unknown)} is not one of {', '.join(DECODERS)}")
    for encoder in axes.encoders:
        check_encoder(encoder)


def check_encoder(encoder: str) -> None:
    """Raise ValueError unless an encoder is registered with smp, or is tu- and a model of timm's own."""
    names = sorted(smp.encoders.get_encoder_names())
    if encoder in names:
        return
    if encoder.startswith("tu-") and timm.is_model(encoder.removeprefix("tu-").split(".")[0]):
        return
    raise ValueError(f"--encoders: {encoder} is not one of {', '.join(names)}, nor tu- and a timm model's name")
