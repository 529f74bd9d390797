"""Costs by hand."""

import pytest
import torch
from torch import Tensor, nn

import swinx
from experiments.evaluation.cost import flops, latency
from experiments.records.grid import Run
from experiments.training.models import Segmenter, build_model


def test_operations_by_hand() -> None:
    model = nn.Conv2d(3, 5, 3, padding=1)
    assert flops(model, torch.zeros(1, 3, 11, 13)) == 2 * 11 * 13 * 5 * 3 * 9


def test_attention_is_counted_and_the_model_left_as_it_was() -> None:
    """On the CPU torch counts nothing for its fused attention; the products must show nevertheless."""
    model = Segmenter(build_model(Run("swinx_n", "inline", "FPN", 32, 0), 3)).eval()
    image = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    before = {name: module.__dict__.copy() for name, module in model.named_modules()}
    counted = flops(model, image)
    assert {name: module.__dict__.copy() for name, module in model.named_modules()} == before

    swinx.set_attention(model, "reference")  # other implementations may project padding tokens besides
    linear = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal linear
        linear += 2 * module.weight[0].numel() * output.numel()

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
    p20, p50, p80 = latency(nn.Conv2d(3, 4, 3), torch.zeros(1, 3, 32, 32), "32", seconds=0.05)
    assert 0 < p20 <= p50 <= p80 < 1000
