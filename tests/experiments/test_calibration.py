"""Expected calibration error against torchmetrics and in closed form."""

import pytest
import torch
from torchmetrics.classification import MulticlassCalibrationError

from experiments.evaluation.calibration import BINS, CalibrationError

CPU = torch.device("cpu")


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("ignore", [2, 255])
def test_equals_torchmetrics(sharpness: float, ignore: int) -> None:
    """In batches, with ignored pixels, the ignored id among the classes or beyond them, and a class never predicted."""
    generator = torch.Generator().manual_seed(1)
    logits = sharpness * torch.randn(7, 5, 11, 13, generator=generator)
    logits[:, 3] = -20
    truth = torch.randint(0, 5, (7, 11, 13), generator=generator)
    truth[:, 4:6] = ignore
    probabilities = logits.softmax(1)
    ours = CalibrationError(ignore, CPU)
    theirs = MulticlassCalibrationError(5, n_bins=BINS, norm="l1", ignore_index=ignore)
    for part in (slice(0, 4), slice(4, 7)):
        ours.update(*probabilities[part].max(1), truth[part].to(torch.uint8))
        theirs.update(probabilities[part], truth[part])
    assert ours.percent() == pytest.approx(100 * theirs.compute().item(), rel=1e-5)


def test_confidences_between_two_bins_fall_as_torchmetrics_has_them() -> None:
    """Exactly on each edge above one half, with a neighbour below whose gap has the other sign."""
    edges = torch.linspace(0, 1, BINS + 1)[8:-1]
    confidence = torch.cat((edges, edges - 0.01)).view(1, 1, -1)
    truth = torch.tensor([1, 0]).repeat_interleave(len(edges)).view(1, 1, -1)
    ours = CalibrationError(255, CPU)
    ours.update(confidence, torch.ones_like(truth), truth)
    probabilities = torch.stack((1 - confidence, confidence), dim=1)
    theirs = MulticlassCalibrationError(2, n_bins=BINS, norm="l1")(probabilities, truth)
    assert ours.percent() == pytest.approx(100 * theirs.item(), rel=1e-5)


def test_closed_form() -> None:
    """0.8 sure and right in 8 of 10 is no error, nor is certain and right; 0.5 sure and always wrong is one of 50 %."""
    confidence = torch.tensor([0.8] * 10 + [0.5] * 10 + [1.0] * 20).view(1, 5, 8)
    truth = torch.tensor([1] * 8 + [0] * 2 + [0] * 10 + [1] * 20).view(1, 5, 8)
    metric = CalibrationError(255, CPU)
    metric.update(confidence, torch.ones_like(truth), truth)
    assert metric.percent() == pytest.approx(100 * (10 * 0.5) / 40)


def test_confidences_of_one_share_the_last_bin() -> None:
    """Over- and underconfidence cancel within a bin, and the last bin ends with 1."""
    metric = CalibrationError(255, CPU)
    truth = torch.tensor([[[0, 1, 1, 1, 1]]])
    confidence = torch.tensor([[[1.0, 0.95, 0.95, 0.95, 0.95]]])
    metric.update(confidence, torch.ones_like(truth), truth)
    assert metric.percent() == pytest.approx(100 * abs(4 * 0.05 - 1) / 5)


def test_nothing_labelled_has_no_error() -> None:
    metric = CalibrationError(255, CPU)
    assert metric.percent() is None
    truth = torch.full((2, 3, 5), 255, dtype=torch.uint8)
    metric.update(torch.full((2, 3, 5), 0.7), torch.zeros(2, 3, 5, dtype=torch.int64), truth)
    assert metric.percent() is None
