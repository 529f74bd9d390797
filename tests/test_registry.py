"""Names, variants and preprocessing: what `import swinx` enters into smp's registry, and what it refuses to enter."""

import functools
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from segmentation_models_pytorch.encoders import encoders

import swinx
from swinx import SwinConfig, SwinXEncoder

# Name: the model of timm that has the weights, and the rate of stochastic depth.
PUBLISHED: dict[str, tuple[str, float]] = {
    "swinx_n": ("", 0.05),
    "swinx_t": ("swin_tiny_patch4_window7_224", 0.2),
    "swinx_s": ("swin_small_patch4_window7_224", 0.3),
    "swinx_b": ("swin_base_patch4_window7_224", 0.3),
    "swinx_b_w12": ("swin_base_patch4_window12_384", 0.3),
    "swinx_l": ("swin_large_patch4_window7_224", 0.3),
    "swinx_l_w12": ("swin_large_patch4_window12_384", 0.3),
    "swinx_s3_t": ("swin_s3_tiny_224", 0.2),
    "swinx_s3_s": ("swin_s3_small_224", 0.3),
    "swinx_s3_b": ("swin_s3_base_224", 0.3),
    "swinx_v2_n": ("", 0.05),
    "swinx_v2_t": ("swinv2_tiny_window8_256", 0.2),
    "swinx_v2_s": ("swinv2_small_window8_256", 0.3),
    "swinx_v2_b": ("swinv2_base_window8_256", 0.3),
    "swinx_v2_t_w16": ("swinv2_tiny_window16_256", 0.2),
    "swinx_v2_s_w16": ("swinv2_small_window16_256", 0.3),
    "swinx_v2_b_w16": ("swinv2_base_window16_256", 0.3),
    "swinx_v2_b_w12": ("swinv2_base_window12_192", 0.3),
    "swinx_v2_l_w12": ("swinv2_large_window12_192", 0.3),
    "swinx_v2_b_w12to16": ("swinv2_base_window12to16_192to256", 0.3),
    "swinx_v2_b_w12to24": ("swinv2_base_window12to24_192to384", 0.3),
    "swinx_v2_l_w12to16": ("swinv2_large_window12to16_192to256", 0.3),
    "swinx_v2_l_w12to24": ("swinv2_large_window12to24_192to384", 0.3),
}
WITH_WEIGHTS = [name for name, (architecture, _) in PUBLISHED.items() if architecture]
FIELDS = (
    "embed_dim, depths, num_heads, window_size, drop_path_rate, stem, version, pretrained_window_size, output_stride"
)


def tags(name: str) -> dict[str, dict[str, str]]:
    settings: dict[str, dict[str, str]] = encoders[name]["pretrained_settings"]
    return settings


def config(name: str) -> SwinConfig:
    built: SwinConfig = encoders[name]["params"]["config"]
    return built


def timm_cfg(name: str, tag: str) -> Any:
    return timm.models.get_pretrained_cfg(tags(name)[tag]["repo_id"].removeprefix("timm/"))


