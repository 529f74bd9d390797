"""The perspective camera and the twice supersampled canvas that procedural scenes are painted on.

Shapes: H W pixels of the picture; the canvas has 2H × 2W cells; h w cells of a window of it.
Coordinates: x, y in pixels of the picture (cell i is centred at (i + 0.5) / 2); metres X to the right, Z ahead, v up
from the ground; scale is pixels per metre at a depth, focal / Z. The ground point (X, Z) is seen at row
horizon + eye · scale.
"""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from experiments.data.street_scenes.textures import Array, Bytes, Rng, octaves

Window: TypeAlias = tuple[slice, slice]
Cover: TypeAlias = NDArray[np.bool_]

CLASSES = ("sky", "ground", "foliage", "building", "vehicle", "pole", "wire", "fence")
SKY, GROUND, FOLIAGE, BUILDING, VEHICLE, POLE, WIRE, FENCE = range(8)
THIN = (POLE, WIRE, FENCE)
IGNORE = 255
MARGIN = 64  # cells by which noise fields exceed the canvas, so that objects can take different parts of them


@dataclass(frozen=True)
class Camera:
    """Pinhole above flat ground. roll tilts the horizon (rows per column), bend curves roads (metres per metre²)."""

    focal: float
    centre: float
    horizon: float
    eye: float
    roll: float
    bend: float

    def horizon_at(self, x: Array) -> Array:
        """Row of the horizon at columns x; any shape."""
        return np.asarray(np.float32(self.horizon) + np.float32(self.roll) * (x - np.float32(self.centre)))

    def scale(self, depth: float) -> float:
        """Pixels per metre at this depth in metres."""
        return self.focal / depth

    def column(self, across: float, depth: float) -> float:
        """Column at which the point (X = across, Z = depth) is seen."""
        return self.centre + (across + self.bend * depth * depth) * self.scale(depth)

    def row(self, column: float, depth: float, up: float = 0.0) -> float:
        """Row at which a point `up` metres above the ground is seen in this column at this depth."""
        return self.horizon + self.roll * (column - self.centre) + (self.eye - up) * self.scale(depth)


@dataclass(frozen=True)
class Panel:
    """The part in view of an upright plane: u metres along it (1, w), v metres up (h, w), scale (1, w).

    along (1, w) is metres of u per pixel, so a bar of n pixels measures n * along metres.
    """

    window: Window
    u: Array
    v: Array
    scale: Array
    along: Array


