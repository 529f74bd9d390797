"""Costs by hand, and pictures that show what they should."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import swinx
from experiments.cells import Cell
from experiments.data import SegmentationData
from experiments.evaluation import (
    PLAIN,
    Inference,
    PeakMemory,
    flops,
    latency,
    parameters,
    save_data_panel,
    save_predictions,
)
from experiments.models import build_model
from experiments.training import Segmenter

CPU = torch.device("cpu")


def test_operations_and_parameters_by_hand() -> None:
    model = nn.Conv2d(3, 5, 3, padding=1)
    assert flops(model, torch.zeros(1, 3, 11, 13)) == 2 * 11 * 13 * 5 * 3 * 9
    assert parameters(model) == 5 * 3 * 9 + 5


def test_attention_is_counted_and_the_model_left_as_it_was() -> None:
    """On the CPU torch counts nothing for its fused attention; the products must show nevertheless."""
    model = Segmenter(build_model(Cell("swinx_n", "inline", "FPN", 32, 0), 3)).eval()
    image = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    before = {name: module.__dict__.copy() for name, module in model.named_modules()}
    counted = flops(model, image)
    assert {name: module.__dict__.copy() for name, module in model.named_modules()} == before

    swinx.set_attention(model, "reference")  # other implementations may project padding tokens besides
    linear = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal linear
        fan_in = module.weight[0].numel()
        linear += 2 * fan_in * output.numel()

    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.register_forward_hook(count)
    with torch.inference_mode():
        model(image)
    # Two products of window attention per block; 64 tokens a window on grids of 16, 8, 4 and 2, padded to 8.
    grids = {1: (256, 32), 2: (64, 64), 3: (64, 128), 4: (64, 256)}
    attention = sum(2 * 2 * 2 * tokens * 64 * channels for tokens, channels in grids.values())
    assert counted == pytest.approx(linear + attention, rel=1e-6)


def test_fused_attention_of_other_models_is_counted() -> None:
    class Attention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.scaled_dot_product_attention(x, x, x)

    assert flops(Attention(), torch.zeros(2, 3, 13, 8)) == 2 * 2 * 2 * 3 * 13 * 13 * 8


def test_latency_percentiles_are_ordered_and_positive() -> None:
    p20, p50, p80 = latency(nn.Conv2d(3, 4, 3), torch.zeros(1, 3, 32, 32), "32", warmup=1, runs=20)
    assert 0 < p20 <= p50 <= p80 < 1000


def test_peak_memory_sees_what_was_freed() -> None:
    memory = PeakMemory(CPU)
    before = memory.megabytes()
    block = torch.ones(50_000_000, dtype=torch.float32)
    del block
    assert memory.megabytes() > before + 150
    assert memory.scope.startswith("resident set")


def test_panel_shows_truth_and_prediction_in_the_sets_colors(toy: SegmentationData, tmp_path: Path) -> None:
    save_data_panel(tmp_path, toy)
    data = json.loads((tmp_path / "panel" / "data.json").read_text())
    assert data["class_names"] == list(toy.class_names)
    assert data["panel"] == list(toy.test.names)

    class Always(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.tensor([0.0, 0.0, 1.0]).view(1, 3, 1, 1).expand(1, 3, *images.shape[-2:])

    save_predictions(tmp_path / "cell", Always(), toy, CPU, inference=PLAIN, precision="32")
    truth = Image.open(tmp_path / "panel" / "03_truth.png").convert("RGB")
    assert truth.getpixel((0, 0)) == toy.colors[-1]
    assert truth.getpixel((40, 40)) == toy.colors[int(toy.test.masks[3, 40, 40])]
    image = Image.open(tmp_path / "panel" / "03_image.png")
    assert image.getpixel((40, 41)) == tuple(toy.test.images[3, :, 41, 40].tolist())
    predicted = Image.open(tmp_path / "cell" / "03.png").convert("RGB")
    assert predicted.getpixel((5, 5)) == toy.colors[2]


def test_panel_shows_what_is_scored(toy: SegmentationData, tmp_path: Path) -> None:
    class Sided(nn.Module):
        """Sure of class 0 in the left half, inclined to class 1 in the right."""

        def forward(self, images: Tensor) -> Tensor:
            logits = torch.zeros(1, 3, *images.shape[-2:])
            half = images.shape[-1] // 2
            logits[:, 0, :, :half] = 4
            logits[:, 1, :, half:] = 1
            return logits

    for inference, right in ((PLAIN, 1), (Inference(flip=True), 0)):
        save_predictions(tmp_path, Sided(), toy, CPU, inference=inference, precision="32")
        predicted = Image.open(tmp_path / "00.png").convert("RGB")
        assert predicted.getpixel((0, 0)) == toy.colors[0]
        assert predicted.getpixel((predicted.width - 1, 0)) == toy.colors[right]
