"""swinx encoders inside every decoder of segmentation_models_pytorch, built by name."""

import copy
from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import torch
from decoders import CLASSES, DECODERS, DEPTHS, build, image
from releases import needs
from torch import Tensor, nn

import swinx

CASES = [(name, stride, depth) for name, entry in DECODERS.items() for stride in entry.strides for depth in DEPTHS]
VARIANT = "swinx_n_for_test_smp"
FREEZES = needs("segmentation-models-pytorch", "0.6", "has no freeze_encoder before it")


@pytest.fixture
def variant() -> str:
    """A registered name: branch stem, oblong window, strong stochastic depth."""
    swinx.register_encoder(VARIANT, base="swinx_n", stem="branch", window_size=(3, 5), drop_path_rate=0.5)
    return VARIANT


def without_gradient(model: nn.Module) -> set[str]:
    """Names of parameters that received none; those that received one must be finite, and not all zero."""
    missing = set()
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            missing.add(name)
            continue
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any() or not name.startswith("encoder."), name
    return missing


def unread_norms(name: str, depth: int) -> set[str]:
    """Parameters that the decoder cannot reach: each level from 2 on ends in a norm of its own."""
    unread = set(range(2, depth + 1)) - DECODERS[name].levels(depth)
    return {f"encoder.norms.{level - 2}.{part}" for level in unread for part in ("weight", "bias")}


def equal_models(one: nn.Module, other: nn.Module, x: Tensor) -> bool:
    with torch.no_grad():
        return torch.equal(one.eval()(x), other.eval()(x))


@pytest.mark.parametrize(("name", "stride", "depth"), CASES)
def test_decoder_trains_every_parameter_it_reaches_and_keeps_images_apart(name: str, stride: int, depth: int) -> None:
    model = build(name, stride, depth)
    side = DECODERS[name].side
    x = image(2, 3, side, side + stride)  # all that smp asks of a size is that the output stride divides it
    target = torch.randint(CLASSES, (2, *x.shape[2:]), generator=torch.Generator().manual_seed(2))

    output = model.train()(x)
    assert output.shape == (2, CLASSES, *x.shape[2:])
    nn.functional.cross_entropy(output, target).backward()
    assert without_gradient(model) == unread_norms(name, depth)

    model.eval()
    with torch.no_grad():
        both, alone = model(x), model(x[1:])
    torch.testing.assert_close(both[1:], alone, rtol=1e-4, atol=1e-5 * both.abs().max().item())
    assert not torch.allclose(both[0], both[1], rtol=1e-2)


@pytest.mark.parametrize("name", list(DECODERS))
def test_stem_beside_the_patch_embedding_is_trained_only_by_decoders_of_level_1(name: str, variant: str) -> None:
    entry = DECODERS[name]
    model = build(name, entry.strides[-1], encoder=variant)
    model.eval()  # stochastic depth would skip some
    model(image(2, 3, entry.side, entry.side)).square().mean().backward()
    stem = {f"encoder.patch_embed.{key}" for key, _ in model.encoder.patch_embed.named_parameters() if "conv" in key}
    assert len(stem) == 6
    expected = unread_norms(name, 5) | (set() if 1 in entry.levels(5) else stem)
    assert without_gradient(model) == expected


@pytest.mark.parametrize("channels", [1, 3, 4, 7])
@pytest.mark.parametrize("name", ["Unet", "DeepLabV3Plus"])
def test_any_number_of_image_channels_reaches_the_first_convolution(name: str, channels: int) -> None:
    model = build(name, 16, in_channels=channels)
    assert model.encoder.out_channels[0] == channels
    x = image(2, channels, 64, 96).requires_grad_()
    model(x).square().mean().backward()
    assert all(x.grad[:, channel].any() for channel in range(channels))
    assert without_gradient(model) == unread_norms(name, 5)


@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize(("height", "width"), [(67, 71), (101, 127), (5, 131)])
def test_unet_takes_ragged_images_at_every_output_stride(height: int, width: int, stride: int) -> None:
    model = build("Unet", stride)
    x = image(2, 3, height, width)
    output = model(x)
    assert output.shape == (2, CLASSES, height, width)
    output.square().mean().backward()
    assert without_gradient(model) == set()
    with torch.no_grad():
        moved = model.eval()(x + torch.nn.functional.one_hot(torch.tensor(width - 1), width)) - model(x)
    assert moved[..., -1, -1].any(), "the last pixel counts"


@pytest.mark.parametrize("name", ["DeepLabV3Plus", "Unet"])
@pytest.mark.parametrize("encoder", ["swinx_n", VARIANT])
def test_saved_model_comes_back_identical(name: str, encoder: str, variant: str, tmp_path: Path) -> None:
    stride = 8 if name == "DeepLabV3Plus" else 32
    model = build(name, stride, encoder=encoder, in_channels=4)
    model.save_pretrained(tmp_path)
    loaded = smp.from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    assert loaded.encoder.config == model.encoder.config
    assert loaded.encoder.output_stride == stride
    assert equal_models(model, loaded, image(1, 4, 96, 64))


