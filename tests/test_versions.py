"""Swin V2 and S3: features against timm's and against the restated rules, dilation, windows, decoders, checkpoints."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from decoders import DECODERS, build, image
from oracles import random_swin_state_dict
from oracles_v2 import random_swin_v2_state_dict, v2_stage_outputs
from releases import needs
from torch import Tensor, nn

import swinx
from swinx.config import VARIANTS, SwinConfig, changed
from swinx.plans import WindowPlan

PUBLISHED = {
    **{f"swinx_s3_{size[0]}": (f"swin_s3_{size}_224", 224) for size in ("tiny", "small", "base")},
    **{f"swinx_v2_{size[0]}": (f"swinv2_{size}_window8_256", 256) for size in ("tiny", "small", "base")},
    **{f"swinx_v2_{size[0]}_w16": (f"swinv2_{size}_window16_256", 256) for size in ("tiny", "small", "base")},
    **{f"swinx_v2_{size[0]}_w12": (f"swinv2_{size}_window12_192", 192) for size in ("base", "large")},
    **{f"swinx_v2_{size[0]}_w12to16": (f"swinv2_{size}_window12to16_192to256", 256) for size in ("base", "large")},
    **{f"swinx_v2_{size[0]}_w12to24": (f"swinv2_{size}_window12to24_192to384", 384) for size in ("base", "large")},
}
SMALL = SwinConfig(16, (1, 2, 2, 1), (1, 2, 4, 8), (5, 4, (3, 4), 2), 0.0)
SMALL_V2 = replace(SMALL, version="v2", pretrained_window_size=((4, 4), (3, 5), (3, 4), (1, 2)))


def disturb(model: nn.Module) -> None:
    """Large position biases, biases of projections, norms and scales, as training makes them."""
    for name, parameter in model.named_parameters():
        if name.endswith(("bias_table", "qkv.bias", "q_bias", "v_bias")):
            nn.init.normal_(parameter)
        elif "cpb_mlp" in name:
            nn.init.normal_(parameter, std=0.3)
        elif name.endswith("logit_scale"):
            nn.init.uniform_(parameter, 1.0, 5.0)  # the largest allowed is ln 100, about 4.6
        elif ".norm" in name and name.endswith("weight"):
            nn.init.uniform_(parameter, 0.5, 1.5)


def test_every_new_variant_that_was_published_is_compared() -> None:
    assert set(PUBLISHED) | {"swinx_v2_n"} == {name for name in VARIANTS if "_s3_" in name or "_v2_" in name}


# One of each set of windows; the next test compares the other sizes of all.
@pytest.mark.parametrize(
    "name", ["swinx_s3_t", "swinx_s3_s", *(name for name in PUBLISHED if "v2_t" in name or "v2_b_" in name)]
)
@torch.no_grad()
def test_features_equal_timm_with_the_same_weights(name: str) -> None:
    timm_name, side = PUBLISHED[name]
    sizes: dict[str, Any] = {"embed_dim": 32, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 8)}
    torch.manual_seed(0)
    theirs = timm.create_model(timm_name, pretrained=False, **sizes).eval()
    disturb(theirs)
    ours = swinx.SwinXEncoder(replace(VARIANTS[name], **sizes)).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, side, side)
    _, tokens = ours.patch_embed(x)
    expected = theirs.patch_embed(x)
    for stage, (mine, layer) in enumerate(zip(ours.layers, theirs.layers, strict=True)):
        tokens, expected = mine(tokens), layer(expected)
        assert (tokens - expected).abs().max() / expected.abs().max() <= 1e-5, stage
    torch.testing.assert_close(ours(x)[5].permute(0, 2, 3, 1), theirs.norm(expected), rtol=1e-4, atol=1e-4)


@needs("timm", "1.0.21", "cannot be built on the meta device before it")
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_architecture_is_timms(name: str) -> None:
    with torch.device("meta"):
        ours = swinx.SwinXEncoder(VARIANTS[name])
        theirs = timm.create_model(PUBLISHED[name][0], pretrained=False)
    shapes = {key: value.shape for key, value in ours.state_dict().items() if not key.startswith("norms.")}
    wanted = {key: v.shape for key, v in theirs.state_dict().items() if not key.startswith(("norm.", "head."))}
    assert shapes == wanted
    windows = [layer.blocks[0].window_size for layer in theirs.layers]
    assert [stage.window_size for stage in ours.config.stages] == windows
    if "12to" in name:  # timm does not clamp these to the grid at which they were trained; the weights were made by it
        units = [layer.blocks[0].attn.pretrained_window_size for layer in theirs.layers]
        assert [stage.pretrained_window_size for stage in ours.config.stages] == units


@pytest.mark.parametrize("impl", ["reference", "sdpa", "auto"])
@pytest.mark.parametrize("size", [(224, 224), (101, 67), (33, 4), (29, 263)])
@torch.no_grad()
def test_v2_follows_the_restated_rules_at_any_size(size: tuple[int, int], impl: str) -> None:
    windows = [stage.window_size for stage in SMALL_V2.stages]
    pretrained = [stage.pretrained_window_size for stage in SMALL_V2.stages]
    generator = torch.Generator().manual_seed(3)
    weights = random_swin_v2_state_dict(16, SMALL_V2.depths, SMALL_V2.num_heads, generator)
    encoder = swinx.SwinXEncoder(SMALL_V2).double().eval()
    encoder.load_state_dict(weights)
    swinx.set_attention(encoder, impl)
    x = torch.randn(2, 3, *size, generator=generator, dtype=torch.float64)
    _, tokens = encoder.patch_embed(x)
    expected = v2_stage_outputs(weights, x, SMALL_V2.depths, SMALL_V2.num_heads, windows, pretrained)
    for stage, want in zip(encoder.layers, expected, strict=True):
        tokens = stage(tokens)
        torch.testing.assert_close(tokens, want, rtol=1e-9, atol=1e-9)


def small(config: SwinConfig, output_stride: int = 32) -> swinx.SwinXEncoder:
    torch.manual_seed(0)
    encoder = swinx.SwinXEncoder(config, output_stride=output_stride).double().eval()
    disturb(encoder)
    return encoder


@pytest.mark.parametrize("output_stride", [16, 8])
@pytest.mark.parametrize("size", [(224, 224), (352, 480), (360, 484)])
@pytest.mark.parametrize("config", [SMALL, SMALL_V2], ids=["S3", "V2"])
@torch.no_grad()
def test_first_phases_are_the_undilated_network(config: SwinConfig, size: tuple[int, int], output_stride: int) -> None:
    x = torch.randn(1, 3, *size, dtype=torch.float64)
    encoder = small(config)
    plain = encoder(x)
    keys = list(encoder.state_dict())
    encoder.make_dilated(output_stride)
    assert list(encoder.state_dict()) == keys
    for info, level, want in zip(encoder.feature_info, encoder(x), plain, strict=True):
        d = info.period
        torch.testing.assert_close(level[..., ::d, ::d], want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("config", [SMALL, SMALL_V2], ids=["S3", "V2"])
@torch.no_grad()
def test_every_phase_at_stride_16_is_stage_4_on_a_shifted_grid(config: SwinConfig) -> None:
    encoder = small(config)
    grid = torch.randn(2, 22, 26, 64, dtype=torch.float64)
    stage = encoder.layers[3]
    shifted = {(p, q): stage(grid[:, p:, q:]) for p in range(2) for q in range(2)}
    encoder.make_dilated(16)
    dilated = stage(grid)
    for (p, q), expected in shifted.items():
        torch.testing.assert_close(dilated[:, p::2, q::2], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("config", [SMALL, SMALL_V2], ids=["S3", "V2"])
@torch.no_grad()
def test_no_border_sees_the_opposite_border_and_images_do_not_touch(config: SwinConfig) -> None:
    encoder = small(replace(config, depths=(2, 1, 1, 1), window_size=7, pretrained_window_size=None))
    x = torch.randn(2, 3, 180, 244, dtype=torch.float64)
    clean = encoder(x)
    for border, (position, axis) in {"top": (0, 2), "bottom": (179, 2), "left": (0, 3), "right": (243, 3)}.items():
        changed = x.clone()
        changed[0].select(axis - 1, position).add_(1.0)
        levels = encoder(changed)
        assert all(torch.equal(one[1], other[1]) for one, other in zip(levels, clean, strict=True))
        touched = (levels[2] - clean[2])[0].abs().amax(0).amax(3 - axis).nonzero().flatten()
        length = clean[2].shape[axis]
        assert touched.numel() > 0
        reach = touched.max() if border in ("top", "left") else length - 1 - touched.min()
        assert reach < 14, border  # two blocks, windows of 7 tokens


@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("base", ["swinx_s3_t", "swinx_v2_t"])
def test_every_decoder_trains_at_every_stride_that_it_accepts(base: str, decoder: str, stride: int) -> None:
    if stride not in DECODERS[decoder].strides:
        pytest.skip("not a stride of this decoder")
    name = f"{base}_small"
    windows: dict[str, Any] = {"window_size": (3, 3, 4, 3)} if "s3" in base else {"window_size": 4}
    small_ones: dict[str, Any] = {"embed_dim": 16, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 4, 8)}
    swinx.register_encoder(name, base=base, **small_ones, **windows)
    model = build(decoder, stride, encoder=name)
    side = DECODERS[decoder].side
    x = image(2, 3, side, side + 32)
    masks = model(x)
    assert masks.shape == (2, 5, side, side + 32)
    masks.square().mean().backward()
    norms = [key for key, p in model.encoder.named_parameters() if p.grad is None]
    assert all(key.startswith(("norms.", "patch_embed.conv")) for key in norms), norms


@pytest.mark.parametrize("stem", ["shared", "branch", "inline", "none"])
@torch.no_grad()
def test_v2_has_every_stem(stem: str) -> None:
    x = torch.randn(1, 3, 67, 71, dtype=torch.float64)
    levels = small(replace(SMALL_V2, stem=stem), 8)(x)
    assert [level.shape[2] for level in levels] == [67, 34, 17, 9, 9, 9]
    assert all(level.isfinite().all() for level in levels)


@torch.no_grad()
def test_the_bias_of_v2_is_the_same_function_of_the_offset_in_every_window() -> None:
    """A larger window computes its bias from the pretraining window; offsets that both have get the same bias."""
    swinx.register_encoder("swinx_v2_t_larger", base="swinx_v2_t", window_size=(11, 13))
    config = swinx.registry.encoders["swinx_v2_t_larger"]["params"]["config"]
    assert [stage.pretrained_window_size for stage in config.stages] == [(8, 8)] * 4
    small_one = swinx.SwinXEncoder(VARIANTS["swinx_v2_t"]).double()
    disturb(small_one)
    large = swinx.SwinXEncoder(config).double()
    large.load_state_dict(small_one.state_dict())  # no resizing, so no warning (they are errors in the tests)
    attention = small_one.layers[1].blocks[0].attn
    bias = attention.position_bias((8, 8)).unflatten(2, (8, 8)).unflatten(1, (8, 8))
    wide = large.layers[1].blocks[0].attn.position_bias((11, 13)).unflatten(2, (11, 13)).unflatten(1, (11, 13))
    torch.testing.assert_close(wide[:, :8, :8, :8, :8], bias, rtol=1e-12, atol=1e-12)
    assert bias.std() > 0.5


def test_another_window_keeps_the_units_in_which_its_base_counts() -> None:
    finetuned, plain = VARIANTS["swinx_v2_b_w12to16"], VARIANTS["swinx_v2_t"]
    for base, changes, wanted in (
        (finetuned, {}, (12, 12, 12, 6)),
        (finetuned, {"pretrained_window_size": 20}, (20,) * 4),
        (finetuned, {"pretrained_window_size": None}, (20,) * 4),
        (plain, {}, (8,) * 4),
        (plain, {"pretrained_window_size": 5}, (5,) * 4),
        (VARIANTS["swinx_t"], {"version": "v2"}, (20,) * 4),
    ):
        stages = changed(base, {"window_size": 20, **changes}).stages
        assert [stage.pretrained_window_size for stage in stages] == [(side, side) for side in wanted], changes
        assert [stage.window_size for stage in stages] == [(20, 20)] * 4


def test_gradients_of_v2_reach_everything_and_agree_between_implementations() -> None:
    x = torch.randn(2, 3, 61, 93, dtype=torch.float64)
    found: list[dict[str, Tensor]] = []
    for impl in ("reference", "sdpa"):
        encoder = small(SMALL_V2, 16).train()
        swinx.set_attention(encoder, impl)
        sum(level.square().mean() for level in encoder(x)[1:]).backward()
        found.append({name: parameter.grad for name, parameter in encoder.named_parameters()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-8, atol=1e-11)
        if "logit_scale" not in name:  # a scale above the limit has none
            assert gradient.abs().max() > 0, name


def test_mixed_precision_of_v2_stays_near_single_precision() -> None:
    encoder = small(SMALL_V2).float()
    x = torch.randn(1, 3, 67, 71)
    for impl in ("reference", "sdpa"):
        swinx.set_attention(encoder, impl)
        exact = encoder(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            near = encoder(x)
        for one, other in zip(exact[1:], near[1:], strict=True):
            assert (one - other.float()).norm() < 0.1 * one.norm()


@pytest.mark.parametrize("impl", ["reference", "sdpa"])
@pytest.mark.parametrize("whole", [True, False], ids=["half", "autocast"])
def test_half_precision_gradients_of_v2_are_finite_where_windows_are_padded(whole: bool, impl: str) -> None:
    """The key of a padding token is zero, where a normalised vector has no derivative."""
    encoder = small(SMALL_V2).float().train()
    swinx.set_attention(encoder, impl)
    x = torch.randn(1, 3, 67, 71)
    if whole:
        encoder, x = encoder.half(), x.half()
    with torch.autocast("cpu", dtype=torch.float16, enabled=not whole):
        loss = sum(level.float().square().mean() for level in encoder(x)[1:])
    (128 * loss).backward()
    assert all(parameter.grad.isfinite().all() for parameter in encoder.parameters())


def test_a_zero_key_passes_no_gradient_to_the_bias_that_makes_it() -> None:
    encoder = small(SMALL_V2).train()
    attention = encoder.layers[0].blocks[0].attn
    attention.qkv = nn.Linear(16, 48).double()
    nn.init.zeros_(attention.qkv.bias)
    sum(level.square().mean() for level in encoder(torch.randn(1, 3, 67, 71, dtype=torch.float64))[1:]).backward()
    q, k, v = attention.qkv.bias.grad.view(3, 16).abs().amax(1)
    assert k <= 100 * max(q, v)


@torch.no_grad()
def test_a_position_mlp_kept_in_single_precision_serves_a_half_precision_encoder() -> None:
    encoder = small(SMALL_V2).float()
    x = torch.randn(1, 3, 67, 71)
    exact = encoder(x)
    encoder.bfloat16()
    for module in encoder.modules():
        if hasattr(module, "cpb_mlp"):
            module.cpb_mlp.float()
    for one, other in zip(exact[1:], encoder(x.bfloat16())[1:], strict=True):
        assert (one - other.float()).norm() < 0.2 * one.norm()


# Checkpoints


def official_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The merge at the end of a stage, and the buffers that official files hold."""
    renamed = {}
    for key, value in weights.items():
        moved = re.sub(r"^layers\.(\d)\.downsample", lambda match: f"layers.{int(match[1]) - 1}.downsample", key)
        renamed[moved] = value
        if key.endswith(("logit_scale", "bias_table")):
            attention = moved.rpartition(".")[0]
            renamed[f"{attention}.relative_position_index"] = torch.zeros(9, 9, dtype=torch.int64)
            if key.endswith("logit_scale"):
                renamed[f"{attention}.relative_coords_table"] = torch.zeros(1, 5, 5, 2)
            renamed[f"{attention.rpartition('.')[0]}.attn_mask"] = torch.zeros(4, 9, 9)
    return renamed


