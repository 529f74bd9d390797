"""Vegetation, poles, wires and fences of a procedural scene: things with ragged or thin outlines.

Shapes: h w cells of a window of the canvas, (1, w) per column of it. Metres and pixels as in `canvas`. Each function
paints one thing and draws its remaining choices from the canvas's generator.
"""

from collections.abc import Callable

import numpy as np

from experiments.data.street_scenes.canvas import FENCE, FOLIAGE, POLE, WIRE, Canvas, Cover
from experiments.data.street_scenes.textures import Array, pick

STEELS = ((0.22, 0.22, 0.24), (0.47, 0.47, 0.47), (0.62, 0.62, 0.60), (0.33, 0.25, 0.18), (0.16, 0.24, 0.19))

Ground = tuple[float, float]  # (X, Z) in metres


def foliage_tone(leaf: Array, colour: Array, height: Array | float) -> Array:
    """(3, h, w) leaves, or grass: clumps (leaf noise) lit from above; height 1 at the top, 0 at the foot."""
    tone = np.clip(0.72 + 0.30 * leaf + 0.3 * (np.asarray(height, np.float32) - 0.5), 0.12, 1.9)
    return np.asarray(tone * colour, np.float32)


def crown(canvas: Canvas, x: float, y: float, rx: float, ry: float, colour: Array, depth: float) -> None:
    """A ragged ball of leaves about (x, y) in pixels: several blobs whose rim the noise eats into."""
    rng = canvas.rng
    window = canvas.window(x - 1.5 * rx, x + 1.5 * rx, y - 1.5 * ry, y + 1.5 * ry)
    leaf = 0.75 * canvas.noise("leaf", window) + 0.5 * canvas.noise("fine", window)
    px, py = (canvas.x[:, window[1]] - np.float32(x)) / rx, (canvas.y[window[0]] - np.float32(y)) / ry
    reach = px * px + py * py
    for bx, by, size in rng.uniform((-0.7, -0.6, 0.4), (0.7, 0.6, 0.7), (5, 3)).astype(np.float32):
        reach = np.minimum(reach, ((px - bx) ** 2 + (py - by) ** 2) / (size * size))
    surface = foliage_tone(leaf, colour, 0.5 - 0.6 * py)
    canvas.paint(window, reach.astype(np.float32) < 0.95 + 0.4 * leaf, surface, FOLIAGE, depth)


def tree(canvas: Canvas, across: float, depth: float, colour: Array) -> None:
    """A trunk, as dark and upright as a pole, under a crown; both are foliage."""
    rng = canvas.rng
    scale, high = canvas.camera.scale(depth), rng.uniform(4, 9)
    x = canvas.camera.column(across, depth)
    foot, top = canvas.camera.row(x, depth), canvas.camera.row(x, depth, 0.6 * high)
    canvas.shade(x + 0.8 * scale, foot, 2.6 * scale, 0.5 * scale + 1, 0.45)
    ends = np.asarray([x, x + rng.normal(0, 0.15) * scale], np.float32)
    bark = pick(rng, STEELS) * np.float32(0.6)
    canvas.stroke(ends, np.asarray([foot, top], np.float32), float(np.clip(0.35 * scale, 1.2, 7)), bark, FOLIAGE, depth)
    crown(canvas, x, top, rng.uniform(0.2, 0.36) * high * scale, 0.34 * high * scale, colour, depth)


def bush(canvas: Canvas, across: float, depth: float, colour: Array) -> None:
    """A low ball of leaves on the ground."""
    size = canvas.rng.uniform(0.5, 1.1) * canvas.camera.scale(depth)
    x = canvas.camera.column(across, depth)
    foot = canvas.camera.row(x, depth)
    canvas.shade(x, foot, 1.9 * size, 0.4 * size + 1, 0.6)
    crown(canvas, x, foot - 0.8 * size, 1.3 * size, size, colour, depth)


