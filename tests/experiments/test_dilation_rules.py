"""Dilation rules against a restatement of regular windows on the dense grid, with tables interpolated by formula."""

from dataclasses import replace
from functools import partial
from itertools import product

import pytest
import torch
from oracles import block, block_shift, padded_window_attention
from test_dilation import image, randomise, relative_error
from torch import Tensor

import swinx
from experiments.records.grid import DILATIONS
from experiments.training.dilation_rules import enlarged_table, set_rule
from swinx.config import VARIANTS, SwinConfig

WINDOW = (3, 4)
# At output stride 8 the grid of SIZE is 12 x 17: windows four times larger, 12 x 16, shift along one axis only.
SIZE = (89, 131)
SMALL = SwinConfig(16, (1, 1, 2, 3), (1, 2, 2, 4), WINDOW, 0.1, stem="none")


def cubic(distance: float) -> float:
    """Keys's kernel of 1981 with a = -0.75."""
    t, a = abs(distance), -0.75
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0.0


def interpolation(window: int, period: int) -> Tensor:
    """(2 d w - 1, 2 w - 1): each offset of the dense grid from those of the lattice; the border is repeated."""
    reach, own_reach = period * window - 1, window - 1
    matrix = torch.zeros(2 * reach + 1, 2 * own_reach + 1, dtype=torch.float64)
    for offset in range(-reach, reach + 1):
        for neighbour in range(-2 * window, 2 * window + 1):
            kept = min(max(neighbour, -own_reach), own_reach)
            matrix[offset + reach, kept + own_reach] += cubic(offset / period - neighbour)
    return matrix


def interpolated(table: Tensor, period: int) -> Tensor:
    plane = table.view(2 * WINDOW[0] - 1, 2 * WINDOW[1] - 1, -1)
    rows, columns = interpolation(WINDOW[0], period), interpolation(WINDOW[1], period)
    return torch.einsum("yi,xj,ijh->yxh", rows, columns, plane).flatten(0, 1)


def tables(encoder: swinx.SwinXEncoder) -> list[str]:
    return [name for name, _ in encoder.named_parameters() if name.endswith("bias_table")]


@pytest.mark.parametrize(("rule", "output_stride"), list(product(("dense", "enlarged"), (16, 8))))
@torch.no_grad()
def test_rules_equal_regular_windows_on_the_dense_grid(rule: str, output_stride: int) -> None:
    """Stage by stage, after our own merge, against undilated blocks with an explicitly interpolated bias table."""
    encoder = randomise(swinx.SwinXEncoder(SMALL, output_stride=output_stride))
    weights = encoder.state_dict()
    periods = [stage.period for stage in encoder.layers]
    set_rule(encoder, rule)
    _, x = encoder.patch_embed(image(*SIZE, batch=2))
    for index, (stage, period) in enumerate(zip(encoder.layers, periods, strict=True)):
        expected, shifts = stage.downsample(x), []
        factor = period if rule == "enlarged" else 1
        window = (factor * WINDOW[0], factor * WINDOW[1])
        for number in range(SMALL.depths[index]):
            name = f"layers.{index}.blocks.{number}"
            key = f"{name}.attn.relative_position_bias_table"
            own = weights | {key: interpolated(weights[key], factor)}
            shifts.append(block_shift(number, expected.shape[1:3], window))
            attend = partial(padded_window_attention, window_size=window, shift=shifts[-1])
            expected = block(own, name, expected, window, attend)
        x = stage(x)
        assert relative_error(x, expected) <= 1e-12, index
    last = {("dense", 16): (1, 2), ("dense", 8): (1, 2), ("enlarged", 16): (0, 4), ("enlarged", 8): (0, 8)}
    assert shifts == [(0, 0), last[rule, output_stride], (0, 0)]  # half of the window used, but not of a whole axis


@torch.no_grad()
def test_the_rules_are_different_networks_of_the_same_weights() -> None:
    outputs = {}
    for rule in DILATIONS:
        encoder = randomise(swinx.SwinXEncoder(SMALL, output_stride=16))
        set_rule(encoder, rule)
        outputs[rule] = encoder(image(*SIZE))
    for first, second in (("exact", "dense"), ("exact", "enlarged"), ("dense", "enlarged")):
        assert all(torch.equal(a, b) for a, b in zip(outputs[first][:-1], outputs[second][:-1], strict=True))
        assert relative_error(outputs[first][-1], outputs[second][-1]) > 0.05


@torch.no_grad()
def test_exact_changes_nothing_and_without_dilation_all_rules_are_one() -> None:
    for output_stride, rules in ((32, DILATIONS), (16, ("exact",))):
        encoder = randomise(swinx.SwinXEncoder(SMALL, output_stride=output_stride))
        weights, expected = encoder.state_dict(), encoder(image(*SIZE))
        for rule in rules:
            changed = randomise(swinx.SwinXEncoder(SMALL, output_stride=output_stride))
            set_rule(changed, rule)
            assert {key: value.shape for key, value in changed.state_dict().items()} == {
                key: value.shape for key, value in weights.items()
            }
            assert all(torch.equal(a, b) for a, b in zip(changed(image(*SIZE)), expected, strict=True))


