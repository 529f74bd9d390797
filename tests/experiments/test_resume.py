"""A run that is cut off and resumed ends like one that was not; best weights, workers and logs."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy import toy_data, toy_settings

from experiments.data import SegmentationData
from experiments.records import files
from experiments.records.grid import Run
from experiments.records.options import Recipe
from experiments.training.losses import objective
from experiments.training.models import Segmenter, build_model
from experiments.training.train import Training, fit


def die(*sample: Tensor) -> None:
    """Ends the process; a worker finds it by its name, however it was started."""
    os._exit(1)


class CutOffError(Exception):
    """Stands for a kill."""


def checksum(model: nn.Module) -> float:
    return float(sum(tensor.double().sum() for tensor in model.state_dict().values()))


class Small(nn.Module):
    """A network with dropout and BatchNorm that takes no time."""

    def __init__(self) -> None:
        super().__init__()
        layers = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout2d(0.2), nn.Conv2d(8, 3, 1)
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images / 255)


def train(
    data: SegmentationData,
    folder: Path,
    recipe: Recipe,
    *,
    build: Callable[[], nn.Module] = Small,
    cut: int | None = None,
    **changes: Any,
) -> tuple[nn.Module, Training]:
    """cut raises after that many steps of this call. changes: what fit takes, and fields of Settings.

    A network is the same each time. 9 steps by default.
    """
    torch.manual_seed(1)
    model = build()
    torch.manual_seed(torch.seed())  # whatever state the process is in
    taken = 0

    def on_step(share: float, loss: float) -> None:
        nonlocal taken
        taken += 1
        if taken == cut:
            raise CutOffError

    arguments: dict[str, Any] = {"seed": 4, "validate": checksum, "evaluate": lambda *_: None}
    arguments |= {name: changes.pop(name) for name in arguments if name in changes}
    settings = toy_settings(recipe, **{"steps": 9} | changes)
    common: dict[str, Any] = {"folder": folder, "device": torch.device("cpu"), "on_step": on_step}
    return model, fit(model, objective(data, recipe), data, settings, **common, **arguments)


def swin() -> nn.Module:
    """A network with stochastic depth and dropout."""
    return Segmenter(build_model(Run("swinx_n", "inline", "FPN", 32, 0), 3))


@pytest.mark.parametrize(("build", "accumulate"), [(swin, 1), (Small, 2)])
def test_a_run_cut_off_at_any_step_ends_with_the_same_bits(
    tmp_path: Path, build: Callable[[], nn.Module], accumulate: int
) -> None:
    recipe, data = Recipe(validate_every=2, accumulate=accumulate), toy_data(32)
    common: dict[str, Any] = {"build": build, "steps": 5}
    whole, expected = train(data, tmp_path / "whole", recipe, **common)
    assert [step for step, _ in expected.validations] == [2, 4, 5]
    for cut in (3, 1, 2):  # after a checkpoint, right after starting again, and at one
        with pytest.raises(CutOffError):
            train(data, tmp_path / "cut", recipe, cut=cut, **common)
    for _ in range(2):  # the second time nothing is left to train: killed between training and evaluation
        model, training = train(data, tmp_path / "cut", recipe, **common)
        for field in ("losses", "validations"):
            assert getattr(training, field) == getattr(expected, field), field
        for (name, one), two in zip(whole.state_dict().items(), model.state_dict().values(), strict=True):
            assert torch.equal(one, two), name


@pytest.mark.parametrize(
    ("steps", "every", "expected"),
    [
        (1, None, [1]),
        (3, None, [1, 2, 3]),
        (5, None, [1, 2, 3, 4, 5]),
        (9, None, [2, 4, 5, 7, 9]),
        (10, None, [2, 4, 6, 8, 10]),
        (13, None, [3, 5, 8, 10, 13]),
        (9, 4, [4, 8, 9]),
        (8, 4, [4, 8]),
        (5, 7, [5]),
    ],
)
def test_validations_are_at_fifths_unless_their_distance_is_given(
    tmp_path: Path, steps: int, every: int | None, expected: list[int]
) -> None:
    _, training = train(toy_data(32), tmp_path, Recipe(validate_every=every), steps=steps)
    assert [step for step, _ in training.validations] == expected


def test_a_checkpoint_is_written_when_the_last_one_is_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any validation, too; what follows it is that of a run that was left alone."""
    recipe, data = Recipe(validate_every=9), toy_data(32)
    _, expected = train(data, tmp_path / "whole", recipe)
    for seconds, kept in ((60.0, []), (0.0, expected.losses[:2])):
        monkeypatch.setattr("experiments.training.train.CHECKPOINT_SECONDS", seconds)
        with pytest.raises(CutOffError):
            train(data, tmp_path / "cut", recipe, cut=3)
        path = tmp_path / "cut" / "training.ckpt"
        assert (torch.load(path, weights_only=True)["history"]["losses"] if path.exists() else []) == kept
    _, resumed = train(data, tmp_path / "cut", recipe)
    assert (resumed.losses, resumed.validations) == (expected.losses, expected.validations)


