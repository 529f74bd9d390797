"""What a training does: optimiser, budget, frozen parts, evaluation on the way, and how it ends."""

import copy
import math
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms import v2
from toy import toy_settings

from experiments.data import SegmentationData, Split
from experiments.execution.runs import curves
from experiments.records.grid import Run
from experiments.records.options import Recipe
from experiments.records.settings import Settings
from experiments.training.batches import Batches, augmentation
from experiments.training.losses import Objective, class_weights, objective
from experiments.training.models import Segmenter, build_model
from experiments.training.optim import Learner, learning_rate_factor, update_average
from experiments.training.train import DivergedError, Processes, Training, fit, processes


class Pixelwise(nn.Module):
    """A stand-in for a model: logits from the mean colour, with one weight matrix, one bias and one whole number."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 3, 1)
        self.register_buffer("index", torch.arange(7))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(images.float() / 255)


def run(model: nn.Module, data: SegmentationData, settings: Settings, folder: Path, **changes: Any) -> Training:
    common: dict[str, Any] = {
        "seed": 0,
        "folder": folder,
        "device": torch.device("cpu"),
        "validate": lambda model: None,
    }
    common |= {"evaluate": None, "on_step": lambda share, loss: None}
    return fit(model, objective(data, settings.recipe), data, settings, **{**common, **changes})


def test_learning_rate_warms_up_and_falls_to_zero() -> None:
    factors = [learning_rate_factor(i / 100, 0.05) for i in range(101)]
    assert 0 < factors[0] < 0.05
    assert factors[:6] == sorted(factors[:6])
    assert factors[5] == pytest.approx(1)
    assert factors[5:] == sorted(factors[5:], reverse=True)
    assert factors[-1] == pytest.approx(0, abs=1e-9)
    decay = [learning_rate_factor(0.05 + 0.95 * share, 0.05) for share in (1 / 4, 1 / 3, 1 / 2)]
    assert decay == pytest.approx([(1 + 0.5**0.5) / 2, 3 / 4, 1 / 2]), "a cosine"


@pytest.mark.parametrize("decay", [0.999, 0.4, 0.0])
def test_average_follows_the_formula_and_copies_whole_numbers(decay: float) -> None:
    """torch's own average rounds whole numbers down: index tables among the buffers would drift."""
    model, average = Pixelwise(), Pixelwise()
    model.index += 3
    expected = model.head.weight.detach()
    for n in range(30):
        nn.init.normal_(model.head.weight)
        update_average(average, model, decay, n)
        share = min(decay, (1 + n) / (10 + n)) if n else 0.0
        expected = share * expected + (1 - share) * model.head.weight.detach()
    torch.testing.assert_close(average.head.weight.detach(), expected)
    assert average.index.tolist() == list(range(3, 10))


