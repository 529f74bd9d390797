"""What stands in a procedural scene. Each function paints one thing on upright panels.

Shapes: h w samples of a panel's window. Places and sizes are in metres; points are (X, Z) on the ground.
"""

from math import copysign, dist

import numpy as np

from experiments.data.street_scenes.canvas import BUILDING, FENCE, FOLIAGE, POLE, VEHICLE, WIRE, Canvas, Panel, Point
from experiments.data.street_scenes.textures import PAINTS, STEELS, Array, pick

DARK = np.full((3, 1, 1), 0.13, np.float32)  # windows and tyres
# Roof lines from rear to nose: shares of the length, and of the height there.
CAR = (0, 0.04, 0.55, 0.72, 0.97, 1), (0.5, 1, 1, 0.56, 0.48, 0.3)
LORRY = (0, 0.76, 0.77, 0.95, 1), (1, 1, 0.7, 0.7, 0.4)


def leaves(canvas: Canvas, noise: Array, height: Array | float) -> Array:
    """(3, h, w) leaves, or grass: clumps (h, w) of noise, lit from above; height is 1 at the top, 0 at the foot."""
    tone = np.clip(0.6 + 0.3 * noise + np.float32(0.3) * height, 0.12, 1.9)
    return np.asarray(tone * canvas.green * np.float32(canvas.rng.uniform(0.7, 1.2)))


def plant(canvas: Canvas, across: float, depth: float, high: float) -> None:
    """A tree, or a bush where it is low: a ball of leaves whose rim noise eats into, over a trunk like a pole."""
    panel = canvas.panel((across - high / 2, depth), (across + high / 2, depth), 1.2 * high)
    canvas.shade(panel)
    trunk = (np.abs(panel.u - high / 2) < 0.03 * high) & (panel.v < 0.6 * high)
    canvas.paint(panel, FOLIAGE, pick(canvas.rng, STEELS) * np.float32(0.6), trunk)
    x, y = 3 * panel.u / high - np.float32(1.5), np.float32(2.5) * panel.v / high - np.float32(1.5)
    ball = x * x + y * y < 0.9 + 0.4 * panel.fine + 0.3 * panel.broad
    canvas.paint(panel, FOLIAGE, leaves(canvas, panel.fine, 0.5 + y / 2), ball)


def wood(canvas: Canvas, high: float) -> None:
    """The edge of a wood on the far side of the scene, with an uneven top."""
    panel = canvas.panel((-120, 90), (120, 90), 1.5 * high)
    top = high * (1 + 0.25 * panel.broad[:1]) + 4 * panel.fine / panel.scale
    canvas.paint(panel, FOLIAGE, leaves(canvas, panel.fine, panel.v / high), panel.v <= top)


def cladding(panel: Panel, paint: Array, ribs: float) -> Array:
    """(3, h, w) walls and vehicles alike: stains, and level ribs of this period where it exceeds 2.5 pixels."""
    wave = np.sin(panel.v * np.float32(2 * np.pi / ribs)) * (ribs * panel.scale > 2.5)
    tone = 1 + 0.05 * panel.fine + 0.1 * panel.broad + 0.07 * wave - 0.15 * np.exp(-np.abs(panel.v))
    return np.asarray(tone * paint)


def building(canvas: Canvas, inner: float, outer: float, near: float, far: float) -> None:
    """A house: its wall along the street, at X = inner, and its front, from there to outer."""
    rng = canvas.rng
    paint, light, ribs = pick(rng, PAINTS), rng.uniform(0.55, 1), rng.uniform(0.4, 1.2)
    high, gable, spacing = rng.uniform(3.5, 12), float(rng.choice([0, 0, 3])), rng.uniform(1.5, 3)
    for start, tone, roof in (((inner, far), light, 0.0), ((outer, near), 1.5 - light, gable)):
        panel = canvas.panel(start, (inner, near), high + roof)
        top = high + roof * (1 - np.abs(2 * panel.u / dist(start, (inner, near)) - 1))
        surface = cladding(panel, paint * np.float32(tone), ribs)
        surface *= np.where(panel.v > high - 0.35, np.float32(0.7), np.float32(1))  # roofs
        glass = (np.abs(panel.u % spacing / spacing - 0.5) < 0.27) & (np.abs(panel.v % 3 - 1.65) < 0.7)
        np.copyto(surface, DARK + np.float32(0.2) * paint, where=glass & (panel.v < high - 0.8))
        canvas.paint(panel, BUILDING, surface, panel.v <= top)


