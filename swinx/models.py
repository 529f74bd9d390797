"""What is done to whole models that hold a swinx encoder: attention, output stride, parameter groups."""

import math
from numbers import Real
from typing import Any

from segmentation_models_pytorch import (
    FPN,
    PAN,
    DeepLabV3,
    DeepLabV3Plus,
    Linknet,
    MAnet,
    PSPNet,
    Segformer,
    Unet,
    UnetPlusPlus,
    UPerNet,
)
from segmentation_models_pytorch.base import SegmentationModel
from segmentation_models_pytorch.encoders import TimmUniversalEncoder
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from swinx.attention.backends import AttentionImpl, check_implementation
from swinx.config import OUTPUT_STRIDES, check_output_stride, shown
from swinx.encoder import SwinXEncoder
from swinx.stage import SwinStage

# The output strides that each decoder of smp works at, whatever the depth. Those that work at 32 alone double their
# features from level to level: they take any stride at which the encoder is not dilated, 2^depth and more.
DECODER_STRIDES: dict[type[nn.Module], tuple[int, ...]] = {
    Unet: OUTPUT_STRIDES,
    UnetPlusPlus: (32,),
    MAnet: (32,),
    Linknet: (32,),
    FPN: (32,),
    PSPNet: OUTPUT_STRIDES,
    DeepLabV3: (8, 16),
    DeepLabV3Plus: (8, 16),
    PAN: (16, 32),
    UPerNet: OUTPUT_STRIDES,
    Segformer: OUTPUT_STRIDES,
}


def set_attention(model: nn.Module, impl: AttentionImpl) -> None:
    """Choose the attention implementation of every swinx encoder inside a model: see `swinx.window_attention`.

    Raises:
        ValueError: unknown name, or model is no module with a swinx encoder.
        NotImplementedError: "triton" without the package; what else it does not take shows when it runs, and so does
            that it is wrong or cannot run on this machine.
    """
    _check_module(model)
    check_implementation(impl)
    _encoders(model)
    for module in model.modules():
        if isinstance(module, SwinStage):
            module.impl = impl


def set_output_stride(model: nn.Module, output_stride: int) -> None:
    """Change the output stride of a built model: its encoder, and what each decoder fixed when it was built.

    Use it for a whole model, in place of its encoder's make_dilated. Weights stay as they are. Masks keep their size:
    where the last level becomes twice as fine, DeepLabV3, DeepLabV3Plus and PSPNet upsample by half (those built with
    upsampling=1 give masks of the size of their features).
    `swinx.save_pretrained` stores the stride. smp's own does so for decoders that take one as an option; a model with
    another decoder then opens with the stride that it was built with.

    Args:
        model: one of smp's models with a swinx encoder, a module that holds one of them, or several that share one
            encoder, or an encoder; compiled or data parallel too.
        output_stride: 8, 16 or 32.

    Raises:
        ValueError: no such model or stride, or a stride that a decoder does not work at, at the depth of the encoder.
            Nothing is changed then.
    """
    _check_module(model)
    check_output_stride(output_stride)
    (encoder, *others) = _encoders(model)
    if others:
        raise ValueError(f"model must contain one SwinXEncoder, got {1 + len(others)}")
    if unwrapped(model) is encoder:
        encoder.make_dilated(output_stride)
        return
    smp_models = [module for module in model.modules() if isinstance(module, SegmentationModel)]
    found = [module for module in smp_models if any(inner is encoder for inner in module.modules())]
    decoders = [kind for module in found for kind in DECODER_STRIDES if isinstance(module, kind)]
    if not found or len(decoders) < len(found):
        known = ", ".join(kind.__name__ for kind in DECODER_STRIDES)
        raise ValueError(
            f"model must be a SwinXEncoder or hold one of smp's {known} (for a decoder of your own, call make_dilated "
            f"of its encoder), got {type(model).__name__}"
        )
    for decoder in decoders:
        strides = DECODER_STRIDES[decoder]
        if strides == (32,):
            strides = tuple(stride for stride in OUTPUT_STRIDES if stride >= min(32, 2**encoder._depth))
        if output_stride not in strides:
            several = len(strides) > 1
            rule = f"one of {', '.join(map(str, strides))}" if several else f"{strides[0]}, the only one it works at"
            raise ValueError(f"output_stride of {decoder.__name__} must be {rule}, got {output_stride}")
    upsamplings = [_upsampling(module, decoder, encoder) for module, decoder in zip(found, decoders, strict=True)]
    encoder.make_dilated(output_stride)
    stride = encoder.feature_info[-1].stride
    for module, decoder, upsampling in zip(found, decoders, upsamplings, strict=True):
        # smp's wrapper around timm's form of the encoder, which answers for the stride itself.
        if isinstance(module.encoder, TimmUniversalEncoder):
            module.encoder._output_stride = output_stride
        changed: dict[str, Any] = {"encoder_output_stride": output_stride}
        if upsampling is not None:
            layer, per_stride = upsampling
            layer.scale_factor = per_stride * stride
            if decoder is not DeepLabV3Plus:  # there the option is of the head, whose level stays
                changed["upsampling"] = layer.scale_factor
        options = getattr(module, "_hub_mixin_config", None) or {}  # what smp's save_pretrained stores
        if "encoder_output_stride" in options:  # else the model opens with its first stride, and what fits that
            options.update({name: value for name, value in changed.items() if options.get(name) is not None})


