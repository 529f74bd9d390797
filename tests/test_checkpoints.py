"""Every layout in which Swin weights are published loads to the same encoder, and everything else is refused whole."""

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from layouts import (
    DEPTHS,
    EMBED,
    HEADS,
    LAYOUTS,
    WINDOW,
    backbone,
    by_smp,
    config,
    fresh,
    level_norms,
    mmseg,
    official,
    ours,
)
from oracles import official_stage_outputs
from safetensors.torch import save_file
from timm.layers.pos_embed_rel import resize_rel_pos_bias_table_simple
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import swinx
from swinx import SwinXEncoder

TABLE = "layers.2.blocks.1.attn.relative_position_bias_table"


def expected(encoder: SwinXEncoder, norms: tuple[int, ...], left_out: str = "none") -> SwinXEncoder:
    """The encoder with the known weights, loaded key by key without swinx's conversion."""
    encoder = copy.deepcopy(encoder)
    known = {**backbone(), **{k: v for k, v in level_norms("norms.{}").items() if int(k.split(".")[1]) in norms}}
    state = encoder.state_dict()
    state |= {key: known[key] for key in state if key in known and left_out not in key}
    nn.Module.load_state_dict(encoder, state)
    return encoder


def assert_same(encoder: SwinXEncoder, other: SwinXEncoder) -> None:
    """Equal weights and, on a ragged image, equal features, bit for bit."""
    state = other.state_dict()
    assert encoder.state_dict().keys() == state.keys()
    for key, value in encoder.state_dict().items():
        assert torch.equal(value, state[key]), key
    image = torch.randn(1, encoder._in_channels, 61, 90, generator=torch.Generator().manual_seed(8))
    with torch.no_grad():
        for level, wanted in zip(encoder(image), other(image), strict=True):
            assert torch.equal(level, wanted)


@pytest.fixture(autouse=True)
def no_warning_unless_expected() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_the_same_features(name: str, tmp_path: Path) -> None:
    content, norms = LAYOUTS[name]
    torch.save(content(), tmp_path / "weights.pth")
    encoder = fresh()
    wanted = expected(encoder, norms)
    swinx.load_checkpoint(encoder, tmp_path / "weights.pth")
    assert_same(encoder, wanted)


def every_second(content: dict[str, Any], start: int) -> dict[str, Any]:
    """Half of the weights of a file, in each of its dictionaries."""
    if all(isinstance(value, Tensor) for value in content.values()):
        return dict(list(content.items())[start::2])
    return {key: every_second(value, start) if isinstance(value, dict) else value for key, value in content.items()}


def numbers(value: Tensor) -> bytes:
    """In ascending order: mmsegmentation's merges are the same numbers in another one."""
    return value.flatten().sort()[0].numpy().tobytes()


