"""Five corruptions of ImageNet-C, at severity 3 of 5 (Hendrycks and Dietterich, ICLR 2019, arXiv:1903.12261).

Parameters, order of operations and rounding are those of the paper's code, which made them for photographs of 224 x 224
pixels: on larger images the same blur and noise show less, on smaller ones more.

Shapes: H W pixels.
"""

import io
from typing import get_args

import numpy
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor

from experiments.records.options import Corruption


def corrupted(image: Tensor, kind: Corruption, seed: int) -> Tensor:
    """An image (3, H, W) uint8 under one of the corruptions, same shape and type, on the CPU.

    seed: of the noise, one for each image, so that all models meet the same pixels; the other kinds need none.

    Raises:
        ValueError: no such corruption.
    """
    pixels = image.permute(1, 2, 0).cpu().numpy()
    x = pixels / 255
    if kind == "gaussian_noise":
        x += numpy.random.default_rng(seed).normal(scale=0.18, size=x.shape)
    elif kind == "gaussian_blur":
        x = ndimage.gaussian_filter(x, (3, 3, 0), mode="nearest")
    elif kind == "brightness":
        # Added to the value of hue, saturation and value: all channels scale alike, and black, which has neither of
        # the others, turns grey.
        value = x.max(-1, keepdims=True)
        raised = numpy.minimum(value + 0.3, 1)
        x = numpy.where(value > 0, x * raised / numpy.maximum(value, 1 / 255), raised)
    elif kind == "contrast":
        mean = x.mean((0, 1), keepdims=True)
        x = (x - mean) * 0.2 + mean
    elif kind == "jpeg":
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=15)
        x = numpy.array(Image.open(buffer)) / 255
    else:
        raise ValueError(f"kind must be one of {', '.join(get_args(Corruption))}, got {kind!r}")
    return torch.from_numpy((255 * x.clip(0, 1)).astype(numpy.uint8)).permute(2, 0, 1)
