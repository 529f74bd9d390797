"""swinx in timm's registry: pyramids and classifiers, against our own encoders, timm's Swin, and timm's training."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from decoders import CLASSES, DECODERS, build, image
from hub_server import Hub, run
from layouts import DEPTHS, EMBED, HEADS, LAYOUTS, WINDOW, backbone, by_smp, fresh, head, last_norm, official, prefixed
from releases import needs
from safetensors.torch import save, save_file
from timm.models import group_parameters
from timm.models._hub import save_for_hf
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import CheckpointSaver
from torch import Tensor, nn

import swinx
from swinx import SwinConfig, SwinXEncoder
from swinx.checkpoints import convert_state_dict
from swinx.config import VARIANTS
from swinx.timm_models import pretrained_filter

MORE_POOLS = needs("timm", "1.0.31", "its Swins take no other poolings before it")
SMALL: dict[str, Any] = {"embed_dim": EMBED, "depths": DEPTHS, "num_heads": HEADS, "window_size": WINDOW}


def randomised(model: nn.Module, seed: int = 3) -> nn.Module:
    """Norms and biases too, so that one that is lost or exchanged shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


def small_encoder(**changes: Any) -> SwinXEncoder:
    encoder = SwinXEncoder(SwinConfig(**{**SMALL, "drop_path_rate": 0.0} | changes))
    randomised(encoder)
    return encoder


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(*pair) for pair in zip(one, other, strict=True))


def test_every_encoder_is_a_model_of_timm_with_the_weights_that_smp_finds() -> None:
    assert set(VARIANTS) <= set(timm.list_models("swinx_*"))
    for name in VARIANTS:
        entry = smp.encoders.encoders[name]
        sources = [settings["repo_id"] for settings in entry["pretrained_settings"].values()]
        named = {timm.get_pretrained_cfg(full).hf_hub_id for full in timm.list_pretrained(name)}
        assert named == set(sources)
        if sources:
            chosen = timm.get_pretrained_cfg(name)
            theirs = timm.get_pretrained_cfg(sources[0].removeprefix("timm/"))
            assert chosen.hf_hub_id == sources[0]
            assert (chosen.mean, chosen.std, chosen.input_size, chosen.crop_pct, chosen.num_classes) == (
                theirs.mean, theirs.std, theirs.input_size, theirs.crop_pct, theirs.num_classes
            )  # fmt: skip


def test_a_variant_is_a_model_of_timm_and_takes_the_name_of_none() -> None:
    theirs = timm.model_entrypoint("swin_tiny_patch4_window7_224")
    with pytest.raises(ValueError, match="name must not be that of a model in timm's registry, got 'swin_tiny"):
        swinx.register_encoder("swin_tiny_patch4_window7_224", base="swinx_t")
    assert timm.model_entrypoint("swin_tiny_patch4_window7_224") is theirs
    assert "swin_tiny_patch4_window7_224" not in swinx.list_encoders()
    swinx.register_encoder("for_test_timm", base="swinx_n", window_size=(3, 5), stem="none")
    model = timm.create_model("for_test_timm", features_only=True)
    assert model.model.encoder.config == SwinConfig(32, (2, 2, 2, 2), (1, 2, 4, 8), (3, 5), 0.05, stem="none")


@pytest.mark.parametrize("stem", ["shared", "branch", "inline", "none"])
@pytest.mark.parametrize("stride", [8, 16, 32])
def test_features_are_the_levels_of_the_encoder(stem: Any, stride: int) -> None:
    encoder = small_encoder(stem=stem)
    encoder.make_dilated(stride)
    first, x = (2 if stem == "none" else 1), image(2, 3, 67, 71)
    for indices in (None, (1, 3), (-1,), 2, (0, 2)):
        chosen = {} if indices is None else {"out_indices": indices}
        model = timm.create_model("swinx_n", features_only=True, output_stride=stride, stem=stem, **SMALL, **chosen)
        model.model.encoder.load_state_dict(encoder.state_dict())
        levels = encoder(x)[first:]
        positions = list(range(len(levels)))
        taken = positions[-indices:] if isinstance(indices, int) else [positions[i] for i in indices or positions]
        assert equal(model.eval()(x), [levels[i] for i in taken])
        assert len(model.model.encoder.layers) == first + max(taken) - 1, "no stage beyond the last index"
        infos = [encoder.feature_info[first + i] for i in taken]
        assert model.feature_info.channels() == [info.channels for info in infos]
        assert model.feature_info.reduction() == [info.stride for info in infos]


