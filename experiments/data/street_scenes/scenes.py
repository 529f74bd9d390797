"""Street, yard and country scenes with exact masks.

Shapes: H W pixels of the picture; the canvas has 2H × 2W cells.

Eight classes, painted in perspective from far to near. Three of them (pole, wire, fence) are 1 to 3 pixels wide at any
picture size. Walls of houses and of lorries share paint and cladding, grass and leaves share colour and texture, trunks
look like poles: those are told apart by shape and surroundings, not by a patch of pixels.
"""

from collections.abc import Callable
from itertools import pairwise

import numpy as np

from experiments.data.street_scenes.backdrop import ground, sky
from experiments.data.street_scenes.canvas import Camera, Canvas
from experiments.data.street_scenes.outlines import STEELS, bush, cable, fence, hedge, pole, tree
from experiments.data.street_scenes.solids import building, car, lorry, tank
from experiments.data.street_scenes.textures import LEAVES, Array, Bytes, Rng, photograph, pick, rgb

COLORS = (
    (135, 190, 235),
    (128, 100, 128),
    (70, 140, 50),
    (170, 90, 60),
    (60, 60, 190),
    (240, 200, 60),
    (230, 60, 180),
    (240, 130, 40),
    (0, 0, 0),
)
SKIES = (
    ((0.25, 0.45, 0.78), (0.72, 0.82, 0.90)),
    ((0.62, 0.65, 0.69), (0.80, 0.81, 0.82)),
    ((0.38, 0.42, 0.60), (0.93, 0.74, 0.56)),
    ((0.45, 0.58, 0.74), (0.85, 0.87, 0.86)),
)
SMALLEST = 64  # pixels; below it objects at their usual distances vanish

Thing = tuple[float, Callable[[], None]]  # distance in metres, and how to paint it


def scene(rng: Rng, height: int, width: int) -> tuple[Bytes, Bytes]:
    """One picture: (3, H, W) uint8 and its mask (H, W) uint8."""
    camera = Camera(
        focal=width * rng.uniform(0.7, 1.1),
        centre=width * rng.uniform(0.3, 0.7),
        horizon=height * rng.uniform(0.36, 0.56),
        eye=rng.uniform(1.5, 3.2),
        roll=rng.normal(0, 0.02),
        bend=rng.normal(0, 0.0015),
    )
    zenith, haze = (rgb(*colour) for colour in SKIES[int(rng.integers(len(SKIES)))])
    haze = np.clip(haze + rng.normal(0, 0.03, (3, 1, 1)), 0, 1).astype(np.float32)
    canvas = Canvas(rng, camera, height, width, haze, visibility=rng.uniform(80, 500))
    leaves = pick(rng, LEAVES)
    sky(canvas, zenith)
    ground(canvas, leaves)
    for _, paint in sorted(_things(canvas, leaves), key=lambda thing: -thing[0]):
        paint()
    return photograph(rng, canvas.rgb), canvas.mask()


