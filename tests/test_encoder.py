"""SwinXEncoder: validation, pyramid, feature_info, output strides, image channels, training, precision."""

import math
from dataclasses import replace

import pytest
import torch
from decoders import image
from segmentation_models_pytorch.encoders._utils import patch_first_conv
from torch import Tensor, nn

import swinx
from swinx.config import STEMS, VARIANTS
from swinx.stems import input_convolutions

CONFIG = swinx.SwinConfig(12, (1, 2, 2, 2), (1, 2, 2, 4), (3, 5), 0.0)
SIZES = [(5, 131), (67, 71), (101, 127)]


def encoder(stem: str = "shared", *, drop_path: float = 0.0, seed: int = 0, **arguments: int) -> swinx.SwinXEncoder:
    """Float64, with weights as large as trained ones, in evaluation mode."""
    torch.manual_seed(seed)
    module = swinx.SwinXEncoder(replace(CONFIG, stem=stem, drop_path_rate=drop_path), **arguments).double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module


def levels(module: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        result: list[Tensor] = module(x)
    return result


def all_equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("value", [0, 6, -1, 2.5, 3.0, "5", None, True])
def test_wrong_depth_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="depth must be 1, 2, 3, 4 or 5, got ") as error:
        swinx.SwinXEncoder(CONFIG, depth=value)
    assert repr(value) in str(error.value)


def test_something_else_than_a_configuration_is_refused() -> None:
    for value, shown in (("swinx_n", "'swinx_n'"), (encoder(), "SwinXEncoder"), ("x" * 300, f"'{'x' * 199}...")):
        with pytest.raises(ValueError, match=f"^config must be a SwinConfig, got {shown}$"):
            swinx.SwinXEncoder(value)


@pytest.mark.parametrize("value", [4, 64, 0, -8, "16", 16.5, None])
def test_wrong_output_stride_is_refused_and_changes_nothing(value: object) -> None:
    with pytest.raises(ValueError, match="output_stride must be 8, 16 or 32, got ") as error:
        swinx.SwinXEncoder(CONFIG, output_stride=value)
    assert repr(value) in str(error.value)
    module = encoder(output_stride=16)
    before = levels(module, image(1, 3, 67, 71).double())
    with pytest.raises(ValueError, match="output_stride must be 8, 16 or 32, got ") as error:
        module.make_dilated(value)
    assert repr(value) in str(error.value)
    assert module.output_stride == 16
    assert all_equal(levels(module, image(1, 3, 67, 71).double()), before)


@pytest.mark.parametrize("value", [0, -3, 2.5, "3", None, True])
def test_wrong_in_channels_are_refused_and_change_nothing(value: object) -> None:
    for call in (lambda: swinx.SwinXEncoder(CONFIG, in_channels=value), lambda: encoder().set_in_channels(value)):
        with pytest.raises(ValueError, match="in_channels must be a positive integer, got ") as error:
            call()
        assert repr(value) in str(error.value)


@pytest.mark.parametrize(
    ("bad", "rule"),
    [
        ("picture.png", "must be a tensor, got str"),
        (torch.zeros(3, 64, 64), r"must be \(B, C, H, W\), got shape \(3, 64, 64\)"),
        (torch.zeros(1, 1, 3, 64, 64), r"must be \(B, C, H, W\), got shape \(1, 1, 3, 64, 64\)"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), r"must have a floating dtype, got torch.uint8"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.complex64), r"must have a floating dtype, got torch.complex64"),
        (torch.zeros(1, 3, 64, 67).to_sparse(), "must be dense, got layout torch.sparse_coo"),
        (torch.zeros(1, 4, 64, 67), r"must have 3 channels, got shape \(1, 4, 64, 67\)"),
        (torch.zeros(1, 64, 67, 3), r"must have 3 channels, got shape \(1, 64, 67, 3\)"),
        (torch.zeros(0, 3, 64, 67), r"must not be empty, got shape \(0, 3, 64, 67\)"),
        (torch.zeros(1, 3, 3, 67), r"must be at least 4 x 4 pixels, got shape \(1, 3, 3, 67\)"),
        (torch.zeros(1, 3, 67, 3), r"must be at least 4 x 4 pixels, got shape \(1, 3, 67, 3\)"),
        (torch.zeros(1, 3, 0, 67), r"must be at least 4 x 4 pixels, got shape \(1, 3, 0, 67\)"),
    ],
)
def test_wrong_image_is_refused_before_any_work(bad: object, rule: str) -> None:
    module = encoder()
    module.patch_embed.register_forward_pre_hook(lambda *_: pytest.fail("work was done"))
    with pytest.raises(ValueError, match=f"^image .*{rule}"):
        module(bad)