@pytest.mark.parametrize("window", [(3, 4), (1, 2)])
@torch.no_grad()
def test_enlarged_windows_of_v2_keep_the_biases_of_tokens_a_period_apart(window: tuple[int, int]) -> None:
    config = replace(SMALL, version="v2", window_size=window, pretrained_window_size=(5, 1))
    exact, large = (randomise(swinx.SwinXEncoder(config, output_stride=8)) for _ in range(2))
    set_rule(large, "enlarged")
    for one, other, d in zip(exact.layers, large.layers, (1, 1, 2, 4), strict=True):
        assert other.window_size == (d * window[0], d * window[1])
        own = one.blocks[0].attn.position_bias(one.window_size).unflatten(2, one.window_size)
        attended = other.blocks[0].attn.position_bias(other.window_size).unflatten(2, other.window_size)
        attended = attended.unflatten(1, other.window_size)[:, ::d, ::d, ::d, ::d]  # one lattice of the window
        assert torch.allclose(attended.flatten(1, 2), own, rtol=0, atol=1e-12)
    assert {key: value.shape for key, value in large.state_dict().items()} == {
        key: value.shape for key, value in exact.state_dict().items()
    }


def test_an_unknown_rule_and_a_second_one_are_refused() -> None:
    encoder = swinx.SwinXEncoder(SMALL, output_stride=16)
    with pytest.raises(ValueError, match="rule must be one of exact, dense, enlarged, got 'wide'"):
        set_rule(encoder, "wide")
    assert [stage.period for stage in encoder.layers] == [1, 1, 1, 2]
    set_rule(encoder, "exact")
    set_rule(encoder, "dense")
    with pytest.raises(ValueError, match="must attend exactly before its rule is set to 'exact'"):
        set_rule(encoder, "exact")


@pytest.mark.parametrize("window", [(3, 4), (1, 2), (7, 7)])
@pytest.mark.parametrize("period", [2, 4])
def test_enlarged_tables_keep_the_biases_of_tokens_a_period_apart(window: tuple[int, int], period: int) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = (2 * window[0] - 1) * (2 * window[1] - 1)
    table = torch.randn(rows, 3, generator=generator, dtype=torch.float64)
    large = enlarged_table(table, window, period)
    plane = large.view(2 * period * window[0] - 1, 2 * period * window[1] - 1, 3)
    at_multiples = plane[period - 1 :: period, period - 1 :: period]  # offsets begin at 1 - d w, multiples at d - d w
    assert torch.allclose(at_multiples.flatten(0, 1), table, rtol=0, atol=1e-14)
    flat = enlarged_table(torch.full_like(table, 0.7), window, period)
    assert torch.allclose(flat, torch.full_like(flat, 0.7), rtol=0, atol=1e-14)


@pytest.mark.parametrize("output_stride", [16, 8])
def test_parameters_of_the_rules(output_stride: int) -> None:
    config = VARIANTS["swinx_n"]
    built = {rule: swinx.SwinXEncoder(config, output_stride=output_stride) for rule in DILATIONS}
    before = built["exact"].state_dict()
    grown = 0
    for depth, heads, nominal in zip(config.depths, config.num_heads, (4, 8, 16, 32), strict=True):
        d = max(nominal // output_stride, 1)
        grown += depth * heads * ((2 * d * 8 - 1) ** 2 - 15**2)
    for rule, encoder in built.items():
        set_rule(encoder, rule)
        after = encoder.state_dict()
        assert list(after) == list(before)
        difference = sum(after[key].numel() - before[key].numel() for key in before)
        assert difference == (grown if rule == "enlarged" else 0)
    assert grown == {16: 11776, 8: 65792}[output_stride]  # what the docstring says


@pytest.mark.parametrize("rule", DILATIONS)
def test_evaluation_equals_training_and_every_parameter_learns(rule: str) -> None:
    encoder = randomise(swinx.SwinXEncoder(SMALL, output_stride=8))
    set_rule(encoder, rule)
    with torch.no_grad():
        expected = encoder(image(*SIZE))  # a few windows at a time
    levels = encoder(image(*SIZE))
    for index, (level, other) in enumerate(zip(levels, expected, strict=True)):
        assert level.numel() == 0 or relative_error(level, other) <= 1e-12, index
    generator = torch.Generator().manual_seed(1)
    sum((level * torch.randn(level.shape, generator=generator)).sum() for level in levels[1:]).backward()
    gradients = {name: parameter.grad for name, parameter in encoder.named_parameters()}
    assert all(gradient is not None and gradient.abs().max() > 1e-6 for gradient in gradients.values())
    for name in tables(encoder):  # offsets from padding tokens only are left out: their rows of scores are not used
        assert (gradients[name].abs().amax(1) > 0).double().mean() > 0.5, name