def _upsampling(model: nn.Module, decoder: type[nn.Module], encoder: SwinXEncoder) -> tuple[nn.Upsample, float] | None:
    """What brings the last level to a size that does not follow from the features, and its factor over the stride of
    that level; None without it."""
    places = {DeepLabV3: "segmentation_head.1", DeepLabV3Plus: "decoder.up", PSPNet: "segmentation_head.1"}
    if decoder not in places:
        return None
    try:
        module = model.get_submodule(places[decoder])
    except AttributeError as error:
        raise ValueError(f"model must hold a {places[decoder]} to change its stride, got none: {error}") from error
    if isinstance(module, nn.Identity):  # built with upsampling=1: masks of the size of the features
        return None
    factor = module.scale_factor if isinstance(module, nn.Upsample) else None
    if not isinstance(module, nn.Upsample) or not isinstance(factor, (int, float)):
        raise ValueError(f"model's {places[decoder]} must be an Upsample with one factor, got {shown(module)}")
    if decoder is DeepLabV3Plus:  # up to level 2, whatever stride the encoder was given by itself
        return module, 1 / 4
    last = encoder.feature_info[-1]
    # A DeepLabV3 fits the stride of its options, also where the encoder was given another by itself, unless the factor
    # was changed by hand.
    options = getattr(model, "_hub_mixin_config", None) or {}
    built = options.get("encoder_output_stride")
    if built and factor == (options["upsampling"] or min(built, 2**encoder._depth)):
        return module, factor / min(built, last.stride * last.period)
    return module, factor / last.stride


def parameter_groups(
    model: nn.Module, learning_rate: float, layer_decay: float = 1.0, weight_decay: float = 0.05
) -> list[dict[str, Any]]:
    """Groups for an optimiser, each with "params", "lr" and "weight_decay".

    Matrices and kernels are decayed; norms, biases, position biases and scales of scores are not. Frozen parameters are
    left out. The learning rate falls by layer_decay from the decoder to the encoder's last block and from each block to
    the one before it, as in BEiT (Bao et al. 2021, https://arxiv.org/abs/2106.08254), and once more to the stem. A
    merge has the rate of the block after it; the norm of a level, and what was put around a stage, that of the block
    before it. All else, the decoder, has the full rate.

    Args:
        model: any module; with a layer_decay below 1 one that contains a swinx encoder.
        learning_rate: above 0 and finite, of the decoder.
        layer_decay: above 0, at most 1.
        weight_decay: at least 0.

    Raises:
        ValueError: a value outside these rules, or no swinx encoder where one is needed.
    """
    _check_module(model)
    for name, value, most, rule in (
        ("learning_rate", learning_rate, math.inf, "above 0 and finite"),
        ("layer_decay", layer_decay, 1.0, "above 0 and at most 1"),
        ("weight_decay", weight_decay, math.inf, "at least 0 and finite"),
    ):
        number = isinstance(value, Real) and value <= most and value < math.inf
        if not number or value < 0 or (value == 0 and name != "weight_decay"):
            raise ValueError(f"{name} must be {rule}, got {shown(value)}")
    # With numbers of numpy in it torch would not read a saved state of the optimiser.
    learning_rate, layer_decay, weight_decay = float(learning_rate), float(layer_decay), float(weight_decay)
    encoders = encoders_in(model)
    if layer_decay < 1 and not encoders:
        raise ValueError(f"layer_decay below 1 needs a model with a SwinXEncoder, got {type(model).__name__}")
    steps: dict[int, int] = {}
    exempt: set[int] = set()
    for encoder in encoders:
        steps |= _steps_below(encoder)
        parameters = dict(encoder.named_parameters())
        exempt |= {id(parameters[name]) for name in encoder.no_weight_decay()}
    groups: dict[tuple[bool, int], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            plain = parameter.ndim < 2 or id(parameter) in exempt
            below = 0 if layer_decay == 1 else steps.get(id(parameter), 0)
            groups.setdefault((plain, below), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": learning_rate * layer_decay**below,
            "weight_decay": 0.0 if plain else weight_decay,
        }
        for (plain, below), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def _steps_below(encoder: SwinXEncoder) -> dict[int, int]:
    """How many blocks each parameter of the encoder is away from the decoder, by id of the parameter."""
    layers: list[nn.Module] = [encoder.patch_embed]
    for stage, place, norm in zip(encoder.stages(), encoder.layers, encoder.norms, strict=True):
        blocks = [nn.ModuleList([block]) for block in stage.blocks] or [nn.ModuleList()]
        blocks[0].append(stage.downsample)
        blocks[-1].extend([norm, place])  # a parameter keeps the first layer that it is found in
        layers += blocks
    steps: dict[int, int] = {}
    for number, layer in enumerate(layers):
        for parameter in layer.parameters():
            steps.setdefault(id(parameter), len(layers) - number)
    return steps


def unwrapped(model: nn.Module) -> nn.Module:
    """What torch.compile and data parallel were put around."""
    wrapped: Any = model
    while isinstance(wrapped, nn.Module):
        model = wrapped
        parallel = isinstance(model, (nn.DataParallel, DistributedDataParallel))
        wrapped = model.module if parallel else getattr(model, "_orig_mod", None)
    return model


def encoders_in(model: nn.Module) -> list[SwinXEncoder]:
    """The swinx encoders in a module, itself perhaps."""
    return [module for module in model.modules() if isinstance(module, SwinXEncoder)]


def _check_module(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be a Module, got {type(model).__name__}")


def _encoders(model: nn.Module) -> list[SwinXEncoder]:
    found = encoders_in(model)
    if not found:
        raise ValueError(f"model must contain a SwinXEncoder, got {type(model).__name__}")
    return found
