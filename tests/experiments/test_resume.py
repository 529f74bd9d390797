"""A run that is cut off and continued ends like one that was not; early stopping, best weights and logs."""

import copy
import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from experiments.cells import Cell
from experiments.data import SegmentationData
from experiments.models import build_model
from experiments.training import Budget, Recipe, Segmenter, Training, fit
from experiments.training.optim import learning_rate_factor

CPU = torch.device("cpu")


class CutOffError(Exception):
    """Stands for a kill."""


def checksum(model: nn.Module) -> float:
    return float(sum(tensor.double().sum() for tensor in model.state_dict().values()))


def train(
    data: SegmentationData,
    folder: Path,
    recipe: Recipe,
    *,
    budget: Budget | None = None,
    steps: int = 9,
    cut: int | None = None,
    **options: Any,
) -> tuple[nn.Module, Training]:
    """A network with stochastic depth, dropout and BatchNorm; cut raises after that many steps of this call."""
    torch.manual_seed(1)
    model = Segmenter(build_model(Cell("swinx_n", "inline", "DeepLabV3Plus", 16, 0), 3))
    torch.manual_seed(torch.seed())  # whatever state the process is in
    taken = 0

    def on_step(share: float, loss: float) -> None:
        nonlocal taken
        taken += 1
        if taken == cut:
            raise CutOffError

    options = {"validate": checksum, **options}
    training = fit(
        model,
        data,
        budget or Budget(steps=steps),
        recipe,
        folder=folder,
        batch_size=2,
        seed=4,
        device=CPU,
        precision="32",
        on_step=on_step,
        **options,
    )
    return model, training


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_run_cut_off_at_any_step_ends_with_the_same_bits(
    toy: SegmentationData, tmp_path: Path, accumulate: int
) -> None:
    recipe = Recipe(validate_every=2, accumulate=accumulate)
    whole, expected = train(toy, tmp_path / "whole", recipe, loggers=("csv",))
    assert [step for step, _ in expected.validations] == [2, 4, 6, 8, 9]
    for cut in (3, 1, 4):  # after a checkpoint, right after starting again, and at one
        with pytest.raises(CutOffError):
            train(toy, tmp_path / "cut", recipe, cut=cut, loggers=("csv",))
    for _ in range(2):  # the second time nothing is left to train: killed between training and evaluation
        model, training = train(toy, tmp_path / "cut", recipe, loggers=("csv",))
        for field in ("losses", "steps", "images_seen", "validations", "best"):
            assert getattr(training, field) == getattr(expected, field), field
        for (name, one), two in zip(whole.state_dict().items(), model.state_dict().values(), strict=True):
            assert torch.equal(one, two), name
    logs = [tmp_path / name / "log" / "metrics.csv" for name in ("whole", "cut")]
    assert logs[0].read_text() == logs[1].read_text()


def test_the_clock_of_a_budget_of_minutes_goes_on(toy: SegmentationData, tmp_path: Path) -> None:
    """The share of the budget, and with it the learning rate, starts where the checkpoint left it."""
    recipe, budget = Recipe(validate_every=1), Budget(minutes=0.1)
    with pytest.raises(CutOffError):
        train(toy, tmp_path, recipe, budget=budget, cut=6)
    state = torch.load(tmp_path / "training.ckpt", weights_only=True)["callbacks"]["Progress"]
    assert len(state["losses"]) == 5
    assert 0 < state["seconds"] < 6
    _, training = train(toy, tmp_path, recipe, budget=budget, loggers=("csv",))
    assert 6 <= training.minutes * 60 < 6 + 2 * state["seconds"]
    assert training.steps > 6
    rates = [float(row["learning_rate"]) for row in csv.DictReader((tmp_path / "log" / "metrics.csv").open())]
    assert rates[:5] == state["rates"]
    share = state["seconds"] / 6
    assert rates[5] == pytest.approx(recipe.learning_rate * learning_rate_factor(share, recipe.warmup))


