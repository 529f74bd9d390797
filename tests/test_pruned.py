"""Blocks that are left out, removed or exchanged, and attention with fewer heads: the same as in timm's Swin, by value.

That all modes agree on them is tested in `tests/test_modes.py`.
"""

import copy
import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import modifications
import pytest
import torch
from layouts import DEPTHS, EMBED, HEADS
from releases import DYNAMIC_EXPORT
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import Tensor, nn
from torch.export import Dim

import swinx
from swinx import plans
from swinx.config import VARIANTS
from swinx.layers import SwinBlock


def remove_first(layers: Any) -> None:
    del layers[1].blocks[0]


def remove_middle(layers: Any) -> None:
    del layers[2].blocks[1]


def remove_all(layers: Any) -> None:
    del layers[1].blocks[0], layers[1].blocks[0]


def exchange(layers: Any) -> None:
    blocks = layers[1].blocks
    blocks[0], blocks[1] = blocks[1], blocks[0]


def repeat(layers: Any) -> None:
    layers[0].blocks.append(copy.deepcopy(layers[0].blocks[0]))


def leave_out(layers: Any) -> None:
    layers[1].blocks[1] = nn.Identity()


def leave_out_all(layers: Any) -> None:
    for index in range(len(layers[1].blocks)):
        layers[1].blocks[index] = nn.Identity()


CHANGES = [remove_first, remove_middle, remove_all, exchange, repeat, leave_out, leave_out_all]


def pair(version: str) -> tuple[swinx.SwinXEncoder, nn.Module]:
    """Ours and timm's, of the same weights; grids of an image of 128 x 128 divide into windows."""
    torch.manual_seed(4)
    kind = SwinTransformer if version == "v1" else SwinTransformerV2
    sizes: dict[str, Any] = {"embed_dim": EMBED, "depths": DEPTHS, "num_heads": HEADS, "window_size": 4}
    theirs = kind(img_size=128, drop_path_rate=0.0, **sizes)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    ours = swinx.SwinXEncoder(swinx.SwinConfig(**sizes, drop_path_rate=0.0, version=version))  # type: ignore[arg-type]
    ours.load_state_dict(theirs.state_dict())
    return ours.double().eval(), theirs.double().eval()


def outputs(model: Any, tokens: Tensor) -> list[Tensor]:
    """Of every stage."""
    grids = [tokens]
    for layer in model.layers:
        grids.append(layer(grids[-1]))
    return [grid.detach() for grid in grids[1:]]