def weights_of(version: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    if version == "v2":
        weights = random_swin_v2_state_dict(16, SMALL_V2.depths, SMALL_V2.num_heads, generator, dtype=torch.float32)
    else:
        same = replace(SMALL, window_size=5)
        weights = random_swin_state_dict(16, same.depths, same.num_heads, 5, generator, dtype=torch.float32)
    norm = {f"norm.{key}": torch.randn(128, generator=generator) for key in ("weight", "bias")}
    return weights | norm | {"head.fc.weight": torch.randn(10, 128), "head.fc.bias": torch.randn(10)}


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("layout", ["timm", "official", "SimMIM"])
def test_checkpoints_load_in_every_naming(layout: str, version: str, tmp_path: Path) -> None:
    weights = weights_of(version)
    content: Any = weights
    if layout != "timm":
        named = {key.replace("head.fc", "head"): value for key, value in official_names(weights).items()}
        content = {"model": named}
    if layout == "SimMIM":
        content = {"model": {f"encoder.{key}": v for key, v in named.items()} | {"decoder.0.bias": torch.zeros(3)}}
    torch.save(content, tmp_path / "weights.pth")
    config = SMALL_V2 if version == "v2" else replace(SMALL, window_size=5)
    encoder = swinx.SwinXEncoder(config)
    swinx.load_checkpoint(encoder, tmp_path / "weights.pth")
    state = encoder.state_dict()
    for key, value in weights.items():
        if not key.startswith("head"):
            assert torch.equal(state[key.replace("norm.", "norms.3.") if key.startswith("norm.") else key], value), key


def test_tables_are_resized_stage_by_stage(tmp_path: Path) -> None:
    torch.save(weights_of("v1"), tmp_path / "weights.pth")
    encoder = swinx.SwinXEncoder(SMALL)
    with pytest.warns(UserWarning, match=r"from window 5 x 5 to 2 x 2, from window 5 x 5 to 3 x 4, from .* to 4 x 4$"):
        swinx.load_checkpoint(encoder, tmp_path / "weights.pth")


@pytest.mark.parametrize(("version", "other"), [("v1", "v2"), ("v2", "v1")])
def test_the_other_version_is_refused_by_name(version: str, other: str, tmp_path: Path) -> None:
    torch.save(weights_of(other), tmp_path / "weights.pth")
    encoder = swinx.SwinXEncoder(SMALL_V2 if version == "v2" else SMALL)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    with pytest.raises(ValueError, match=f"the checkpoint is Swin {other.upper()}, which this encoder is not"):
        swinx.load_checkpoint(encoder, tmp_path / "weights.pth")
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())


