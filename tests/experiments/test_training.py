"""Optimiser settings, budget and outcome of a training run."""

import copy
import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy import IGNORE

from experiments.cells import Cell
from experiments.data import SegmentationData, Split
from experiments.models import build_model
from experiments.training import Budget, DivergedError, Recipe, Segmenter, Training, fit
from experiments.training.batches import Batches, augmentation
from experiments.training.optim import (
    MAX_CLASS_WEIGHT,
    Average,
    class_weights,
    learning_rate_factor,
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


def run(
    model: nn.Module,
    data: SegmentationData,
    budget: Budget,
    folder: Path,
    recipe: Recipe | None = None,
    seed: int = 0,
    validate: Callable[[nn.Module], float | None] = lambda model: None,
    **options: Any,
) -> Training:
    return fit(
        model,
        data,
        budget,
        recipe or Recipe(),
        folder=folder,
        batch_size=2,
        seed=seed,
        device=CPU,
        precision="32",
        validate=validate,
        **options,
    )


# Optimiser


def test_learning_rate_warms_up_and_falls_to_zero() -> None:
    factors = [learning_rate_factor(i / 100, 0.05) for i in range(101)]
    assert 0 < factors[0] < 0.05
    assert factors[:6] == sorted(factors[:6])
    assert factors[5] == pytest.approx(1)
    assert factors[5:] == sorted(factors[5:], reverse=True)
    assert factors[-1] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("decay", [0.999, 0.4, 0.0])
def test_average_follows_the_formula_and_copies_whole_numbers(decay: float) -> None:
    """torch's own average rounds whole numbers down: index tables among the buffers would drift."""
    model = Pixelwise()
    averaged = Average(model, decay)
    expected = None
    for n in range(30):
        nn.init.normal_(model.head.weight)
        averaged.update_parameters(model)
        weight = model.head.weight.detach().clone()
        share = min(decay, (1 + n) / (10 + n))
        expected = weight if expected is None else share * expected + (1 - share) * weight
    assert expected is not None
    torch.testing.assert_close(averaged.module.head.weight.detach(), expected)
    assert averaged.module.index.tolist() == list(range(7))
    assert not averaged.train().training
    assert not any(parameter.requires_grad for parameter in averaged.parameters())


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


def test_training_learns_repeats_itself_and_leaves_one_file(
    toy: SegmentationData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    torch.manual_seed(0)
    model = Pixelwise()
    twin = copy.deepcopy(model)
    recipe = Recipe(learning_rate=0.1)
    result = run(model, toy, Budget(steps=40), tmp_path / "one", recipe)
    assert (result.steps, result.images_seen, len(result.losses)) == (40, 80, 40)
    assert result.minutes > 0
    again = run(twin, toy, Budget(steps=40), tmp_path / "two", recipe)
    assert again.losses == result.losses
    assert torch.equal(model.head.weight, twin.head.weight)
    assert sum(result.losses[-5:]) < 0.8 * sum(result.losses[:5])
    assert list((tmp_path / "cwd").iterdir()) == []
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["training.ckpt"]
    assert capsys.readouterr().out == ""


def test_the_model_ends_with_the_average_of_its_weights(toy: SegmentationData, tmp_path: Path) -> None:
    model = Pixelwise()
    path: list[Tensor] = []
    run(
        model,
        toy,
        Budget(steps=6),
        tmp_path,
        Recipe(learning_rate=0.1),
        on_step=lambda share, loss: path.append(model.head.weight.detach().clone()),
    )
    assert len(path) == 6
    expected = path[0]
    for n, weight in enumerate(path[1:], start=1):
        decay = (1 + n) / (10 + n)
        expected = decay * expected + (1 - decay) * weight
    torch.testing.assert_close(model.head.weight.detach(), expected)
    assert not torch.allclose(model.head.weight, path[-1], atol=1e-4)


def test_a_budget_of_minutes_ends_by_the_clock(toy: SegmentationData, tmp_path: Path) -> None:
    shares: list[float] = []
    minutes = Budget(minutes=0.01)
    result = run(Pixelwise(), toy, minutes, tmp_path, on_step=lambda share, loss: shares.append(share))
    assert 0.01 <= result.minutes < 0.1
    assert len(shares) == result.steps > 1
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_a_loss_that_is_not_finite_stops_the_run_by_name(toy: SegmentationData, tmp_path: Path) -> None:
    class Breaks(Pixelwise):
        calls = 0

        def forward(self, images: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(images) * (math.nan if self.calls == 3 else 1)

    with pytest.raises(DivergedError, match="the loss became nan at step 3"):
        run(Breaks(), toy, Budget(steps=9), tmp_path)


def test_a_loss_that_explodes_stops_the_run_by_name(toy: SegmentationData, tmp_path: Path) -> None:
    class Explodes(Pixelwise):
        calls = 0

        def forward(self, images: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(images) * (1e6 if self.calls == 3 else 1)

    with pytest.raises(DivergedError, match=r"the loss grew from \d\S* to \S+ at step 3, stopped"):
        run(Explodes(), toy, Budget(steps=9), tmp_path)


def test_ctrl_c_comes_out_as_such(toy: SegmentationData, tmp_path: Path) -> None:
    """Lightning itself would exit and leave the process deaf to further interrupts."""

    def interrupt(share: float, loss: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(Pixelwise(), toy, Budget(steps=9), tmp_path, on_step=interrupt)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("decoder", ["DeepLabV3Plus", "Unet"])
def test_every_decoder_sees_the_same_batches(
    toy: SegmentationData, decoder: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[int] = []
    original = Segmenter.forward

    def spy(self: Segmenter, images: Tensor) -> Tensor:
        seen.append(hash(images.numpy().tobytes()))
        return original(self, images)

    monkeypatch.setattr(Segmenter, "forward", spy)
    model = Segmenter(build_model(Cell("swinx_n", "inline", decoder, 16, 0), 3))
    run(model, toy, Budget(steps=2), tmp_path, seed=4)
    batches = Batches(toy.train, 2, 4, 2, augmentation((64, 64), (1.0, 2.0), 0.3))
    assert seen == [hash(batches[step][0].numpy().tobytes()) for step in range(2)]


def test_segmenter_pads_and_crops_any_size() -> None:
    model = Segmenter(build_model(Cell("swinx_n", "inline", "DeepLabV3Plus", 16, 0), 3)).eval()
    images = torch.randint(0, 256, (2, 3, 37, 53), dtype=torch.uint8)
    with torch.inference_mode():
        assert model(images).shape == (2, 3, 37, 53)


def test_split_is_not_changed(toy: SegmentationData, tmp_path: Path) -> None:
    before = Split(toy.train.images.clone(), toy.train.masks.clone(), toy.train.names)
    run(Pixelwise(), toy, Budget(steps=3), tmp_path)
    assert torch.equal(before.images, toy.train.images)
    assert torch.equal(before.masks, toy.train.masks)


def test_variables_of_a_scheduler_do_not_matter(
    toy: SegmentationData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning alone would refuse to train one process where SLURM speaks of two tasks."""
    for name, value in {"NTASKS": "2", "PROCID": "1", "LOCALID": "1", "NODEID": "0", "JOB_NAME": "x"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert run(Pixelwise(), toy, Budget(steps=2), tmp_path).steps == 2
