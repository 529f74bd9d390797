"""Features against timm where it computes the same, and against the official rule everywhere."""

from dataclasses import replace

import pytest
import timm
import torch
from oracles import official_stage_outputs, random_swin_state_dict
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor

import swinx
from swinx.config import VARIANTS, SwinConfig


def stages_of_timm(model: SwinTransformer, x: Tensor) -> list[Tensor]:
    outputs, x = [], model.patch_embed(x)
    for layer in model.layers:
        x = layer(x)
        outputs.append(x)
    return outputs


def stages_of_swinx(encoder: swinx.SwinXEncoder, x: Tensor) -> list[Tensor]:
    _, x = encoder.patch_embed(x)
    outputs = []
    for layer in encoder.layers:
        x = layer(x)
        outputs.append(x)
    return outputs


@pytest.mark.parametrize(
    ("name", "timm_name", "size"),
    [
        ("swinx_t", "swin_tiny_patch4_window7_224", 224),
        ("swinx_b", "swin_base_patch4_window7_224", 224),
        ("swinx_b_w12", "swin_base_patch4_window12_384", 384),
    ],
)
@torch.no_grad()
def test_features_equal_timm_with_the_same_weights(name: str, timm_name: str, size: int) -> None:
    torch.manual_seed(0)
    theirs = timm.create_model(timm_name, pretrained=False).eval()
    for parameter_name, parameter in theirs.named_parameters():
        if parameter_name.endswith(("bias_table", "qkv.bias")):
            parameter.normal_()
    ours = swinx.SwinXEncoder(VARIANTS[name]).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, size, size)
    expected = stages_of_timm(theirs, x)
    for stage, (got, want) in enumerate(zip(stages_of_swinx(ours, x), expected, strict=True)):
        assert (got - want).abs().max() / want.abs().max() <= 1e-5, stage
    # timm's final norm is the norm of our last level; the norms of the others start as plain normalisation.
    levels = ours(x)
    torch.testing.assert_close(levels[5].permute(0, 2, 3, 1), theirs.norm(expected[-1]), rtol=1e-4, atol=1e-4)
    for level, want in zip(levels[2:5], expected[:3], strict=True):
        plain = torch.nn.functional.layer_norm(want, want.shape[-1:])
        torch.testing.assert_close(level.permute(0, 2, 3, 1), plain, rtol=1e-4, atol=1e-4)


CONFIG = SwinConfig(32, (2, 2, 2, 2), (1, 2, 4, 8), 7, 0.0)


@pytest.mark.parametrize("impl", ["reference", "sdpa"])
@pytest.mark.parametrize("window", [7, 8, (4, 5)])
@pytest.mark.parametrize("size", [(224, 224), (360, 480), (101, 67), (33, 4), (29, 263)])
@torch.no_grad()
def test_stages_follow_the_official_padding_rule_at_any_size(
    size: tuple[int, int], window: int | tuple[int, int], impl: str
) -> None:
    generator = torch.Generator().manual_seed(3)
    weights = random_swin_state_dict(32, CONFIG.depths, CONFIG.num_heads, window, generator)
    encoder = swinx.SwinXEncoder(replace(CONFIG, window_size=window)).double().eval()
    encoder.load_state_dict(weights | {f"norm.{k}": v for k, v in encoder.norms[3].state_dict().items()})
    swinx.set_attention(encoder, impl)
    x = torch.randn(2, 3, *size, generator=generator, dtype=torch.float64)
    expected = official_stage_outputs(weights, x, CONFIG.depths, CONFIG.num_heads, window)
    for got, want in zip(stages_of_swinx(encoder, x), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_no_border_sees_the_opposite_border() -> None:
    """timm's Swin fails this at 360 x 480: it rolls before it pads, so a ragged grid wraps around."""
    encoder = swinx.SwinXEncoder(CONFIG).double().eval()
    torch.manual_seed(0)
    x = torch.randn(1, 3, 360, 480, dtype=torch.float64)
    clean = encoder(x)[2]  # stage 1: two blocks, windows of 7 tokens, so a change reaches at most 14 tokens
    reach = 14
    changes = {"top": (0, 2), "bottom": (359, 2), "left": (0, 3), "right": (479, 3)}
    for border, (position, axis) in changes.items():
        changed = x.clone()
        changed.select(axis, position).add_(1.0)
        difference = (encoder(changed)[2] - clean).abs().amax(dim=(0, 1))  # (90, 120)
        touched = difference.amax(dim=3 - axis).nonzero().flatten()
        length = difference.shape[axis - 2]
        assert len(touched) > 0
        if border in ("top", "left"):
            assert touched.max() < reach
        else:
            assert touched.min() >= length - reach