def test_training_learns_repeats_itself_and_leaves_no_other_files(
    toy: SegmentationData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    before = Split(toy.train.images.clone(), toy.train.masks.clone(), toy.train.names)
    torch.manual_seed(0)
    model = Pixelwise()
    twin = copy.deepcopy(model)
    settings = toy_settings(Recipe(learning_rate=0.1), steps=40)
    result = run(model, toy, settings, tmp_path / "one")
    assert len(result.losses) == 40
    assert result.seconds > 0
    repeated = run(twin, toy, settings, tmp_path / "two")
    assert repeated.losses == result.losses
    assert torch.equal(model.head.weight, twin.head.weight)
    assert sum(result.losses[-5:]) < 0.8 * sum(result.losses[:5])
    assert list((tmp_path / "cwd").iterdir()) == []
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["training.ckpt"]
    assert capfd.readouterr() == ("", "")
    assert torch.equal(before.images, toy.train.images)
    assert torch.equal(before.masks, toy.train.masks)


def test_steps_are_adamw_on_the_clipped_gradient(toy: SegmentationData, tmp_path: Path) -> None:
    """Written out from Loshchilov and Hutter 2019: the second step shows how fast moments forget."""
    torch.manual_seed(0)
    model = Pixelwise()
    twin = copy.deepcopy(model)
    recipe = Recipe(("ce",), "none", 0.01, 0.3, ema_decay=0.0, gradient_clip=1e-3, accumulate=2)
    run(model, toy, toy_settings(recipe, steps=2), tmp_path)
    batches = Batches(toy.train, 2, 0, augmentation((64, 64), (1.0, 2.0), 0.3))
    parameters = list(twin.parameters())
    moments = [(torch.zeros_like(parameter), torch.zeros_like(parameter)) for parameter in parameters]
    for step in (1, 2):
        twin.zero_grad()
        for images, masks in (batches[2 * step - 2], batches[2 * step - 1]):
            loss = nn.functional.cross_entropy(twin(images), masks.long(), ignore_index=toy.ignore_index)
            (loss / 2).backward()
        norm = torch.stack([parameter.grad.norm() for parameter in parameters]).norm()
        assert norm > 1e-3
        rate = 0.01 * learning_rate_factor((step - 1) / 2, recipe.warmup)
        for parameter, (first, second), decay in zip(parameters, moments, (0.3, 0.0), strict=True):
            gradient = parameter.grad * 1e-3 / norm
            first.lerp_(gradient, 1 - 0.9)
            second.lerp_(gradient**2, 1 - 0.999)
            change = first / (1 - 0.9**step) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
            parameter.data = parameter.data * (1 - rate * decay) - rate * change
    for expected, trained in zip(parameters, model.parameters(), strict=True):
        torch.testing.assert_close(trained, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("precision", "kind"), [("32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_forward_pass_of_training_has_the_precision_of_the_settings(
    toy: SegmentationData, tmp_path: Path, precision: str, kind: torch.dtype
) -> None:
    model, seen = Pixelwise(), []
    model.register_forward_hook(lambda module, inputs, logits: seen.append((logits.dtype, module.head.weight.dtype)))
    run(model, toy, toy_settings(precision=precision), tmp_path)
    assert seen == [(kind, torch.float32)]


@pytest.mark.parametrize(("losses", "weighting"), [(("ce",), "sqrt"), (("ce", "dice"), "none")])
def test_options_of_the_recipe_reach_training(
    toy: SegmentationData, tmp_path: Path, losses: Any, weighting: Any
) -> None:
    """Batches by crop, zoom and colour; the first loss; the rate of a warmup; and no average at the end."""
    seen: list[Tensor] = []
    path: list[Tensor] = []

    class Seeing(Pixelwise):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(images)
            return super().forward(images)

    torch.manual_seed(0)
    model = Seeing()
    start = copy.deepcopy(model)
    augmented = {"crop": (32, 48), "zoom": (1.5, 3.0), "color": 0.1}
    recipe = Recipe(losses, weighting, 0.1, 0.0, warmup=0.5, ema_decay=0.0, **augmented)
    on_step = lambda *_: path.append(model.head.weight.detach().clone())  # noqa: E731
    training = run(model, toy, toy_settings(recipe, steps=3), tmp_path, on_step=on_step)
    batches = Batches(toy.train, 2, 0, augmentation(*augmented.values()))
    assert [images.tolist() for images in seen] == [batches[number][0].tolist() for number in range(3)]
    weights = class_weights(toy.train.masks, 3, toy.ignore_index, weighting)
    expected = Objective(losses, weights, toy.ignore_index)(start(batches[0][0]), batches[0][1])
    assert training.losses[0] == pytest.approx(expected.item(), rel=1e-5)
    moved = (path[0] - start.head.weight).abs()  # of AdamW's first step, without weight decay, the rate
    assert moved.flatten().tolist() == pytest.approx([0.1 * 0.001 / 0.501] * 9, rel=1e-2)
    assert torch.equal(model.head.weight, path[-1])


def test_layer_decay_of_the_recipe_holds_at_every_step(toy: SegmentationData) -> None:
    """One factor for each of 8 blocks below the last one, and one for the stem."""
    model = Segmenter(build_model(Run("swinx_n", "inline", "FPN", 32, 0), 3))
    objective = Objective(("ce",), torch.ones(3), toy.ignore_index)
    learner = Learner(model, objective, toy_settings(Recipe(layer_decay=0.5)), toy.train.images[:2])
    for updates, peak in enumerate((0.01, 0.002)):
        learner.step([(0, toy.train.images[:2], toy.train.masks[:2])], peak, updates)
        groups = learner.optimizer.param_groups
        rates = {parameter: group["lr"] for group in groups for parameter in group["params"]}
        named = {name: rates[parameter] for name, parameter in model.model.named_parameters()}
        assert sorted(set(named.values())) == pytest.approx([peak * 0.5**k for k in range(9, -1, -1)])
        assert {rate for name, rate in named.items() if "encoder" not in name} == {peak}
        assert {rate for name, rate in named.items() if "patch_embed" in name} == {min(named.values())}


def test_the_model_ends_with_the_average_of_its_weights(toy: SegmentationData, tmp_path: Path) -> None:
    model = Pixelwise()
    path: list[Tensor] = []
    settings = toy_settings(Recipe(learning_rate=0.1), steps=6)
    run(model, toy, settings, tmp_path, on_step=lambda *_: path.append(model.head.weight.detach().clone()))
    assert len(path) == 6
    expected = path[0]
    for n, weight in enumerate(path[1:], start=1):
        decay = (1 + n) / (10 + n)
        expected = decay * expected + (1 - decay) * weight
    torch.testing.assert_close(model.head.weight.detach(), expected)
    assert not torch.allclose(model.head.weight, path[-1], atol=1e-4)


def test_evaluation_at_listed_steps_sees_the_average_of_that_step(toy: SegmentationData, tmp_path: Path) -> None:
    """At 0 that is what training starts from; elsewhere what a validation of the same step sees."""
    model = Pixelwise()
    start = model.head.weight.detach().clone()
    validated: list[Tensor] = []
    evaluated: list[tuple[int, Tensor]] = []

    def evaluate(average: nn.Module, step: int) -> None:
        assert not average.training
        evaluated.append((step, average.head.weight.detach().clone()))

    settings = toy_settings(Recipe(validate_every=1), steps=5, evaluate_at=(0, 2, 5))
    validate = lambda average: validated.append(average.head.weight.detach().clone())  # noqa: E731
    run(model, toy, settings, tmp_path, validate=validate, evaluate=evaluate)
    assert [step for step, _ in evaluated] == [0, 2, 5]
    for (_, weight), expected in zip(evaluated, (start, validated[1], validated[4]), strict=True):
        assert torch.equal(weight, expected)


@pytest.mark.parametrize(("encoder", "own"), [("swinx_n", ("inline", "exact")), ("resnet18", (None, None))])
def test_a_frozen_encoder_stays_as_it_is(
    toy: SegmentationData, tmp_path: Path, encoder: str, own: tuple[str | None, str | None]
) -> None:
    """Weights and BatchNorm's statistics; and its features are those of evaluation, without stochastic depth."""
    torch.manual_seed(0)
    model = Segmenter(build_model(Run(encoder, own[0], "FPN", 32, 0, own[1]), 3))
    before = copy.deepcopy(model.state_dict())
    seen: list[tuple[Tensor, Tensor]] = []
    model.model.encoder.register_forward_hook(lambda module, inputs, features: seen.append((inputs[0], features[-1])))
    run(model, toy, toy_settings(Recipe(freeze="encoder", learning_rate=0.1), steps=2), tmp_path)
    after = model.state_dict()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert not [name for name in changed if "encoder" in name]
    assert {name.split(".")[1] for name in changed} == {"decoder", "segmentation_head"}
    with torch.no_grad():
        for inputs, features in seen[:2]:
            assert torch.equal(model.model.encoder.eval()(inputs)[-1], features)
    held = torch.load(tmp_path / "training.ckpt", weights_only=True)["learner"]["optimizer"]["state"]
    assert len(held) == sum("encoder" not in name for name, _ in model.named_parameters())


@pytest.mark.parametrize(
    ("factor", "message"),
    [
        (math.nan, "the loss became nan at step 3, training stopped"),
        (1e6, r"the loss grew from \d\S* to \S+ at step 3, stopped"),
    ],
)
def test_a_loss_out_of_bounds_stops_the_run_by_name(
    toy: SegmentationData, tmp_path: Path, factor: float, message: str
) -> None:
    class Breaks(Pixelwise):
        calls = 0

        def forward(self, images: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(images) * (factor if self.calls == 3 else 1)

    with pytest.raises(DivergedError, match=message):
        run(Breaks(), toy, toy_settings(steps=9), tmp_path)


@pytest.mark.parametrize(("first", "bound"), [(0.2, 100.0), (3.0, 300.0)])
def test_a_loss_is_out_of_bounds_from_100_times_the_first_one_or_1(first: float, bound: float) -> None:
    training = Training([first])
    training.read([torch.tensor(0.99 * bound)])
    with pytest.raises(DivergedError, match="at step 3, stopped"):
        training.read([torch.tensor(1.01 * bound)])


def test_ctrl_c_comes_out_as_such(toy: SegmentationData, tmp_path: Path) -> None:
    def interrupt(share: float, loss: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(Pixelwise(), toy, toy_settings(steps=9), tmp_path, on_step=interrupt)


def test_a_model_sees_the_batches_of_its_seed(
    toy: SegmentationData, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[bytes] = []
    original = Segmenter.forward

    def spy(self: Segmenter, images: Tensor) -> Tensor:
        seen.append(images.numpy().tobytes())
        return original(self, images)

    monkeypatch.setattr(Segmenter, "forward", spy)
    model = Segmenter(build_model(Run("swinx_n", "inline", "DeepLabV3Plus", 16, 0), 3))
    run(model, toy, toy_settings(steps=2), tmp_path, seed=4)
    batches = Batches(toy.train, 2, 4, augmentation((64, 64), (1.0, 2.0), 0.3))
    assert seen == [batches[step][0].numpy().tobytes() for step in range(2)]


def test_variables_of_a_scheduler_do_not_matter(
    toy: SegmentationData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only torchrun starts processes that train together."""
    for name, value in {"NTASKS": "2", "PROCID": "1", "LOCALID": "1", "NODEID": "0", "JOB_NAME": "x"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert processes() == Processes(0, 0, 1, 1)
    assert run(Pixelwise(), toy, toy_settings(steps=2), tmp_path).steps == 2
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert processes() == Processes(1, 1, 2, 2)


def test_a_model_sees_images_of_any_size_padded_with_the_mean_colour() -> None:
    model = Segmenter(build_model(Run("swinx_n", "inline", "FPN", 32, 0), 3)).eval()
    images = torch.randint(0, 256, (2, 3, 37, 53), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    normal = v2.functional.normalize(images / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])  # ImageNet's
    with torch.inference_mode():
        expected = model.model(v2.functional.pad(normal, [0, 0, 64 - 53, 64 - 37]))
        torch.testing.assert_close(model(images), expected[..., :37, :53])


def test_curves_are_means_of_neighbouring_losses_and_every_validation() -> None:
    losses = [float(i % 7) for i in range(1234)]
    drawn = curves(Training(losses, [(600, 41.25), (1234, None)]))
    assert drawn["loss_step"].tolist() == [*(3.0 * i + 2 for i in range(411)), 1234.0]
    assert drawn["loss"].tolist() == pytest.approx([*numpy.reshape(losses[:1233], (411, 3)).mean(1), losses[-1]])
    assert drawn["val_step"].tolist() == [600, 1234]
    assert drawn["val_miou"].tolist() == pytest.approx([41.25, math.nan], nan_ok=True)
    short = curves(Training([2.0, 1.0]))
    assert [short[name].tolist() for name in ("loss_step", "loss", "val_step")] == [[1, 2], [2, 1], []]