def test_smallest_image_passes() -> None:
    features = levels(encoder(), image(1, 3, 4, 4).double())
    assert [level.shape[2:] for level in features] == [(4, 4), (2, 2), *4 * [(1, 1)]]
    assert all(level.isfinite().all() for level in features)


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("stride", [8, 16, 32])
def test_levels_have_ceil_sizes_and_are_as_feature_info_says(stride: int, depth: int) -> None:
    module = encoder(depth=depth, output_stride=stride)
    assert module.output_stride == min(stride, 2**depth)
    assert module.out_channels == [3, 12, 12, 24, 48, 96][: depth + 1]
    assert [info.channels for info in module.feature_info] == module.out_channels
    assert [info.stride for info in module.feature_info] == [min(2**level, stride) for level in range(depth + 1)]
    assert [info.stride * info.period for info in module.feature_info] == [2**level for level in range(depth + 1)]
    assert len(module.layers) == len(module.norms) == depth - 1, "stages beyond depth are not built"
    for height, width in SIZES:
        x = image(2, 3, height, width).double()
        features = levels(module, x)
        assert features[0] is x
        for info, level in zip(module.feature_info, features, strict=True):
            assert level.shape == (2, info.channels, math.ceil(height / info.stride), math.ceil(width / info.stride))


def test_shallower_encoder_equals_the_first_levels_of_a_deep_one() -> None:
    deep, x = encoder(output_stride=16), image(1, 3, 67, 71).double()
    for depth in (1, 2, 3, 4):
        shallow = encoder(depth=depth, output_stride=16, seed=1)
        shallow.load_state_dict({key: deep.state_dict()[key] for key in shallow.state_dict()})
        assert all_equal(levels(shallow, x), levels(deep, x)[: depth + 1])


def influence(output: Tensor, source: Tensor) -> tuple[tuple[float, float], tuple[float, float]]:
    """Per axis (rows, columns), the first and last position + 1 of source that influence a scalar."""
    (gradient,) = torch.autograd.grad(output, source, retain_graph=True)
    extents = []
    for axis in (2, 3):
        reached = gradient.abs().sum(dim=[d for d in range(4) if d != axis]).nonzero().flatten()
        extents.append((float(reached.min()), float(reached.max()) + 1))
    return extents[0], extents[1]


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("stride", [8, 16, 32])
def test_token_i_is_centred_at_offset_plus_i_strides(stem: str, stride: int) -> None:
    """Blocks silenced, only stem and merges carry pixels to tokens: the middle of those pixels is the centre."""
    module = encoder(stem, output_stride=stride)
    for stage in module.layers:
        for block in stage.blocks:
            for layer in (block.attn.proj, block.mlp.fc2):
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)
    x = image(1, 3, 101, 137).double().requires_grad_()
    for info, level in zip(module.feature_info, module(x), strict=True):
        if info.channels == 0:
            continue
        row, column = level.shape[2] // 2 - 1, level.shape[3] // 2 + 1
        weights = torch.linspace(-1, 2, info.channels, dtype=torch.float64)  # a plain sum of a normed token is constant
        extents = influence(weights @ level[0, :, row, column], x)
        for index, side, (start, end) in zip((row, column), x.shape[2:], extents, strict=True):
            assert 0 < start < end < side, "not cut by a border"
            assert (start + end) / 2 == info.offset + index * info.stride, (info, index)
        if stem in ("shared", "none"):  # these read forward only, so not even the first token is cut
            for start, end in influence(weights @ level[0, :, 0, 0], x):
                assert (start + end) / 2 == info.offset, info


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_period_is_the_spacing_of_tokens_that_attend_to_each_other(stride: int) -> None:
    module = encoder(output_stride=stride)
    for info, stage in zip(module.feature_info[2:], module.layers, strict=True):
        stage.downsample = nn.Identity()
        grid = torch.randn(1, 23, 29, info.channels, dtype=torch.float64).requires_grad_()
        weights = torch.linspace(-1, 2, info.channels, dtype=torch.float64)
        (gradient,) = torch.autograd.grad(stage(grid)[0, 6, 9] @ weights, grid)
        reached = gradient[0].abs().sum(-1).nonzero() - torch.tensor([6, 9])
        assert len(reached) >= 15, "a whole window"
        for distances in reached.T:
            assert math.gcd(*distances.tolist()) == info.period


