"""Entries of timm's registry: `timm.create_model("swinx_t")`, and so smp's "tu-swinx_t".

timm finds the published weights of a function that makes a model in `default_cfgs` of the function's module.
"""

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

import timm
from segmentation_models_pytorch.encoders import encoders
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import (
    PretrainedCfg,
    _registry,
    build_model_with_cfg,
    generate_default_cfgs,
    register_model,
    resolve_pretrained_cfg,
)
from timm.models._features import feature_take_indices  # timm's own models import it from there
from torch import nn

from swinx import hub
from swinx.config import SwinConfig, changed
from swinx.timm_models import SwinXClassifier, SwinXPyramid, pretrained_filter

default_cfgs: dict[str, Any] = {}

_entries: dict[str, Callable[..., nn.Module]] = {}
_FIELDS = [field.name for field in fields(SwinConfig)]


def register(name: str, pretrained: Mapping[str, Mapping[str, str]]) -> None:
    """Enter an encoder of smp's registry into timm's, under the same name.

    Args:
        name: its name; entered already, it stays.
        pretrained: smp's settings: the repository of each tag. The first is the default.

    Raises:
        ValueError: a model of timm's has that name.
    """
    if timm.is_model(name):
        if timm.model_entrypoint(name) is not _entries.get(name):
            raise ValueError(f"name must not be that of a model in timm's registry, got {name!r}")
        return
    sources = [settings["repo_id"].removeprefix("timm/") for settings in pretrained.values()]
    tags = {f"{name}.{source.partition('.')[2]}": _weights(source) for source in sources}
    none = {name: PretrainedCfg(mean=IMAGENET_DEFAULT_MEAN, std=IMAGENET_DEFAULT_STD, classifier="head.fc")}
    default_cfgs.update(generate_default_cfgs(tags or none))
    _entries[name] = _entry(name)
    register_model(_entries[name])


def forget(name: str) -> None:
    """Take an encoder out of timm's registry again, for which timm has no public way."""
    del _entries[name]
    names = {name, *(f"{name}.{tag}" for tag in default_cfgs.pop(name).tags)}
    for table in (
        _registry._model_entrypoints,
        _registry._model_to_module,
        _registry._model_default_cfgs,
        _registry._model_pretrained_cfgs,
        _registry._model_with_tags,
    ):
        for key in names:
            table.pop(key, None)
    for kept in (_registry._model_has_pretrained, *_registry._module_to_models.values()):
        kept.difference_update(names)


def _weights(source: str) -> Any:
    """timm's own record of published weights, for our model: any image size, and kernels adapted by our loader."""
    return replace(
        timm.get_pretrained_cfg(source), architecture=None, tag=None, fixed_input_size=False, first_conv=None
    )


def _require(name: str, options: Mapping[str, Any]) -> None:
    """Refuse at once where timm is going to ask the hub and it does not answer."""
    record = resolve_pretrained_cfg(name, options.get("pretrained_cfg"), options.get("pretrained_cfg_overlay"))
    if record.hf_hub_id and not (record.file or record.state_dict):
        repository, _, revision = record.hf_hub_id.partition("@")
        advice = "pass pretrained_cfg_overlay={'file': 'FILE'} with a file of yours"
        hub.require(repository, ("model.safetensors",), revision or "main", advice, options.get("cache_dir"))


def _entry(name: str) -> Callable[..., nn.Module]:
    def create(pretrained: bool = False, **options: Any) -> nn.Module:
        for option in ("img_size", "strict_img_size"):  # of timm's Swin
            if option in options:
                raise ValueError(f"{option} must be left out: {name} takes images of any size")
        if pretrained:
            _require(name, options)
        config = encoders[name]["params"]["config"]
        config = changed(config, {key: options.pop(key) for key in _FIELDS if key in options})
        out_indices = options.pop("out_indices", None)
        features: dict[str, Any] = {}
        if options.get("features_only", False):
            if options.pop("feature_cls", "getter") != "getter":
                raise ValueError("feature_cls must be left out: levels of swinx are not outputs of single modules")
            levels = 4 if config.stem == "none" else 5
            taken, last = feature_take_indices(levels, out_indices)
            features = {
                "depth": last + 1 + 5 - levels,
                "feature_cfg": {"out_indices": tuple(taken), "feature_cls": "getter"},
                "kwargs_filter": ("num_classes", "global_pool", "drop_rate"),
            }
        model: nn.Module = build_model_with_cfg(
            SwinXPyramid if features else SwinXClassifier,
            name,
            pretrained,
            pretrained_filter_fn=pretrained_filter,
            config=config,
            **features,
            **options,
        )
        return model

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"`{name}` with fields of SwinConfig, in_chans, num_classes, global_pool and drop_rate as options."
    return create
