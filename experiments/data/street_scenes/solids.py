"""Buildings and vehicles of a procedural scene: upright faces in perspective, clad alike.

Shapes: h w cells of a window of the canvas, (1, w) per column of it. Metres and pixels as in `canvas`. Each function
paints one thing and draws its remaining choices from the canvas's generator.
"""

import numpy as np

from experiments.data.street_scenes.canvas import BUILDING, VEHICLE, Canvas, Panel
from experiments.data.street_scenes.textures import PAINTS, Array, pick, rgb

DARK = rgb(0.09, 0.10, 0.12)
LAMPS = rgb(0.55, 0.08, 0.06)

Ground = tuple[float, float]  # (X, Z) in metres


def cladding(canvas: Canvas, panel: Panel, paint: Array, light: float, ribs: float) -> Array:
    """(3, h, w) the surface of house walls and of lorry boxes alike: stains, courses or ribs, darker near the ground.

    ribs is their period in metres: upright if positive, level if negative; not drawn below 2.5 pixels.
    """
    stains = 0.05 * canvas.noise("fine", panel.window) + 0.10 * canvas.noise("broad", panel.window)
    if ribs > 0:
        wave = np.sin(panel.u * np.float32(2 * np.pi / ribs)) * (ribs > 2.5 * panel.along)
    else:
        wave = np.sin(panel.v * np.float32(2 * np.pi / ribs)) * (-ribs * panel.scale > 2.5)
    tone = np.float32(light) * (1 + stains + 0.07 * wave - 0.12 * np.exp(-np.abs(panel.v)))
    return np.asarray(tone * paint, np.float32)


def wall(
    canvas: Canvas,
    start: Ground,
    end: Ground,
    high: float,
    paint: Array,
    light: float,
    ribs: float,
    windows: float = 0.0,
    gable: float = 0.0,
) -> None:
    """One face of a building; windows is their spacing in metres (0: none), gable the height of a pointed roof."""
    panel = canvas.panel(start, end, high + gable)
    if panel is None:
        return
    length = float(np.hypot(end[0] - start[0], end[1] - start[1]))
    depth = max(2.0, (start[1] + end[1]) / 2)
    top = high + gable * (1 - np.abs(2 * panel.u / length - 1))
    cover = (panel.v >= -0.1) & (panel.v <= top)
    surface = cladding(canvas, panel, paint, light, ribs)
    if gable:
        surface *= np.where(panel.v > high, np.float32(0.62), np.float32(1))
    else:
        surface *= np.where(panel.v > high - 0.35, np.float32(0.75), np.float32(1))  # parapet
    if windows:
        column, row = panel.u % windows, panel.v % 3.0
        glass = (np.abs(column - windows / 2) < 0.27 * windows) & (np.abs(row - 1.65) < 0.7)
        glass &= (panel.v < high - 0.8) & (panel.v > 0.6)
        np.copyto(surface, DARK + np.float32(0.15) * paint, where=glass)
        np.copyto(surface, np.float32(0.7) * canvas.haze, where=glass & (canvas.noise("broad", panel.window) > 0.6))
    canvas.paint(panel.window, cover, surface, BUILDING, depth)


def building(canvas: Canvas, side: int, inner: float, near: float, far: float, high: float) -> None:
    """A block beside the street: the wall along it and the face turned to the camera. side is -1 (left) or 1."""
    rng = canvas.rng
    paint, outer = pick(rng, PAINTS), inner + rng.uniform(5, 11)
    windows = float(rng.choice([0.0, 1.6, 2.2, 3.0]))
    ribs = float(rng.choice([0.6, 1.2, -0.5, -0.9]))
    light = rng.uniform(0.6, 1.0)
    gable = rng.uniform(1.5, 4) if rng.random() < 0.4 else 0.0
    wall(canvas, (side * inner, far), (side * inner, near), high, paint, light, ribs, windows)
    wall(canvas, (side * inner, near), (side * outer, near), high, paint, 1.55 - light, ribs, windows, gable)


def tank(canvas: Canvas, across: float, depth: float) -> None:
    """A round silo or tank with a domed top, shaded as a cylinder."""
    rng = canvas.rng
    radius, high = rng.uniform(1.5, 4.5), rng.uniform(3, 9)
    panel = canvas.panel((across - radius, depth), (across + radius, depth), high + radius)
    if panel is None:
        return
    off = np.clip(panel.u / np.float32(radius) - 1, -1, 1)
    cover = (panel.v >= -0.1) & (panel.v <= high + 0.45 * radius * np.sqrt(1 - off * off))
    round_light = 0.45 + 0.6 * np.sqrt(np.clip(1 - (off - rng.uniform(-0.5, 0.5)) ** 2, 0, 1))
    surface = cladding(canvas, panel, pick(rng, PAINTS), 1.0, float(rng.choice([-1.1, 0.7])))
    canvas.paint(panel.window, cover, surface * round_light, BUILDING, depth)


