"""Measures by hand and against torchmetrics, what one pass over a split brings together, and corrupted images."""

import colorsys
import io
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter1d
from torch import Tensor, nn
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassJaccardIndex,
)

from experiments.data.dataset import SegmentationData, Split
from experiments.evaluation.boundary import BANDS, boundary_f1
from experiments.evaluation.corruptions import corrupted
from experiments.evaluation.inference import probabilities
from experiments.evaluation.metrics import BINS, calibration_gaps, evaluate, miou
from experiments.records.options import PLAIN, Corruption, Inference

IGNORE = 255
COMMON: dict[str, Any] = {"device": torch.device("cpu"), "precision": "32"}


class Oracle(nn.Module):
    """Predicts the ids that are written into the first channel of the images, with 3 as their logit."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, images: Tensor) -> Tensor:
        return 3 * nn.functional.one_hot(images[:, 0].long(), self.classes).permute(0, 3, 1, 2).float()


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


def pictures(count: int, classes: int) -> Split:
    """Random images and masks, some pixels and one whole image ignored."""
    generator = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (count, 3, 11, 13), generator=generator).to(torch.uint8)
    masks = torch.randint(0, classes, (count, 11, 13), generator=generator).to(torch.uint8)
    masks[:, 3] = IGNORE
    masks[1] = IGNORE
    return Split(images, masks, tuple(f"p{i}" for i in range(count)))


def set_of(split: Split, classes: int, ignore: int = IGNORE, thin: tuple[int, ...] = ()) -> SegmentationData:
    names, colors = tuple(f"c{k}" for k in range(classes)), ((0, 0, 0),) * (classes + 1)
    return SegmentationData("set", split, split, split, names, colors, ignore, thin)


def score(
    model: nn.Module, split: Split, classes: int, ignore: int = IGNORE, thin: tuple[int, ...] = (), **options: Any
) -> Any:
    """The measures, and counts, as attributes."""
    data = set_of(split, classes, ignore, thin)
    measured, counts = evaluate(model, split, data, **{"batch_size": 2, **COMMON, **options})
    return SimpleNamespace(**measured, counts=counts)


def test_scores_by_hand_with_an_absent_class_and_ignored_pixels() -> None:
    """Class 2 is in neither, class 3 only predicted; the mean IoU of 0, 1 and 3 is (2/5 + 1/3 + 0) / 3."""
    truth = torch.tensor([[[0, 0, 0, 1, 1], [0, 255, 255, 255, 255]]])
    predicted = torch.tensor([[[0, 0, 3, 1, 0], [1, 2, 3, 0, 1]]])
    found = score(Oracle(4), split_of(predicted, truth), 4, thin=(1, 2))
    assert found.class_iou == pytest.approx({"c0": 100 * 2 / 5, "c1": 100 * 1 / 3, "c2": None, "c3": 0.0})
    assert found.miou == pytest.approx(100 * (2 / 5 + 1 / 3 + 0) / 3)
    assert found.thin_miou == pytest.approx(100 / 3)
    assert found.pixel_accuracy == pytest.approx(100 * 3 / 6)
    assert found.f1 == pytest.approx(100 * (4 / 7 + 1 / 2 + 0) / 3)


@pytest.mark.parametrize("ignore", [2, 6, 255])
@pytest.mark.parametrize("present", [(0, 1, 2, 3, 4), (1, 4), (3,)])
def test_scores_and_counts_equal_torchmetrics(present: tuple[int, ...], ignore: int) -> None:
    """Truth and prediction draw on some of six classes, the prediction on one more; 5 is always absent."""
    generator = torch.Generator().manual_seed(1)
    classes = torch.tensor(present)
    truth = classes[torch.randint(0, len(classes), (5, 11, 13), generator=generator)]
    predicted = torch.where(torch.rand(truth.shape, generator=generator) < 0.6, truth, truth.flip(0))
    predicted[0, 0, :7] = 0
    truth[:, 3] = ignore
    split = split_of(predicted, truth)
    found = score(Oracle(6), split, 6, ignore)

    def theirs(metric: type, average: str) -> Tensor:
        return 100 * metric(6, ignore_index=ignore, average=average)(predicted, truth)

    seen = predicted[truth != ignore].unique().tolist() + truth[truth != ignore].unique().tolist()
    iou = list(found.class_iou.values())
    assert [k for k, value in enumerate(iou) if value is None] == [k for k in range(6) if k not in seen]
    assert [value or 0 for value in iou] == pytest.approx(theirs(MulticlassJaccardIndex, "none").tolist())
    assert found.pixel_accuracy == pytest.approx(theirs(MulticlassAccuracy, "micro").item())
    if ignore > 5:  # torchmetrics means over an ignored class, too
        assert found.miou == pytest.approx(theirs(MulticlassJaccardIndex, "macro").item())
        assert found.f1 == pytest.approx(theirs(MulticlassF1Score, "macro").item())
    matrices = [MulticlassConfusionMatrix(6, ignore_index=ignore)(*pair) for pair in zip(predicted, truth, strict=True)]
    confusion = torch.stack(matrices).numpy()
    assert numpy.array_equal(found.counts.confusion, confusion)
    for array, expected in ((found.counts.truth, confusion.sum(2)), (found.counts.predicted, confusion.sum(1))):
        assert numpy.array_equal(array, expected)
    assert numpy.array_equal(found.counts.hits, confusion.diagonal(axis1=1, axis2=2))
    assert (found.counts.names, found.counts.groups) == (split.names, split.names)


def test_nothing_labelled_has_no_scores() -> None:
    ignored = split_of(torch.zeros(2, 3, 5), torch.full((2, 3, 5), IGNORE))
    found = score(Oracle(3), ignored, 3, thin=(1,))
    assert (found.miou, found.thin_miou, found.f1, found.pixel_accuracy, found.ece) == (None,) * 5
    assert found.class_iou == dict.fromkeys(("c0", "c1", "c2"))
    assert found.boundary_f1 == found.thin_boundary_f1 == dict.fromkeys(BANDS)
    assert found.counts.truth.sum() == found.counts.predicted.sum() == 0
    assert miou(Oracle(3), ignored, set_of(ignored, 3), batch_size=2, **COMMON) is None
    labelled = split_of(torch.zeros(1, 3, 5), torch.zeros(1, 3, 5))
    assert score(Oracle(3), labelled, 3).thin_miou is None  # no class is thin


@pytest.mark.parametrize(
    ("batch_size", "inference"),
    [(1, PLAIN), (3, PLAIN), (7, PLAIN), (2, Inference((7, 5), flip=True, scales=(1, 0.5)))],
)
def test_one_pass_brings_every_measure(batch_size: int, inference: Inference) -> None:
    """Each equals its value over the whole split at once, whatever the batches; the model is called once a batch."""
    split, model = replace(pictures(7, 5), groups=tuple("aabbccc")), Noisy(5)
    found = score(model.train(), split, 5, thin=(2, 4), batch_size=batch_size, inference=inference)
    assert inference != PLAIN or (len(model.calls), sum(model.calls)) == (-(-7 // batch_size), 7)
    assert not model.training
    assert found.counts.groups == split.groups

    averaged, truth = probabilities(model, split.images, inference, precision="32"), split.masks.long()
    assert found.miou == pytest.approx(100 * MulticlassJaccardIndex(5, ignore_index=IGNORE)(averaged, truth).item())
    calibration = MulticlassCalibrationError(5, n_bins=BINS, ignore_index=IGNORE)(averaged, truth)
    assert found.ece == pytest.approx(100 * calibration.item(), rel=1e-5)
    boundary = boundary_f1(averaged.argmax(1), truth, 5, IGNORE)
    assert numpy.array_equal(found.counts.boundary, boundary.numpy(), equal_nan=True)
    means = 100 * boundary.nanmean(0)
    assert found.boundary_f1 == pytest.approx(dict(zip(BANDS, means.mean(0).tolist(), strict=True)))
    assert found.thin_boundary_f1 == pytest.approx(dict(zip(BANDS, means[[2, 4]].mean(0).tolist(), strict=True)))
    how = {"batch_size": batch_size, "inference": inference, **COMMON}
    assert miou(model.train(), split, set_of(split, 5), **how) == found.miou
    assert not model.training


def test_boundaries_are_averaged_over_the_images_that_have_the_class() -> None:
    """Class 1 is right in one image, missed in another and absent from the third; class 2 never occurs."""
    truth = torch.zeros(3, 9, 13, dtype=torch.uint8)
    truth[:2, 3:6, 4:8] = 1
    predicted = truth.clone()
    predicted[1] = 0
    found = score(Oracle(3), split_of(predicted, truth), 3, thin=(1, 2))
    assert found.boundary_f1 == found.thin_boundary_f1 == dict.fromkeys(BANDS, 50.0)


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("ignore", [2, 255])
def test_calibration_error_equals_torchmetrics(sharpness: float, ignore: int) -> None:
    """With the ignored id among the classes or beyond them, a class never predicted, confidences between two bins."""
    generator = torch.Generator().manual_seed(1)
    logits = sharpness * torch.randn(7, 5, 11, 13, generator=generator)
    logits[:, 3] = -20
    scores, truth = logits.softmax(1), torch.randint(0, 5, (7, 11, 13), generator=generator)
    truth[:, 4:6] = ignore
    middle = torch.linspace(0, 1, BINS + 1)[8:-1]
    for column, confidence in enumerate((middle, middle - 0.01)):
        scores[0, :, 0, 7 * column : 7 * column + 7] = 0
        scores[0, 1 - column, 0, 7 * column : 7 * column + 7] = confidence[: 13 - 7 * column]
    confidence, predicted = scores.max(1)
    gaps = calibration_gaps(confidence, predicted == truth, truth == ignore)
    theirs = MulticlassCalibrationError(5, n_bins=BINS, norm="l1", ignore_index=ignore)(scores, truth)
    assert gaps.abs().sum().item() / (truth != ignore).sum().item() == pytest.approx(theirs.item(), rel=1e-5)


def test_calibration_error_in_closed_form() -> None:
    """0.8 sure and right in 8 of 10 is no error, nor is certain and right; 0.5 sure and always wrong is one of 50 %.
    Within a bin errors of both signs cancel; 1 belongs to the last bin (torchmetrics gives it one of its own)."""

    def total(confidence: list[float], hits: list[int]) -> float:
        none = torch.zeros(len(hits), dtype=torch.bool)
        return calibration_gaps(torch.tensor(confidence), torch.tensor(hits).bool(), none).abs().sum().item()

    hits = [1] * 8 + [0] * 2 + [0] * 10 + [1] * 20
    assert total([0.8] * 10 + [0.5] * 10 + [1.0] * 20, hits) == pytest.approx(10 * 0.5, rel=1e-6)
    assert total([1.0, 0.95, 0.95, 0.95, 0.95], [0, 1, 1, 1, 1]) == pytest.approx(1 - 4 * 0.05, rel=1e-6)


def test_predictions_that_are_not_finite_are_refused_unless_they_are_ignored() -> None:
    class Broken(Oracle):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images).masked_fill(images[:, :1] == 2, float("nan"))

    truth = torch.tensor([[[0, 1, 2], [IGNORE, 1, 0]]])
    broken, good = (split_of(truth.clamp_max(2), mask) for mask in (truth, truth.where(truth != 2, IGNORE)))
    for measure in (evaluate, miou):
        with pytest.raises(FloatingPointError, match="not finite"):
            measure(Broken(3), broken, set_of(broken, 3), batch_size=2, **COMMON)
    assert score(Broken(3), good, 3).miou == miou(Broken(3), good, set_of(good, 3), batch_size=2, **COMMON) == 100


@pytest.mark.parametrize(
    ("inference", "corruption"), [(PLAIN, None), (Inference((7, 5), flip=True, scales=(1, 0.5)), None), (PLAIN, "jpeg")]
)
def test_scores_at_the_resolution_of_the_files(inference: Inference, corruption: Corruption | None) -> None:
    """Probabilities are resized as Pillow resizes them, without the padding; each image has its own size."""
    split, model = pictures(3, 4), Noisy(4)
    shown = ((11, 13), (7, 13), (11, 9))
    sizes = ((29, 37), (23, 41), (5, 4))
    generator = torch.Generator().manual_seed(5)
    native = tuple(torch.randint(0, 4, size, generator=generator).to(torch.uint8) for size in sizes)
    native[1][3:9] = IGNORE
    split = replace(split, native_masks=native, shown=shown)
    how = {"inference": inference, "corruption": corruption}
    found = score(model, split, 4, native=True, **how)
    images = split.images if corruption is None else torch.stack([corrupted(x, corruption, 0) for x in split.images])
    scores = probabilities(model, images, inference, precision="32")
    metric = MulticlassCalibrationError(4, n_bins=BINS, ignore_index=IGNORE)
    for i, ((height, width), size) in enumerate(zip(shown, sizes, strict=True)):
        whole = scores[i, :, :height, :width].numpy()
        planes = [Image.fromarray(plane).resize(size[::-1], Image.Resampling.BILINEAR) for plane in whole]
        resized = torch.from_numpy(numpy.stack([numpy.array(plane) for plane in planes]))
        metric.update(resized[None], native[i][None].long())
        matrix = MulticlassConfusionMatrix(4, ignore_index=IGNORE)(resized.argmax(0), native[i].long())
        assert numpy.array_equal(found.counts.confusion[i], matrix.numpy())
        expected = boundary_f1(resized.argmax(0)[None], native[i][None], 4, IGNORE)
        assert numpy.array_equal(found.counts.boundary[i], expected[0].numpy(), equal_nan=True)
    assert found.ece == pytest.approx(100 * metric.compute().item(), rel=1e-5)
    # Masks that were never resized are at their own resolution already.
    plain = pictures(3, 4)
    assert score(model, plain, 4, native=True, **how).miou == score(model, plain, 4, **how).miou


def test_corruptions_are_those_of_the_paper() -> None:
    """Each spelled out another way, in float64 from 0 to 1 or by the library that the paper's code calls."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, 23, 31), generator=generator).to(torch.uint8)
    image[:, :2, :2] = 0
    x = image.double() / 255

    def found(kind: str) -> Tensor:
        return corrupted(image, kind, seed=3)  # type: ignore[arg-type]

    def same(one: Tensor, other: Tensor) -> bool:  # but for rounding at whole numbers
        return bool((one.int() - (255 * other).floor().int()).abs().max() <= 1)

    mean = x.mean((1, 2), keepdim=True)
    assert same(found("contrast"), mean + (x - mean) / 5)
    hsv = [colorsys.rgb_to_hsv(*pixel) for pixel in x.flatten(1).T.tolist()]
    raised = [colorsys.hsv_to_rgb(h, s, min(1, v + 0.3)) for h, s, v in hsv]
    assert same(found("brightness"), torch.tensor(raised, dtype=torch.float64).T.view(x.shape))
    blurred = gaussian_filter1d(gaussian_filter1d(x.numpy(), 3, 1, mode="nearest"), 3, 2, mode="nearest")
    assert same(found("gaussian_blur"), torch.from_numpy(blurred))
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=15)
    assert torch.equal(found("jpeg"), torch.from_numpy(numpy.array(Image.open(buffer))).permute(2, 0, 1))
    grey = corrupted(torch.full((3, 97, 89), 128, dtype=torch.uint8), "gaussian_noise", seed=3).double() / 255
    within = (grey - 128 / 255).abs() < 0.18  # one standard deviation, far from where it is cut
    assert within.double().mean().item() == pytest.approx(0.683, abs=0.01)
    assert (grey.mean((1, 2)) - 0.5).abs().max() < 0.01
    assert len(grey.flatten(1).T.unique(dim=0)) > 97 * 89 / 2  # each channel has its own
    with pytest.raises(ValueError, match=r"kind must be one of gaussian_noise, .*, contrast, got 'fog'"):
        found("fog")


def test_corrupted_images_are_the_same_whatever_the_batches() -> None:
    class Kept(Noisy):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(images.int())
            return super().forward(images)

    split, results = pictures(4, 4), []
    for batch_size in (3, 2):
        seen: list[Tensor] = []
        results.append(score(Kept(4), split, 4, batch_size=batch_size, corruption="gaussian_noise").miou)
        noise = torch.cat(seen) - split.images
        results.append(noise.tolist())
    assert results[:2] == results[2:]
    assert not torch.equal(noise[0], noise[1])
    assert results[0] != score(Noisy(4), split, 4).miou
