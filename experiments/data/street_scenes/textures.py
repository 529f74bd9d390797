"""Noise fields, material colours and the simulated camera of the procedural scenes.

Shapes: H W pixels of the picture, h w cells of whatever array a function makes. Images are channels first; a colour is
(3, 1, 1) float32 RGB, 0..1, so that tone (h, w) * colour is an image (3, h, w).
Everything is elementwise float32 arithmetic (no BLAS, no codecs), so a picture depends on its generator alone.
"""

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.floating[Any]]  # float32 wherever it is larger than a list of corners
Bytes: TypeAlias = NDArray[np.uint8]
Rng: TypeAlias = np.random.Generator

# One palette for house walls, lorry boxes and most car bodies: what tells them apart is shape and place, not colour.
PAINTS = (
    (0.58, 0.33, 0.26),
    (0.76, 0.68, 0.54),
    (0.60, 0.60, 0.59),
    (0.85, 0.83, 0.79),
    (0.36, 0.42, 0.50),
    (0.48, 0.54, 0.44),
    (0.66, 0.50, 0.34),
    (0.28, 0.27, 0.29),
    (0.70, 0.26, 0.20),
    (0.25, 0.38, 0.58),
)
# One palette per season for leaves and grass alike.
LEAVES = ((0.24, 0.36, 0.14), (0.33, 0.42, 0.17), (0.17, 0.27, 0.15), (0.50, 0.41, 0.16), (0.46, 0.43, 0.25))
SURFACES = ((0.34, 0.34, 0.36), (0.46, 0.45, 0.44), (0.52, 0.44, 0.34), (0.60, 0.57, 0.52), (0.27, 0.28, 0.30))


def rgb(red: float, green: float, blue: float) -> Array:
    """The colour (3, 1, 1)."""
    return np.asarray((red, green, blue), np.float32).reshape(3, 1, 1)


def pick(rng: Rng, palette: tuple[tuple[float, float, float], ...], jitter: float = 0.06) -> Array:
    """A colour of the palette, each channel moved by up to `jitter`, then up to a quarter brighter or darker."""
    colour = rgb(*palette[int(rng.integers(len(palette)))]) + rng.uniform(-jitter, jitter, (3, 1, 1))
    return np.clip(colour * rng.uniform(0.75, 1.25), 0.02, 0.98).astype(np.float32)


def upsample(grid: Array, height: int, width: int) -> Array:
    """(h, w) → (height, width): smooth interpolation that reaches from the first to the last cell."""

    def taps(cells: int, size: int) -> tuple[NDArray[np.intp], Array]:
        at = np.linspace(0, cells - 1.001, size)
        low = at.astype(np.intp)
        part = at - low
        return low, (part * part * (3 - 2 * part)).astype(np.float32)  # smoothstep hides the lattice

    row, wy = taps(grid.shape[0], height)
    col, wx = taps(grid.shape[1], width)
    lines = grid[:, col] + (grid[:, col + 1] - grid[:, col]) * wx
    return lines[row] + np.diff(lines, axis=0)[row] * wy[:, None]


def octaves(rng: Rng, height: int, width: int, cell: float, count: int, gain: float = 0.6) -> Array:
    """(height, width) noise of mean about 0 and spread about 1: `count` octaves, the coarsest `cell` pixels wide.

    Each octave is added on its own lattice, twice as fine as the last, so only the last step costs full size.
    """
    total = np.zeros((2, 2), np.float32)
    power = 0.0
    for octave in range(count):
        step = max(cell / 2**octave, 1.0)
        rows, cols = int(height / step) + 3, int(width / step) + 3
        total = upsample(total, rows, cols)
        total += np.float32(gain**octave) * rng.standard_normal((rows, cols), dtype=np.float32)
        power += 0.45 * gain ** (2 * octave)  # interpolation leaves about 0.45 of the variance
    return upsample(total, height, width) / np.float32(power**0.5)


def halve(image: Array) -> Array:
    """(C, 2H, 2W) → (C, H, W): mean of each 2×2 block."""
    rows = image[:, 0::2] + image[:, 1::2]
    return (rows[..., 0::2] + rows[..., 1::2]) * np.float32(0.25)


def soften(image: Array, side: float) -> Array:
    """(C, H, W) blurred along both axes with the taps (side, 1 - 2 side, side); edges repeat."""
    edge, core = np.float32(side), np.float32(1 - 2 * side)
    rows = np.concatenate([image[:, :1], image, image[:, -1:]], axis=1)
    image = core * image + edge * (rows[:, :-2] + rows[:, 2:])
    cols = np.concatenate([image[..., :1], image, image[..., -1:]], axis=2)
    return np.asarray(core * image + edge * (cols[..., :-2] + cols[..., 2:]))


def photograph(rng: Rng, radiance: Array) -> Bytes:
    """(3, 2H, 2W) radiance 0..1 → (3, H, W) uint8 as a small camera would record it.

    In order: uneven light, white balance and exposure, tone curve, blur, colour at half resolution, sensor noise.
    """
    image = halve(radiance)
    _, height, width = image.shape
    light = upsample(rng.uniform(-1, 1, (3, 3)).astype(np.float32), height, width)
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None]
    gain = (1 + 0.14 * light) * (1 - np.float32(rng.uniform(0, 0.16)) * (x * x + y * y))
    balance = np.exp(rng.normal(0, 0.14) + rng.normal(0, 0.06, (3, 1, 1))).astype(np.float32)
    image = np.clip(image * gain * balance, 0, 1.5)
    image = image / (image + np.float32(1.4)) * np.float32(2.35)  # highlights roll off instead of clipping
    contrast = np.float32(rng.uniform(0.85, 1.25))
    image = (image - np.float32(0.5)) * contrast + np.float32(0.47 + rng.normal(0, 0.04))
    image = soften(image, rng.uniform(0.02, 0.14))
    grey = (image[:1] + image[1:2] + image[2:]) / np.float32(3)
    chroma = soften(soften(image - grey, 0.25), 0.25) * np.float32(rng.uniform(0.6, 1.1))
    noise = rng.standard_normal((4, height, width), dtype=np.float32) * np.float32(rng.uniform(0.004, 0.022))
    image = grey + chroma + (noise[:1] + np.float32(0.5) * noise[1:]) * (np.float32(0.5) + np.abs(grey))
    return np.asarray(np.rint(np.clip(image, 0, 1) * 255), np.uint8)
