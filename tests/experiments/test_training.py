"""Batches, optimiser settings, loss and budget of a training run."""

import copy
import math
import signal
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torchvision import tv_tensors
from toy import IGNORE, color_coded

from experiments.cells import Cell, build_model
from experiments.data import SegmentationData, Split
from experiments.training import Budget, NonFiniteLossError, Segmenter, fit
from experiments.training.batches import Batches, ScaleCrop
from experiments.training.module import SegmentationModule
from experiments.training.optim import (
    EMA_DECAY,
    MAX_CLASS_WEIGHT,
    class_weights,
    learning_rate_factor,
    parameter_groups,
    update_average,
)

CPU = torch.device("cpu")


class Pixelwise(nn.Module):
    """A stand-in for a model: logits from the mean colour, with one weight matrix, one bias and one whole number."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 3, 1)
        self.register_buffer("index", torch.arange(7))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(images.float() / 255)


def run(model: nn.Module, data: SegmentationData, budget: Budget, seed: int = 0, batch_size: int = 2):
    return fit(model, data, budget, batch_size=batch_size, seed=seed, device=CPU, precision="32")


# Batches


def test_augmented_masks_stay_on_their_pixels_and_ids_are_never_invented() -> None:
    split = color_coded(7, 0)
    batches = Batches(split, 4, seed=3, steps=12)
    disagreeing = labelled = 0
    for step in range(12):
        images, masks = batches[step]
        assert images.dtype == masks.dtype == torch.uint8
        assert images.shape == (4, 3, 64, 64)
        assert masks.shape == (4, 64, 64)
        assert set(masks.unique().tolist()) <= {0, 1, 2, IGNORE}
        for image, mask in zip(images.float().mean(1), masks, strict=True):
            for id_ in range(3):
                # The class's own level, after brightness and contrast: the median over its pixels.
                level = image[mask == id_].median() if (mask == id_).any() else torch.tensor(0.0)
                disagreeing += int(((image - level).abs() > 12)[mask == id_].sum())
                labelled += int((mask == id_).sum())
    # Only bilinear blends at the edges of blocks, 16 pixels or more wide, may differ.
    assert disagreeing < 0.08 * labelled


def test_enlarged_masks_have_no_drift_against_their_images() -> None:
    """At every zoom, thresholding the bilinear image gives the mask: "nearest" would be off by up to half a pixel."""
    ramp = torch.arange(64).ge(29).to(torch.uint8).expand(64, 64)
    image = tv_tensors.Image((ramp * 255).expand(3, 64, 64).contiguous())
    crop = ScaleCrop(64, 64)
    for width in range(33, 64):
        params = {"top": 0, "left": 3, "height": width, "width": width}
        zoomed = crop.transform(image, params)[0]
        mask = crop.transform(tv_tensors.Mask(ramp.contiguous()), params)
        assert isinstance(mask, tv_tensors.Mask)
        assert ((zoomed > 127) == mask.bool()).float().mean() > 1 - 1.01 / 64


def test_batches_depend_on_seed_and_step_alone() -> None:
    split = color_coded(7, 0)
    first, again, other = (Batches(split, 3, seed, 10) for seed in (5, 5, 6))
    forward = [first[step] for step in range(10)]
    torch.manual_seed(99)  # a model that draws random numbers
    torch.rand(1000)
    state = torch.get_rng_state()
    for step in reversed(range(10)):
        for one, two in zip(forward[step], again[step], strict=True):
            assert torch.equal(one, two)
    assert torch.equal(torch.get_rng_state(), state)
    assert any(not torch.equal(forward[step][0], other[step][0]) for step in range(10))


def test_every_image_comes_once_per_pass() -> None:
    batches = Batches(color_coded(7, 0), 3, seed=1, steps=7)
    drawn = [index for step in range(7) for index in batches.indices(step)]
    assert [sorted(drawn[i : i + 7]) for i in (0, 7, 14)] == [list(range(7))] * 3
    assert drawn[:7] != drawn[7:14]


@pytest.mark.parametrize(("size", "message"), [(1, "at least 2 .* got 1"), (8, "training images, 7, got 8")])
def test_batch_size_rules(size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Batches(color_coded(7, 0), size, 0, 1)


# Optimiser


def test_norms_biases_and_bias_tables_are_not_decayed() -> None:
    model = build_model(Cell("swinx_n", "inline", "Unet", 32, 0), 3)
    decayed, plain = parameter_groups(model)
    assert decayed["weight_decay"] == 0.05
    assert plain["weight_decay"] == 0.0
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed_names = {names[id(parameter)] for parameter in decayed["params"]}
    plain_names = {names[id(parameter)] for parameter in plain["params"]}
    assert decayed_names | plain_names == set(names.values())
    assert not decayed_names & plain_names
    tables = {name for name in names.values() if "bias_table" in name}
    assert tables
    norms = {
        f"{module_name}.{name}"
        for module_name, module in model.named_modules()
        if isinstance(module, nn.LayerNorm | nn.BatchNorm2d)
        for name, _ in module.named_parameters(recurse=False)
    }
    assert plain_names >= tables | norms | {name for name in names.values() if name.endswith(".bias")}
    assert all(name.endswith("weight") for name in decayed_names)


def test_learning_rate_warms_up_and_falls_to_zero() -> None:
    factors = [learning_rate_factor(i / 100) for i in range(101)]
    assert 0 < factors[0] < 0.05
    assert factors[:6] == sorted(factors[:6])
    assert factors[5] == pytest.approx(1)
    assert factors[5:] == sorted(factors[5:], reverse=True)
    assert factors[-1] == pytest.approx(0, abs=1e-9)


def test_average_follows_the_formula_and_copies_whole_numbers() -> None:
    """torch's own average rounds whole numbers down: index tables among the buffers would drift."""
    model = Pixelwise()
    averaged = AveragedModel(model, multi_avg_fn=update_average, use_buffers=True)
    expected = None
    for n in range(30):
        nn.init.normal_(model.head.weight)
        averaged.update_parameters(model)
        weight = model.head.weight.detach().clone()
        decay = min(EMA_DECAY, (1 + n) / (10 + n))
        expected = weight if expected is None else decay * expected + (1 - decay) * weight
    assert expected is not None
    torch.testing.assert_close(averaged.module.head.weight.detach(), expected)
    assert averaged.module.index.tolist() == list(range(7))


