"""Encoders pretrained on images alone, and training that begins with a file of weights."""

import re
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn
from toy import ONE, toy_data

import swinx
from experiments import compare_decoders
from experiments.execution import runs
from experiments.pretrain import main
from experiments.pretraining import pretraining
from experiments.pretraining.hidden_patches import PATCH, HiddenPatches
from experiments.pretraining.options import Options
from experiments.records.options import DataOptions
from experiments.records.results import RESULTS, read_rows
from experiments.training.models import Normalise
from experiments.training.train import DivergedError
from experiments.training.weights import load_weights

pytestmark = pytest.mark.usefixtures("tiny_scenes")
FEW = ["--steps", "3", "--batch-size", "2", "--device", "cpu"]


class Known(nn.Module):
    """In the place of an encoder: keeps what it sees; its tokens are the values that answer gives, patch by patch."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.out_channels, self.answer, self.seen = [3, 3 * PATCH**2], answer, answer

    def forward(self, images: Tensor) -> list[Tensor]:
        self.seen = images
        return [images, nn.functional.pixel_unshuffle(self.answer, PATCH)]


def drawing(answer: Tensor, share: float) -> HiddenPatches:
    """A model that draws answer, whatever it sees."""
    model = HiddenPatches(Known(answer), share)  # type: ignore[arg-type]  # has what is used of an encoder
    nn.init.zeros_(model.head.bias)
    model.head.weight.data.copy_(torch.eye(3 * PATCH**2)[..., None, None])
    return model


@pytest.mark.parametrize(("share", "count"), [(0.6, 5), (0.01, 1), (0.99, 9)])
def test_only_pixels_of_hidden_patches_count_and_the_encoder_sees_none_of_them(share: float, count: int) -> None:
    """Of 3 x 3 patches, the last ones reach past the image."""
    images = torch.randint(0, 256, (4, 3, 67, 71), dtype=torch.uint8)
    real = Normalise()(images)
    model = drawing(real, share)
    seen = []
    for _ in range(2):
        assert model(images).tolist() == [0, 0, 0, 0]  # what it draws is where it belongs
        seen.append(model.encoder.seen)
    assert count == 9 or not torch.equal(*seen)  # others are hidden each time
    hidden = (seen[1] == 0).all(1, keepdim=True)
    patches = hidden[..., :67, :71].unfold(2, 1, PATCH).unfold(3, 1, PATCH).flatten(1)
    assert patches.sum(1).tolist() == [count] * 4
    assert len({tuple(row) for row in patches.tolist()}) > 1 or count == 9
    hidden = patches.view(4, 1, 3, 3).repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)
    torch.testing.assert_close(seen[1], torch.where(hidden, 0, real), rtol=0, atol=0)

    model.encoder.answer = real + torch.randn_like(real)
    errors = model(images)
    hidden = (model.encoder.seen == 0).all(1, keepdim=True)[..., :67, :71].expand(-1, 3, -1, -1)
    off = (model.encoder.answer - real).abs()[..., :67, :71]
    expected = [off[i][hidden[i]].mean() for i in range(4)]
    torch.testing.assert_close(errors, torch.stack(expected))


def test_the_command_learns_writes_what_loads_and_goes_on_with_more_seeds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    given = ["--window", "4", "--stem", "none", *FEW, "--steps", "20", "--output", str(output)]
    assert main(given) == 0
    (row,) = read_rows(output / RESULTS)
    expected = {"kind": "pretraining", "seed": 0, "window": 4, "stem": "none", "steps": 20, "hidden": 0.6}
    assert expected.items() <= row.items()
    swinx.register_encoder("swinx_n_none", base="swinx_n", stem="none", window_size=4)
    torch.manual_seed(0)
    encoder = smp.encoders.get_encoder("swinx_n_none", weights=None)
    torch.manual_seed(1)
    untrained = HiddenPatches(encoder, 0.6)(toy_data().train.images).mean()
    assert row["loss"] < 0.9 * untrained
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    swinx.load_checkpoint(encoder, output / "seed0.safetensors")
    kept = {name for name, tensor in encoder.state_dict().items() if torch.equal(tensor, before[name])}
    assert kept == {f"norms.{level}.{part}" for level in range(3) for part in ("weight", "bias")}  # of lower levels

    fit, first = pretraining.fit, (output / "seed0.safetensors").read_bytes()
    seeds = []
    monkeypatch.setattr(pretraining, "fit", lambda *a, **k: [seeds.append(k["seed"]), fit(*a, **k)][1])
    assert main([*given, "--seeds", "0", "1"]) == 0
    assert seeds == [1]
    assert (output / "seed0.safetensors").read_bytes() == first != (output / "seed1.safetensors").read_bytes()
    assert sorted(path.name for path in output.iterdir() if path.suffix) == [
        RESULTS,
        "seed0.safetensors",
        "seed1.safetensors",
        "settings.json",
    ]
    assert not [path for path in output.iterdir() if path.is_dir()]
    assert main([*given, "--hidden", "0.5"]) == 2
    assert "was begun with other settings (hidden 0.6 there, 0.5 now)" in capsys.readouterr().err


def test_a_pretraining_that_diverges_has_a_row_and_no_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(*_: Any, **__: Any) -> None:
        raise DivergedError("the loss became nan at step 2, training stopped")

    monkeypatch.setattr(pretraining, "fit", diverge)
    assert main([*FEW, "--output", str(tmp_path / "out")]) == 1
    assert "seed 0: the loss became nan at step 2" in capsys.readouterr().out
    (row,) = read_rows(tmp_path / "out" / RESULTS)
    assert (row["status"], row["loss"]) == ("diverged", None)
    assert not list((tmp_path / "out").glob("*.safetensors"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--encoder", "resnet18"], "--encoder must be one of swinx_n, "),
        (["--window", "0"], "--window must be 1 to 64, got 0"),
        (["--crop", "16", "65"], "--crop must fit into the images, 64x64, got 16x65"),
        (["--batch-size", "8"], "--batch-size must not exceed the number of training images, 7, got 8"),
    ],
)
def test_what_cannot_be_pretrained_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main([*FEW, "--output", str(tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": 1.0}, "--hidden must be above 0 and below 1, got 1.0"),
        ({"seeds": (1, 1)}, "--seeds must be one or more different numbers from 0, got 1 1"),
        ({"seeds": ()}, "--seeds must be one or more different numbers from 0, got none"),
        ({"steps": 0}, "--steps must be at least 1, got 0"),
        ({"data": DataOptions(groups="(.)")}, "--groups must be left out: no test image is scored, got (.)"),
        ({"zoom": (2.0, 1.0)}, "--zoom must be two finite factors of at least 1, rising, got 2.0 1.0"),
    ],
)
def test_values_outside_the_rules_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Options(**options)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").touch()
    assert main([*FEW, "--output", str(tmp_path)]) == 2
    assert "holds other files (" in capsys.readouterr().err


def encoder_files(folder: Path, name: str = "swinx_n") -> dict[int, dict[str, Tensor]]:
    """Files of an encoder's weights for the seeds 0 and 1, and what they hold."""
    kept = {}
    for seed in (0, 1):
        torch.manual_seed(seed + 10)
        kept[seed] = smp.encoders.get_encoder(name, weights=None).state_dict()
        safetensors.torch.save_file(kept[seed], folder / f"seed{seed}.safetensors")
    return kept