def test_each_batch_has_a_seed_of_its_own_for_the_randomness_of_the_model(tmp_path: Path) -> None:
    """Over batches of a step, steps and seeds of a run."""
    seen: list[int] = []

    class Seeded(Small):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(torch.initial_seed())
            return super().forward(images)

    for seed in (4, 5):
        train(toy_data(32), tmp_path / str(seed), Recipe(accumulate=2), build=Seeded, steps=3, seed=seed)
    assert len(seen) == len(set(seen)) == 2 * 3 * 2


def test_each_listed_step_is_evaluated_before_its_checkpoint(
    toy: SegmentationData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off while that checkpoint is put in place, the step comes again; after it, it does not."""
    evaluated: list[tuple[int, float]] = []

    def evaluate(model: nn.Module, step: int) -> None:
        evaluated.append((step, checksum(model)))

    recipe, replace = Recipe(validate_every=50), files.os.replace
    common: dict[str, Any] = {"evaluate": evaluate, "evaluate_at": (0, 1, 3), "steps": 4}
    train(toy, tmp_path / "whole", recipe, **common)
    expected = dict(evaluated)
    assert list(expected) == [0, 1, 3]

    def cut_off(*paths: Any) -> None:
        if dict(evaluated).keys() >= {3}:
            raise CutOffError
        replace(*paths)

    evaluated.clear()
    monkeypatch.setattr(files.os, "replace", cut_off)
    with pytest.raises(CutOffError):
        train(toy, tmp_path / "cut", recipe, **common)
    monkeypatch.setattr(files.os, "replace", replace)
    train(toy, tmp_path / "cut", recipe, **common)
    assert [step for step, _ in evaluated] == [0, 1, 3, 3]
    assert all(value == expected[step] for step, value in evaluated)


def test_code_in_a_checkpoint_is_not_run(toy: SegmentationData, tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple[Any, ...]:
            return (tmp_path / "ran").touch, ()

    torch.save({"history": Code()}, tmp_path / "training.ckpt")
    with pytest.raises(Exception, match="Weights only load failed"):
        train(toy, tmp_path, Recipe())
    assert not (tmp_path / "ran").exists()


def test_validations_are_kept_and_workers_change_nothing(toy: SegmentationData, tmp_path: Path) -> None:
    scores = iter([10.0, None, 30.0, 30.0, 20.0])
    _, alone = train(toy, tmp_path / "alone", Recipe(validate_every=1), steps=5, validate=lambda model: next(scores))
    assert alone.validations == [(1, 10.0), (2, None), (3, 30.0), (4, 30.0), (5, 20.0)]
    _, helped = train(toy, tmp_path / "helped", Recipe(validate_every=1), steps=5, workers=2)
    assert alone.losses == helped.losses


def test_a_worker_that_dies_ends_the_run_with_a_sentence(
    toy: SegmentationData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.training.train.augmentation", lambda *options: die)
    with pytest.raises(RuntimeError, match=r"DataLoader worker .* exited unexpectedly"):
        train(toy, tmp_path, Recipe(), workers=1)
