"""Colours, noise and the simulated sensor of the procedural scenes.

Images are channels first; a colour is (3, 1, 1) float32 RGB, 0..1, so that tone (h, w) * colour is an image (3, h, w).
"""

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Array: TypeAlias = NDArray[np.floating[Any]]  # float32 wherever it is larger than a row
Bytes: TypeAlias = NDArray[np.uint8]
Rng: TypeAlias = np.random.Generator


def palette(*colours: tuple[float, float, float]) -> Array:
    """(n, 3, 1, 1) the colours."""
    return np.asarray(colours, np.float32)[..., None, None]


ZENITHS = palette((0.25, 0.45, 0.78), (0.62, 0.65, 0.69), (0.38, 0.42, 0.60))
HAZES = palette((0.72, 0.82, 0.90), (0.80, 0.81, 0.82), (0.93, 0.74, 0.56))
# For house walls, lorries and cars alike: what tells them apart is shape and surroundings, not colour.
PAINTS = palette((0.58, 0.33, 0.26), (0.76, 0.68, 0.54), (0.85, 0.83, 0.79), (0.40, 0.42, 0.44), (0.25, 0.38, 0.58))
# For leaves and grass; for poles, fences and trunks; for roads and pavements.
LEAVES = palette((0.24, 0.36, 0.14), (0.33, 0.42, 0.17), (0.17, 0.27, 0.15), (0.50, 0.41, 0.16))
STEELS = palette((0.22, 0.22, 0.24), (0.62, 0.62, 0.60), (0.33, 0.25, 0.18), (0.16, 0.24, 0.19), (0.90, 0.90, 0.88))
SURFACES = palette((0.34, 0.34, 0.36), (0.46, 0.45, 0.44), (0.52, 0.44, 0.34), (0.60, 0.57, 0.52))


def pick(rng: Rng, colours: Array) -> Array:
    """One of the colours (n, 3, 1, 1), its hue moved a little, then up to a quarter brighter or darker."""
    colour = rng.choice(colours) + rng.uniform(-0.06, 0.06, (3, 1, 1))
    return np.asarray(np.clip(colour * rng.uniform(0.75, 1.25), 0.02, 0.98), np.float32)


def octaves(rng: Rng, height: int, width: int, coarsest: int) -> Array:
    """(height, width) noise of spread 1: four octaves, the first `coarsest` pixels wide, by bicubic interpolation."""
    total: Array = np.zeros((height, width), np.float32)
    for step in (coarsest, coarsest / 2, coarsest / 4, coarsest / 8):
        lattice = rng.standard_normal((int(height / step) + 2, int(width / step) + 2), dtype=np.float32)
        octave = Image.fromarray(lattice).resize((width, height), Image.Resampling.BICUBIC)
        total += np.float32((step / coarsest) ** 0.5) * np.asarray(octave)
    return np.asarray(total / total.std())


def photograph(rng: Rng, radiance: Array) -> Bytes:
    """(3, 2H, 2W) radiance 0..1 to (3, H, W) uint8 as a small camera would record it.

    In order: uneven light, white balance and exposure, contrast, blur, noise.
    """
    rows = radiance[:, 0::2] + radiance[:, 1::2]
    image: Array = (rows[..., 0::2] + rows[..., 1::2]) / 4
    y, x = (np.linspace(-1, 1, size, dtype=np.float32) for size in image.shape[1:])
    light = np.float32(1.15) - np.float32(rng.uniform(0, 0.2)) * (x * x + (y * y)[:, None])
    balance = np.exp(rng.normal(0, 0.14) + rng.normal(0, 0.05, (3, 1, 1))).astype(np.float32)
    image = (image * light * balance - np.float32(0.5)) * np.float32(rng.uniform(0.8, 1.2)) + np.float32(0.5)
    exposed = Image.fromarray(np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0))
    blurred = np.asarray(exposed.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.6)))).transpose(2, 0, 1)
    noise = rng.standard_normal(image.shape, dtype=np.float32) * np.float32(rng.uniform(1, 6))
    return np.asarray(np.clip(np.rint(blurred + noise), 0, 255), np.uint8)
