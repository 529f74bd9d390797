"""Sky and ground of a procedural scene.

Shapes: h w cells of the part of the canvas that is painted; depth and across (h, w) are the metres Z and X of the
ground seen in each.
"""

import numpy as np

from experiments.data.street_scenes.canvas import GROUND, SKY, Canvas
from experiments.data.street_scenes.outlines import foliage_tone
from experiments.data.street_scenes.textures import SURFACES, Array, octaves, pick

TILE = 128  # cells of a square of noise laid on the ground again and again; a power of 2, and no canvas is smaller


def sky(canvas: Canvas, zenith: Array) -> None:
    """Gradient to the haze at the horizon, with clouds of any density."""
    rng = canvas.rng
    bottom = canvas.camera.horizon + 2 + abs(canvas.camera.roll) * canvas.width
    window = canvas.window(0, canvas.width, 0, bottom)
    y = canvas.y[window[0]]
    clouds = octaves(rng, len(y), 2 * canvas.width, cell=canvas.width * 0.8, count=6)
    fall = np.clip(y / np.float32(canvas.camera.horizon), 0, 1) ** np.float32(rng.uniform(0.6, 1.6))
    colour = zenith + (canvas.haze - zenith) * fall
    thick = np.clip((clouds - np.float32(rng.uniform(-1, 1.6))) * 0.9, 0, 1) * np.float32(rng.uniform(0.3, 0.9))
    white = np.float32(0.98) - 0.16 * np.clip(clouds - 1, 0, 1)
    colour = colour + (white - colour) * thick
    canvas.paint(window, np.ones_like(thick, bool), colour, SKY, 0.0)


def ground(canvas: Canvas, leaves: Array) -> None:
    """Road, verges and the land beside them, textured in perspective, with markings and cast shadows."""
    rng, camera = canvas.rng, canvas.camera
    top = camera.horizon - 2 - abs(camera.roll) * canvas.width
    window = canvas.window(0, canvas.width, top, canvas.height)
    x, y = canvas.x, canvas.y[window[0]]
    scale = np.clip(y - camera.horizon_at(x), 0.02, None) / np.float32(camera.eye)
    depth = np.float32(camera.focal) / scale
    across = (x - np.float32(camera.centre)) / scale - np.float32(camera.bend) * depth * depth

    def tile(field: str) -> Array:
        """(2 TILE, 2 TILE) noise beside its mirror images, so that it repeats without a seam."""
        return np.pad(canvas.noise(field, (slice(0, TILE), slice(0, TILE))), (0, TILE), mode="symmetric")

    fine, coarse, patches = tile("fine"), tile("broad"), tile("broad")

    def grain(field: Array, metres: float) -> Array:
        """The field laid flat on the ground, one of its cells per `metres`; fades where cells shrink below a pixel."""
        rows = np.floor(depth / metres).astype(np.int32) & (2 * TILE - 1)
        cols = np.floor(across / metres).astype(np.int32) & (2 * TILE - 1)
        return np.asarray(field[rows, cols] * np.clip(metres * scale - 0.3, 0, 1), np.float32)

    grass = leaves * np.float32(rng.uniform(0.8, 1.2))
    road, paved = pick(rng, SURFACES, 0.02), pick(rng, SURFACES, 0.02)
    verge = paved if rng.random() < 0.5 else grass
    half, kerb = rng.uniform(2.2, 5.0), rng.uniform(0.3, 2.5)
    flat = rng.random() < 0.25  # a yard: one surface everywhere
    rough = 0.06 * canvas.noise("broad", window) + 0.04 * canvas.noise("fine", window)
    rough = rough + 0.06 * grain(fine, 0.12) + 0.05 * grain(coarse, 0.7)
    colour = (1 + rough) * road
    if not flat:
        ragged = across + np.float32(0.25) * grain(coarse, 0.4)
        tufts = foliage_tone(canvas.noise("leaf", window) + grain(fine, 0.15), grass, 0.7)
        np.copyto(colour, (1 + rough) * verge, where=np.abs(across) > half)
        np.copyto(colour, tufts, where=np.abs(ragged) > half + kerb)
    if rng.random() < 0.65:
        dash = (depth % np.float32(6) < rng.uniform(2, 6.5)) & (np.abs(across - rng.uniform(-0.5, 0.5)) < 0.09)
        edge = (np.abs(np.abs(across) - 0.92 * half) < 0.07) & (rng.random() < 0.6)
        np.copyto(colour, np.float32(rng.uniform(0.5, 0.9)) + rough, where=dash | edge)
    colour *= 1 - np.float32(rng.uniform(0, 0.5)) * np.clip(-2 * grain(patches, 0.25) - 0.8, 0, 1)
    colour += (canvas.haze - colour) * (1 - np.exp(-depth / np.float32(canvas.visibility)))
    canvas.paint(window, y > camera.horizon_at(x), colour, GROUND, 0.0)
