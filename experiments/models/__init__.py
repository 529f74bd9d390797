"""The model of a cell: an smp decoder over an encoder of swinx or of another library."""

from experiments.models.build import build_model
from experiments.models.check import applicable

__all__ = ["applicable", "build_model"]
