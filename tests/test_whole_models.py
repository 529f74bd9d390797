"""What is done to whole models: output stride after building, and parameter groups."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from decoders import DECODERS, STRIDES, build, image
from timm.models import group_parameters
from timm.optim import create_optimizer_v2
from torch import Tensor, distributed, nn

import swinx
from swinx.models import DECODER_STRIDES


@torch.no_grad()
def masks(model: nn.Module, x: Tensor) -> Tensor:
    return model.eval()(x)


# Output stride


@pytest.mark.parametrize("depth", [3, 4, 5])
@pytest.mark.parametrize("name", DECODERS)
def test_a_changed_stride_gives_what_a_model_built_with_it_gives(name: str, depth: int) -> None:
    strides, side = DECODERS[name].strides, DECODERS[name].side
    if strides == (32,):  # sizes of levels double, which a shallow encoder does not lose
        strides = {3: (8, 16, 32), 4: (16, 32), 5: (32,)}[depth]
    x = image(1, 3, side, side + 64)
    for built in strides:
        for wanted in STRIDES:
            model = build(name, built, depth)
            if wanted in strides:
                expected = build(name, wanted, depth)
                expected.load_state_dict(model.state_dict())
                swinx.set_output_stride(model, wanted)
                assert torch.equal(masks(model, x), masks(expected, x))
                assert masks(model, x).shape[2:] == x.shape[2:]
            else:
                before = masks(model, x)
                rule = "32, the only one it works at" if strides == (32,) else f"one of {', '.join(map(str, strides))}"
                message = f"output_stride of {name} must be {rule}, got {wanted}"
                with pytest.raises(ValueError, match=message):
                    swinx.set_output_stride(model, wanted)
                assert torch.equal(masks(model, x), before)


def test_the_table_of_strides_is_the_one_that_the_tests_found() -> None:
    assert {kind.__name__: strides for kind, strides in DECODER_STRIDES.items()} == {
        name: decoder.strides for name, decoder in DECODERS.items()
    }


@pytest.mark.parametrize("name", ["DeepLabV3", "DeepLabV3Plus", "PAN"])
def test_a_changed_stride_is_saved_and_opened_by_smp(name: str, tmp_path: Path) -> None:
    model = build(name, 16)
    wanted = 32 if name == "PAN" else 8
    swinx.set_output_stride(model, wanted)
    model.save_pretrained(tmp_path)
    opened = smp.from_pretrained(tmp_path)
    x = image(1, 3, 256, 288)
    assert opened.encoder.output_stride == wanted
    assert torch.equal(masks(opened, x), masks(model, x))


def test_psp_opens_with_the_stride_and_the_upsampling_that_it_was_built_with(tmp_path: Path) -> None:
    """smp stores no output stride for it: a stored upsampling of another one would give masks of another size."""
    model = build("PSPNet", 32, 5)
    swinx.set_output_stride(model, 8)
    assert model.segmentation_head[1].scale_factor == 8
    model.save_pretrained(tmp_path)
    opened, x = smp.from_pretrained(tmp_path), image(1, 3, 64, 96)
    assert masks(opened, x).shape[2:] == (64, 96)
    swinx.set_output_stride(opened, 8)
    assert torch.equal(masks(opened, x), masks(model, x))


def test_the_model_that_holds_the_encoder_is_the_one_that_changes() -> None:
    teacher = smp.DeepLabV3Plus("resnet18", encoder_weights=None)
    student = build("DeepLabV3", 16)
    both = nn.ModuleDict({"teacher": teacher, "student": student})
    swinx.set_output_stride(both, 8)
    assert masks(student, image(1, 3, 64, 96)).shape[2:] == (64, 96)
    assert (teacher.decoder.up.scale_factor, teacher.config["encoder_output_stride"]) == (4, 16)
    with pytest.raises(ValueError, match="output_stride of DeepLabV3 must be one of 8, 16, got 32"):
        swinx.set_output_stride(both, 32)
    encoder = swinx.SwinXEncoder(swinx.config.VARIANTS["swinx_n"])
    with pytest.raises(ValueError, match="must be a SwinXEncoder or hold one of smp's"):
        swinx.set_output_stride(nn.ModuleList([teacher, encoder]), 8)


def test_all_models_on_one_encoder_change_or_none() -> None:
    first, second, plus, fpn = (
        build(name, stride) for name, stride in (("DeepLabV3", 16), ("PSPNet", 16), ("DeepLabV3Plus", 16), ("FPN", 32))
    )
    fpn.encoder = plus.encoder = second.encoder = first.encoder
    swinx.set_output_stride(nn.ModuleList([first, second, plus]), 8)
    x = image(1, 3, 64, 96)
    for model, name in ((first, "DeepLabV3"), (second, "PSPNet"), (plus, "DeepLabV3Plus")):
        expected = build(name, 8)
        expected.load_state_dict(model.state_dict())
        assert torch.equal(masks(model, x), masks(expected, x))
        assert model.config.get("encoder_output_stride", 8) == 8
    with pytest.raises(ValueError, match="output_stride of FPN must be 32, the only one it works at, got 16"):
        swinx.set_output_stride(nn.ModuleList([first, fpn]), 16)
    second.segmentation_head = nn.Conv2d(32, 5, 1)
    with pytest.raises(ValueError, match=r"model must hold a segmentation_head\.1 to change its stride"):
        swinx.set_output_stride(nn.ModuleList([first, second]), 16)
    assert (first.encoder.output_stride, first.segmentation_head[1].scale_factor) == (8, 8)


def test_errors_show_the_type_of_a_model_and_not_what_it_holds() -> None:
    model = build("DeepLabV3", 16)
    with pytest.raises(ValueError, match=r"^model must be a Module, got int$"):
        swinx.set_output_stride(8, model)
    with pytest.raises(ValueError, match=r"^output_stride must be 8, 16 or 32, got DeepLabV3$"):
        swinx.set_output_stride(model, model)
    with pytest.raises(ValueError, match=r"^learning_rate must be above 0 and finite, got DeepLabV3$"):
        swinx.parameter_groups(model, model)
    with pytest.raises(ValueError, match=r"^model must be a Module, got str$"):
        swinx.set_attention("reference", model)
    with pytest.raises(ValueError, match=r"^impl must be one of auto, reference, sdpa, triton, got DeepLabV3$"):
        swinx.set_attention(model, model)
    model.segmentation_head[1] = nn.Sequential(nn.Upsample(scale_factor=8))
    with pytest.raises(ValueError, match=r"^model's segmentation_head\.1 must be .* one factor, got Sequential$"):
        swinx.set_output_stride(model, 8)


def test_a_variant_that_is_dilated_from_the_start_is_saved_and_opened(tmp_path: Path) -> None:
    swinx.register_encoder("swinx_n_os16", base="swinx_n", output_stride=16)
    model = smp.Unet("swinx_n_os16", encoder_weights=None)
    assert model.encoder.output_stride == 16
    model.save_pretrained(tmp_path)
    opened = smp.from_pretrained(tmp_path)
    assert opened.encoder.output_stride == 16
    x = image(1, 3, 64, 96)
    assert torch.equal(masks(opened, x), masks(model, x))
    # A decoder that asks for a stride of 8 or 16 gets it, also where the variant has another.
    for stride in (8, 16):
        deeplab = smp.DeepLabV3("swinx_n_os16", encoder_weights=None, encoder_output_stride=stride)
        assert deeplab.encoder.output_stride == stride
        assert masks(deeplab, x).shape[2:] == (64, 96)
    model.encoder.make_dilated(32)
    assert model.encoder.output_stride == 32


def test_an_encoder_alone_or_a_model_inside_another_is_found() -> None:
    encoder = swinx.SwinXEncoder(swinx.config.VARIANTS["swinx_n"])
    swinx.set_output_stride(encoder, 8)
    assert encoder.output_stride == 8
    for module in (torch.compile(encoder), nn.DataParallel(encoder), nn.DataParallel(torch.compile(encoder))):
        swinx.set_output_stride(module, 32)
        assert encoder.output_stride == 32
        swinx.set_output_stride(module, 16)
        assert encoder.output_stride == 16
    model = nn.ModuleDict({"model": build("DeepLabV3", 16), "loss": nn.Identity()})
    swinx.set_output_stride(model, 8)
    assert masks(model["model"], image(1, 3, 64, 96)).shape[2:] == (64, 96)


def test_an_encoder_in_distributed_data_parallel_is_found(tmp_path: Path) -> None:
    model = build("DeepLabV3", 16)
    distributed.init_process_group("gloo", init_method=(tmp_path / "store").as_uri(), rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(model)
        swinx.set_output_stride(parallel, 8)
        swinx.save_pretrained(parallel, tmp_path / "saved")
    finally:
        distributed.destroy_process_group()
    assert model.encoder.output_stride == 8
    assert swinx.from_pretrained(tmp_path / "saved").encoder.output_stride == 8
    assert masks(model, image(1, 3, 64, 96)).shape[2:] == (64, 96)


def test_an_encoder_that_was_dilated_by_itself_fits_its_decoder_again() -> None:
    model, x = build("DeepLabV3Plus", 16), image(1, 3, 64, 96)
    before = masks(model, x)
    model.encoder.make_dilated(8)
    swinx.set_output_stride(model, 8)
    assert masks(model, x).shape[2:] == (64, 96)
    model.encoder.make_dilated(32)
    swinx.set_output_stride(model, 16)
    assert torch.equal(masks(model, x), before)


@pytest.mark.parametrize("depth", [3, 4, 5])
@pytest.mark.parametrize("upsampling", [None, 4])
def test_a_deeplabv3_fits_again_after_its_encoder_was_dilated_by_itself(upsampling: int | None, depth: int) -> None:
    model = smp.DeepLabV3(
        "swinx_n", depth, encoder_weights=None, encoder_output_stride=16, upsampling=upsampling, classes=2
    ).eval()
    x = image(1, 3, 64, 96)
    before = masks(model, x)
    for by_itself, stride in ((8, 8), (32, 8), (8, 16)):
        model.encoder.make_dilated(by_itself)
        swinx.set_output_stride(model, stride)
        assert masks(model, x).shape == before.shape
    assert torch.equal(masks(model, x), before)


def test_a_factor_that_was_changed_by_hand_fits_the_encoder_as_it_is() -> None:
    model = smp.DeepLabV3("swinx_n", encoder_weights=None, encoder_output_stride=16).eval()
    model.encoder.make_dilated(8)
    model.segmentation_head[1].scale_factor = 8.0
    swinx.set_output_stride(model, 16)
    assert masks(model, image(1, 3, 64, 96)).shape[2:] == (64, 96)


def test_masks_of_the_size_of_the_features_stay_so() -> None:
    model = smp.DeepLabV3("swinx_n", encoder_weights=None, encoder_output_stride=16, upsampling=1)
    swinx.set_output_stride(model, 8)
    assert masks(model, image(1, 3, 64, 96)).shape[2:] == (8, 12)


@pytest.mark.parametrize(
    ("make", "stride", "message"),
    [
        (lambda: build("Unet", 32), 4, "output_stride must be 8, 16 or 32, got 4"),
        (lambda: build("Unet", 32), 16.0, "output_stride must be 8, 16 or 32, got 16.0"),
        (lambda: nn.Linear(2, 2), 8, "model must contain a SwinXEncoder, got Linear"),
        (lambda: smp.Unet("resnet18", encoder_weights=None), 8, "model must contain a SwinXEncoder, got Unet"),
        (lambda: nn.Sequential(build("Unet", 32), build("FPN", 32)), 8, "must contain one SwinXEncoder, got 2"),
        (
            lambda: nn.Sequential(swinx.SwinXEncoder(swinx.config.VARIANTS["swinx_n"]), nn.Identity()),
            8,
            r"smp's Unet, .* \(for a decoder of your own, call make_dilated of its encoder\), got Sequential",
        ),
    ],
)
def test_a_wrong_model_or_stride_is_refused(make: Any, stride: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        swinx.set_output_stride(make(), stride)


def test_a_replaced_head_or_merge_is_refused_before_anything_changes() -> None:
    model = build("DeepLabV3", 16)
    model.segmentation_head[1] = nn.ConvTranspose2d(5, 5, 16, 16)
    with pytest.raises(
        ValueError, match=r"segmentation_head\.1 must be an Upsample with one factor, got ConvTranspose2d"
    ):
        swinx.set_output_stride(model, 8)
    assert model.encoder.output_stride == 16
    model.segmentation_head = nn.Conv2d(256, 5, 1)
    with pytest.raises(ValueError, match=r"model must hold a segmentation_head\.1 to change its stride"):
        swinx.set_output_stride(model, 8)
    assert model.encoder.output_stride == 16
    encoder = model.encoder
    encoder.layers[2].downsample = nn.Identity()
    periods = [stage.period for stage in encoder.layers]
    with pytest.raises(ValueError, match=r"one PatchMerging in each stage but the first, got \[1, 0, 1\] of them"):
        encoder.make_dilated(8)
    assert (encoder.output_stride, [stage.period for stage in encoder.layers]) == (16, periods)


# Parameter groups


def rates(model: nn.Module, **options: Any) -> tuple[dict[str, float], dict[str, float]]:
    """Learning rate and weight decay by parameter name."""
    groups = swinx.parameter_groups(model, **options)
    found = [(id(parameter), group) for group in groups for parameter in group["params"]]
    assert len(found) == len(dict(found)), "each parameter once"
    by_id = dict(found)
    named = {name: by_id[id(parameter)] for name, parameter in model.named_parameters() if id(parameter) in by_id}
    return {name: group["lr"] for name, group in named.items()}, {n: g["weight_decay"] for n, g in named.items()}


@pytest.mark.parametrize("encoder", ["swinx_n", "swinx_v2_t"])
def test_norms_biases_and_position_biases_are_not_decayed(encoder: str) -> None:
    model = smp.Unet(encoder, encoder_weights=None)
    rate, decay = rates(model, learning_rate=0.1, weight_decay=0.05)
    assert set(rate) == {name for name, _ in model.named_parameters()}
    assert set(rate.values()) == {0.1}
    for module_name, module in model.named_modules():
        for name, _ in module.named_parameters(recurse=False):
            kernel = isinstance(module, nn.Linear | nn.Conv2d) and name == "weight" and "cpb_mlp" not in module_name
            assert decay[f"{module_name}.{name}"] == (0.05 if kernel else 0.0), (module_name, name)
    assert model.encoder.no_weight_decay() <= {name.removeprefix("encoder.") for name, d in decay.items() if d == 0}


@pytest.mark.parametrize("wrapped", [False, True])
def test_layer_decay_falls_from_block_to_block(wrapped: bool) -> None:
    swinx.register_encoder("swinx_n_branch_decay", base="swinx_n", stem="branch")
    model = smp.Unet("swinx_n_branch_decay", encoder_weights=None)
    if wrapped:
        model.encoder.layers[1] = torch.compile(model.encoder.layers[1])
    rate, _ = rates(model, learning_rate=1.0, layer_decay=0.5)
    rate = {name.replace("_orig_mod.", ""): value for name, value in rate.items()}
    assert {value for name, value in rate.items() if not name.startswith("encoder.")} == {1.0}
    # Nine layers: patches and stem, then two blocks in each of four stages, with the merge in front of the first.
    assert {rate[name] for name in rate if name.startswith("encoder.patch_embed")} == {0.5**9}
    for stage in range(4):
        for block in range(2):
            prefix = f"encoder.layers.{stage}.blocks.{block}."
            assert {rate[name] for name in rate if name.startswith(prefix)} == {0.5 ** (8 - 2 * stage - block)}
        merge = f"encoder.layers.{stage}.downsample."
        assert {rate[name] for name in rate if name.startswith(merge)} <= {0.5 ** (8 - 2 * stage)}
        assert {rate[name] for name in rate if name.startswith(f"encoder.norms.{stage}.")} == {0.5 ** (7 - 2 * stage)}


def test_timms_own_layer_decay_orders_the_parameters_alike() -> None:
    encoder = swinx.SwinXEncoder(swinx.config.VARIANTS["swinx_n"])
    theirs = create_optimizer_v2(encoder, "adamw", lr=1.0, weight_decay=0.05, layer_decay=0.5).param_groups
    scale = {id(parameter): group["lr_scale"] for group in theirs for parameter in group["params"]}
    decay = {id(parameter): group["weight_decay"] for group in theirs for parameter in group["params"]}
    rate, ours = rates(encoder, learning_rate=1.0, layer_decay=0.5, weight_decay=0.05)
    # timm counts the layers from its head, of which an encoder has none: one step less.
    assert {name: 2 * rate[name] for name, _ in encoder.named_parameters()} == {
        name: scale[id(parameter)] for name, parameter in encoder.named_parameters()
    }
    assert {name: decay[id(parameter)] for name, parameter in encoder.named_parameters()} == ours
    stages = group_parameters(encoder, encoder.group_matcher(coarse=True))
    assert len(stages) == 5
    assert sorted(name for names in stages.values() for name in names) == sorted(
        name for name, _ in encoder.named_parameters()
    )


def test_frozen_parameters_are_left_out_and_the_groups_train() -> None:
    model = smp.FPN("swinx_n", encoder_weights=None)
    model.encoder.freeze_stages(2)
    rate, _ = rates(model, learning_rate=1e-3, layer_decay=0.9)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == set(rate)
    optimiser = torch.optim.AdamW(swinx.parameter_groups(model, 1e-3, 0.9))
    model(image(2, 3, 64, 64)).square().mean().backward()
    optimiser.step()


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16, Fraction])
def test_numbers_of_other_kinds_are_rates(kind: Any, tmp_path: Path) -> None:
    """And a saved state of the optimiser holds plain numbers, or torch would not read it."""
    model = smp.Unet("swinx_n", encoder_weights=None)
    groups = swinx.parameter_groups(model, kind(0.125), layer_decay=kind(0.5), weight_decay=kind(0.25))
    plain = swinx.parameter_groups(model, 0.125, 0.5, 0.25)
    assert [(g["lr"], g["weight_decay"]) for g in groups] == [(g["lr"], g["weight_decay"]) for g in plain]
    torch.save(torch.optim.AdamW(groups).state_dict(), tmp_path / "optimiser.pth")
    rates = {group["lr"] for group in torch.load(tmp_path / "optimiser.pth", weights_only=True)["param_groups"]}
    assert rates == {0.125 * 0.5**steps for steps in range(10)}
    with pytest.raises(ValueError, match="learning_rate must be above 0 and finite, got "):
        swinx.parameter_groups(model, kind(-0.125))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate must be above 0 and finite, got 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate must be above 0 and finite, got nan"),
        ({"learning_rate": float("inf")}, "learning_rate must be above 0 and finite, got inf"),
        ({"learning_rate": "0.1"}, "learning_rate must be above 0 and finite, got '0.1'"),
        ({"learning_rate": 0.1, "layer_decay": None}, "layer_decay must be above 0 and at most 1, got None"),
        ({"learning_rate": 0.1, "layer_decay": 0.0}, "layer_decay must be above 0 and at most 1, got 0.0"),
        ({"learning_rate": 0.1, "layer_decay": 1.1}, "layer_decay must be above 0 and at most 1, got 1.1"),
        ({"learning_rate": 0.1, "weight_decay": -0.1}, "weight_decay must be at least 0 and finite, got -0.1"),
        (
            {"learning_rate": 0.1, "layer_decay": 0.9},
            "layer_decay below 1 needs a model with a SwinXEncoder, got Linear",
        ),
    ],
)
def test_wrong_options_of_groups_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        swinx.parameter_groups(nn.Linear(2, 2), **options)
    with pytest.raises(ValueError, match="model must be a Module, got list"):
        swinx.parameter_groups([nn.Linear(2, 2)], learning_rate=0.1)


def test_what_was_put_around_a_stage_has_the_rate_of_its_last_block() -> None:
    class Gated(nn.Module):
        def __init__(self, stage: nn.Module) -> None:
            super().__init__()
            self.stage, self.gate = stage, nn.Linear(64, 64)

    encoder = swinx.SwinXEncoder(swinx.config.VARIANTS["swinx_n"])
    encoder.layers[1] = Gated(encoder.layers[1])
    rate, _ = rates(encoder, learning_rate=1.0, layer_decay=0.5)
    assert rate["layers.1.gate.weight"] == rate["layers.1.stage.blocks.1.mlp.fc1.weight"] == 0.5**5
    encoder.layers[1] = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="encoder must hold its 4 stages for this, got 3 of them"):
        swinx.parameter_groups(encoder, 0.1, 0.5)
