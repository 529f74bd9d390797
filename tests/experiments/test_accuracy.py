"""Scores by hand and against torchmetrics, and what one pass over a split brings together."""

import json

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassJaccardIndex,
)

from experiments.data import Split
from experiments.evaluation import BANDS, Evaluation, Inference, evaluate, miou, probabilities
from experiments.evaluation.accuracy import scores
from experiments.evaluation.boundary import image_boundary_f1

CPU = torch.device("cpu")
IGNORE = 255


class Oracle(nn.Module):
    """Predicts the ids that are written into the first channel of the images."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.one_hot(images[:, 0].long(), self.classes).permute(0, 3, 1, 2).float()


class Noisy(nn.Module):
    """A fixed convolution of the images, so that every prediction has its own confidence; counts its calls."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.conv = nn.Conv2d(3, classes, 3, padding=1)
        self.calls: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.calls.append(len(images))
        return 4 * self.conv(images.float() / 255)


def split_of(predicted: Tensor, truth: Tensor) -> Split:
    images = predicted.to(torch.uint8).unsqueeze(1).repeat(1, 3, 1, 1)
    return Split(images, truth.to(torch.uint8), tuple(map(str, range(len(truth)))))


def pictures(count: int, classes: int, ignore: int) -> Split:
    """Random images and masks, some pixels and one whole image ignored."""
    generator = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (count, 3, 11, 13), generator=generator).to(torch.uint8)
    masks = torch.randint(0, classes, (count, 11, 13), generator=generator).to(torch.uint8)
    masks[:, 3] = ignore
    masks[1] = ignore
    return Split(images, masks, tuple(f"p{i}" for i in range(count)))


def test_scores_by_hand_with_an_absent_class_and_ignored_pixels() -> None:
    """Class 2 is in neither, class 3 only predicted; the mean IoU of 0, 1 and 3 is (2/5 + 1/3 + 0) / 3."""
    truth = torch.tensor([[[0, 0, 0, 1, 1], [0, 255, 255, 255, 255]]])
    predicted = torch.tensor([[[0, 0, 3, 1, 0], [1, 2, 3, 0, 1]]])
    split = split_of(predicted, truth)
    result = evaluate(Oracle(4), split, 4, IGNORE, thin_classes=(1, 2), batch_size=1, device=CPU, precision="32")
    assert result.scores.class_iou == pytest.approx((100 * 2 / 5, 100 * 1 / 3, None, 0.0))
    assert result.scores.miou == pytest.approx(100 * (2 / 5 + 1 / 3 + 0) / 3)
    assert result.scores.thin_miou == pytest.approx(100 / 3)
    assert result.scores.pixel_accuracy == pytest.approx(100 * 3 / 6)
    assert result.scores.class_f1 == pytest.approx((100 * 4 / 7, 100 * 2 / 4, None, 0.0))
    assert result.scores.f1 == pytest.approx(100 * (4 / 7 + 1 / 2 + 0) / 3)


@pytest.mark.parametrize("ignore", [6, 255])
@pytest.mark.parametrize("present", [(0, 1, 2, 3, 4), (1, 4), (3,)])
def test_scores_equal_torchmetrics(present: tuple[int, ...], ignore: int) -> None:
    """Truth and prediction draw on some of six classes, the prediction on one more; 5 is always absent."""
    generator = torch.Generator().manual_seed(1)
    classes = torch.tensor(present)
    truth = classes[torch.randint(0, len(classes), (5, 11, 13), generator=generator)]
    predicted = torch.where(torch.rand(truth.shape, generator=generator) < 0.6, truth, truth.flip(0))
    predicted[0, 0, :7] = 0
    truth[:, 3] = ignore
    result = evaluate(Oracle(6), split_of(predicted, truth), 6, ignore, batch_size=2, device=CPU, precision="32")

    def theirs(metric: type, average: str) -> Tensor:
        return 100 * metric(6, ignore_index=ignore, average=average)(predicted, truth)

    found = result.scores
    assert found.miou == pytest.approx(theirs(MulticlassJaccardIndex, "macro").item())
    assert found.f1 == pytest.approx(theirs(MulticlassF1Score, "macro").item())
    assert found.pixel_accuracy == pytest.approx(theirs(MulticlassAccuracy, "micro").item())
    for values, metric in ((found.class_iou, MulticlassJaccardIndex), (found.class_f1, MulticlassF1Score)):
        absent = [k for k in range(6) if k not in {0, *present}]
        assert [k for k, value in enumerate(values) if value is None] == absent
        expected = theirs(metric, "none").tolist()
        assert [value or 0.0 for value in values] == pytest.approx(expected)


