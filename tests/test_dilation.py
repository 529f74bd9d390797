"""Exactness of dilation: a dilated encoder holds the undilated one, phase by phase."""

import pytest
import torch
from oracles import dilated_stage_by_phases
from torch import Tensor

import swinx
from swinx.config import VARIANTS, SwinConfig

# swinx_t with one block in each stage that dilation leaves alone and two in the others
SMALL_T = SwinConfig(96, (1, 1, 2, 2), (3, 6, 12, 24), 7, 0.2)
# 67 x 101 is a size that smp's Unet lets through and that is ragged at every stage.
SIZES = [(224, 224), (256, 256), (352, 480), (360, 480), (464, 464), (67, 101)]


def randomise(encoder: swinx.SwinXEncoder, seed: int = 0) -> swinx.SwinXEncoder:
    """float64, every parameter random, bias tables large: an error anywhere shows in every output."""
    generator = torch.Generator().manual_seed(seed)
    encoder = encoder.double().eval()
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            scale = 3.0 if name.endswith("bias_table") else 0.5 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
            if parameter.ndim == 1 and name.endswith("weight"):
                parameter.add_(1.0)
    return encoder


def image(height: int, width: int, batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(height + width)
    return torch.randn(batch, 3, height, width, generator=generator, dtype=torch.float64)


def relative_error(value: Tensor, expected: Tensor) -> float:
    return ((value - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize(
    ("config", "window"),
    [(VARIANTS["swinx_n"], 8), (SMALL_T, 7)],
    ids=["n-w8", "t-w7"],
)
@torch.no_grad()
def test_first_phase_of_every_dilated_level_is_the_undilated_level(config: SwinConfig, window: int) -> None:
    from dataclasses import replace

    encoder = randomise(swinx.SwinXEncoder(replace(config, window_size=window)))
    for size in SIZES:
        x = image(*size)
        encoder.make_dilated(32)
        undilated = encoder(x)
        for output_stride in (16, 8):
            encoder.make_dilated(output_stride)
            levels = encoder(x)
            for index, info in enumerate(encoder.feature_info):
                d = info.period
                assert info.stride <= output_stride
                first_phase = levels[index][..., ::d, ::d]
                assert relative_error(first_phase, undilated[index]) <= 1e-12, (size, output_stride, index)


@torch.no_grad()
def test_full_swinx_t_at_both_strides() -> None:
    encoder = randomise(swinx.SwinXEncoder(VARIANTS["swinx_t"]))
    x = image(224, 224)
    undilated = encoder(x)[-1]
    for output_stride, period in ((16, 2), (8, 4)):
        encoder.make_dilated(output_stride)
        assert relative_error(encoder(x)[-1][..., ::period, ::period], undilated) <= 1e-12


@pytest.mark.parametrize(("output_stride", "period"), [(16, 2), (8, 4)])
@pytest.mark.parametrize("size", [(96, 160), (224, 224), (352, 480)])
@torch.no_grad()
def test_every_phase_is_the_undilated_stage_on_the_shifted_incoming_lattice(
    size: tuple[int, int], output_stride: int, period: int
) -> None:
    """Both sides are ours: the undilated stage runs on the incoming lattice without its first rows and columns."""
    encoder = randomise(swinx.SwinXEncoder(VARIANTS["swinx_n"]))
    _, x = encoder.patch_embed(image(*size))
    incoming = 1
    for index, stage in enumerate(encoder.layers):
        encoder.make_dilated(output_stride)
        dilated = stage(x)
        d = max(4 * 2**index // output_stride, 1)
        encoder.make_dilated(32)
        if d == incoming:
            for p in range(d):
                for q in range(d):
                    assert relative_error(dilated[:, p::d, q::d], stage(x[:, p::d, q::d])) <= 1e-12
        else:
            for p in range(incoming):
                for q in range(incoming):
                    lattice = x[:, p::incoming, q::incoming]
                    for t in range(2):
                        for u in range(2):
                            got = dilated[:, p + incoming * t :: d, q + incoming * u :: d]
                            expected = stage(lattice[:, t:, u:].contiguous())
                            assert relative_error(got, expected) <= 1e-12, (index, p, q, t, u)
        x, incoming = dilated, d
    assert incoming == period


@pytest.mark.parametrize(("index", "incoming"), [(2, 1), (3, 1), (3, 2)])
@torch.no_grad()
def test_dilated_stages_equal_the_oracle_by_phases(index: int, incoming: int) -> None:
    config = VARIANTS["swinx_n"]
    encoder = randomise(swinx.SwinXEncoder(config))
    weights = encoder.state_dict()
    stage = encoder.layers[index]
    stage.set_period(incoming, 2 * incoming)
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(2, 24, 40, config.embed_dim * 2 ** (index - 1), generator=generator, dtype=torch.float64)
    expected = dilated_stage_by_phases(weights, x, index, incoming, config.depths, config.num_heads, 8)
    assert relative_error(stage(x), expected) <= 1e-12


@torch.no_grad()
def test_a_merge_spaced_by_the_new_period_would_be_caught() -> None:
    """The rule that is easy to get wrong: taps are spaced by the period that comes in."""
    encoder = randomise(swinx.SwinXEncoder(VARIANTS["swinx_n"]))
    x = image(224, 224)
    undilated = encoder(x)[-1]
    encoder.make_dilated(16)
    encoder.layers[3].downsample.spacing = 2
    assert relative_error(encoder(x)[-1][..., ::2, ::2], undilated) > 0.1