def _wheels(canvas: Canvas, panel: Panel, centres: tuple[float, ...], radius: float, depth: float) -> None:
    for at in centres:
        away = (panel.u - np.float32(at)) ** 2 + (panel.v - np.float32(radius)) ** 2
        hub = np.float32(0.25) * (away < 0.2 * radius * radius)
        canvas.paint(panel.window, away <= radius * radius, DARK * np.float32(0.6) + hub, VEHICLE, depth)


def lorry(canvas: Canvas, start: Ground, end: Ground) -> None:
    """A box on wheels, its long side from start to end: clad and painted as a house wall may be."""
    rng = canvas.rng
    length = float(np.hypot(end[0] - start[0], end[1] - start[1]))
    high, floor = rng.uniform(2.6, 3.8), rng.uniform(0.5, 0.9)
    paint, ribs, light = pick(rng, PAINTS), float(rng.choice([0.6, 1.2, -0.5, -0.9])), rng.uniform(0.6, 1.0)
    depth = (start[1] + end[1]) / 2
    panel = canvas.panel(start, end, high)
    if panel is not None:
        surface = cladding(canvas, panel, paint, light, ribs)
        cab = panel.u > length - 1.7
        cover = (panel.v >= floor) & (panel.v <= high) & ~(cab & (panel.v > 2.4))
        np.copyto(surface, pick(rng, PAINTS) * np.float32(light), where=cab)
        glass = (panel.u > length - 1.3) & (panel.u < length - 0.2) & (panel.v > 1.5) & (panel.v < 2.2)
        np.copyto(surface, DARK, where=glass)
        canvas.paint(panel.window, cover, surface, VEHICLE, depth)
        chassis = (panel.v >= floor - 0.25) & (panel.v < floor)
        canvas.paint(panel.window, chassis, DARK, VEHICLE, depth)
        _wheels(canvas, panel, (0.9, 1.9, length - 1.1), 0.48, depth)
    if start[0] == end[0]:  # along the street: the back is in view too
        outer = start[0] + np.copysign(2.4, start[0])
        back(canvas, start[0], outer, min(start[1], end[1]), high, paint * np.float32(1.5 - light), ribs)


def back(canvas: Canvas, left: float, right: float, depth: float, high: float, paint: Array, ribs: float) -> None:
    """The rear of a vehicle that points away: clad if it is a lorry (ribs not 0), else with a window and lamps."""
    panel = canvas.panel((left, depth), (right, depth), high)
    if panel is None:
        return
    off = np.abs(2 * panel.u / np.float32(abs(right - left)) - 1)
    surface = cladding(canvas, panel, paint, 1.0, ribs or -3.0)
    cover = (panel.v >= 0.3) & (panel.v <= high)
    if not ribs:
        cover &= (off < 0.97 - 0.35 * np.clip(panel.v / high - 0.55, 0, 1)) & (panel.v < high - 0.12 * off**4)
        glass = (panel.v > 0.58 * high) & (panel.v < 0.9 * high) & (off < 0.72)
        np.copyto(surface, DARK + np.float32(0.08), where=glass)
        np.copyto(surface, LAMPS, where=(np.abs(panel.v - 0.48 * high) < 0.09) & (off > 0.7))
    cover |= (panel.v >= 0) & (panel.v < 0.35) & (off > 0.68) & (off < 0.95)
    np.copyto(surface, DARK * np.float32(0.6), where=panel.v < 0.35)
    canvas.paint(panel.window, cover, surface, VEHICLE, depth)


def car(canvas: Canvas, start: Ground, end: Ground) -> None:
    """A car whose long side runs from start to end; with its rear where it points along the street."""
    rng = canvas.rng
    length = float(np.hypot(end[0] - start[0], end[1] - start[1]))
    high, waist = rng.uniform(1.35, 1.95), rng.uniform(0.8, 1.0)
    paint, depth = pick(rng, PAINTS, 0.12), (start[1] + end[1]) / 2
    panel = canvas.panel(start, end, high)
    if panel is not None:
        at = np.asarray((0, 0.03, 0.08, 0.25, 0.6, 0.76, 0.97, 1)) * length
        up = np.asarray((0.5, waist, 1.05 * waist, high, high, 1.05 * waist, 0.9 * waist, 0.5))
        if rng.random() < 0.5:  # nose to the other end
            at, up = length - at[::-1], up[::-1]
        roof = np.interp(panel.u, at, up).astype(np.float32)
        tone = 0.75 + 0.35 * (panel.v > 0.6 * waist) + 0.05 * canvas.noise("broad", panel.window)
        surface = np.asarray(tone * paint, np.float32)
        pillar = np.abs(panel.u - 0.47 * length) > 0.07
        glass = (panel.v > waist + 0.02) & (panel.v < roof - 0.12) & pillar
        np.copyto(surface, DARK + np.float32(0.08), where=glass)
        canvas.paint(panel.window, (panel.v >= 0.28) & (panel.v <= roof), surface, VEHICLE, depth)
        _wheels(canvas, panel, (0.19 * length, 0.81 * length), 0.34, depth)
    if start[0] == end[0]:
        outer = start[0] + np.copysign(1.8, start[0])
        back(canvas, start[0], outer, min(start[1], end[1]), high, paint * np.float32(0.85), 0.0)