@pytest.mark.parametrize("part", ["whole", "one half", "other half"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_without_strict_every_layout_gives_what_it_holds(name: str, part: str) -> None:
    content = LAYOUTS[name][0]()
    if part != "whole":
        content = every_second(content, ["one half", "other half"].index(part))
    held = {numbers(value) for value in tree_leaves(content) if isinstance(value, Tensor)}
    known, encoder = {**backbone(), **level_norms("norms.{}")}, fresh()
    wanted, absent = copy.deepcopy(encoder.state_dict()), set()
    for key, value in known.items():
        if numbers(value) in held:
            wanted[key] = value
        elif name.startswith("ours") or not key.startswith("norms."):  # foreign files need not hold norms of levels
            absent.add(key)
    result = encoder.load_state_dict(content, strict=False)
    for key, value in encoder.state_dict().items():
        assert torch.equal(value, wanted[key]), key
    assert set(result.missing_keys) == absent
    assert len(absent) in ((0,) if part == "whole" else range(50, 57))
    assert not result.unexpected_keys


def test_the_encoder_in_a_module_takes_the_file(tmp_path: Path) -> None:
    torch.save(ours(), tmp_path / "weights.pth")
    sizes = {"embed_dim": EMBED, "depths": DEPTHS, "num_heads": HEADS, "window_size": WINDOW, "stem": "shared"}
    timm_s = smp.Unet("tu-swinx_n", encoder_weights=None, **sizes).encoder
    wanted = expected(fresh(), (0, 1, 2, 3))
    for module in (
        timm_s,
        nn.DataParallel(fresh()),
        torch.compile(fresh()),
        nn.Sequential(fresh(), nn.Conv2d(1, 1, 1)),
    ):
        (encoder,) = (part for part in module.modules() if isinstance(part, SwinXEncoder))
        swinx.load_checkpoint(module, tmp_path / "weights.pth")
        assert_same(encoder.eval(), wanted)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("name", ["official classification", "timm", "smp tu-swin", "mmseg", "ours"])
def test_a_shallow_encoder_takes_its_stages_from_a_full_checkpoint(name: str, depth: int, tmp_path: Path) -> None:
    content, norms = LAYOUTS[name]
    torch.save(content(), tmp_path / "weights.pth")
    encoder = fresh(depth=depth)
    wanted = expected(encoder, norms)
    swinx.load_checkpoint(encoder, str(tmp_path / "weights.pth"))
    assert_same(encoder, wanted)


def test_loaded_features_are_those_of_the_official_rules(tmp_path: Path) -> None:
    weights = backbone(dtype=torch.float64)
    torch.save(weights, tmp_path / "weights.pth")
    encoder = fresh().double()
    swinx.load_checkpoint(encoder, tmp_path / "weights.pth")
    image = torch.randn(1, 3, 83, 110, dtype=torch.float64, generator=torch.Generator().manual_seed(8))
    with torch.no_grad():
        levels = encoder(image)[2:]
        for level, norm, wanted in zip(
            levels, encoder.norms, official_stage_outputs(weights, image, DEPTHS, HEADS, WINDOW), strict=True
        ):
            torch.testing.assert_close(level, norm(wanted).permute(0, 3, 1, 2), rtol=0, atol=1e-11)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("size", [(224, 224), (448, 224)])
def test_a_file_of_a_real_timm_model_gives_its_features(suffix: str, size: tuple[int, int], tmp_path: Path) -> None:
    """At sizes whose grids divide by the window; elsewhere timm attends across the border."""
    torch.manual_seed(0)
    model = (
        SwinTransformer(
            embed_dim=EMBED, depths=DEPTHS, num_heads=HEADS, window_size=WINDOW, num_classes=11, strict_img_size=False
        )
        .double()
        .eval()
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.05, 0.1)
    path = tmp_path / f"weights.{suffix}"
    (torch.save if suffix == "pth" else save_file)(model.state_dict(), path)
    encoder = fresh().double()
    swinx.load_checkpoint(encoder, path)
    image = torch.randn(1, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        levels = encoder(image)[2:]
        for level, norm, wanted in zip(
            levels, encoder.norms, model.forward_intermediates(image, intermediates_only=True), strict=True
        ):
            normed = norm(wanted.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            torch.testing.assert_close(level, normed, rtol=0, atol=1e-10)
        torch.testing.assert_close(levels[-1], model.forward_features(image).permute(0, 3, 1, 2), rtol=0, atol=1e-10)


def test_a_file_of_a_real_smp_timm_model_gives_its_features(tmp_path: Path) -> None:
    sizes = {"embed_dim": EMBED, "depths": DEPTHS, "num_heads": HEADS}
    model = (
        smp.Unet("tu-swin_tiny_patch4_window7_224", encoder_weights=None, decoder_channels=(8, 8, 4, 4, 4), **sizes)
        .double()
        .eval()
    )
    torch.save(model.state_dict(), tmp_path / "unet.pth")
    encoder = fresh().double()
    swinx.load_checkpoint(encoder, tmp_path / "unet.pth")
    image = torch.randn(1, 3, 224, 224, dtype=torch.float64)
    with torch.no_grad():
        for level, norm, wanted in zip(encoder(image)[2:], encoder.norms, model.encoder(image)[2:], strict=True):
            normed = norm(wanted.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            torch.testing.assert_close(level, normed, rtol=0, atol=1e-10)


def test_an_mmseg_merge_computes_what_mmseg_does_with_nn_unfold(tmp_path: Path) -> None:
    weights = mmseg()
    torch.save(weights, tmp_path / "weights.pth")
    encoder = fresh()
    swinx.load_checkpoint(encoder, tmp_path / "weights.pth")
    x = torch.randn(2, EMBED * 2, 6, 10, generator=torch.Generator().manual_seed(8))
    norm = [weights[f"stages.1.downsample.norm.{end}"] for end in ("weight", "bias")]
    patches = nn.Unfold(kernel_size=2, stride=2)(x).transpose(1, 2)
    wanted = F.linear(F.layer_norm(patches, patches.shape[-1:], *norm), weights["stages.1.downsample.reduction.weight"])
    with torch.no_grad():
        merged = encoder.layers[2].downsample(x.permute(0, 2, 3, 1)).flatten(1, 2)
    torch.testing.assert_close(merged, wanted, rtol=1e-5, atol=1e-5)


def keys_cubic(rows: int, size: int) -> Tensor:
    """Interpolation matrix (size, rows): Keys' cubic convolution, a = -0.75, half-pixel centres, edges repeated."""
    matrix = torch.zeros(size, rows, dtype=torch.float64)
    for i in range(size):
        source = (i + 0.5) * rows / size - 0.5
        base = int(source // 1)
        for tap in range(base - 1, base + 3):
            t = abs(source - tap)
            near = 1.25 * t**3 - 2.25 * t**2 + 1
            far = -0.75 * (t**3 - 5 * t**2 + 8 * t - 4)
            matrix[i, min(max(tap, 0), rows - 1)] += near if t <= 1 else far
    return matrix


@pytest.mark.parametrize("window", [8, 12, 5, (4, 9)])
def test_another_window_gets_resized_bias_tables_and_a_warning(window: int | tuple[int, int], tmp_path: Path) -> None:
    """By the bicubic rule of Swin-Transformer's own load_pretrained (F.interpolate over the table's plane).

    That is timm's resize_rel_pos_bias_table_simple. The one that timm uses, resize_rel_pos_bias_table, spaces the
    samples geometrically as BEiT does and gives other values.
    """
    wh, ww = (window, window) if isinstance(window, int) else window
    torch.save({"model": official()}, tmp_path / "weights.pth")
    encoder = fresh(window_size=window)
    with pytest.warns(UserWarning, match=f"from window 7 x 7 to {wh} x {ww}$") as caught:
        swinx.load_checkpoint(encoder, tmp_path / "weights.pth")
    assert len(caught) == 1
    assert caught[0].filename == __file__, "the warning points at the caller"
    old = backbone()[TABLE]
    plane = old.double().reshape(13, 13, -1)
    rows, columns = keys_cubic(13, 2 * wh - 1), keys_cubic(13, 2 * ww - 1)
    wanted = torch.einsum("yr,xc,rch->yxh", rows, columns, plane).flatten(0, 1).float()
    resized = encoder.state_dict()[TABLE]
    torch.testing.assert_close(resized, wanted, rtol=0, atol=2e-5)
    torch.testing.assert_close(
        resized, resize_rel_pos_bias_table_simple(old, (wh, ww), tuple(wanted.shape)), rtol=0, atol=1e-6
    )
    for key, value in backbone().items():
        if not key.endswith("bias_table"):
            assert torch.equal(encoder.state_dict()[key], value)


def official_v2(pretrained: int | None, window: int = 8) -> dict[str, Tensor]:
    """Weights of Swin V2 with the coordinates that official files hold beside them, under timm's names."""
    model = SwinTransformerV2(
        window * 32,
        embed_dim=EMBED,
        depths=DEPTHS,
        num_heads=HEADS,
        window_size=window,
        pretrained_window_sizes=(pretrained or 0,) * 4,
    )
    attentions = {name: module for name, module in model.named_modules() if name.endswith(".attn")}
    tables = {f"{name}.relative_coords_table": module.relative_coords_table for name, module in attentions.items()}
    return model.state_dict() | tables


@pytest.mark.parametrize(("pretrained", "counted"), [(None, 8), (8, 8), (6, 6), (12, 12), (2, 2), (24, 24)])
@pytest.mark.parametrize("own", [2, 6, 8, 24])
def test_other_units_of_offsets_in_a_file_of_swin_v2_are_named(
    pretrained: int | None, counted: int, own: int, tmp_path: Path
) -> None:
    weights = official_v2(pretrained)
    torch.save({"model": weights}, tmp_path / "weights.pth")
    encoder = fresh(version="v2", window_size=16, pretrained_window_size=own)
    if counted == own:
        swinx.load_checkpoint(encoder, tmp_path / "weights.pth")
    else:
        message = (
            f"counts offsets in windows of {counted}, the encoder in windows of {own}: to count as the checkpoint "
            f"does, register a variant with window_size=16, pretrained_window_size={counted}$"
        )
        with pytest.warns(UserWarning, match=message) as caught:
            swinx.load_checkpoint(encoder, tmp_path / "weights.pth")
        assert len(caught) == 1
        assert caught[0].filename == __file__
    key = "layers.2.blocks.1.attn.cpb_mlp.0.weight"
    assert torch.equal(encoder.state_dict()[key], weights[key])


def test_units_are_compared_stage_by_stage_where_the_file_tells_them() -> None:
    weights, key = official_v2(8), "layers.{}.blocks.0.attn.relative_coords_table"
    weights[key.format(2)] = official_v2(12)[key.format(2)].half()
    encoder = fresh(version="v2", window_size=(8, 4), pretrained_window_size=8)
    rule = r"of \(8, 8, 12, 8\), the .* of 8: .* window_size=\(8, 4\), pretrained_window_size=\(8, 8, 12, 8\)$"
    with pytest.warns(UserWarning, match=rule):
        encoder.load_state_dict(weights)
    wide = weights[key.format(1)].clone()
    wide[..., 1] = official_v2(3)[key.format(1)][..., 1]
    encoder = fresh(version="v2", window_size=8, pretrained_window_size=(8, (8, 3), 12, 8))
    encoder.load_state_dict(weights | {key.format(1): wide})
    fresh(version="v2", depth=3, window_size=8).load_state_dict(weights)  # without stage 3
    one = torch.zeros(1, 1, 1, 2)  # a window of one token, in which no unit shows
    unfit = (
        one,
        one / 0,
        wide * 0,
        -wide,
        wide.to_sparse(),
        wide[0],
        wide.long(),
        wide[..., :1],
        one.expand(1, 9, 9, 2),
    )
    encoder = fresh(version="v2", window_size=8, pretrained_window_size=1)
    for table in unfit:
        encoder.load_state_dict(weights | {key.format(stage): table for stage in range(4)})
    encoder.load_state_dict(official_v2(2))  # which is the same as windows of one token here


def test_a_rectangular_window_of_our_own_loads_unchanged(tmp_path: Path) -> None:
    source = fresh(window_size=(4, 9))
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    torch.manual_seed(1)
    encoder = SwinXEncoder(config(window_size=(4, 9))).eval()
    swinx.load_checkpoint(encoder, tmp_path / "weights.pth")
    assert_same(encoder, source)


@pytest.mark.parametrize("in_channels", [1, 2, 4, 6, 7])
@pytest.mark.parametrize("stem", ["shared", "branch", "inline", "none"])
def test_kernels_that_read_the_image_follow_smp_s_rule(stem: str, in_channels: int, tmp_path: Path) -> None:
    source = fresh(stem=stem)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    encoder = fresh(stem=stem, in_channels=in_channels)
    readers = {"branch": ["proj", "conv1.conv"], "inline": ["conv1.conv"]}.get(stem, ["proj"])
    with pytest.warns(UserWarning, match=f"from 3 to {in_channels} image channels") as caught:
        swinx.load_checkpoint(encoder, tmp_path / "weights.pth")
    assert sorted(str(w.message).split()[0] for w in caught) == sorted(f"patch_embed.{name}.weight" for name in readers)
    state = encoder.state_dict()
    for key, value in source.state_dict().items():
        adapted = key.removeprefix("patch_embed.").removesuffix(".weight") in readers
        assert torch.equal(state[key], by_smp(value, in_channels) if adapted else value), key
    if in_channels not in (1, 6):
        return
    grey = torch.randn(1, 1, 37, 45)  # of equal channels, each used equally often, the features stay what they were
    with torch.no_grad():
        levels, wanted = encoder(grey.expand(-1, in_channels, -1, -1)), source(grey.expand(-1, 3, -1, -1))
    for level, other in zip(levels[1:], wanted[1:], strict=True):
        torch.testing.assert_close(level, other, rtol=1e-4, atol=1e-4)


def test_an_inline_stem_says_that_it_leaves_a_foreign_patch_embedding_unused(tmp_path: Path) -> None:
    torch.save({"model": official()}, tmp_path / "weights.pth")
    encoder = fresh(stem="inline")
    wanted = expected(encoder, (3,), left_out="patch_embed.")
    with pytest.warns(UserWarning, match="'inline' has no patch embedding"):
        swinx.load_checkpoint(encoder, tmp_path / "weights.pth")
    assert_same(encoder, wanted)


def test_a_branch_stem_keeps_its_convolutions_beside_foreign_weights(tmp_path: Path) -> None:
    torch.save({"model": official()}, tmp_path / "weights.pth")
    encoder = fresh(stem="branch")
    wanted = expected(encoder, (3,))
    swinx.load_checkpoint(encoder, tmp_path / "weights.pth")
    assert_same(encoder, wanted)
    assert not torch.equal(encoder.patch_embed.proj.weight, fresh(stem="branch").patch_embed.proj.weight)


@pytest.mark.parametrize("stem", ["branch", "inline"])
def test_our_own_stem_of_a_depth_1_encoder_loads(stem: str, tmp_path: Path) -> None:
    source = fresh(depth=1, stem=stem)
    save_file(source.state_dict(), tmp_path / "stem.safetensors")
    torch.manual_seed(1)
    encoder = SwinXEncoder(config(stem=stem), depth=1).eval()
    swinx.load_checkpoint(encoder, tmp_path / "stem.safetensors")
    assert_same(encoder, source)


def test_half_precision_weights_load_into_the_encoder_s_own_dtype(tmp_path: Path) -> None:
    half = {key: value.half() for key, value in ours().items()}
    save_file(half, tmp_path / "half.safetensors")
    encoder = fresh()
    swinx.load_checkpoint(encoder, tmp_path / "half.safetensors")
    for key, value in encoder.state_dict().items():
        assert torch.equal(value, half[key].float())
