"""Entries of smp's encoder registry (and by them of timm's), their pretrained weights, and preprocessing."""

import copy
import functools
import re
from collections.abc import Callable
from typing import Any

from segmentation_models_pytorch.encoders import encoders, preprocess_input
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from swinx import timm_registry
from swinx.config import VARIANTS, SwinConfig, changed, shown
from swinx.encoder import SwinXEncoder
from swinx.hub import PublishedWeights

# timm's repositories hold the official weights (https://github.com/microsoft/Swin-Transformer, and for S3
# https://github.com/microsoft/Cream) in safetensors. `imagenet` is smp's default tag. swinx_l was published with
# ImageNet-22k pretraining only.
_IN1K, _IN22K, _IN22K_FT_IN1K = "ms_in1k", "ms_in22k", "ms_in22k_ft_in1k"
_IN1K_TAGS = {"imagenet": _IN1K}
_ALL_TAGS = {"imagenet": _IN1K, "in22k": _IN22K, "in22k_ft_in1k": _IN22K_FT_IN1K}
_LARGE_TAGS = {"imagenet": _IN22K_FT_IN1K, "in22k": _IN22K, "in22k_ft_in1k": _IN22K_FT_IN1K}
_IN22K_TAGS = {"imagenet": _IN22K, "in22k": _IN22K}
_FINE_TUNED_TAGS = {"imagenet": _IN22K_FT_IN1K, "in22k_ft_in1k": _IN22K_FT_IN1K}
_SIZES = {"t": "tiny", "s": "small", "b": "base", "l": "large"}
_PRETRAINED = {
    "swinx_t": ("swin_tiny_patch4_window7_224", _ALL_TAGS),
    "swinx_s": ("swin_small_patch4_window7_224", _ALL_TAGS),
    "swinx_b": ("swin_base_patch4_window7_224", _ALL_TAGS),
    "swinx_b_w12": ("swin_base_patch4_window12_384", _ALL_TAGS),
    "swinx_l": ("swin_large_patch4_window7_224", _LARGE_TAGS),
    "swinx_l_w12": ("swin_large_patch4_window12_384", _LARGE_TAGS),
    **{f"swinx_s3_{size}": (f"swin_s3_{_SIZES[size]}_224", _IN1K_TAGS) for size in "tsb"},
    **{f"swinx_v2_{size}": (f"swinv2_{_SIZES[size]}_window8_256", _IN1K_TAGS) for size in "tsb"},
    **{f"swinx_v2_{size}_w16": (f"swinv2_{_SIZES[size]}_window16_256", _IN1K_TAGS) for size in "tsb"},
    **{f"swinx_v2_{size}_w12": (f"swinv2_{_SIZES[size]}_window12_192", _IN22K_TAGS) for size in "bl"},
    **{
        f"swinx_v2_{size}_w{window}": (f"swinv2_{_SIZES[size]}_window{window}_{sides}", _FINE_TUNED_TAGS)
        for size in "bl"
        for window, sides in (("12to16", "192to256"), ("12to24", "192to384"))
    },
}

# So that saved models can have it, with smp's "tu-" before it and one of timm's tags behind it, after a dot.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,79}")

# What all published weights were trained with, as arguments of smp's preprocess_input.
IMAGENET: dict[str, Any] = {
    "mean": list(IMAGENET_DEFAULT_MEAN),
    "std": list(IMAGENET_DEFAULT_STD),
    "input_space": "RGB",
    "input_range": [0, 1],
}


def fits_weights(config: SwinConfig, base: SwinConfig) -> bool:
    """Whether weights of a base fit: bias tables are resized to another window, and stems keep what they can."""
    return all(getattr(config, key) == getattr(base, key) for key in ("embed_dim", "depths", "num_heads", "version"))


def _pretrained_settings(name: str) -> dict[str, PublishedWeights]:
    if name not in _PRETRAINED:
        return {}
    model, tags = _PRETRAINED[name]
    # "main": these repositories have held the same weights since they were made; their file names carry no version.
    return {tag: PublishedWeights(repo_id=f"timm/{model}.{source}", revision="main") for tag, source in tags.items()}


