"""Accuracy and cost of a trained model, how it is applied to images, and pictures of what it predicts."""

from experiments.evaluation.accuracy import Evaluation, ImageCounts, Scores, evaluate, miou
from experiments.evaluation.boundary import BANDS
from experiments.evaluation.cost import PeakMemory, flops, latency, parameters
from experiments.evaluation.inference import PLAIN, Inference, check_inference, probabilities
from experiments.evaluation.panel import save_data_panel, save_predictions

__all__ = [
    "BANDS",
    "PLAIN",
    "Evaluation",
    "ImageCounts",
    "Inference",
    "PeakMemory",
    "Scores",
    "check_inference",
    "evaluate",
    "flops",
    "latency",
    "miou",
    "parameters",
    "probabilities",
    "save_data_panel",
    "save_predictions",
]