@pytest.mark.parametrize("stem", STEMS)
def test_keys_and_shapes_are_the_same_at_every_output_stride_and_after_any_order(stem: str) -> None:
    expected = {key: value.shape for key, value in encoder(stem).state_dict().items()}
    for stride in (8, 16, 32):
        module = encoder(stem, output_stride=stride)
        for following in (32, 8, 16, 8, 32):
            assert {key: value.shape for key, value in module.state_dict().items()} == expected
            module.make_dilated(following)
            assert {key: value.shape for key, value in module.state_dict().items()} == expected


def test_make_dilated_depends_on_the_last_call_alone() -> None:
    x = image(1, 3, 67, 71).double()
    fresh = {stride: levels(encoder(output_stride=stride), x) for stride in (8, 16, 32)}
    assert [fresh[stride][5].shape[2:] for stride in fresh] == [(9, 9), (5, 5), (3, 3)]
    for first in (32, 8, 16):
        module = encoder(output_stride=first)
        for stride in (32, 8, 8, 16, 32, 32, 16, 16, 8, 32):
            module.make_dilated(stride)
            assert module.output_stride == stride
            assert all_equal(levels(module, x), fresh[stride])


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_pretrained_input_weights_are_adapted_as_smp_adapts_them(stem: str, channels: int) -> None:
    module = encoder(stem)
    expected = []
    for conv in module.patch_embed.modules():
        if isinstance(conv, nn.Conv2d) and conv.in_channels == 3:
            reference = nn.Conv2d(3, conv.out_channels, conv.kernel_size)
            reference.weight.data.copy_(conv.weight.data)
            patch_first_conv(nn.ModuleList([reference]), channels, pretrained=True)
            expected.append(reference.weight.data)
    assert len(expected) == (2 if stem == "branch" else 1)
    biases = {key: value.clone() for key, value in module.state_dict().items() if key.endswith("bias")}

    module.set_in_channels(channels, pretrained=True)
    convolutions = list(input_convolutions(module.patch_embed).values())
    assert [conv.in_channels for conv in convolutions] == [channels] * len(expected)
    for conv, weight in zip(convolutions, expected, strict=True):
        torch.testing.assert_close(conv.weight.data.float(), weight, rtol=1e-6, atol=1e-7)
        assert conv.weight.requires_grad
    assert all(torch.equal(module.state_dict()[key], value) for key, value in biases.items())
    assert module.out_channels[0] == module.feature_info[0].channels == channels
    assert levels(module, image(1, channels, 67, 71).double())[0].shape[1] == channels
    with pytest.raises(ValueError, match=f"image must have {channels} channels"):
        module(image(1, 3, 67, 71).double())


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_input_weights_are_drawn_anew_without_pretraining(stem: str, channels: int) -> None:
    module, twin = encoder(stem), encoder(stem)
    old = [conv.weight.detach().clone() for conv in input_convolutions(module.patch_embed).values()]
    torch.manual_seed(3)
    module.set_in_channels(channels, pretrained=False)
    twin.set_in_channels(channels, pretrained=True)
    pairs = zip(
        input_convolutions(module.patch_embed).values(), input_convolutions(twin.patch_embed).values(), old, strict=True
    )
    for conv, adapted, before in pairs:
        assert conv.weight.shape == (before.shape[0], channels, *before.shape[2:]) == adapted.weight.shape
        assert not torch.allclose(conv.weight, adapted.weight, rtol=0.1)
        fan_in = channels * math.prod(conv.kernel_size)  # of nn.Conv2d's own: uniform within 1 / sqrt(fan in)
        assert conv.weight.abs().max() <= fan_in**-0.5 * (1 + 1e-6)
        assert conv.weight.abs().max() > 0.8 * fan_in**-0.5


