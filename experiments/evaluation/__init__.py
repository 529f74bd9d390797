"""Accuracy and cost of a trained model, and pictures of what it predicts."""

from experiments.evaluation.accuracy import Scores, evaluate
from experiments.evaluation.cost import PeakMemory, flops, latency, parameters
from experiments.evaluation.panel import save_data_panel, save_predictions

__all__ = [
    "PeakMemory",
    "Scores",
    "evaluate",
    "flops",
    "latency",
    "parameters",
    "save_data_panel",
    "save_predictions",
]
