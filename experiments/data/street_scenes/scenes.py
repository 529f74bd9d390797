"""Street, yard and country scenes with exact masks.

Shapes: H W pixels of the picture; h w samples of the part of the canvas that is painted.

Eight classes, painted in perspective. Three of them (pole, wire, fence) are 1 to 3 pixels wide at any
picture size. Walls and vehicles share paint and cladding, grass and leaves share colour and texture, trunks look like
poles: those are told apart by shape and surroundings, not by a patch of pixels.
"""

from itertools import pairwise

import numpy as np

from experiments.data.street_scenes import things
from experiments.data.street_scenes.canvas import GROUND, Canvas
from experiments.data.street_scenes.textures import STEELS, SURFACES, Array, Bytes, Rng, photograph, pick

SMALLEST = 64  # pixels; below it objects at their usual distances vanish


def scene(rng: Rng, height: int, width: int) -> tuple[Bytes, Bytes]:
    """One picture: (3, H, W) uint8 and its mask (H, W) uint8."""
    canvas = Canvas(rng, height, width)
    _sky(canvas)
    _ground(canvas)
    _things(canvas)
    return photograph(rng, canvas.rgb), canvas.mask()


def _sky(canvas: Canvas) -> None:
    """From zenith to haze at the horizon, with clouds of any density."""
    rng = canvas.rng
    down = np.clip(canvas.y / np.float32(canvas.horizon), 0, 1)
    clouds = canvas.broad[: len(down), : canvas.x.size] - np.float32(rng.uniform(-1, 1.6))
    colour = canvas.zenith + (canvas.haze - canvas.zenith) * down
    canvas.rgb = colour + (np.float32(0.95) - colour) * np.clip(clouds, 0, 1) * np.float32(rng.uniform(0.3, 0.9))


def _ground(canvas: Canvas) -> None:
    """A road that may bend and the land beside it, textured in perspective, with markings and cast shadows."""
    rng = canvas.rng
    top = round(2 * canvas.horizon)
    scale = np.maximum(canvas.y[top:] - np.float32(canvas.horizon), np.float32(0.02)) / np.float32(canvas.eye)
    depth = np.float32(canvas.focal) / scale
    across = (canvas.x - np.float32(canvas.centre)) / scale - np.float32(canvas.bend) * depth * depth

    def grain(noise: Array, metres: float) -> Array:
        """(h, w) noise laid flat, a sample of it per so many metres; fades where that shrinks below a pixel."""
        rows, cols = (depth / metres).astype(np.int32), (across / metres).astype(np.int32) + noise.shape[1] // 2
        laid = noise[rows % noise.shape[0], cols % noise.shape[1]]
        return np.asarray(laid * np.clip(metres * scale - 0.3, 0, 1))

    fine, broad = (noise[-len(scale) :, -canvas.x.size :] for noise in (canvas.fine, canvas.broad))
    rough = 1 + 0.05 * broad + 0.1 * grain(canvas.fine, 0.05)
    half, kerb = rng.uniform(2.2, 5), rng.uniform(0.3, 2.5)
    colour = rough * pick(rng, SURFACES)
    if rng.random() < 0.75:  # else a yard: one surface everywhere
        grass = things.leaves(canvas, fine + grain(canvas.fine, 0.1), 0.7)
        np.copyto(colour, rough * pick(rng, SURFACES), where=np.abs(across) > half)
        np.copyto(colour, grass, where=np.abs(across + 0.25 * grain(canvas.fine, 0.2)) > half + kerb)
    if rng.random() < 0.65:
        lines = (depth % 6 < rng.uniform(2, 6.5)) & (np.abs(across) < 0.09)
        lines |= np.abs(np.abs(across) - 0.92 * half) < 0.07
        np.copyto(colour, rough * np.float32(rng.uniform(0.5, 0.9)), where=lines)
    colour *= 1 - np.float32(rng.uniform(0, 0.5)) * np.clip(2 * grain(canvas.broad, 0.15) - 0.8, 0, 1)
    canvas.rgb[:, top:] = canvas.haze + (colour - canvas.haze) * np.exp(depth / np.float32(-canvas.visibility))
    canvas.label[top:] = GROUND


def _things(canvas: Canvas) -> None:
    """What stands in the scene, from open country to narrow streets."""
    rng = canvas.rng
    if rng.random() < 0.75:
        things.wood(canvas, rng.uniform(3, 14))
    for side in (-1, 1):
        inner, near = rng.uniform(5, 11), rng.uniform(6, 30)
        while near < 60 and rng.random() < 0.65:
            far, wall = near + rng.uniform(5, 16), side * (inner + rng.uniform(0, 2))
            things.building(canvas, wall, wall + side * 8, near, far)
            near = far + rng.uniform(0, 8)
        for _ in range(rng.poisson(2)):
            things.plant(canvas, side * (inner - rng.uniform(0, 4)), rng.uniform(7, 45), rng.uniform(1, 9))
        if rng.random() < 0.6:
            place, near = side * (inner - rng.uniform(0.5, 2.5)), rng.uniform(3.5, 8)
            things.fence(canvas, (place, near + rng.uniform(6, 22)), (place, near))
        if rng.random() < 0.75:
            _line_of_poles(canvas, side * (inner - rng.uniform(0.2, 1.5)))
    if rng.random() < 0.4:  # a house at the end of the street
        near, left = rng.uniform(25, 50), rng.uniform(-20, 10)
        things.building(canvas, left, left + rng.uniform(6, 12), near, near + 8)
    if rng.random() < 0.35:  # a fence across it
        depth, left = rng.uniform(6, 18), rng.uniform(-14, 4)
        things.fence(canvas, (left, depth), (left + rng.uniform(5, 14), depth))
    for _ in range(rng.poisson(0.6)):  # wires across it
        depth, high = rng.uniform(5, 9), rng.uniform(4, 6)
        things.wire(canvas, (-15, depth + rng.uniform(0, 9)), (15, depth), high, rng.uniform(0, 1))
    for _ in range(1 + rng.poisson(1.6)):
        depth, large = rng.uniform(7, 32), rng.random() < 0.4
        length = rng.uniform(5.5, 9) if large else rng.uniform(3.6, 4.8)
        if rng.random() < 0.5:  # along the street
            place = float(rng.choice([-1, 1])) * rng.uniform(0.8, 4.5)
            things.vehicle(canvas, (place, depth), (place, depth + length), large)
        else:
            place, turn = rng.uniform(-9, 9), float(rng.choice([-0.5, 0.5])) * length
            things.vehicle(canvas, (place - turn, depth), (place + turn, depth), large)


def _line_of_poles(canvas: Canvas, across: float) -> None:
    """Poles along the street: lamps, or poles with up to three wires that leave the picture past the camera."""
    rng = canvas.rng
    colour, high, step = pick(rng, STEELS), rng.uniform(4.5, 8.5), rng.uniform(7, 16)
    depths = rng.uniform(4, 9) + step * np.arange(rng.integers(1, 5))
    wires = rng.integers(4)
    arms = (-0.9, 0.9) if wires else (-1.5, 0) if across > 0 else (0, 1.5)
    for depth in depths:
        things.pole(canvas, across, depth, high, colour, arms)
    for place in (across - 0.8, across + 0.8, across)[:wires]:
        for near, far in pairwise([1.5, *depths]):
            things.wire(canvas, (place, near), (place, far), high - 0.4, rng.uniform(0.1, 0.4))