@pytest.mark.parametrize(("name", "stride"), [(n, s) for n, entry in DECODERS.items() for s in entry.strides])
def test_smp_decoders_on_timm_s_name_compute_what_they_do_on_ours(name: str, stride: int) -> None:
    entry, depth = DECODERS[name], 4 if name == "Unet" else 5
    ours = randomised(build(name, stride, depth))
    options = entry.options | {"encoder_weights": None, "encoder_depth": depth, "classes": CLASSES}
    if name in ("Unet", "UnetPlusPlus", "MAnet"):
        options["decoder_channels"] = (32, 32, 16, 16, 16)[:depth]
    if name == "FPN":
        options["upsampling"] = 4
    if name == "PSPNet":
        options["upsampling"] = stride
    options["encoder_output_stride" if entry.takes_stride else "output_stride"] = stride
    if name in ("UnetPlusPlus", "MAnet", "Linknet", "FPN"):
        options.pop("output_stride")
    model = getattr(smp, name)("tu-swinx_n", **options).eval()
    weights = {key.replace("encoder.", "encoder.model.model.encoder.", 1): v for key, v in ours.state_dict().items()}
    model.load_state_dict(weights)
    assert model.encoder.out_channels == ours.encoder.out_channels
    assert model.encoder.output_stride == ours.encoder.output_stride
    x = image(1, 3, entry.side, entry.side + stride)
    with torch.no_grad():
        assert torch.equal(model(x), ours(x))
    if stride == 32 and 8 in entry.strides:
        swinx.set_output_stride(model, 8)
        swinx.set_output_stride(ours, 8)
        x = image(1, 3, entry.side, entry.side + 8)
        with torch.no_grad():
            assert torch.equal(model(x), ours(x))


def test_smp_passes_options_on_to_timm_s_name() -> None:
    model = smp.Unet("tu-swinx_t", encoder_weights=None, window_size=8, drop_path_rate=0.3, stem="branch")
    config = model.encoder.model.model.encoder.config
    assert config == SwinConfig(96, (2, 2, 6, 2), (3, 6, 12, 24), 8, 0.3, stem="branch")
    assert model.encoder.out_channels == [3, 48, 96, 192, 384, 768]
    with pytest.raises(TypeError, match="windows"):
        smp.Unet("tu-swinx_n", encoder_weights=None, windows=8)


def test_a_variant_without_level_1_and_a_stride_as_an_option_work_under_timm_s_name() -> None:
    swinx.register_encoder("for_test_timm_2", base="swinx_n", stem="none")
    ours = randomised(build("Unet", 16, encoder="for_test_timm_2"))
    options = {"encoder_weights": None, "classes": CLASSES, "decoder_channels": (32, 32, 16, 16, 16)}
    model = smp.Unet("tu-for_test_timm_2", output_stride=16, **options).eval()
    weights = {key.replace("encoder.", "encoder.model.model.encoder.", 1): v for key, v in ours.state_dict().items()}
    model.load_state_dict(weights)
    with torch.no_grad():
        assert torch.equal(model(image(1, 3, 64, 80)), ours(image(1, 3, 64, 80)))


