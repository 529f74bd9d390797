"""Expected calibration error: how far the confidence of predictions is from their share of hits.

Shapes: B images, K classes, H W pixels.
"""

import torch
from torch import Tensor

BINS = 15


class CalibrationError:
    """Expected calibration error over pixels that come batch by batch (Guo et al., ICML 2017, arXiv:1706.04599).

    Confidence is the probability of the predicted class. Pixels fall into BINS bins of equal width by their confidence;
    the error is the mean over pixels of |share of hits - mean confidence| of their bin. A confidence between two bins
    belongs to the upper one, a confidence of 1 to the last bin.
    """

    def __init__(self, ignore_index: int, device: torch.device) -> None:
        self.ignore_index = ignore_index
        self.inner_edges = torch.linspace(0, 1, BINS + 1, device=device)[1:-1]
        # Hits minus confidences, summed by bin: a bin's pixel count cancels out of its share of the error.
        self.gaps = torch.zeros(BINS, dtype=torch.float64, device=device)
        self.pixels = torch.zeros((), dtype=torch.int64, device=device)

    def update(self, confidence: Tensor, predicted: Tensor, truth: Tensor) -> None:
        """Add pixels: confidence float32, predicted and true class ids of any integer type, all (B, H, W)."""
        kept = truth != self.ignore_index
        confidence, hits = confidence[kept], (predicted == truth)[kept]
        bins = torch.bucketize(confidence, self.inner_edges, right=True)
        self.gaps.index_add_(0, bins, hits.double() - confidence.double())
        self.pixels += kept.sum()

    def percent(self) -> float | None:
        """The error in percent; None where all pixels are ignored."""
        pixels = self.pixels.item()
        return 100 * self.gaps.abs().sum().item() / pixels if pixels else None