def test_the_published_names_are_listed_and_known_to_smp() -> None:
    assert swinx.list_encoders() == list(PUBLISHED)
    assert set(PUBLISHED) <= set(smp.encoders.get_encoder_names())
    assert {name: config(name).drop_path_rate for name in PUBLISHED} == {name: r for name, (_, r) in PUBLISHED.items()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_set_of_weights_that_timm_publishes_has_its_tag_and_one_is_smp_s_default(name: str) -> None:
    architecture = PUBLISHED[name][0]
    wanted = {full.rpartition(".")[2].removeprefix("ms_"): full for full in timm.list_pretrained(f"{architecture}.*")}
    # The default are those trained on ImageNet-1k, alone if there are such, or else at last.
    if default := wanted.pop("in1k", None) or wanted.get("in22k_ft_in1k") or wanted.get("in22k"):
        wanted["imagenet"] = default
    assert {tag: dict(settings) for tag, settings in tags(name).items()} == {
        tag: {"repo_id": timm.get_pretrained_cfg(full).hf_hub_id, "revision": "main"} for tag, full in wanted.items()
    }


def test_every_swin_that_timm_publishes_can_be_had() -> None:
    offered = {settings["repo_id"].removeprefix("timm/") for name in PUBLISHED for settings in tags(name).values()}
    theirs = {name for pattern in ("swin_*", "swinv2_*_window*") for name in timm.list_pretrained(pattern)}
    assert offered == theirs


@pytest.mark.parametrize("name", [name for name in WITH_WEIGHTS if "_s3_" not in name and "_v2_" not in name])
def test_a_variant_has_the_architecture_of_its_weights(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Old timm reads rates of stochastic depth from a tensor, which must not be on the meta device.
    monkeypatch.setattr(torch, "linspace", functools.partial(torch.linspace, device="cpu"))
    with torch.device("meta"):
        model = timm.create_model(PUBLISHED[name][0])
    built = config(name)
    assert built.embed_dim == model.embed_dim
    assert list(built.depths) == [len(stage.blocks) for stage in model.layers]
    assert list(built.num_heads) == [stage.blocks[0].attn.num_heads for stage in model.layers]
    assert (built.window_size, built.window_size) == model.layers[0].blocks[0].attn.window_size


def test_a_registered_variant_is_built_with_its_changes() -> None:
    swinx.register_encoder("tiny", base="swinx_n", stem="branch", window_size=(4, 5), depths=(1, 1, 2, 1))
    assert swinx.list_encoders() == [*PUBLISHED, "tiny"]
    assert config("tiny") == SwinConfig(32, (1, 1, 2, 1), (1, 2, 4, 8), (4, 5), 0.05, stem="branch")
    encoder = smp.encoders.get_encoder("tiny", in_channels=2, depth=4, output_stride=8)
    assert isinstance(encoder, SwinXEncoder)
    assert encoder.config == config("tiny")
    assert [len(stage.blocks) for stage in encoder.layers] == [1, 1, 2]
    assert [info.stride for info in encoder.feature_info] == [1, 2, 4, 8, 8]
    image = torch.randn(1, 2, 35, 50)
    levels = encoder(image)
    assert torch.equal(levels[0], image)
    assert [level.shape[1] for level in levels] == encoder.out_channels == [2, 16, 32, 64, 128]


def test_a_variant_of_a_variant_takes_its_base_s_changes_over() -> None:
    swinx.register_encoder("first", base="swinx_t", stem="branch")
    swinx.register_encoder("second", base="first", window_size=8)
    assert (config("second").stem, config("second").window_size) == ("branch", 8)
    assert tags("second") == tags("swinx_t")


@pytest.mark.parametrize(
    "changes", [{}, {"stem": "none"}, {"stem": "inline"}, {"window_size": (4, 9)}, {"drop_path_rate": 0.0}]
)
def test_weights_stay_where_they_fit(changes: dict[str, Any]) -> None:
    swinx.register_encoder("variant", base="swinx_b", **changes)
    assert tags("variant") == tags("swinx_b") != {}


@pytest.mark.parametrize(
    "changes",
    [{"embed_dim": 48}, {"depths": (1, 1, 1, 1)}, {"num_heads": (2, 4, 8, 16)}, {"version": "v2"}],
    ids=lambda c: next(iter(c)),
)
def test_weights_go_where_they_cannot_fit(changes: dict[str, Any]) -> None:
    swinx.register_encoder("variant", base="swinx_t", **changes)
    assert tags("variant") == {}
    with pytest.raises(KeyError, match="Wrong pretrained weights `imagenet` for encoder `variant`"):
        smp.encoders.get_encoder("variant", weights="imagenet")


def test_a_first_version_of_a_second_one_counts_no_offsets() -> None:
    swinx.register_encoder("first_version", base="swinx_v2_b_w12to24", version="v1")
    made = config("first_version")
    assert (made.version, made.window_size, made.pretrained_window_size) == ("v1", (24, 24, 24, 12), None)
    message = "pretrained_window_size must be None for version 'v1', got 12"
    refused(message, "mine", base="swinx_v2_b", version="v1", pretrained_window_size=12)


def test_a_list_counts_as_a_tuple() -> None:
    swinx.register_encoder("variant", base="swinx_t", depths=[2, 2, 6, 2], window_size=[7, 7])
    assert config("variant").depths == (2, 2, 6, 2)
    assert config("variant").window_size == (7, 7)
    assert tags("variant") == tags("swinx_t")


def test_repeating_a_registration_is_allowed_and_changing_one_is_not() -> None:
    swinx.register_encoder("variant", base="swinx_t", window_size=8)
    before = dict(encoders["variant"])
    swinx.register_encoder("variant", base="swinx_t", window_size=8)
    assert encoders["variant"] == before
    with pytest.raises(ValueError, match=r"name must be new: 'variant' is .* other weights; choose another name"):
        swinx.register_encoder("variant", base="swinx_t", window_size=9)
    assert encoders["variant"] == before


def refused(message: str, *args: Any, **kwargs: Any) -> None:
    before = {name: dict(entry) for name, entry in encoders.items()}
    with pytest.raises(ValueError, match=re.escape(message)):
        swinx.register_encoder(*args, **kwargs)
    assert encoders == before


def test_a_published_name_keeps_its_weights() -> None:
    before = encoders["swinx_b_w12"]["pretrained_settings"]
    with pytest.raises(ValueError, match="registered with another configuration or other weights"):
        swinx.register_encoder("swinx_b_w12", base="swinx_b", window_size=12)
    assert encoders["swinx_b_w12"]["pretrained_settings"] is before


def test_a_taken_name_is_refused() -> None:
    for name in ("swinx_t", "resnet34", "mit_b0"):
        refused(f"name must be new: {name!r}", name, base="swinx_t", window_size=8)


def test_a_name_that_smp_would_hand_to_timm_is_refused() -> None:
    for name in ("tu-mine", "timm-mine"):
        message = f"name must not begin with 'tu-' or 'timm-', which are smp's, got {name!r}"
        refused(message, name, base="swinx_t")


def test_a_name_that_could_not_be_saved_or_built_is_refused() -> None:
    rule = "name must be letters, digits, '_' and '-', at most 80, the first a letter or digit, got "
    for name in ("", "my enc", "a/b", "my.v2", "_mine", "mine\n", "größer", "x" * 81):
        refused(rule + repr(name), name, base="swinx_t")
        assert not timm.is_model(name)
    refused(f"{rule}Linear", torch.nn.Linear(2, 2), base="swinx_t")


def test_the_longest_name_with_the_longest_tag_is_saved_and_opened(tmp_path: Path) -> None:
    name = "My-2nd_" + "x" * 73
    swinx.register_encoder(name, base="swinx_t", depths=(2, 2, 6, 2), window_size=8)
    options = {"encoder_weights": None, "encoder_depth": 3, "upsampling": 1}
    model = smp.FPN(f"tu-{name}.ms_in22k_ft_in1k", **options).eval()
    swinx.save_pretrained(model, tmp_path)
    opened, x = swinx.from_pretrained(tmp_path), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(opened(x), model(x))


def test_an_unknown_base_is_refused_with_the_choices() -> None:
    refused(f"base must be one of {', '.join(PUBLISHED)}, got 'swinx_xl'", "mine", base="swinx_xl")
    refused("got 'resnet34'", "mine", base="resnet34")


def test_an_unknown_field_is_refused_with_the_choices() -> None:
    message = f"changes must be among {FIELDS}, got windows, size"
    refused(message, "mine", base="swinx_t", windows=7, size=3, stem="none")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stem": "conv"}, "stem must be one of shared, branch, inline, none, got 'conv'"),
        ({"window_size": 0}, "window_size must be a positive integer or a pair of them, or four of these, got 0"),
        (
            {"window_size": (7, 7, 7)},
            "window_size must be a positive integer or a pair of them, or four of these, got (7, 7, 7)",
        ),
        ({"depths": (2, 2, 2)}, "depths must be four positive integers, one per stage, got (2, 2, 2)"),
        ({"embed_dim": -96}, "embed_dim must be an integer of at least 2, got -96"),
        ({"num_heads": (5, 6, 12, 24)}, "num_heads must divide the channels of each stage: stage 1 has 96 channels"),
        ({"drop_path_rate": 1.0}, "drop_path_rate must be a number of at least 0 and below 1, got 1.0"),
        ({"drop_path_rate": -0.5}, "drop_path_rate must be a number of at least 0 and below 1, got -0.5"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_wrong_value_is_refused(changes: dict[str, Any], message: str) -> None:
    refused(message, "mine", base="swinx_t", **changes)


def test_a_rate_of_numpy_is_a_number() -> None:
    config = SwinConfig(32, (1, 1, 1, 1), (1, 2, 4, 8), 7, np.float32(0.25))  # type: ignore[arg-type]
    assert type(config.drop_path_rate) is float
    assert config.drop_path_rate == 0.25


@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_preprocessing_is_that_of_the_weights(name: str) -> None:
    """Against timm's own record of how each set of weights was trained."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    for tag in tags(name):
        cfg = timm_cfg(name, tag)
        preprocess = swinx.get_preprocessing_fn(name, weights=tag)
        wanted = (pixels.astype(np.float64) / 255 - np.array(cfg.mean)) / np.array(cfg.std)
        np.testing.assert_allclose(preprocess(pixels), wanted, rtol=1e-12)
        np.testing.assert_allclose(preprocess(pixels / 255), wanted, rtol=1e-12)


def test_preprocessing_is_smp_s_for_imagenet() -> None:
    """Its own function with the statistics that its ResNets have must give the same array."""
    pixels = np.random.default_rng(1).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    imagenet = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    wanted = smp.encoders.preprocess_input(pixels, input_space="RGB", input_range=[0, 1], **imagenet)
    result = swinx.get_preprocessing_fn("swinx_b")(pixels)
    assert np.array_equal(result, wanted)
    assert np.array_equal(pixels, np.random.default_rng(1).integers(0, 256, (4, 6, 3), dtype=np.uint8)), "not in place"


def test_statistics_of_one_function_are_its_own() -> None:
    preprocess = swinx.get_preprocessing_fn("swinx_t")
    preprocess.keywords["mean"][0] = 99.0
    preprocess.keywords["input_range"][1] = 255
    kept = swinx.get_preprocessing_fn("swinx_b").keywords
    assert (kept["mean"], kept["input_range"]) == ([0.485, 0.456, 0.406], [0, 1])


def test_preprocessing_follows_a_variant_s_base() -> None:
    swinx.register_encoder("variant", base="swinx_t", stem="branch")
    image = np.random.default_rng(2).random((3, 4, 3))
    wanted = swinx.get_preprocessing_fn("swinx_t", "in22k")(image)
    assert np.array_equal(swinx.get_preprocessing_fn("variant", "in22k")(image), wanted)


def test_unknown_weights_are_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match="must be one of imagenet, in22k, in22k_ft_in1k for swinx_b, got 'ssl'"):
        swinx.get_preprocessing_fn("swinx_b", weights="ssl")
    message = "encoder_name must be one with pretrained weights, got 'swinx_n', which has none, and so no statistics"
    with pytest.raises(ValueError, match=message):
        swinx.get_preprocessing_fn("swinx_n")
    with pytest.raises(ValueError, match=f"encoder_name must be one of {', '.join(PUBLISHED)}, got 'resnet34'"):
        swinx.get_preprocessing_fn("resnet34")
    with pytest.raises(ValueError, match=f"encoder_name must be one of {', '.join(PUBLISHED)}, got Linear$"):
        swinx.get_preprocessing_fn(torch.nn.Linear(2, 2))


def test_smp_says_which_weights_an_encoder_has() -> None:
    with pytest.raises(KeyError, match=r"`nonsense` for encoder `swinx_t`.*\['imagenet', 'in22k', 'in22k_ft_in1k'\]"):
        smp.encoders.get_encoder("swinx_t", weights="nonsense")
    with pytest.raises(KeyError, match=r"`imagenet` for encoder `swinx_n`.*options are: \[\]"):
        smp.Unet("swinx_n")


def test_importing_swinx_brings_no_optional_package() -> None:
    """Beyond what smp itself imports; torch may bring Triton along."""
    program = (
        "import sys, segmentation_models_pytorch; before = set(sys.modules); import swinx;"
        "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before}))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    added = set(result.stdout.split())
    assert "swinx" in added
    optional = {"triton", "lightning", "matplotlib", "pandas", "torchmetrics", "tyro", "rich", "pytest", "experiments"}
    assert not added & optional