def test_best_weights_follow_the_checkpoint_that_says_so(toy: SegmentationData, tmp_path: Path) -> None:
    """A kill between a checkpoint and the weights of the best model: the next run hands the model on again."""
    scores = {2: 10.0, 4: 30.0, 6: 20.0, 8: 20.0, 9: 20.0}
    seen: list[tuple[int, float, float]] = []

    def validate(steps: Iterator[int]) -> Callable[[nn.Module], float]:
        return lambda model: scores[next(steps)]

    def on_best(model: nn.Module, step: int, miou: float) -> None:
        seen.append((step, miou, checksum(model)))

    def cut_off(model: nn.Module, step: int, miou: float) -> None:
        if step == 4:
            raise CutOffError
        on_best(model, step, miou)

    recipe = Recipe(validate_every=2)
    train(toy, tmp_path / "whole", recipe, validate=validate(iter(scores)), on_best=on_best)
    expected, seen = seen, []
    with pytest.raises(CutOffError):
        train(toy, tmp_path / "cut", recipe, validate=validate(iter(scores)), on_best=cut_off)
    train(toy, tmp_path / "cut", recipe, validate=validate(iter([6, 8, 9])), on_best=on_best)
    assert seen == expected
    assert [step for step, _, _ in seen] == [2, 4]


def test_checkpoints_hold_no_code(toy: SegmentationData, tmp_path: Path) -> None:
    train(toy, tmp_path, Recipe(), steps=2)
    assert torch.load(tmp_path / "training.ckpt", weights_only=True)["global_step"] == 2


def test_early_stopping_waits_for_its_patience_and_best_weights_are_told(toy: SegmentationData, tmp_path: Path) -> None:
    scores = iter([10.0, None, 30.0, 30.0, 20.0, 29.0, 50.0])
    seen: list[tuple[int, float]] = []
    kept: list[nn.Module] = []

    def on_best(model: nn.Module, step: int, miou: float) -> None:
        seen.append((step, miou))
        kept.append(copy.deepcopy(model))

    recipe = Recipe(validate_every=1, patience=3)
    model, training = train(toy, tmp_path / "patient", recipe, validate=lambda model: next(scores), on_best=on_best)
    assert seen == [(1, 10.0), (3, 30.0)]
    assert training.best == (3, 30.0)
    assert training.steps == 6
    assert [miou for _, miou in training.validations] == [10.0, None, 30.0, 30.0, 20.0, 29.0]
    assert checksum(kept[-1]) != checksum(model)
    _, again = train(toy, tmp_path / "patient", recipe, validate=lambda model: pytest.fail("it had stopped"))
    assert again.steps == 6
    assert again.losses == training.losses


def test_nothing_stops_early_by_default(toy: SegmentationData, tmp_path: Path) -> None:
    scores = iter(range(100, 0, -1))
    _, training = train(toy, tmp_path, Recipe(validate_every=1), validate=lambda model: float(next(scores)))
    assert training.steps == 9


def test_logs_hold_every_step(toy: SegmentationData, tmp_path: Path) -> None:
    _, training = train(toy, tmp_path, Recipe(validate_every=4), loggers=("csv", "tensorboard"))
    rows = list(csv.DictReader((tmp_path / "log" / "metrics.csv").open()))
    assert [float(row["loss"]) for row in rows] == training.losses
    assert [int(row["step"]) for row in rows if row["val_miou"]] == [4, 8, 9]
    events = EventAccumulator(str(tmp_path / "log")).Reload()
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(training.losses)
    assert [event.step for event in events.Scalars("val_miou")] == [4, 8, 9]


def test_tensorboard_shows_each_step_of_a_continued_run_once(toy: SegmentationData, tmp_path: Path) -> None:
    recipe = Recipe(validate_every=4)
    with pytest.raises(CutOffError):
        train(toy, tmp_path, recipe, cut=6, loggers=("tensorboard",))  # logged beyond its checkpoint
    _, training = train(toy, tmp_path, recipe, loggers=("tensorboard",))
    assert len(list((tmp_path / "log").glob("events.*"))) == 2
    events = EventAccumulator(str(tmp_path / "log")).Reload().Scalars("loss")
    assert [event.step for event in events] == list(range(1, 10))
    assert [event.value for event in events] == pytest.approx(training.losses)


def test_workers_change_nothing(toy: SegmentationData, tmp_path: Path) -> None:
    _, alone = train(toy, tmp_path / "alone", Recipe(), steps=4)
    _, helped = train(toy, tmp_path / "helped", Recipe(), steps=4, workers=2)
    assert alone.losses == helped.losses


def test_a_worker_that_dies_ends_the_run_with_a_sentence(
    toy: SegmentationData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.training.batches.Batches.indices", lambda self, number: __import__("os")._exit(1))
    with pytest.raises(RuntimeError, match=r"DataLoader worker .* exited unexpectedly"):
        train(toy, tmp_path, Recipe(), workers=1)