def test_class_weights_by_hand() -> None:
    masks = torch.zeros(1, 10, 100, dtype=torch.uint8)
    masks[0, 0, :64] = 1
    masks[0, 1, :16] = 2
    masks[0, 2, :1] = 3
    masks[0, 5:] = IGNORE
    counts = torch.tensor([500.0 - 81, 64, 16, 1])
    median = counts.sort().values[1]
    expected = (median / counts).sqrt().clamp(max=MAX_CLASS_WEIGHT)
    torch.testing.assert_close(class_weights(masks, 5, IGNORE), torch.cat([expected, torch.ones(1)]))


@pytest.mark.parametrize("value", [IGNORE, 1])
def test_masks_that_teach_nothing_are_refused(value: int) -> None:
    with pytest.raises(ValueError, match="at least two classes"):
        class_weights(torch.full((2, 8, 8), value, dtype=torch.uint8), 3, IGNORE)


# Loss


@pytest.mark.parametrize("ignore", [255, 3])
def test_loss_equals_torchs_and_is_zero_without_labels(ignore: int) -> None:
    weights = torch.tensor([0.5, 1.0, 3.0])
    module = SegmentationModule(nn.Identity(), weights, ignore)
    logits = torch.randn(2, 3, 5, 7)
    masks = torch.randint(0, 3, (2, 5, 7), dtype=torch.uint8)
    masks[:, 2] = ignore
    expected = nn.functional.cross_entropy(logits, masks.long(), weight=weights, ignore_index=ignore)
    torch.testing.assert_close(module.loss(logits, masks), expected)
    assert module.loss(logits, torch.full_like(masks, ignore)) == 0


# Budget and run