def test_nothing_labelled_has_no_scores() -> None:
    result = scores(torch.zeros(3, 3), thin_classes=(1,))
    assert (result.miou, result.thin_miou, result.f1, result.pixel_accuracy) == (None,) * 4
    assert result.class_iou == result.class_f1 == (None, None, None)
    ignored = split_of(torch.zeros(2, 3, 5), torch.full((2, 3, 5), IGNORE))
    nothing = evaluate(Oracle(3), ignored, 3, IGNORE, thin_classes=(1,), batch_size=2, device=CPU, precision="32")
    assert nothing.scores == result
    assert nothing.ece is None
    assert nothing.boundary_f1 == nothing.thin_boundary_f1 == dict.fromkeys(BANDS)
    assert nothing.images.truth.sum() == nothing.images.predicted.sum() == 0
    assert miou(Oracle(3), ignored, 3, IGNORE, batch_size=2, device=CPU, precision="32") is None


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_one_pass_brings_every_measure(batch_size: int) -> None:
    """Each equals its value over the whole split at once, whatever the batches; the model is called once a batch."""
    split, model = pictures(7, 5, IGNORE), Noisy(5)
    common = {"batch_size": batch_size, "device": CPU, "precision": "32"}
    result = evaluate(model.train(), split, 5, IGNORE, thin_classes=(2, 4), **common)
    assert sum(model.calls) == 7
    assert len(model.calls) == -(-7 // batch_size)
    assert not model.training

    with torch.inference_mode():
        logits = model(split.images)
    truth, predicted = split.masks.long(), logits.argmax(1)
    jaccard = MulticlassJaccardIndex(5, ignore_index=IGNORE)(predicted, truth)
    assert result.scores.miou == pytest.approx(100 * jaccard.item())
    calibration = MulticlassCalibrationError(5, n_bins=15, ignore_index=IGNORE)(logits.softmax(1), truth)
    assert result.ece == pytest.approx(100 * calibration.item(), rel=1e-5)
    boundary = image_boundary_f1(predicted, truth, 5, IGNORE).nanmean(0)
    assert result.boundary_f1 == pytest.approx(dict(zip(BANDS, (100 * boundary.mean(0)).tolist(), strict=True)))
    thin = (100 * boundary[[2, 4]].mean(0)).tolist()
    assert result.thin_boundary_f1 == pytest.approx(dict(zip(BANDS, thin, strict=True)))
    assert miou(model.train(), split, 5, IGNORE, **common) == result.scores.miou
    assert not model.training


def test_counts_of_each_image_and_their_file() -> None:
    split = pictures(5, 4, IGNORE)
    result = evaluate(Noisy(4), split, 4, IGNORE, batch_size=2, device=CPU, precision="32")
    with torch.inference_mode():
        predicted = Noisy(4)(split.images).argmax(1)
    for i in range(5):
        matrix = MulticlassConfusionMatrix(4, ignore_index=IGNORE)(predicted[i], split.masks[i].long())
        assert torch.equal(result.images.hits[i], matrix.diagonal())
        assert torch.equal(result.images.truth[i], matrix.sum(1))
        assert torch.equal(result.images.predicted[i], matrix.sum(0))
    assert result.images.truth[1].sum() == 0  # all ignored

    names = ("a", "b", "c <&>", "d")
    file = json.loads(result.images.as_json(names))
    assert list(file) == ["names", "class_names", "hits", "truth", "predicted"]
    assert (file["names"], file["class_names"]) == ([f"p{i}" for i in range(5)], list(names))
    hits, truth, said = (torch.tensor(file[key]).sum(0) for key in ("hits", "truth", "predicted"))
    assert (100 * hits / (truth + said - hits)).mean().item() == pytest.approx(result.scores.miou)
    with pytest.raises(ValueError, match="class_names must have one entry per class, 4, got 2"):
        result.images.as_json(("a", "b"))


def test_evaluate_predicts_as_it_is_told() -> None:
    """All scores are those of the averaged probabilities."""
    split, model = pictures(3, 4, IGNORE), Noisy(4)
    inference = Inference(tile=(7, 5), flip=True, scales=(1.0, 0.5))
    common = {"batch_size": 2, "device": CPU, "precision": "32"}
    told = evaluate(model, split, 4, IGNORE, inference=inference, **common)
    averaged = probabilities(model, split.images, inference, precision="32")
    jaccard = MulticlassJaccardIndex(4, ignore_index=IGNORE)(averaged, split.masks.long())
    calibration = MulticlassCalibrationError(4, n_bins=15, ignore_index=IGNORE)(averaged, split.masks.long())
    assert told.scores.miou == pytest.approx(100 * jaccard.item())
    assert told.ece == pytest.approx(100 * calibration.item(), rel=1e-5)
    plain: Evaluation = evaluate(model, split, 4, IGNORE, **common)
    assert told.scores.miou != plain.scores.miou


def test_predictions_that_are_not_finite_are_refused() -> None:
    class Broken(Oracle):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images).masked_fill(images[:, :1] == 2, float("nan"))

    truth = torch.tensor([[[0, 1, 2], [IGNORE, 1, 0]]])
    split = split_of(truth.clamp_max(2), truth)
    with pytest.raises(FloatingPointError, match="not finite"):
        evaluate(Broken(3), split, 3, IGNORE, batch_size=1, device=CPU, precision="32")