def enter(name: str, config: SwinConfig, pretrained: dict[str, PublishedWeights]) -> None:
    """Enter an encoder into smp's registry and timm's.

    Raises:
        ValueError: a name that could not be saved, that smp would take for timm's, or that a model of timm's has.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        rule = "letters, digits, '_' and '-', at most 80, the first a letter or digit"
        raise ValueError(f"name must be {rule}, got {shown(name)}")
    if name.startswith(("tu-", "timm-")):
        raise ValueError(f"name must not begin with 'tu-' or 'timm-', which are smp's, got {shown(name)}")
    timm_registry.register(name, pretrained)
    encoders[name] = {"encoder": SwinXEncoder, "pretrained_settings": pretrained, "params": {"config": config}}


def withdraw(name: str) -> None:
    """Take an encoder that was entered out of both registries again."""
    del encoders[name]
    timm_registry.forget(name)


def register_variants() -> None:
    """Enter every published variant into smp's registry and timm's."""
    for name, config in VARIANTS.items():
        enter(name, config, _pretrained_settings(name))


def list_encoders() -> list[str]:
    """Names that smp builds with a swinx encoder, in the order of registration."""
    return [name for name, entry in encoders.items() if entry["encoder"] is SwinXEncoder]


def _entry(argument: str, name: str) -> dict[str, Any]:
    if name not in list_encoders():
        raise ValueError(f"{argument} must be one of {', '.join(list_encoders())}, got {shown(name)}")
    entry: dict[str, Any] = encoders[name]
    return entry


def register_encoder(name: str, *, base: str, **changes: Any) -> None:
    """Enter a variant of a registered encoder under a new name, for `smp.create_model(encoder_name=name)` and timm.

    smp passes no options on to registered encoders: register a variant under a new name instead. Pretrained weights of
    the base stay available where embed_dim, depths, num_heads and version do not change. A Swin V2 with another window
    keeps counting offsets in windows of its base, with which the weights were trained, unless pretrained_window_size is
    given. A variant with an output_stride is for decoders that ask for none: Unet, UPerNet, Segformer, PSPNet with
    upsampling of min(output_stride, 2^depth), and PAN with encoder_output_stride=32, which then means the variant's.

    Args:
        name: the new name, of at most 80 letters, digits, '_' and '-', and of no model of smp or timm; repeating a
            registration is allowed, changing one is not.
        base: a name of `list_encoders`.
        changes: fields of `SwinConfig` with their new values.

    Raises:
        ValueError: unknown base or field, a value that SwinConfig refuses, or a name that is taken or of another form.
    """
    entry = _entry("base", base)
    base_config: SwinConfig = entry["params"]["config"]
    config = changed(base_config, changes)
    pretrained = entry["pretrained_settings"] if fits_weights(config, base_config) else {}
    if isinstance(name, str) and name in encoders:
        taken = encoders[name]
        if taken["params"].get("config") != config or taken["pretrained_settings"] != pretrained:
            raise ValueError(
                f"name must be new: {name!r} is registered with another configuration or other weights; choose another "
                "name"
            )
        return
    enter(name, config, pretrained)


def get_preprocessing_fn(encoder_name: str, weights: str = "imagenet") -> Callable[..., Any]:
    """smp's `preprocess_input` with the input range, mean and deviation that the weights were trained with.

    Needs no network: all published Swin weights share ImageNet's statistics. (smp's own function of this name fails on
    timm's repositories, whose configuration nests them.) Takes and gives (H, W, 3) arrays, RGB.

    Raises:
        ValueError: unknown encoder, or weights that it does not have.
    """
    tags = list(_entry("encoder_name", encoder_name)["pretrained_settings"])
    if not tags:
        raise ValueError(
            f"encoder_name must be one with pretrained weights, got {encoder_name!r}, which has none, and so no "
            "statistics of their images: preprocess as in your own training"
        )
    if weights not in tags:
        raise ValueError(f"weights must be one of {', '.join(tags)} for {encoder_name}, got {shown(weights)}")
    return functools.partial(preprocess_input, **copy.deepcopy(IMAGENET))
