"""What the parameters of a new encoder are: those of the official code, with which training from scratch begins."""

import pytest
import torch
from torch import Tensor, nn

import swinx
from swinx.config import VARIANTS

VERSIONS = ["swinx_n", "swinx_v2_n"]


def new(name: str) -> swinx.SwinXEncoder:
    torch.manual_seed(0)
    return swinx.SwinXEncoder(VARIANTS[name])


def assert_normal(values: Tensor, std: float) -> None:
    """Mean and standard deviation within five standard errors."""
    count = values.numel()
    assert abs(float(values.mean())) < 5 * std / count**0.5
    assert abs(float(values.std()) - std) < 5 * std / (2 * count) ** 0.5


@pytest.mark.parametrize("name", VERSIONS)
def test_linear_layers_and_bias_tables_are_normal_and_biases_zero(name: str) -> None:
    encoder = new(name)
    linear = [module for module in encoder.layers.modules() if isinstance(module, nn.Linear)]
    assert len(linear) == sum(VARIANTS[name].depths) * (4 if name == "swinx_n" else 6) + 3
    for module in linear:
        assert_normal(module.weight.detach(), 0.02)
        assert module.bias is None or not module.bias.any()
    parameters = dict(encoder.layers.named_parameters())
    tables = [value for key, value in parameters.items() if key.endswith("bias_table")]
    assert len(tables) == (sum(VARIANTS[name].depths) if name == "swinx_n" else 0)
    for table in tables:
        assert_normal(table.detach(), 0.02)
    assert not any(value.any() for key, value in parameters.items() if key.endswith(("q_bias", "v_bias")))


@pytest.mark.parametrize("name", VERSIONS)
def test_norms_start_as_the_identity_but_those_of_v2_s_blocks_at_zero(name: str) -> None:
    norms = {key: module for key, module in new(name).named_modules() if isinstance(module, nn.LayerNorm)}
    assert len(norms) == 2 * sum(VARIANTS[name].depths) + 3 + 3 + 4  # of blocks, merges, the stem, levels
    for key, norm in norms.items():
        assert norm.weight.eq(0.0 if name == "swinx_v2_n" and ".blocks." in key else 1.0).all(), key
        assert not norm.bias.any(), key


def test_a_new_stage_of_v2_gives_what_it_is_given() -> None:
    x = torch.randn(1, 11, 13, 32)
    with torch.no_grad():
        assert torch.equal(new("swinx_v2_n").layers[0](x), x)
        assert not torch.equal(new("swinx_n").layers[0](x), x)


def test_cosines_start_with_a_scale_of_10() -> None:
    for stage in new("swinx_v2_n").layers:
        for block in stage.blocks:
            torch.testing.assert_close(block.attn.cosine_scale(), torch.full((stage.num_heads,), 10.0))