def assert_near(got: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("change", CHANGES)
def test_blocks_removed_exchanged_and_left_out_are_those_of_timm(
    change: Callable[[Any], None], version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = pair(version)
    image = torch.randn(2, 3, 128, 128, dtype=torch.float64)
    tolerance = 1e-10 if version == "v1" else 1e-6  # timm's V2 keeps offsets and the largest scale in float32
    with torch.no_grad():
        before, tokens = outputs(theirs, theirs.patch_embed(image)), ours.patch_embed(image)[1]
        change(theirs.layers)
        expected = outputs(theirs, theirs.patch_embed(image))
    assert max((one - other).abs().max() for one, other in zip(before, expected, strict=True)) > 0.01
    change(ours.layers)
    monkeypatch.setattr(plans, "TOKENS_PER_SLICE", 50)
    plans.kept_slices.cache_clear()
    with torch.no_grad():
        assert_near(outputs(ours, tokens), expected, tolerance)
    plans.kept_slices.cache_clear()
    assert_near(outputs(ours, tokens), expected, tolerance)
    assert_near(outputs(ours.train(), tokens), expected, tolerance)
    ours.set_grad_checkpointing()
    assert_near(outputs(ours, tokens), expected, tolerance)


@pytest.mark.parametrize("stride", [8, 32])
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_block_left_out_leaves_tokens_as_they_are(version: str, stride: int) -> None:
    """As one whose branches add nothing."""
    encoder = modifications.encoder(version)
    encoder.make_dilated(stride)
    silent = copy.deepcopy(encoder)
    block = silent.layers[1].blocks[1]
    for layer in (block.attn.proj, block.mlp.fc2) if version == "v1" else (block.norm1, block.norm2):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    encoder.layers[1].blocks[1] = nn.Identity()
    x = torch.randn(2, 3, 61, 93, dtype=torch.float64)
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            assert_near(encoder(x), silent(x), 1e-11)


@pytest.mark.parametrize("stride", [8, 32])
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_attention_left_out_leaves_its_residual(version: str, stride: int) -> None:
    stage = modifications.encoder(version).layers[1]
    stage.set_period(1, 32 // stride)
    block = stage.blocks[1]
    del stage.blocks[0]
    x = torch.randn(2, 13, 17, 32, dtype=torch.float64)
    merged = stage.downsample(x)
    halfway = merged + block.norm1(merged)
    branch = block.mlp(block.norm2(halfway)) if version == "v1" else block.norm2(block.mlp(halfway))
    block.attn = nn.Identity()
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            torch.testing.assert_close(stage(x), halfway + branch, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_pruned_head_adds_nothing(version: str) -> None:
    encoder = modifications.encoder(version)
    silent = copy.deepcopy(encoder)
    attention = silent.layers[1].blocks[0].attn
    with torch.no_grad():
        attention.proj.weight.unflatten(1, (2, -1))[:, 0] = 0
    x = torch.randn(2, 3, 61, 93, dtype=torch.float64)
    assert (encoder(x)[-1] - silent(x)[-1]).abs().max() > 0.01
    modifications.prune_heads(encoder.layers[1].blocks[0].attn, [1])
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            assert_near(encoder(x), silent(x), 1e-11)


def wrap_shifted(stage: Any) -> None:
    stage.blocks[1] = modifications.Around(stage.blocks[1])
    del stage.blocks[0]


PRUNED: dict[str, Callable[[Any], Any]] = {
    "first block removed": lambda stage: stage.blocks.__delitem__(0),
    "wrapped and then alone": wrap_shifted,
    "all blocks removed": lambda stage: stage.blocks.__delitem__(slice(0, 2)),
    "block left out": lambda stage: stage.blocks.__setitem__(1, nn.Identity()),
    "attention left out": lambda stage: setattr(stage.blocks[1], "attn", nn.Identity()),
    "heads pruned": lambda stage: modifications.prune_heads(stage.blocks[1].attn, [1]),
    "heads pruned in a wrapper": lambda stage: (
        modifications.prune_heads(stage.blocks[1].attn, [1]),
        stage.blocks.__setitem__(1, modifications.Around(stage.blocks[1])),
    ),
}


@DYNAMIC_EXPORT
@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("name", list(PRUNED))
def test_a_program_of_a_pruned_stage_takes_every_size(name: str, version: str) -> None:
    stage = modifications.encoder(version).layers[1]
    PRUNED[name](stage)
    dynamic = dict.fromkeys(range(3), Dim.DYNAMIC)
    grid = torch.randn(2, 31, 43, 32, dtype=torch.float64)
    program = torch.export.export(stage, (grid,), dynamic_shapes=(dynamic,), strict=False).module()
    for shape in ((2, 31, 43), (1, 29, 13), (3, 5, 7)):
        grid = torch.randn(*shape, 32, dtype=torch.float64)
        with torch.no_grad():
            torch.testing.assert_close(program(grid), stage(grid), rtol=1e-11, atol=1e-11)


def test_the_shift_travels_with_a_block_and_is_no_weight() -> None:
    torch.manual_seed(0)
    encoder = swinx.SwinXEncoder(replace(VARIANTS["swinx_n"], stem="none")).eval()
    assert not [key for key in encoder.state_dict() if "shift" in key]
    remove_first(encoder.layers)
    file = io.BytesIO()
    torch.save(encoder, file)
    file.seek(0)
    x = torch.randn(1, 3, 61, 93)
    for copied in (copy.deepcopy(encoder), torch.load(file, weights_only=False)):
        assert_near(copied(x)[1:], encoder(x)[1:], 0.0)
    shifts = [[block.shifted for block in stage.blocks] for stage in encoder.layers]
    assert shifts == [[False, True], [True], [False, True], [False, True]]


def test_a_whole_model_pickled_before_blocks_knew_their_shift_fails() -> None:
    encoder = swinx.SwinXEncoder(VARIANTS["swinx_n"]).eval()
    for module in encoder.modules():
        if isinstance(module, SwinBlock):
            del module.shifted
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients), pytest.raises(AttributeError, match="no attribute 'shifted'"):
            encoder(torch.randn(1, 3, 61, 93))


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("name", list(PRUNED))
def test_a_pruned_encoder_takes_its_own_weights_and_no_others(name: str, version: str) -> None:
    whole = modifications.encoder(version)
    encoder = copy.deepcopy(whole)
    PRUNED[name](encoder.layers[1])
    other = copy.deepcopy(encoder)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(encoder.state_dict())
    x = torch.randn(2, 3, 61, 93, dtype=torch.float64)
    assert_near(other(x), encoder(x), 0)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ValueError, match="checkpoint"):
        other.load_state_dict(whole.state_dict())
    torch.testing.assert_close(other.state_dict(), before, rtol=0, atol=0)
    groups = swinx.parameter_groups(encoder, 1e-3, layer_decay=0.5)
    assert sum(len(group["params"]) for group in groups) == len(list(encoder.parameters()))