def test_heads_of_v2_are_named_when_they_differ(tmp_path: Path) -> None:
    torch.save(weights_of("v2"), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"num_heads \(1, 2, 4, 8\); the encoder has .* num_heads \(2, 2, 4, 8\)"):
        swinx.load_checkpoint(swinx.SwinXEncoder(replace(SMALL_V2, num_heads=(2, 2, 4, 8))), tmp_path / "weights.pth")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": "v3"}, "version must be one of v1, v2, got 'v3'"),
        ({"window_size": (7, 7, 7)}, r"window_size must be a positive integer or a pair of them, or four of these"),
        ({"window_size": (7, 7, 7, 0)}, r"window_size must be .*, got \(7, 7, 7, 0\)"),
        ({"window_size": (7, 7, (7, 7, 7), 7)}, "window_size must be"),
        ({"window_size": "7777"}, "window_size must be .*, got '7777'"),
        ({"pretrained_window_size": 7}, "pretrained_window_size must be None for version 'v1', got 7"),
        ({"version": "v2", "pretrained_window_size": 0}, "pretrained_window_size must be"),
        ({"output_stride": 4}, "output_stride must be 8, 16 or 32, got 4"),
    ],
)
def test_a_wrong_configuration_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **changes)


def test_lists_of_windows_are_taken_as_from_json() -> None:
    given = replace(SMALL_V2, window_size=[5, 4, [3, 4], 2], pretrained_window_size=[[4, 4], [3, 5], [3, 4], [1, 2]])
    assert given == SMALL_V2
    assert hash(given) == hash(SMALL_V2)


def test_a_plan_is_all_that_a_block_of_either_version_needs() -> None:
    """A plan written by hand: one window of a slice, without padding."""
    block = small(replace(SMALL_V2, window_size=3)).layers[0].blocks[0]
    geometry = swinx.windows.WindowGeometry(1, 3, 3, (3, 3), (0, 0), 1)
    tokens = torch.randn(9, 16, dtype=torch.float64)
    row = block(tokens, WindowPlan("reference", geometry, False))
    torch.testing.assert_close(block(tokens.view(1, 3, 3, 16), WindowPlan("sdpa", geometry, False)).view(9, 16), row)
