"""Centred levels: coordinates go in, the coordinates that decoders assume come out."""

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from test_dilation import image, randomise

import swinx
from experiments.training.dilation_rules import centre_levels, shifted_back
from swinx.config import STEMS, VARIANTS, SwinConfig

SIZE = (89, 131)
SMALL = SwinConfig(16, (1, 1, 2, 3), (1, 2, 2, 4), (3, 4), 0.1, stem="none")


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("output_stride", [32, 16, 8])
def test_a_ramp_gives_the_coordinates_of_the_aligned_centres(stem: str, output_stride: int) -> None:
    """Levels that hold the coordinates of their tokens, in pixels, come out as the coordinates decoders assume."""
    encoder = swinx.SwinXEncoder(replace(VARIANTS["swinx_n"], stem=stem), output_stride=output_stride)
    centre_levels(encoder)
    ramps = []
    for info in encoder.feature_info:
        y, x = (info.offset + info.stride * torch.arange(n, dtype=torch.float64) for n in (7, 11))
        ramps.append(torch.stack(torch.meshgrid(y, x, indexing="ij"))[None])
    encoder.forward = lambda _: ramps  # type: ignore[method-assign]
    resampled = 0
    for info, ramp, level in zip(encoder.feature_info, ramps, encoder(torch.zeros(1, 3, 4, 4)), strict=True):
        if info.period == 1:
            assert level is ramp
            continue
        resampled += 1
        displacement = info.offset / info.stride - 0.5
        border = math.ceil(displacement)
        assert 0 < displacement < 2
        for axis, size in enumerate((7, 11)):
            values = level[0, axis].movedim(axis, 0)[:, 2]
            assert values[border:].tolist() == [(i + 0.5) * info.stride for i in range(border, size)]
            assert values[0] == info.offset
    assert resampled == {32: 0, 16: 1, 8: 2}[output_stride]


@pytest.mark.parametrize("tokens", [0.5, 1.5, 0.40625])
@pytest.mark.parametrize("size", [(7, 11), (2, 1)])
def test_resampling_is_torchs_bilinear_sampling(tokens: float, size: tuple[int, int]) -> None:
    level = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y, x = (2 * (torch.arange(n, dtype=torch.float64) - tokens + 0.5) / n - 1 for n in size)
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1).expand(2, *size, 2)
    expected = F.grid_sample(level, grid, padding_mode="border", align_corners=False)
    assert torch.allclose(shifted_back(level, tokens), expected, rtol=0, atol=1e-13)


def test_centred_levels_follow_make_dilated_and_keep_the_weights() -> None:
    config = replace(SMALL, drop_path_rate=0.0)
    encoder, plain = (randomise(swinx.SwinXEncoder(config)) for _ in range(2))
    keys = list(encoder.state_dict())
    centre_levels(encoder)
    assert list(encoder.state_dict()) == keys
    for output_stride, training in product((32, 16, 8, 32), (True, False)):
        encoder.make_dilated(output_stride)
        plain.make_dilated(output_stride)
        levels, expected = encoder.train(training)(image(*SIZE)), plain.train(training)(image(*SIZE))
        assert levels[1].shape == (1, 0, 45, 66)
        for level, other, info in zip(levels, expected, plain.feature_info, strict=True):
            if info.period > 1:
                other = shifted_back(other, info.offset / info.stride - 0.5)
            assert torch.equal(level, other)
    encoder.make_dilated(8)
    encoder(image(*SIZE))[-1].square().sum().backward()
    assert encoder.layers[3].downsample.norm.weight.grad.abs().min() > 0