def vehicle(canvas: Canvas, start: Point, end: Point, large: bool) -> None:
    """A car or a lorry whose long side runs from start to end; its rear is in view where that points away."""
    rng, length, away = canvas.rng, dist(start, end), start[0] == end[0]
    high, (at, up) = (rng.uniform(2.6, 3.8), LORRY) if large else (rng.uniform(1.4, 1.9), CAR)
    paint, ribs, radius = pick(rng, PAINTS), rng.uniform(0.4, 1.2), 0.5 if large else 0.34
    side = canvas.panel(start, end, high)
    canvas.shade(side)
    share = side.u / length
    roof = np.interp(share, at, np.asarray(up) * high).astype(np.float32)
    glass = (side.v > 0.6 * high) & (side.v < roof - 0.12) & (share > (0.8 if large else 0))
    wheels = np.minimum(*(np.hypot(side.u - s * length, side.v - radius) for s in (0.2, 0.8))) < radius
    surface = cladding(side, paint, ribs)
    np.copyto(surface, DARK, where=glass & (np.abs(share - 0.47) > 0.02))
    np.copyto(surface, DARK / 2, where=wheels)
    canvas.paint(side, VEHICLE, surface, ((side.v > 0.8 * radius) & (side.v <= roof)) | wheels)
    if away:
        rear = canvas.panel(start, (start[0] + copysign(1.8, start[0]), start[1]), high)
        canvas.shade(rear)
        off = np.abs(rear.u / np.float32(0.9) - 1)
        surface = cladding(rear, paint * np.float32(0.8), ribs)
        glass = (rear.v > 0.58 * high) & (rear.v < 0.9 * high) & (off < (0 if large else 0.72))
        np.copyto(surface, DARK, where=glass)
        np.copyto(surface, DARK / 2, where=rear.v < 0.35)
        canvas.paint(rear, VEHICLE, surface, (rear.v > 0.3) | (off > 0.65))


def pole(canvas: Canvas, across: float, depth: float, high: float, colour: Array, arms: tuple[float, float]) -> None:
    """A pole, 1.3 to 3 pixels wide, with a level arm from arms[0] to arms[1] metres to the right of it."""
    panel = canvas.panel((across - 2, depth), (across + 2, depth), high)
    wide = np.clip(canvas.rng.uniform(0.12, 0.2) * panel.scale, 1.3, 3)
    off = panel.u - 2 + panel.v * np.float32(canvas.rng.normal(0, 0.01))
    arm = (np.abs(panel.v - high + 0.4) * panel.scale < 0.65) & (off >= arms[0]) & (off <= arms[1])
    canvas.paint(panel, POLE, colour, arm | (np.abs(off) * panel.scale < wide / 2))


def wire(canvas: Canvas, start: Point, end: Point, high: float, sag: float) -> None:
    """A dark wire, 1 to 1.4 pixels wide, that hangs from `high` metres up."""
    panel = canvas.panel(start, end, high + 0.2)
    part = panel.u / dist(start, end)
    up = high - 4 * np.float32(sag) * part * (1 - part)
    slope = np.gradient((canvas.eye - up) * panel.scale, 0.5, axis=1)  # rows per column
    wide = canvas.rng.uniform(1, 1.4) * np.hypot(1, slope)
    canvas.paint(panel, WIRE, DARK, np.abs(panel.v - up) * panel.scale < wide / 2)


def fence(canvas: Canvas, start: Point, end: Point) -> None:
    """A see-through fence: only its rails and pickets are painted, 1 to 1.5 pixels wide at every distance."""
    rng = canvas.rng
    high, wide, period = rng.uniform(1, 2), rng.uniform(1.05, 1.5), float(rng.choice([0.4, 2]))
    panel = canvas.panel(start, end, high)
    pixel = np.abs(np.gradient(panel.u, 0.5, axis=1))  # metres of u
    bars = (panel.u % period < wide * pixel) & (period > 4 * pixel)  # pickets, left out where they would merge
    for share in (0.12, 0.5, 0.92) if period > 1 else (0.2, 0.9):
        bars = bars | (np.abs(panel.v - share * high) * panel.scale < wide / 2)
    canvas.paint(panel, FENCE, pick(rng, STEELS), bars)