def _things(canvas: Canvas, leaves: Array) -> list[Thing]:
    """What stands in the scene; each kind has its own odds, so scenes range from open country to narrow streets."""
    rng, camera = canvas.rng, canvas.camera
    # Walls and rows along the street count as far as their far end: all that stands between them is in front of them.
    things: list[Thing] = []

    def put(depth: float, paint: Callable[..., None], *arguments: object) -> None:
        things.append((depth, lambda: paint(canvas, *arguments)))

    def hue() -> Array:
        return np.asarray(leaves * rng.uniform(0.7, 1.2) + rng.normal(0, 0.02, (3, 1, 1)), np.float32)

    if rng.random() < 0.75:  # the far side of the scene
        put(90, hedge, (-120.0, 90.0), (120.0, 90.0), rng.uniform(3, 14), hue())
    for side in (-1, 1):
        inner = rng.uniform(5, 11)
        if rng.random() < 0.6:
            edge = rng.uniform(6, 25)
            while edge < 60 and rng.random() < 0.85:
                far = edge + rng.uniform(5, 16)
                put(far, building, side, inner + rng.uniform(0, 2), edge, far, rng.uniform(3.5, 13))
                edge = far + rng.uniform(0, 8)
        elif rng.random() < 0.5:
            put(60, hedge, (side * inner, 60.0), (side * (inner + 2), rng.uniform(3, 8)), rng.uniform(1, 5), hue())
        for _ in range(int(rng.poisson(1.5))):
            depth = rng.uniform(7, 45)
            put(depth, tree, side * (inner - rng.uniform(0, 2)), depth, hue())
        if rng.random() < 0.5:
            start = rng.uniform(3.5, 8)
            place = side * (inner - rng.uniform(0.5, 2.5))
            far = start + rng.uniform(6, 22)
            put(far, fence, (place, far), (place, start))
        if rng.random() < 0.75:
            _row_of_poles(put, rng, camera, side * (inner - rng.uniform(0.2, 1.5)))
    for _ in range(int(rng.poisson(0.6))):
        depth = rng.uniform(18, 50)
        put(depth, tank, rng.uniform(-16, 16), depth)
    for _ in range(int(rng.poisson(0.8))):
        depth = rng.uniform(6, 30)
        put(depth, bush, rng.uniform(-9, 9), depth, hue())
    if rng.random() < 0.35:
        depth, left = rng.uniform(6, 18), rng.uniform(-14, 4)
        put(depth, fence, (left, depth), (left + rng.uniform(5, 14), depth + rng.normal(0, 0.5)))
    for _ in range(1 + int(rng.poisson(1.4))):
        _traffic(put, canvas)
    if rng.random() < 0.35:
        for _ in range(int(rng.integers(1, 4))):
            rows = rng.uniform(0.02, 0.75, 2) * camera.horizon
            ends = (-2.0, rows[0]), (canvas.width + 2.0, rows[1])
            put(4.5, cable, *ends, rng.uniform(1, 12), rng.uniform(1.0, 1.4))
    return things


def _traffic(put: Callable[..., None], canvas: Canvas) -> None:
    """A car or a lorry: along the street (its rear to the camera) or across it."""
    rng = canvas.rng
    depth, large = rng.uniform(6, 32), rng.random() < 0.4
    length = rng.uniform(5.5, 9) if large else rng.uniform(3.6, 4.8)
    if rng.random() < 0.5:
        at = float(rng.choice([-1, 1])) * rng.uniform(0.8, 4.5)
        ends, middle = ((at, depth), (at, depth + length)), at + np.sign(at) * 1.0
    else:
        at, turn = rng.uniform(-9, 5), rng.normal(0, 0.6)
        ends, middle = ((at, depth), (at + length, depth + turn)), at + length / 2
    if rng.random() < 0.5 and ends[0][0] != ends[1][0]:
        ends = (ends[1], ends[0])
    x, scale = canvas.camera.column(middle, depth), canvas.camera.scale(depth)
    wide = (0.65 * length if ends[0][0] != ends[1][0] else 1.7) * scale
    put(depth + 0.01, Canvas.shade, x, canvas.camera.row(x, depth) - 0.1 * scale, wide, 0.3 * scale + 1, 0.75)
    put(depth, lorry if large else car, *ends)


def _row_of_poles(put: Callable[..., None], rng: Rng, camera: Camera, across: float) -> None:
    """Poles of one kind along the street; a utility line carries wires that leave the picture past the camera."""
    kind = str(rng.choice(["plain", "lamp", "utility", "utility"]))
    high, step, colour = rng.uniform(4.5, 8.5), rng.uniform(7, 16), pick(rng, STEELS)
    depths = rng.uniform(4, 9) + step * np.arange(int(rng.integers(1, 5)))
    for depth in depths:
        put(float(depth), pole, across, float(depth), high, colour, kind)
    if kind != "utility":
        return
    for offset in (-0.85, 0.0, 0.85)[: int(rng.integers(1, 4))]:
        stops = [max(float(depths[0]) - step, 1.2), *(float(d) for d in depths)]
        points = [(x := camera.column(across + offset, z), camera.row(x, z, high - 0.45)) for z in stops]
        for (near, far), (a, b) in zip(pairwise(stops), pairwise(points), strict=True):
            sag = rng.uniform(0.1, 0.4) * camera.scale(far)
            put((near + far) / 2, cable, a, b, sag, rng.uniform(1.0, 1.35))
