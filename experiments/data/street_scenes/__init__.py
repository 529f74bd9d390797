"""Generated street, yard and country scenes with exact masks, drawn with numpy and Pillow."""

from experiments.data.street_scenes.canvas import CLASSES, COLORS, IGNORE, THIN
from experiments.data.street_scenes.scenes import SMALLEST, scene

__all__ = ["CLASSES", "COLORS", "IGNORE", "SMALLEST", "THIN", "scene"]