def test_each_run_begins_with_the_file_of_its_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the command is given a path from the working folder; a frozen encoder stays what it began with."""
    monkeypatch.chdir(tmp_path)
    expected = encoder_files(tmp_path)
    common = [*ONE, "--weights", "seed{seed}.safetensors", "--freeze", "encoder", "--seeds", "0", "1"]
    assert compare_decoders.main([*common, "--output", "out"]) == 0
    for row in read_rows(tmp_path / "out" / RESULTS):
        assert row["weights"] == str(tmp_path / "seed{seed}.safetensors")
        state = load_weights(tmp_path / "out" / "runs" / row["run"] / "last.pt", "cpu").model.model.encoder.state_dict()
        assert all(torch.equal(state[name], value) for name, value in expected[row["seed"]].items())


def test_files_that_are_missing_or_do_not_fit_are_refused_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "fit", lambda *_, **__: pytest.fail("must be refused before training"))
    file, output = str(tmp_path / "seed{seed}.safetensors"), tmp_path / "out"

    def refused(*options: str) -> str:
        assert compare_decoders.main([*ONE, "--weights", file, "--output", str(output), *options]) == 2
        assert not output.exists()
        return capsys.readouterr().err

    assert "--weights: " in (message := refused())
    assert str(tmp_path / "seed0.safetensors") in message
    swinx.register_encoder("swinx_n_deep", base="swinx_n", depths=(2, 2, 6, 2))
    encoder_files(tmp_path, "swinx_n_deep")
    assert "--weights: " in (message := refused())
    assert "(2, 2, 6, 2)" in message
    encoder_files(tmp_path)
    assert "seed2.safetensors" in refused("--seeds", "0", "2")
    assert "--weights must be a tag of smp's for resnet18, which is not swinx's" in refused("--encoders", "resnet18")