class Canvas:
    """rgb (3, 2H, 2W) float32 and label (2H, 2W) uint8, painted from far to near."""

    def __init__(self, rng: Rng, camera: Camera, height: int, width: int, haze: Array, visibility: float) -> None:
        self.rng, self.camera, self.height, self.width = rng, camera, height, width
        self.haze, self.visibility = haze, visibility
        self.rgb = np.zeros((3, 2 * height, 2 * width), np.float32)
        self.label = np.full((2 * height, 2 * width), SKY, np.uint8)
        self.x = ((np.arange(2 * width, dtype=np.float32) + np.float32(0.5)) / 2)[None]
        self.y = ((np.arange(2 * height, dtype=np.float32) + np.float32(0.5)) / 2)[:, None]
        size = (2 * height + MARGIN, 2 * width + MARGIN)
        self._fields = {
            "fine": octaves(rng, *size, cell=6, count=3, gain=0.9),
            "leaf": octaves(rng, *size, cell=14, count=4, gain=0.75),
            "broad": octaves(rng, *size, cell=70, count=4, gain=0.6),
        }

    def window(self, left: float, right: float, top: float, bottom: float) -> Window:
        """Cells whose centres may lie in the box, cut to the canvas; empty slices where it is out of view."""

        def cut(low: float, high: float, size: int) -> slice:
            start = int(np.clip(np.floor(2 * low), 0, size))
            return slice(start, max(start, int(np.clip(np.ceil(2 * high), 0, size))))

        return cut(top, bottom, 2 * self.height), cut(left, right, 2 * self.width)

    def noise(self, field: str, window: Window) -> Array:
        """(h, w) a part of the noise field "fine", "leaf" or "broad", another one at each call."""
        dy, dx = (int(n) for n in self.rng.integers(MARGIN, size=2))
        rows, cols = window
        return self._fields[field][rows.start + dy : rows.stop + dy, cols.start + dx : cols.stop + dx]

    def panel(self, start: tuple[float, float], end: tuple[float, float], high: float) -> Panel | None:
        """The upright plane over the ground points start and end, each (X, Z), `high` metres up; None if out of view.

        The window is the box around it: what to paint is for the caller to say in u and v.
        """
        (xa, za), (xb, zb) = start, end
        left, right = self.camera.column(xa, za), self.camera.column(xb, zb)
        if abs(right - left) < 1:
            return None
        sa, sb = self.camera.scale(za), self.camera.scale(zb)
        rows = [self.camera.row(col, z, up) for col, z in ((left, za), (right, zb)) for up in (0.0, high)]
        window = self.window(min(left, right), max(left, right), min(rows), max(rows))
        x, y = self.x[:, window[1]], self.y[window[0]]
        if not (x.size and y.size):
            return None
        part = (x - np.float32(left)) / np.float32(right - left)
        scale = np.clip((1 - part) * np.float32(sa) + part * np.float32(sb), 1e-3, None)
        length = np.float32(np.hypot(xb - xa, zb - za))
        u = length * part * np.float32(sb) / scale  # perspective-correct: 1 / Z is linear across the picture
        base = self.camera.horizon_at(x) + np.float32(self.camera.eye) * scale
        along = length * np.float32(sa * sb / abs(right - left)) / (scale * scale)
        return Panel(window, u, (base - y) / scale, scale, along)

    def paint(self, window: Window, cover: Cover, rgb: Array, class_id: int, depth: float) -> None:
        """Puts rgb ((3, h, w), or one colour) where cover (h, w) holds, paled by the haze at this depth."""
        if depth:
            rgb = rgb + (self.haze - rgb) * np.float32(1 - np.exp(-depth / self.visibility))
        np.copyto(self.rgb[:, *window], rgb, where=cover)
        np.copyto(self.label[window], np.uint8(class_id), where=cover)

    def shade(self, x: float, y: float, rx: float, ry: float, strength: float) -> None:
        """Darkens the ground in a soft ellipse: the shadow of an object that is painted next."""
        window = self.window(x - rx, x + rx, y - ry, y + ry)
        away = ((self.x[:, window[1]] - np.float32(x)) / np.float32(rx)) ** 2
        away = away + ((self.y[window[0]] - np.float32(y)) / np.float32(ry)) ** 2
        dark = np.float32(strength) * np.clip(np.float32(1.6) * (1 - away), 0, 1)
        dark *= self.label[window] == GROUND
        self.rgb[:, *window] *= 1 - dark

    def stroke(self, x: Array, y: Array, pixels: float, colour: Array, class_id: int, depth: float) -> None:
        """A line through the points x, y (n,), `pixels` wide."""
        half = np.float32(pixels / 2)
        for xa, ya, xb, yb in zip(x[:-1], y[:-1], x[1:], y[1:], strict=True):
            window = self.window(min(xa, xb) - half, max(xa, xb) + half, min(ya, yb) - half, max(ya, yb) + half)
            dx, dy = self.x[:, window[1]] - xa, self.y[window[0]] - ya
            ex, ey = xb - xa, yb - ya
            part = np.clip((dx * ex + dy * ey) / max(ex * ex + ey * ey, np.float32(1e-6)), 0, 1)
            cover = (dx - part * ex) ** 2 + (dy - part * ey) ** 2 <= half * half
            self.paint(window, cover, colour, class_id, depth)

    def mask(self) -> Bytes:
        """(H, W) uint8 class ids.

        A pixel goes to a thin class that holds half of its four cells, else to the class that holds most of them (the
        lower id at a tie). Where foliage holds exactly half, its true border is anyone's guess: IGNORE.
        """
        cells = np.stack([self.label[i::2, j::2] for i in (0, 1) for j in (0, 1)])
        counts = np.stack([(cells == k).sum(axis=0, dtype=np.uint8) for k in range(len(CLASSES))])
        mask: Bytes = counts.argmax(axis=0).astype(np.uint8)
        mask[counts[FOLIAGE] == 2] = IGNORE
        for k in THIN:
            mask[counts[k] >= 2] = k
        return mask
