"""Training one segmentation model on data held in memory, under a budget of steps or minutes."""

from experiments.training.budget import Budget
from experiments.training.fit import CHECKPOINT, Training, fit
from experiments.training.module import DivergedError
from experiments.training.processes import Processes, processes
from experiments.training.recipe import Recipe
from experiments.training.segmenter import Segmenter

__all__ = [
    "CHECKPOINT",
    "Budget",
    "DivergedError",
    "Processes",
    "Recipe",
    "Segmenter",
    "Training",
    "fit",
    "processes",
]
