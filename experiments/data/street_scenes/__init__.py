"""Generated street, yard and country scenes with exact masks, drawn with numpy alone."""

from experiments.data.street_scenes.canvas import CLASSES, IGNORE, THIN
from experiments.data.street_scenes.scenes import COLORS, SMALLEST, scene

__all__ = ["CLASSES", "COLORS", "IGNORE", "SMALLEST", "THIN", "scene"]
