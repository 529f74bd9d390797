"""Training one segmentation model on data held in memory, under a budget of steps or minutes."""

from experiments.training.fit import Budget, NonFiniteLossError, Training, fit
from experiments.training.segmenter import Segmenter

__all__ = ["Budget", "NonFiniteLossError", "Segmenter", "Training", "fit"]