def test_a_replaced_reader_of_the_image_keeps_its_channels() -> None:
    module = encoder()
    module.patch_embed = nn.Identity()
    with pytest.raises(ValueError, match="only while patch_embed holds a stem of swinx, got Identity"):
        module.set_in_channels(5)
    module = encoder()
    module.patch_embed.proj = nn.Sequential(module.patch_embed.proj)
    with pytest.raises(ValueError, match=r"only while patch_embed\.proj is a plain Conv2d, got Sequential"):
        module.set_in_channels(5)
    assert module.out_channels[0] == 3


def test_present_number_of_channels_changes_nothing() -> None:
    module = encoder("branch", in_channels=4)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    module.set_in_channels(4, pretrained=False)
    assert all(torch.equal(module.state_dict()[key], value) for key, value in before.items())
    module.set_in_channels(3)
    assert module.out_channels[0] == 3


@pytest.mark.parametrize("impl", ["reference", "sdpa"])
def test_checkpointing_gives_the_same_loss_and_gradients(impl: str) -> None:
    plain, saving = (encoder("branch", drop_path=0.5, output_stride=16).train() for _ in range(2))
    saving.set_grad_checkpointing()
    runs = []
    for module in (plain, saving):
        swinx.set_attention(module, impl)
        calls: list[int] = []
        module.layers[2].blocks[0].register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        torch.manual_seed(7)  # the same stochastic depth
        loss = sum(level.square().mean() for level in module(image(2, 3, 67, 71).double()))
        loss.backward()
        runs.append((loss.detach(), {name: p.grad for name, p in module.named_parameters()}, len(calls)))
    (loss, gradients, once), (saved_loss, saved_gradients, twice) = runs
    assert (once, twice) == (1, 2), "recomputed in the backward pass"
    assert torch.equal(loss, saved_loss)
    assert all(torch.equal(gradients[name], saved_gradients[name]) for name in gradients)
    saving.set_grad_checkpointing(False)
    assert not any(stage.grad_checkpointing for stage in saving.layers)


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_images_of_a_batch_do_not_touch(stride: int) -> None:
    module, x = encoder(output_stride=stride), image(3, 3, 67, 71).double()
    together = levels(module, x)
    for index in range(3):
        for whole, alone in zip(together, levels(module, x[index : index + 1]), strict=True):
            torch.testing.assert_close(whole[index : index + 1], alone, rtol=1e-10, atol=1e-10)


def test_moving_the_image_by_whole_windows_moves_the_features() -> None:
    """Stage 1 of a window of 3 x 5 repeats every 12 rows and 20 columns, away from the borders."""
    module, picture = encoder(depth=2), image(1, 3, 108, 180).double()
    moved = torch.zeros_like(picture)
    moved[..., 12:, 20:] = picture[..., :-12, :-20]
    here, there = levels(module, picture)[2], levels(module, moved)[2]
    torch.testing.assert_close(there[..., 9:21, 15:35], here[..., 6:18, 10:30], rtol=1e-10, atol=1e-10)
    assert not torch.allclose(there[..., 8:20, 15:35], here[..., 6:18, 10:30], rtol=1e-2)