def test_dpt_takes_levels_2_to_5_of_the_classifier() -> None:
    """smp's DPT builds classifiers, and knows which features they have from feature_info."""
    model = smp.DPT("tu-swinx_n", encoder_weights=None, decoder_readout="ignore", stem="none", classes=CLASSES).eval()
    assert model.encoder.output_strides == [4, 8, 16, 32]
    x = image(1, 3, 96, 128)
    classifier = model.encoder.model
    plain = SwinXEncoder(classifier.encoder.config).eval()
    plain.load_state_dict(classifier.encoder.state_dict())
    with torch.no_grad():
        features, _ = model.encoder(x)
        for index, (level, norm) in enumerate(zip(plain(x)[2:], plain.norms, strict=True)):
            normed = features[index] if index == 3 else norm(features[index].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            torch.testing.assert_close(normed, level, rtol=1e-5, atol=1e-5)
        assert model(x).shape == (1, CLASSES, 96, 128)


def timm_swin(version: str, side: int, **changes: Any) -> nn.Module:
    torch.manual_seed(4)
    kind = SwinTransformer if version == "v1" else SwinTransformerV2
    options = {"embed_dim": EMBED, "depths": DEPTHS, "num_heads": HEADS, "window_size": 4, "num_classes": 11} | changes
    return randomised(kind(img_size=side, drop_path_rate=0.0, **options), seed=6)


@pytest.mark.parametrize(
    "pool", ["avg", *(pytest.param(pool, marks=MORE_POOLS) for pool in ("max", "avgmax", "catavgmax")), ""]
)
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_classifier_is_timm_s_swin_where_windows_divide_grids(version: str, pool: str, tmp_path: Path) -> None:
    theirs = timm_swin(version, 128, global_pool=pool)
    path = tmp_path / "weights.safetensors"
    save_file(theirs.state_dict(), path)
    small = SMALL | {"window_size": 4, "version": version, "stem": "shared", "drop_path_rate": 0.0}
    overlay = {"file": str(path), "num_classes": 11}
    model = timm.create_model("swinx_n", pretrained=True, pretrained_cfg_overlay=overlay, global_pool=pool, **small)
    model, theirs, x = model.eval().double(), theirs.double(), image(2, 3, 128, 128).double()
    tolerance = 1e-11 if version == "v1" else 1e-7  # timm's V2 keeps offsets and the largest scale in float32
    with torch.no_grad():
        features, theirs_features = model.forward_features(x), theirs.forward_features(x)
        torch.testing.assert_close(features, theirs_features, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(model(x), theirs(x), rtol=tolerance, atol=tolerance)
        levels, theirs_levels = (
            one.forward_intermediates(x, norm=True, intermediates_only=True) for one in (model, theirs)
        )
        for level, other in zip(levels, theirs_levels, strict=True):
            torch.testing.assert_close(level, other, rtol=tolerance, atol=tolerance)
        pooled = theirs.forward_head(theirs_features, pre_logits=True)
        torch.testing.assert_close(
            model.forward_head(features, pre_logits=True), pooled, rtol=tolerance, atol=tolerance
        )
    assert torch.equal(model.get_classifier().weight, theirs.get_classifier().weight)
    assert (model.num_features, model.head_hidden_size) == (theirs.num_features, theirs.head_hidden_size)


def test_official_weights_and_other_channels_and_classes_go_through_our_loader(tmp_path: Path) -> None:
    path = tmp_path / "official.pth"
    torch.save({"model": official()}, path)
    overlay = {"file": str(path)}
    options = SMALL | {"pretrained": True, "pretrained_cfg_overlay": overlay, "stem": "shared"}
    with pytest.warns(UserWarning, match="adapted from 3 to 5 image channels"):
        model = timm.create_model("swinx_n", in_chans=5, num_classes=3, **options)
    state = model.state_dict()
    kernel = backbone()["patch_embed.proj.weight"]
    assert torch.equal(state.pop("encoder.patch_embed.proj.weight"), by_smp(kernel, 5))
    assert state["head.fc.weight"].shape == (3, 8 * EMBED)
    wanted = prefixed("encoder.", {**backbone(), **prefixed("norms.3.", last_norm())})
    assert all(torch.equal(value, wanted[key]) for key, value in state.items() if not key.startswith("head."))
    with pytest.warns(UserWarning, match="resized from window 7 x 7 to 5 x 5"):
        timm.create_model("swinx_n", features_only=True, **options | {"window_size": 5})
    with pytest.raises(ValueError, match="the checkpoint has embed_dim 16"):
        timm.create_model("swinx_n", **options | {"embed_dim": 32})
    with pytest.raises(RuntimeError, match="No pretrained weights exist for swinx_n"):
        timm.create_model("swinx_n", pretrained=True)


# Runs in a fresh interpreter; `small` is an architecture that the served weights fit.
WORKER = """
import json, sys, torch, timm, swinx
small = json.loads(sys.argv[1])
states = [
    timm.create_model("swinx_t", pretrained=True, **small).state_dict(),
    timm.create_model("swinx_t.ms_in22k", pretrained=True, features_only=True, **small).model.state_dict(),
]
torch.save(states, sys.argv[2])
"""


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_classifier_takes_what_an_encoder_takes_but_norms_it_has_not(name: str) -> None:
    content, levels = LAYOUTS[name]
    classifier = timm.create_model("swinx_n", **SMALL, stem="shared", num_classes=0)
    before = {key: value.clone() for key, value in classifier.encoder.state_dict().items()}
    weights = content()
    converted = pretrained_filter(weights, classifier)
    expected = convert_state_dict(weights, fresh())
    assert classifier.load_state_dict(converted, strict=False).missing_keys == []
    for key, value in classifier.encoder.state_dict().items():
        kept = key.startswith("norms.") and 3 not in levels
        assert torch.equal(value, before[key] if kept else expected[key]), key


def test_timm_downloads_the_weights_of_a_tag(tmp_path: Path) -> None:
    hub = Hub({})
    served = [{**backbone(seed=seed), **prefixed("norm.", last_norm()), **head("head.fc")} for seed in (0, 1)]
    for tag, weights in zip(("ms_in1k", "ms_in22k"), served, strict=True):
        hub.add(f"timm/swin_tiny_patch4_window7_224.{tag}", "model.safetensors", save(weights))
    with hub.serve():
        done = run(WORKER, json.dumps(SMALL), str(tmp_path / "states.pt"), cwd=tmp_path, endpoint=hub.endpoint)
    assert done.returncode == 0, done.stderr
    classifier, pyramid = torch.load(tmp_path / "states.pt", weights_only=True)
    assert {method for method, path in hub.requests if path.endswith(".safetensors")} == {"HEAD", "GET"}
    kept = {f"encoder.norms.{level}.{end}" for level in range(3) for end in ("weight", "bias")}
    for state, weights, new in ((classifier, served[0], set()), (pyramid, served[1], kept)):
        wanted = {re.sub(r"^norm\.", "norms.3.", key): value for key, value in weights.items()}
        head_keys = {key for key in wanted if key.startswith("head.")}
        wanted = {(key if key in head_keys else f"encoder.{key}"): value for key, value in wanted.items()}
        assert state.keys() == ((wanted.keys() - head_keys) | new if new else wanted.keys())
        assert all(torch.equal(value, wanted[key]) for key, value in state.items() if key not in new)


@needs("timm", "1.0.16", "opens no folders before it")
def test_timm_s_own_saving_keeps_options(tmp_path: Path) -> None:
    options: dict[str, Any] = SMALL | {"stem": "inline", "window_size": (3, 5), "in_chans": 4, "global_pool": "max"}
    model = randomised(timm.create_model("swinx_n", num_classes=5, **options))
    save_for_hf(model, tmp_path)
    x = image(1, 4, 67, 71)
    assert torch.equal(timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()(x), model(x))
    pyramid = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, features_only=True).eval()
    torch.testing.assert_close(
        pyramid(x)[-1].amax((2, 3)), model.forward_head(model.forward_features(x), pre_logits=True)
    )


@pytest.fixture(params=["shared", "inline", "none"])
def classifier(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    return timm.create_model("swinx_n", num_classes=7, stem=request.param, drop_path_rate=0.0, **SMALL)


def test_every_parameter_of_a_classifier_is_trained(classifier: Any) -> None:
    """DistributedDataParallel asks for it."""
    classifier(image(2, 3, 67, 71)).square().sum().backward()
    assert [name for name, parameter in classifier.named_parameters() if parameter.grad is None] == []
    assert all(parameter.grad.isfinite().all() for parameter in classifier.parameters())
    grads = {name: parameter.grad.clone() for name, parameter in classifier.named_parameters()}
    classifier.zero_grad()
    classifier.set_grad_checkpointing()
    assert all(stage.grad_checkpointing for stage in classifier.encoder.layers)
    classifier(image(2, 3, 67, 71)).square().sum().backward()
    for name, parameter in classifier.named_parameters():
        torch.testing.assert_close(parameter.grad, grads[name], rtol=1e-4, atol=1e-5)


def test_reset_classifier(classifier: Any) -> None:
    classifier = classifier.double()
    x = image(2, 3, 64, 96).double()
    features = classifier.forward_features(x)
    classifier.reset_classifier(3, "max")
    assert (classifier.num_classes, classifier.global_pool) == (3, "max")
    linear = classifier.get_classifier()
    assert (linear.weight.shape, linear.weight.dtype) == ((3, 8 * EMBED), torch.float64)
    torch.testing.assert_close(classifier(x), linear(features.amax((1, 2))))
    classifier.reset_classifier(0)
    torch.testing.assert_close(classifier(x), features.amax((1, 2)))
    classifier.reset_classifier(5)
    assert classifier(x).shape == (2, 5)
    assert classifier.head_hidden_size == 8 * EMBED
    classifier.reset_classifier(5, "catavgmax")
    assert classifier.head_hidden_size == 16 * EMBED
    pooled = torch.cat([features.mean((1, 2)), features.amax((1, 2))], 1)
    torch.testing.assert_close(classifier(x), classifier.get_classifier()(pooled))


def test_drop_rate_is_that_of_the_pooled_features() -> None:
    classifier, ones = timm.create_model("swinx_n", drop_rate=0.75, **SMALL), torch.ones(2, 3, 5, 8 * EMBED)
    assert classifier.eval().forward_head(ones, pre_logits=True).unique().tolist() == [1]
    assert classifier.train().forward_head(ones, pre_logits=True).unique().tolist() == [0, 4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stem": "branch"}, "stem must be shared, inline or none in a classifier"),
        ({"features_only": True, "feature_cls": "hook"}, "feature_cls must be left out"),
        ({"img_size": 224}, "img_size must be left out: swinx_n takes images of any size"),
        ({"features_only": True, "strict_img_size": False}, "strict_img_size must be left out"),
    ],
)
def test_options_that_have_no_meaning_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        timm.create_model("swinx_n", **options)


def test_channels_come_first_in_intermediate_features() -> None:
    with pytest.raises(ValueError, match="output_fmt must be 'NCHW', got 'NHWC'"):
        timm.create_model("swinx_n").forward_intermediates(torch.zeros(1, 3, 32, 32), output_fmt="NHWC")


def test_timm_s_layer_decay_falls_from_block_to_block(classifier: Any) -> None:
    groups = create_optimizer_v2(classifier, "adamw", lr=1.0, weight_decay=0.1, layer_decay=0.5).param_groups
    rates = {id(p): (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}
    named = {name: rates[id(parameter)] for name, parameter in classifier.named_parameters()}
    assert named["head.fc.weight"] == (1.0, 0.1)
    assert named["encoder.norms.3.weight"] == (0.5, 0.0)
    assert named["encoder.layers.3.blocks.0.mlp.fc1.weight"] == (0.5, 0.1)
    assert named["encoder.layers.3.downsample.reduction.weight"] == (0.5, 0.1)
    assert named["encoder.layers.2.blocks.2.attn.relative_position_bias_table"] == (0.25, 0.0)
    assert named["encoder.layers.0.blocks.0.attn.qkv.weight"] == (0.5 ** sum(DEPTHS), 0.1)
    assert {named[name][0] for name in named if ".patch_embed." in name} == {0.5 ** (sum(DEPTHS) + 1)}


def test_coarse_groups_of_timm_are_the_stages(classifier: Any) -> None:
    for name, group in group_parameters(classifier, classifier.group_matcher(coarse=True), reverse=True).items():
        stage = re.match(r"encoder\.(?:layers|norms)\.(\d)", name)
        assert group == (int(stage[1]) + 1 if stage else 0 if ".patch_embed." in name else 5), name


def test_timm_s_training_pretrains_a_stem_that_segmentation_then_has(classifier: Any, tmp_path: Path) -> None:
    optimizer = create_optimizer_v2(classifier, "adamw", lr=1e-2, layer_decay=0.9)
    scheduler, _ = create_scheduler_v2(optimizer, sched="cosine", num_epochs=2, warmup_epochs=0)
    x, target = image(4, 3, 64, 64), torch.tensor([0, 3, 6, 3])
    before = {key: value.clone() for key, value in classifier.state_dict().items()}
    losses = []
    for epoch in range(2):
        loss = nn.functional.cross_entropy(classifier.train()(x), target)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step(epoch + 1)
    assert losses[1] < losses[0]
    assert all(not torch.equal(value, before[key]) for key, value in classifier.state_dict().items())
    saver = CheckpointSaver(classifier, optimizer, checkpoint_dir=str(tmp_path), recovery_dir=str(tmp_path))
    saver.save_checkpoint(1, metric=0.5)
    (path,) = tmp_path.glob("checkpoint-*.pth.tar")

    stem = classifier.encoder.config.stem
    trained = classifier.encoder.state_dict()
    for depth in (5, 3):
        encoder = SwinXEncoder(SwinConfig(**SMALL, drop_path_rate=0.0, stem=stem), depth=depth)
        randomised(encoder)
        norms = {key: value.clone() for key, value in encoder.state_dict().items() if key.startswith("norms.")}
        swinx.load_checkpoint(encoder, path)
        for key, value in encoder.state_dict().items():
            assert torch.equal(value, trained.get(key, norms.get(key))), key
