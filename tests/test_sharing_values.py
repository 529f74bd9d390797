"""Numbers that go along with a saved model: statistics of images, metrics, and weights of any kind."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from decoders import build, image
from test_sharing import output, refused_saving

import swinx
from swinx.registry import IMAGENET


def test_preprocessing_of_pretrained_weights_is_saved(tmp_path: Path) -> None:
    model = build("Unet", 32)
    model.config["encoder_weights"] = "imagenet"  # what smp keeps after downloading
    swinx.save_pretrained(model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["encoder_weights"] is None
    assert swinx.from_pretrained(tmp_path).preprocessing == IMAGENET


@pytest.mark.parametrize("kind", [np.array, torch.tensor, lambda v: [np.float32(x) for x in v]])
def test_statistics_of_bands_come_back_as_numbers(kind: Any, tmp_path: Path) -> None:
    model = build("Unet", 32, in_channels=4)
    mean, std = [100.0, 0.5, -7.25, 3000.0], [30.0, 0.25, 2.0, 512.0]
    given = {"mean": kind(mean), "std": kind(std), "input_space": "RGB", "input_range": kind([0, 4095])}
    swinx.save_pretrained(model, tmp_path, preprocessing=given)
    opened = swinx.from_pretrained(tmp_path).preprocessing
    assert opened == {"mean": mean, "std": std, "input_space": "RGB", "input_range": [0, 4095]}
    pixels = np.arange(24.0).reshape(2, 3, 4) * 100
    scaled = smp.encoders.preprocess_input(pixels, **opened)
    assert np.array_equal(scaled, (pixels - np.array(mean)) / np.array(std))


def test_statistics_that_would_scale_twice_are_not_saved(tmp_path: Path) -> None:
    model = build("Unet", 32)
    pixels = IMAGENET | {"mean": [0.5, 0.5, 100.0]}
    message = r"mean must be at most 1 where input_range ends in 1, .* got \[0.5, 0.5, 100.0\]: .* such as \[0, 255\]"
    refused_saving(model, message, tmp_path, preprocessing=pixels)
    for input_range in ([0, 255], [-1, 2]):
        swinx.save_pretrained(model, tmp_path, preprocessing=pixels | {"input_range": input_range})
    swinx.save_pretrained(model, tmp_path, preprocessing=pixels | {"mean": [0.5, 0.5, 1.0]})


def test_numbers_of_numpy_and_torch_are_metrics(tmp_path: Path) -> None:
    metrics = {"miou": np.float32(0.5), "classes": np.array([0.25, 1.0]), "loss": torch.tensor(2.0), "epoch": 3}
    model = build("Unet", 32)
    swinx.save_pretrained(model, tmp_path, metrics=metrics)
    shown = (tmp_path / "README.md").read_text().partition('```json\n{\n    "miou')[2].partition("```")[0]
    assert json.loads('{"miou' + shown) == {"miou": 0.5, "classes": [0.25, 1.0], "loss": 2.0, "epoch": 3}
    for metrics in ({"miou": object()}, {(1, 2): 0.5}):
        refused_saving(model, "^metrics must be what JSON can say ", tmp_path, metrics=metrics)


def test_weights_in_two_places_open_with_the_same_outputs(tmp_path: Path) -> None:
    model, x = build("Unet", 32), image(1, 3, 64, 96)
    blocks = model.encoder.layers[0].blocks
    blocks[1].mlp.fc1.weight = blocks[0].mlp.fc1.weight
    blocks[1].mlp.fc2.weight.data = blocks[0].mlp.fc2.weight.data
    swinx.save_pretrained(model, tmp_path)
    opened = swinx.from_pretrained(tmp_path)
    assert torch.equal(output(opened, x), output(model, x))
    assert torch.equal(output(smp.from_pretrained(tmp_path), x), output(model, x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_model_opens_in_the_default_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    model = build("Unet", 32).to(dtype)
    swinx.save_pretrained(model, tmp_path)
    opened = swinx.from_pretrained(tmp_path)
    assert {value.dtype for value in opened.parameters()} == {torch.float32}
    for key, value in opened.state_dict().items():
        assert torch.equal(value, model.state_dict()[key].to(value.dtype)), key


@pytest.mark.parametrize("channels", [1, 6])
def test_statistics_of_three_channels_are_not_saved_for_others(channels: int, tmp_path: Path) -> None:
    model, x = build("Unet", 32, in_channels=channels), image(1, channels, 64, 96)
    model.config["encoder_weights"] = "imagenet"
    swinx.save_pretrained(model, tmp_path)
    opened = swinx.from_pretrained(tmp_path)
    assert opened.preprocessing is None
    assert torch.equal(output(opened, x), output(model, x))
