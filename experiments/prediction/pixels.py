"""From probabilities to the pixels of the files.

Shapes: K classes, H W pixels of a picture, h w of what the model saw of it.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from experiments.prediction.pictures import PictureError

Bytes = NDArray[np.uint8]
Colors = tuple[tuple[int, int, int], ...]


def full_resolution(probabilities: Tensor, height: int, width: int) -> tuple[Bytes, Bytes]:
    """The most probable class of each pixel and 255 times its probability, rounded; both (H, W) uint8.

    probabilities: (K, h, w) float32, brought to H W pixels bilinearly (antialiased where it shrinks). Of equal classes
    the first wins. One class at a time is at full resolution, so that memory does not grow with K.

    Raises:
        PictureError: a probability is not finite.
    """
    if not probabilities.isfinite().all():
        raise PictureError("got probabilities that are not finite from the model")
    ids = torch.zeros(height, width, dtype=torch.uint8, device=probabilities.device)
    best = torch.full((height, width), -1.0, device=probabilities.device)
    for index, plane in enumerate(probabilities):
        if plane.shape != (height, width):
            plane = functional.interpolate(plane[None, None], (height, width), mode="bilinear", antialias=True)[0, 0]
        ids.masked_fill_(plane > best, index)
        best = torch.maximum(best, plane)
    return ids.cpu().numpy(), (255 * best).round().clamp(0, 255).to(torch.uint8).cpu().numpy()


def mask(ids: Bytes, colors: Colors) -> Image.Image:
    """A palette picture: its pixels are the ids (H, W), shown in the colours of the classes."""
    image = Image.fromarray(ids)
    image.putpalette([channel for color in colors for channel in color])
    return image


def overlay(picture: Image.Image, colored: Image.Image) -> Image.Image:
    """The colours of a mask over its picture, RGB, half and half."""
    return Image.blend(picture, colored.convert("RGB"), 0.5)