def test_model_dilated_after_building_is_dilated_again_after_loading(tmp_path: Path) -> None:
    """smp saves what its constructor took, and Unet's takes no output stride."""
    model = build("Unet", 8)
    model.save_pretrained(tmp_path)
    loaded = smp.from_pretrained(tmp_path)
    loaded.encoder.make_dilated(8)
    assert equal_models(model, loaded, image(1, 3, 67, 71))


def test_state_dict_file_and_deep_copy_give_the_same_model(variant: str, tmp_path: Path) -> None:
    model = build("PAN", 16, encoder=variant)
    x = image(1, 3, 128, 160)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    other = build("PAN", 16, encoder=variant, seed=5)
    assert not equal_models(model, other, x)
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert equal_models(model, other, x)

    copied = copy.deepcopy(model)
    assert equal_models(model, copied, x)
    copied.encoder.make_dilated(32)
    copied.encoder.patch_embed.proj.weight.data.zero_()
    assert equal_models(model, other, x), "a copy shares nothing with its model"


def test_weights_trained_at_one_output_stride_load_at_another(variant: str) -> None:
    coarse, fine = build("DeepLabV3Plus", 16, encoder=variant), build("DeepLabV3Plus", 8, encoder=variant, seed=5)
    fine.load_state_dict(coarse.state_dict())
    x = image(1, 3, 96, 64)
    assert not equal_models(coarse, fine, x)
    fine.encoder.make_dilated(16)
    with torch.no_grad():
        levels = zip(coarse.eval().encoder(x), fine.eval().encoder(x), strict=True)
        assert all(torch.equal(one, other) for one, other in levels)


def features(model: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([level.flatten() for level in model.encoder(x)])


@FREEZES
def test_frozen_encoder_is_deterministic_until_it_is_unfrozen(variant: str) -> None:
    model = build("Unet", 32, encoder=variant)
    x = image(2, 3, 64, 96)
    with torch.no_grad():
        assert not torch.equal(features(model, x), features(model, x)), "stochastic depth in training"
        model.eval()
        expected = features(model, x)
        model.train()

        model.freeze_encoder()
        assert torch.equal(features(model, x), expected)
        model.eval()
        assert model.encoder.training, "smp leaves a frozen encoder in training mode: what this test is about"
        assert torch.equal(model(x), model(x))
        assert torch.equal(features(model, x), expected)
        model.train()
        assert torch.equal(features(model, x), expected)

        model.unfreeze_encoder()
        model.train()
        assert not torch.equal(features(model, x), features(model, x)), "stochastic depth again"
        model.eval()
        assert torch.equal(features(model, x), expected)


@FREEZES
def test_frozen_encoder_gets_no_gradient_and_its_decoder_does(variant: str) -> None:
    model = build("DeepLabV3Plus", 16, encoder=variant)
    model.freeze_encoder()
    model.train()(image(2, 3, 64, 64)).square().mean().backward()
    missing = without_gradient(model)
    assert missing == {name for name, _ in model.named_parameters() if name.startswith("encoder.")}


def test_create_model_knows_every_name_and_sizes_it_as_published() -> None:
    expected = {"swinx_n": 16, "swinx_t": 96, "swinx_s": 96, "swinx_b": 128, "swinx_b_w12": 128, "swinx_l": 192}
    expected["swinx_l_w12"] = 192
    assert set(expected) <= set(swinx.list_encoders())
    for name, level1 in expected.items():
        with torch.device("meta"):
            model = smp.create_model("pan", encoder_name=name, encoder_weights=None)
        dim = 32 if name == "swinx_n" else level1
        assert model.encoder.out_channels == [3, level1, dim, 2 * dim, 4 * dim, 8 * dim]


def test_wrong_depth_and_stride_are_refused_through_smp() -> None:
    with pytest.raises(ValueError, match=r"output_stride must be 8, 16 or 32, got 64"):
        smp.encoders.get_encoder("swinx_n", weights=None, output_stride=64)
    with pytest.raises(ValueError, match=r"depth must be 1, 2, 3, 4 or 5, got 6"):
        smp.encoders.get_encoder("swinx_n", weights=None, depth=6)
    with pytest.raises(ValueError, match=r"in_channels must be a positive integer, got 0"):
        smp.encoders.get_encoder("swinx_n", weights=None, in_channels=0)


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("stride", [8, 16, 32])
def test_encoder_by_name_states_what_it_is(stride: int, depth: int) -> None:
    encoder = smp.encoders.get_encoder("swinx_n", weights=None, in_channels=2, depth=depth, output_stride=stride)
    assert encoder.out_channels == [2, 16, 32, 64, 128, 256][: depth + 1]
    assert encoder.output_stride == min(stride, 2**depth)
