"""The camera and the twice supersampled canvas that procedural scenes are painted on.

Shapes: H W pixels of the picture; the canvas has 2H × 2W samples; h w samples of a window of it.
Coordinates: x, y in pixels of the picture; metres X to the right, Z ahead, v up from the ground; scale is pixels per
metre at a depth, focal / Z. The ground point (X, Z) is seen at row horizon + eye · scale.
"""

from math import hypot
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from experiments.data.street_scenes.textures import HAZES, LEAVES, ZENITHS, Array, Bytes, Rng, octaves, pick

_COLORS = {
    "sky": (135, 190, 235),
    "ground": (128, 100, 128),
    "foliage": (70, 140, 50),
    "building": (170, 90, 60),
    "vehicle": (60, 60, 190),
    "pole": (240, 200, 60),
    "wire": (230, 60, 180),
    "fence": (240, 130, 40),
}
CLASSES, COLORS = tuple(_COLORS), (*_COLORS.values(), (0, 0, 0))  # black for ignored pixels
SKY, GROUND, FOLIAGE, BUILDING, VEHICLE, POLE, WIRE, FENCE = range(8)
THIN = (POLE, WIRE, FENCE)
IGNORE = 255
SHADOW = 0.35  # metres
MARGIN = 64  # samples by which noise exceeds the canvas, so that objects can take different parts of it

Cover: TypeAlias = NDArray[np.bool_]
Point: TypeAlias = tuple[float, float]  # (X, Z) on the ground


class Panel(NamedTuple):
    """An upright rectangle on the ground, and the window of the canvas around it.

    u (1, w) metres along it, v (h, w) metres up, scale (1, w). inside (h, w) is where it is. fine and broad (h, w) are
    parts of the canvas's noise, other ones for each panel.
    """

    window: tuple[slice, slice]
    u: Array
    v: Array
    scale: Array
    inside: Cover
    fine: Array
    broad: Array


class Canvas:
    """What a camera at a random place sees through some haze.

    rgb (3, 2H, 2W) float32; label (2H, 2W) uint8 and depth in metres of the nearest thing painted; fine and broad are
    noise (2H + MARGIN, 2W + MARGIN). bend curves roads sideways, in metres per metre²; at visibility, in metres, 1 / e
    of a colour is left.
    """

    def __init__(self, rng: Rng, height: int, width: int) -> None:
        self.rng, self.shape = rng, (2 * height, 2 * width)
        self.focal, self.centre = width * rng.uniform(0.7, 1.1), width * rng.uniform(0.3, 0.7)
        self.horizon, self.eye = height * rng.uniform(0.36, 0.56), rng.uniform(1.5, 3.2)
        self.bend, self.visibility = rng.normal(0, 0.002), rng.uniform(80, 400)
        weather = int(rng.integers(len(HAZES)))
        self.zenith, self.haze, self.green = ZENITHS[weather], HAZES[weather], pick(rng, LEAVES)
        self.rgb = np.zeros((3, *self.shape), np.float32)
        self.label = np.full(self.shape, SKY, np.uint8)
        self.depth = np.full(self.shape, np.inf, np.float32)
        self.x = (np.arange(2 * width, dtype=np.float32)[None] + np.float32(0.5)) / 2
        self.y = (np.arange(2 * height, dtype=np.float32)[:, None] + np.float32(0.5)) / 2
        size = (2 * height + MARGIN, 2 * width + MARGIN)
        self.fine, self.broad = octaves(rng, *size, coarsest=12), octaves(rng, *size, coarsest=90)

    def panel(self, start: Point, end: Point, high: float) -> Panel:
        """The rectangle over the ground from start to end, `high` metres up; its window reaches SHADOW below."""
        (xa, za), (xb, zb) = start, end
        left, right = (self.centre + (x + self.bend * z * z) * self.focal / z for x, z in (start, end))
        near, far = self.focal / min(za, zb), self.focal / max(za, zb)
        top = self.horizon + (self.eye - high) * (near if high > self.eye else far)
        bottom = self.horizon + (self.eye + SHADOW) * near

        def cut(low: float, high: float, size: int) -> slice:
            first = int(np.clip(2 * low, 0, size - 2))
            return slice(first, int(np.clip(2 * high + 1, first + 2, size)))  # never empty: np.gradient needs two

        rows, cols = window = cut(top, bottom, self.shape[0]), cut(min(left, right), max(left, right), self.shape[1])
        along = (self.x[:, cols] - np.float32(left)) / np.float32((right - left) or 1e-6)
        part = np.clip(along, 0, 1)
        # 1 / Z is linear across the picture; that makes u right in perspective.
        scale = np.float32(self.focal) * ((1 - part) / np.float32(za) + part / np.float32(zb))
        u = np.float32(hypot(xb - xa, zb - za) * self.focal / zb) * part / scale
        v = np.float32(self.eye) - (self.y[rows] - np.float32(self.horizon)) / scale
        dy, dx = (int(n) for n in self.rng.integers(MARGIN, size=2))
        shifted = slice(rows.start + dy, rows.stop + dy), slice(cols.start + dx, cols.stop + dx)
        inside = (along == part) & (v >= 0) & (v <= high)
        return Panel(window, u, v, scale, inside, self.fine[shifted], self.broad[shifted])

    def paint(self, panel: Panel, class_id: int, colour: Array, where: Cover | bool = True) -> None:
        """Put the colour, (3, h, w) or (3, 1, 1), on the panel where `where` (h, w) holds and nothing is nearer."""
        depth = np.float32(self.focal) / panel.scale
        cover = panel.inside & where & (depth <= self.depth[panel.window])
        pale = np.exp(depth / np.float32(-self.visibility))
        np.copyto(self.rgb[:, *panel.window], self.haze + (colour - self.haze) * pale, where=cover)
        np.copyto(self.label[panel.window], np.uint8(class_id), where=cover)
        np.copyto(self.depth[panel.window], depth, where=cover)

    def shade(self, panel: Panel) -> None:
        """Darken the ground before and under a thing."""
        soft = np.clip(0.7 - np.float32(0.7 / SHADOW) * np.abs(panel.v), 0, 0.6)
        self.rgb[:, *panel.window] *= 1 - soft * (self.label[panel.window] == GROUND)

    def mask(self) -> Bytes:
        """(H, W) uint8 class ids.

        A pixel goes to a thin class that holds half of its four samples, else to the class that holds most of them (the
        lower id at a tie). Where foliage holds exactly half, its true border is anyone's guess: IGNORE.
        """
        counts = np.stack([self.label == k for k in range(len(CLASSES))]).astype(np.uint8)
        counts = counts[:, 0::2, 0::2] + counts[:, 1::2, 0::2] + counts[:, 0::2, 1::2] + counts[:, 1::2, 1::2]
        mask: Bytes = counts.argmax(axis=0).astype(np.uint8)
        mask[counts[FOLIAGE] == 2] = IGNORE
        for k in THIN:
            mask[counts[k] >= 2] = k
        return mask
