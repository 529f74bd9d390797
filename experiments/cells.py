"""The grid of a decoder comparison: which cells exist, and the model of each."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import segmentation_models_pytorch as smp
import timm

import swinx
from swinx.config import STEMS, VARIANTS

# Images are padded to multiples of this, whatever the decoder, so that all see the same pixels.
PAD_MULTIPLE = 32


@dataclass(frozen=True)
class DecoderRule:
    """What smp 0.6 lets a decoder do.

    strides: accepted output strides. default: the stride where none is asked for. by_argument: whether the constructor
    takes encoder_output_stride; otherwise the built encoder is dilated. min_side: shortest image side that works, for
    the strides that need one.
    """

    strides: tuple[int, ...]
    default: int
    by_argument: bool = False
    min_side: tuple[tuple[int, int], ...] = ()


# PSPNet stays at smp's default depth of 3, whose last level has stride 8: its strides give one and the same network.
DECODERS: dict[str, DecoderRule] = {
    "DeepLabV3": DecoderRule((8, 16), 8, by_argument=True),
    "DeepLabV3Plus": DecoderRule((8, 16), 16, by_argument=True),
    "FPN": DecoderRule((32,), 32),
    "Linknet": DecoderRule((32,), 32),
    "MAnet": DecoderRule((32,), 32),
    "PAN": DecoderRule((16, 32), 16, by_argument=True, min_side=((16, 128), (32, 256))),
    "PSPNet": DecoderRule((8, 16, 32), 32),
    "Segformer": DecoderRule((8, 16, 32), 32),
    "UPerNet": DecoderRule((8, 16, 32), 32),
    "Unet": DecoderRule((8, 16, 32), 32),
    "UnetPlusPlus": DecoderRule((32,), 32),
}


@dataclass(frozen=True)
class Cell:
    """One training run of the grid. stem is None for encoders that are not swinx's."""

    encoder: str
    stem: str | None
    decoder: str
    output_stride: int
    seed: int

    @property
    def id(self) -> str:
        """Stable name, fit for a file: the same cell has it in every run."""
        stem = f"-{self.stem}" if self.stem else ""
        return f"{self.encoder}{stem}-{self.decoder}-os{self.output_stride}-seed{self.seed}".replace("/", "_")


def grid(
    decoders: Sequence[str],
    encoders: Sequence[str],
    output_strides: Sequence[int],
    stems: Sequence[str],
    seeds: Sequence[int],
) -> list[Cell]:
    """Every cell asked for, seeds outermost so that an early stop leaves a full comparison of the first seed.

    Empty output_strides or stems stand for the decoder's own and the encoder's own.

    Raises:
        ValueError: an unknown name, an empty or repeated choice, or cells that cannot exist (all of them are listed).
    """
    _check_choice("decoders", decoders, tuple(DECODERS), required=True)
    _check_choice("output-strides", output_strides, (8, 16, 32))
    _check_choice("stems", stems, STEMS)
    _check_choice("seeds", seeds, None, required=True)
    _check_choice("encoders", encoders, None, required=True)
    for encoder in encoders:
        _check_encoder(encoder)

    cells, impossible = [], []
    for seed, encoder, decoder in product(seeds, encoders, decoders):
        rule = DECODERS[decoder]
        for output_stride, stem in product(output_strides or (rule.default,), stems or (None,)):
            cell = Cell(encoder, stem or own_stem(encoder), decoder, output_stride, seed)
            cells.append(cell)
            if output_stride not in rule.strides:
                accepted = ", ".join(map(str, rule.strides))
                impossible.append(f"{cell.id}: {decoder} takes output stride {accepted}, got {output_stride}")
            if stem and own_stem(encoder) is None:
                impossible.append(f"{cell.id}: stems belong to swinx encoders, {encoder} has none")
    refuse(impossible)
    return cells


def check_image_size(cells: Sequence[Cell], height: int, width: int) -> None:
    """Raise ValueError listing the cells that cannot work on padded images of this height and width in pixels."""
    side = min(padded(height), padded(width))
    impossible = []
    for cell in cells:
        minimum = dict(DECODERS[cell.decoder].min_side).get(cell.output_stride, 0)
        if side < minimum:
            rule = f"{cell.decoder} at output stride {cell.output_stride} needs image sides of at least {minimum}"
            impossible.append(f"{cell.id}: {rule}, got {height}x{width}")
    refuse(impossible)


def refuse(impossible: Sequence[str]) -> None:
    """Raise ValueError with one line per cell that cannot exist; nothing happens where there is none."""
    if impossible:
        listing = "\n".join(f"  {line}" for line in dict.fromkeys(impossible))
        raise ValueError(f"these cells cannot exist:\n{listing}")


def padded(side: int) -> int:
    """side in pixels, rounded up to a multiple of PAD_MULTIPLE."""
    return -(-side // PAD_MULTIPLE) * PAD_MULTIPLE


def own_stem(encoder: str) -> str | None:
    """The stem that a swinx encoder comes with; None for any other encoder."""
    return VARIANTS[encoder].stem if encoder in VARIANTS else None


def build_model(cell: Cell, classes: int) -> smp.base.SegmentationModel:
    """The smp model of a cell, untrained: images (B, 3, H, W) in, logits (B, classes, H, W) out.

    Raises:
        Exception: whatever smp or the encoder raises where the encoder does not support the decoder or the stride.
    """
    name = cell.encoder
    if cell.stem not in (None, own_stem(cell.encoder)):
        name = f"{cell.encoder}_{cell.stem}"
        if name not in smp.encoders.get_encoder_names():
            swinx.register_encoder(name, base=cell.encoder, stem=cell.stem)
    rule = DECODERS[cell.decoder]
    options = {"encoder_output_stride": cell.output_stride} if rule.by_argument else {}
    decoder = getattr(smp, cell.decoder)
    model: smp.base.SegmentationModel = decoder(name, encoder_weights=None, classes=classes, **options)
    if cell.output_stride != 32 and not rule.by_argument:
        model.encoder.make_dilated(cell.output_stride)
    return model


def _check_choice(
    argument: str, values: Sequence[object], choices: Sequence[object] | None, required: bool = False
) -> None:
    if required and not values:
        raise ValueError(f"--{argument}: at least one is needed, got none")
    if len(set(values)) != len(values):
        raise ValueError(f"--{argument}: each may be given once, got {' '.join(map(str, values))}")
    unknown = [value for value in values if choices is not None and value not in choices]
    if choices is not None and unknown:
        names = ", ".join(map(str, choices))
        raise ValueError(f"--{argument}: {', '.join(map(str, unknown))} is not one of {names}")


def _check_encoder(encoder: str) -> None:
    names = sorted(smp.encoders.get_encoder_names())
    if encoder in names:
        return
    if encoder.startswith("tu-") and timm.is_model(encoder.removeprefix("tu-").split(".")[0]):
        return
    raise ValueError(f"--encoders: {encoder} is not one of {', '.join(names)}, nor tu- and a timm model's name")