def hedge(canvas: Canvas, start: Ground, end: Ground, high: float, colour: Array) -> None:
    """A band of bushes or a wood's edge between two ground points, with an uneven top."""
    panel = canvas.panel(start, end, 1.5 * high)
    if panel is None:
        return
    leaf = 0.8 * canvas.noise("leaf", panel.window) + 0.4 * canvas.noise("fine", panel.window)
    top = high * (1 + 0.25 * canvas.noise("broad", panel.window)[:1]) + leaf * np.minimum(0.25 * high, 4 / panel.scale)
    surface = foliage_tone(leaf, colour, panel.v / np.float32(high))
    canvas.paint(panel.window, (panel.v >= -0.15) & (panel.v <= top), surface, FOLIAGE, (start[1] + end[1]) / 2)


def pole(canvas: Canvas, across: float, depth: float, high: float, colour: Array, kind: str) -> None:
    """A pole 1.3 to 3 pixels wide; kind "lamp" adds an arm, "utility" a crossbar, "plain" nothing."""
    rng = canvas.rng
    scale, x = canvas.camera.scale(depth), canvas.camera.column(across, depth)
    foot, top = canvas.camera.row(x, depth), canvas.camera.row(x, depth, high)
    pixels = float(np.clip(rng.uniform(0.12, 0.2) * scale, 1.3, 3.0))

    def line(points: list[tuple[float, float]], wide: float) -> None:
        x, y = np.asarray(points, np.float32).T
        canvas.stroke(x, y, wide, colour * np.float32(rng.uniform(0.85, 1.1)), POLE, depth)

    line([(x, foot), (x + rng.normal(0, 0.04) * scale, top)], pixels)
    if kind == "lamp":
        arm = -np.sign(across) * rng.uniform(0.8, 1.8) * scale
        line([(x, top), (x + 0.5 * arm, top - 0.3 * scale), (x + arm, top - 0.3 * scale)], 1.2)
    elif kind == "utility":
        line([(x - 0.9 * scale, top + 0.5 * scale), (x + 0.9 * scale, top + 0.5 * scale)], 1.4)


def cable(canvas: Canvas, start: tuple[float, float], end: tuple[float, float], sag: float, pixels: float) -> None:
    """A wire hanging between two points of the picture (column, row), sagging by `sag` pixels at its middle."""
    part = np.linspace(0, 1, 9, dtype=np.float32)
    x = np.float32(start[0]) + np.float32(end[0] - start[0]) * part
    y = np.float32(start[1]) + np.float32(end[1] - start[1]) * part + np.float32(4 * sag) * part * (1 - part)
    tone = np.full((3, 1, 1), canvas.rng.uniform(0.04, 0.22), np.float32)
    canvas.stroke(x, y, pixels, tone, WIRE, 4.0)


def fence(canvas: Canvas, start: Ground, end: Ground) -> None:
    """A see-through fence: only its bars are painted and labelled, 1 to 2 pixels wide at every distance."""
    rng = canvas.rng
    high, colour, wide = rng.uniform(1.0, 2.0), pick(rng, (*STEELS, (0.9, 0.9, 0.88))), float(rng.uniform(1.05, 1.5))
    panel = canvas.panel(start, end, high)
    if panel is None:
        return

    def bars(at: Array, period: float, metres: Array, least: float) -> Cover:
        """Bars every `period` metres that measure `metres` per pixel; left out where closer than `least` pixels."""
        return np.asarray((at % np.float32(period) < wide * metres) & (period > least * metres))

    def level(up: float) -> Cover:
        return np.asarray(np.abs(panel.v - np.float32(up)) * panel.scale < wide / 2)

    styles: dict[str, Callable[[], Cover]] = {
        "picket": lambda: bars(panel.u, 0.35, panel.along, 3.5) | level(0.9 * high) | level(0.2 * high),
        "rail": lambda: bars(panel.u, 2.0, panel.along, 4) | level(0.95 * high) | level(0.5 * high) | level(0.1 * high),
        "mesh": lambda: (
            bars(panel.u + panel.v, 0.5, 1.4 * panel.along, 4)
            | bars(panel.u - panel.v, 0.5, 1.4 * panel.along, 4)
            | bars(panel.u, 2.5, panel.along, 4)
            | level(0.97 * high)
        ),
    }
    cover = styles[str(rng.choice(list(styles)))]() & (panel.v >= 0) & (panel.v <= high)
    canvas.paint(panel.window, cover, colour * np.float32(rng.uniform(0.7, 1.1)), FENCE, (start[1] + end[1]) / 2)
