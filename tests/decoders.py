"""smp's decoders as the tests build them: by encoder name, narrow, at any output stride.

smp takes encoder_output_stride for DeepLabV3, DeepLabV3+ and PAN alone; the others are dilated after they are built.
"""

from dataclasses import dataclass
from typing import Any

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn

import swinx

assert "swinx_n" in swinx.list_encoders()  # importing swinx is what enters the names
CLASSES = 5
STRIDES = (8, 16, 32)
DEPTHS = (3, 4, 5)


@dataclass(frozen=True)
class Decoder:
    """One decoder of smp.

    strides: output strides that it accepts at every depth. reads: which levels it reads, see `levels`. takes_stride:
    whether its constructor takes the output stride. side: smallest image side that the tests give it. options: narrow
    widths.
    """

    strides: tuple[int, ...]
    reads: str
    takes_stride: bool
    side: int
    options: dict[str, Any]

    def levels(self, depth: int) -> set[int]:
        """The levels that it reads at a depth."""
        return {
            "all": set(range(1, depth + 1)),
            "last 4": set(range(depth - 3, depth + 1)),
            "last": {depth},
            "2 and last": {2, depth},
            "from 2": set(range(2, depth + 1)),
        }[self.reads]


DECODERS = {
    "Unet": Decoder(STRIDES, "all", False, 64, {}),
    "UnetPlusPlus": Decoder((32,), "all", False, 64, {}),
    "MAnet": Decoder((32,), "all", False, 64, {}),
    "Linknet": Decoder((32,), "all", False, 64, {}),
    "FPN": Decoder((32,), "last 4", False, 64, {"decoder_pyramid_channels": 32, "decoder_segmentation_channels": 32}),
    "PSPNet": Decoder(STRIDES, "last", False, 64, {"psp_out_channels": 32}),
    "DeepLabV3": Decoder((8, 16), "last", True, 64, {"decoder_channels": 32}),
    "DeepLabV3Plus": Decoder((8, 16), "2 and last", True, 64, {"decoder_channels": 32}),
    "PAN": Decoder((16, 32), "from 2", True, 256, {}),
    "UPerNet": Decoder(STRIDES, "from 2", False, 64, {"decoder_channels": 32}),
    "Segformer": Decoder(STRIDES, "all", False, 64, {"decoder_segmentation_channels": 32}),
}


def build(
    name: str, output_stride: int, depth: int = 5, *, encoder: str = "swinx_n", seed: int = 0, **options: Any
) -> nn.Module:
    """A decoder on an encoder named to smp, without pretrained weights; seeded."""
    torch.manual_seed(seed)
    decoder = DECODERS[name]
    arguments = decoder.options | {"encoder_weights": None, "encoder_depth": depth, "classes": CLASSES} | options
    if name in ("Unet", "UnetPlusPlus", "MAnet"):
        arguments["decoder_channels"] = (32, 32, 16, 16, 16)[:depth]
    if name == "FPN":  # smp's own upsampling, 4, is that of depth 5
        arguments["upsampling"] = 2 ** (depth - 3)
    if name == "PSPNet":  # smp's own upsampling, 8, is that of depth 3
        arguments["upsampling"] = min(output_stride, 2**depth)
    if decoder.takes_stride:
        arguments["encoder_output_stride"] = output_stride
    model: nn.Module = getattr(smp, name)(encoder, **arguments)
    if not decoder.takes_stride:
        model.encoder.make_dilated(output_stride)
    return model


def image(batch: int, channels: int, height: int, width: int, seed: int = 1) -> Tensor:
    """Seeded normal noise."""
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(seed))
