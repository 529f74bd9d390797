"""What smp 0.6 lets each of its decoders do."""

from dataclasses import dataclass

# Images are padded to multiples of this, whatever the decoder, so that all see the same pixels.
PAD_MULTIPLE = 32


@dataclass(frozen=True)
class DecoderRule:
    """What smp 0.6 lets a decoder do.

    strides: accepted output strides. default: the stride where none is asked for. by_argument: whether the constructor
    takes encoder_output_stride; otherwise the built encoder is dilated. min_side: shortest image side that works, for
    the strides that need one. deepest: nominal stride of the deepest level that is read; output strides from there on
    are one and the same network.
    """

    strides: tuple[int, ...]
    default: int
    by_argument: bool = False
    min_side: tuple[tuple[int, int], ...] = ()
    deepest: int = 32


# PSPNet stays at smp's default depth of 3.
DECODERS: dict[str, DecoderRule] = {
    "DeepLabV3": DecoderRule((8, 16), 8, by_argument=True),
    "DeepLabV3Plus": DecoderRule((8, 16), 16, by_argument=True),
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


def size_rule(decoder: str, output_stride: int, height: int, width: int) -> str | None:
    """The rule that padded images of this height and width in pixels break; None where they break none."""
    minimum = dict(DECODERS[decoder].min_side).get(output_stride, 0)
    if min(padded(height), padded(width)) >= minimum:
        return None
    return (
        f"{decoder} at output stride {output_stride} needs image sides of at least {minimum} pixels, "
        f"got {height}x{width}"
    )


def padded(side: int) -> int:
    """side in pixels, rounded up to a multiple of PAD_MULTIPLE."""
    return -(-side // PAD_MULTIPLE) * PAD_MULTIPLE