def test_a_corner_of_a_large_image_does_not_reach_the_opposite_one() -> None:
    module, x = encoder(depth=4, output_stride=8), image(1, 3, 331, 419).double()
    changed = x.clone()
    changed[..., 0, :] += 1
    changed[..., :, 0] += 1
    for before, after in zip(levels(module, x), levels(module, changed), strict=True):
        assert torch.equal(before[..., -3:, -3:], after[..., -3:, -3:])
        assert not torch.equal(before[..., 0, 0], after[..., 0, 0])


def test_attention_is_chosen_for_every_stage_and_gives_the_same_features() -> None:
    model, x = nn.Sequential(encoder(output_stride=8)), image(1, 3, 67, 71).double()
    expected = levels(model, x)
    for impl in ("reference", "sdpa", "auto"):
        swinx.set_attention(model, impl)
        assert {stage.impl for stage in model[0].layers} == {impl}
        for level, same in zip(levels(model, x), expected, strict=True):
            torch.testing.assert_close(level, same, rtol=1e-10, atol=1e-10)


def test_wrong_attention_is_refused_and_changes_nothing() -> None:
    module = encoder()
    swinx.set_attention(module, "reference")
    with pytest.raises(ValueError, match=r"impl must be one of auto, reference, sdpa, triton, got 'flash'"):
        swinx.set_attention(module, "flash")
    assert {stage.impl for stage in module.layers} == {"reference"}
    with pytest.raises(ValueError, match=r"model must contain a SwinXEncoder, got Linear"):
        swinx.set_attention(nn.Linear(2, 2), "auto")


def test_single_and_double_precision_agree() -> None:
    module, x = encoder(output_stride=16), image(1, 3, 67, 71).double()
    double = levels(module, x)
    single = levels(module.float(), x.float())
    for one, other in zip(single, double, strict=True):
        assert (one.dtype, other.dtype) == (torch.float32, torch.float64)
        torch.testing.assert_close(one.double(), other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("impl", ["auto", "reference", "sdpa"])
def test_autocast_to_bfloat16_stays_near_single_precision_and_trains(impl: str) -> None:
    module = encoder("inline", output_stride=16).float()
    swinx.set_attention(module, impl)
    x = image(1, 3, 67, 71)
    exact = levels(module, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        near = module(x)
        loss = sum(level.float().square().mean() for level in near)
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters())
    for one, other in zip(exact[1:], near[1:], strict=True):
        assert (one - other.float()).norm() < 0.05 * one.norm()


@pytest.mark.parametrize("name", ["swinx_n", "swinx_t", "swinx_b_w12"])
def test_stochastic_depth_rises_linearly_over_all_blocks(name: str) -> None:
    config = VARIANTS[name]
    with torch.device("meta"):
        whole, part = swinx.SwinXEncoder(config), swinx.SwinXEncoder(config, depth=3)
    rates = [block.drop_path.drop_prob for stage in whole.layers for block in stage.blocks]
    assert rates == pytest.approx(torch.linspace(0, config.drop_path_rate, sum(config.depths)).tolist())
    first = [block.drop_path.drop_prob for stage in part.layers for block in stage.blocks]
    assert first == rates[: sum(config.depths[:2])], "a shallower encoder keeps the rates of a whole one"


def test_stochastic_depth_acts_in_training_alone_and_keeps_the_mean() -> None:
    module = encoder(drop_path=0.6, depth=2)
    block, grid = module.layers[0].blocks[0], torch.randn(1, 3, 5, 12, dtype=torch.float64)
    block.drop_path.drop_prob = 0.6
    nn.init.zeros_(block.mlp.fc2.weight), nn.init.zeros_(block.mlp.fc2.bias)
    with torch.no_grad():
        update = module.layers[0](grid) - grid
        many = module.train().layers[0](grid.expand(997, -1, -1, -1)) - grid
    kept = many.flatten(1).any(1)
    torch.testing.assert_close(many[kept], (update / 0.4).expand(int(kept.sum()), -1, -1, -1), rtol=1e-9, atol=1e-9)
    assert 0.34 < kept.double().mean() < 0.46