@pytest.mark.parametrize(
    ("steps", "minutes", "message"),
    [
        (None, None, "either steps or minutes"),
        (5, 1.0, "either steps or minutes .* got 5 and 1.0"),
        (0, None, "steps must be at least 1, got 0"),
        (None, 0.0, "minutes must be positive and finite, got 0.0"),
        (None, math.nan, "minutes must be positive"),
    ],
)
def test_budget_rules(steps: int | None, minutes: float | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Budget(steps, minutes)


def test_training_learns_repeats_itself_and_leaves_no_files(
    toy: SegmentationData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("experiments.training.module.LEARNING_RATE", 0.1)
    torch.manual_seed(0)
    model = Pixelwise()
    twin = copy.deepcopy(model)
    result = run(model, toy, Budget(steps=40))
    assert (result.steps, result.images_seen, len(result.losses)) == (40, 80, 40)
    assert result.minutes > 0
    again = run(twin, toy, Budget(steps=40))
    assert again.losses == result.losses
    assert torch.equal(model.head.weight, twin.head.weight)
    assert sum(result.losses[-5:]) < 0.8 * sum(result.losses[:5])
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_the_model_ends_with_the_average_of_its_weights(toy: SegmentationData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.training.module.LEARNING_RATE", 0.1)
    model = Pixelwise()
    path: list[Tensor] = []
    fit(
        model,
        toy,
        Budget(steps=6),
        batch_size=2,
        seed=0,
        device=CPU,
        precision="32",
        on_step=lambda share, loss: path.append(model.head.weight.detach().clone()),
    )
    assert len(path) == 6
    expected = path[0]
    for n, weight in enumerate(path[1:], start=1):
        decay = (1 + n) / (10 + n)
        expected = decay * expected + (1 - decay) * weight
    torch.testing.assert_close(model.head.weight.detach(), expected)
    assert not torch.allclose(model.head.weight, path[-1], atol=1e-4)


def test_a_budget_of_minutes_ends_by_the_clock(toy: SegmentationData) -> None:
    shares: list[float] = []
    result = fit(
        Pixelwise(),
        toy,
        Budget(minutes=0.01),
        batch_size=2,
        seed=0,
        device=CPU,
        precision="32",
        on_step=lambda share, loss: shares.append(share),
    )
    assert 0.01 <= result.minutes < 0.1
    assert len(shares) == result.steps > 1
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_a_loss_that_is_not_finite_stops_the_run_by_name(toy: SegmentationData) -> None:
    class Breaks(Pixelwise):
        calls = 0

        def forward(self, images: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(images) * (math.nan if self.calls == 3 else 1)

    with pytest.raises(NonFiniteLossError, match="the loss became nan at step 3"):
        run(Breaks(), toy, Budget(steps=9))


def test_ctrl_c_comes_out_as_such(toy: SegmentationData) -> None:
    """Lightning itself would exit and leave the process deaf to further interrupts."""

    def interrupt(share: float, loss: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(Pixelwise(), toy, Budget(steps=9), batch_size=2, seed=0, device=CPU, precision="32", on_step=interrupt)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("decoder", ["DeepLabV3Plus", "Unet"])
def test_every_decoder_sees_the_same_batches(
    toy: SegmentationData, decoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    original = Segmenter.forward

    def spy(self: Segmenter, images: Tensor) -> Tensor:
        seen.append(hash(images.numpy().tobytes()))
        return original(self, images)

    monkeypatch.setattr(Segmenter, "forward", spy)
    model = Segmenter(build_model(Cell("swinx_n", "inline", decoder, 16, 0), 3))
    run(model, toy, Budget(steps=2), seed=4)
    batches = Batches(toy.train, 2, 4, 2)
    assert seen == [hash(batches[step][0].numpy().tobytes()) for step in range(2)]


def test_segmenter_pads_and_crops_any_size() -> None:
    model = Segmenter(build_model(Cell("swinx_n", "inline", "DeepLabV3Plus", 16, 0), 3)).eval()
    images = torch.randint(0, 256, (2, 3, 37, 53), dtype=torch.uint8)
    with torch.inference_mode():
        assert model(images).shape == (2, 3, 37, 53)


def test_split_is_not_changed(toy: SegmentationData) -> None:
    before = Split(toy.train.images.clone(), toy.train.masks.clone(), toy.train.names)
    run(Pixelwise(), toy, Budget(steps=3))
    assert torch.equal(before.images, toy.train.images)
    assert torch.equal(before.masks, toy.train.masks)
