"""Checkpoints of one small Swin in every layout in which Swin weights are published, written without swinx's reader."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from oracles import random_swin_state_dict
from segmentation_models_pytorch.encoders._utils import patch_first_conv
from torch import Tensor, nn

from swinx import SwinConfig, SwinXEncoder

Weights = dict[str, Tensor]

# Unequal depths, so that a stage taken for another shows.
EMBED, DEPTHS, HEADS, WINDOW = 16, (1, 2, 3, 1), (1, 2, 4, 8), 7


def config(**changes: Any) -> SwinConfig:
    """The architecture of the checkpoints, with changes."""
    return replace(SwinConfig(EMBED, DEPTHS, HEADS, WINDOW, drop_path_rate=0.1, stem="shared"), **changes)


def fresh(depth: int = 5, in_channels: int = 3, **changes: Any) -> SwinXEncoder:
    """An encoder with random norms too, so that a norm that is kept and one that is reset differ."""
    torch.manual_seed(5)
    encoder = SwinXEncoder(config(**changes), depth=depth, in_channels=in_channels).eval()
    for parameter in encoder.norms.parameters():
        nn.init.normal_(parameter, 1.0)
    return encoder


def backbone(window: int = WINDOW, dtype: torch.dtype = torch.float32, seed: int = 3) -> Weights:
    """Known weights under timm's names, without any norm of a level."""
    return random_swin_state_dict(EMBED, DEPTHS, HEADS, window, torch.Generator().manual_seed(seed), dtype=dtype)


def level_norms(name: str) -> Weights:
    generator = torch.Generator().manual_seed(4)
    sizes = {name.format(i): EMBED * 2**i for i in range(4)}
    return {f"{n}.{end}": torch.randn(c, generator=generator) for n, c in sizes.items() for end in ("weight", "bias")}


def prefixed(prefix: str, weights: Mapping[str, Tensor]) -> Weights:
    return {prefix + key: value for key, value in weights.items()}


def last_norm() -> Weights:
    return {key.removeprefix("norms.3."): value for key, value in level_norms("norms.{}").items() if "norms.3." in key}


def head(name: str = "head") -> Weights:
    return {f"{name}.weight": torch.randn(1000, EMBED * 8), f"{name}.bias": torch.randn(1000)}


def official_backbone() -> Weights:
    """Official names: the merge before stage i + 1 stands at the end of stage i; buffers are stored."""
    weights: Weights = {}
    for key, value in backbone().items():
        for stage in range(1, 4):
            key = key.replace(f"layers.{stage}.downsample.", f"layers.{stage - 1}.DOWNSAMPLE.")
        weights[key.replace("DOWNSAMPLE", "downsample")] = value
        if key.endswith("bias_table"):
            weights[key.replace("bias_table", "index")] = torch.zeros(WINDOW**2, WINDOW**2, dtype=torch.int64)
    weights["layers.1.blocks.1.attn_mask"] = torch.zeros(16, WINDOW**2, WINDOW**2)
    return weights


def official() -> Weights:
    return {**official_backbone(), **prefixed("norm.", last_norm()), **head()}


def mmseg() -> Weights:
    """mmsegmentation's tools/model_converters/swin2mmseg.py (0.16 to 1.2), its two reorderings restated."""

    def correct_unfold_reduction_order(x: Tensor) -> Tensor:
        out_channel, in_channel = x.shape
        x = x.reshape(out_channel, 4, in_channel // 4)
        return x[:, [0, 2, 1, 3], :].transpose(1, 2).reshape(out_channel, in_channel)

    def correct_unfold_norm_order(x: Tensor) -> Tensor:
        return x.reshape(4, len(x) // 4)[[0, 2, 1, 3], :].transpose(0, 1).reshape(len(x))

    weights = level_norms("norm{}")
    for key, value in official_backbone().items():
        if "downsample.reduction." in key:
            value = correct_unfold_reduction_order(value)
        elif "downsample.norm." in key:
            value = correct_unfold_norm_order(value)
        if key.startswith("layers."):
            key = key.replace("layers.", "stages.", 1).replace("attn.", "attn.w_msa.")
            key = key.replace("mlp.fc1.", "ffn.layers.0.0.").replace("mlp.fc2.", "ffn.layers.1.")
        else:
            key = key.replace("proj", "projection")
        weights[key] = value
    return weights


def decode_head() -> Weights:
    return {"decode_head.conv_seg.weight": torch.randn(150, 8, 1, 1), "auxiliary_head.conv_seg.bias": torch.randn(150)}


def simmim() -> Weights:
    encoder = {**official_backbone(), **prefixed("norm.", last_norm()), "mask_token": torch.randn(1, 1, EMBED)}
    return {**prefixed("encoder.", encoder), "decoder.0.weight": torch.randn(3072, EMBED * 8, 1, 1)}


def moby() -> Weights:
    momentum = {key: value + 1 for key, value in official_backbone().items()}
    junk = {"queue1": torch.randn(8, 9), "projector.linear1.weight": torch.randn(4, 4)}
    student = {**official_backbone(), **prefixed("norm.", last_norm())}
    return {**prefixed("encoder_k.", momentum), **prefixed("encoder.", student), **junk}


def ours() -> Weights:
    return {**backbone(), **level_norms("norms.{}")}


def timm() -> Weights:
    return {**backbone(), **prefixed("norm.", last_norm()), **head("head.fc")}


def tu_swin() -> Weights:
    renamed = {key.replace("layers.", "layers_", 1): value for key, value in backbone().items()}
    return {**prefixed("encoder.model.", renamed), "decoder.blocks.0.conv1.0.weight": torch.randn(4, 4, 3, 3)}


def ours_in_smp() -> Weights:
    rest = {"decoder.p5.weight": torch.randn(4), "segmentation_head.0.bias": torch.ones(4)}
    return {**prefixed("encoder.", ours()), **rest}


# name: (content of the file, which levels' norms it holds)
LAYOUTS: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "official classification": (lambda: {"model": official()}, (3,)),
    "official segmentation": (lambda: {**official_backbone(), **level_norms("norm{}")}, (0, 1, 2, 3)),
    "official segmentation, wrapped": (
        lambda: {
            "meta": {"epoch": 3, "CLASSES": ["sky"]},
            "state_dict": {**prefixed("backbone.", {**official_backbone(), **level_norms("norm{}")}), **decode_head()},
        },
        (0, 1, 2, 3),
    ),
    "timm": (timm, (3,)),
    "timm, training with averages": (
        lambda: {
            "epoch": 3,
            "state_dict": {key: value + 1 for key, value in timm().items()},
            "state_dict_ema": prefixed("module.", timm()),
        },
        (3,),
    ),
    "DeiT, training with averages": (
        lambda: {"model": {key: value + 1 for key, value in timm().items()}, "model_ema": timm()},
        (3,),
    ),
    "smp tu-swin": (tu_swin, ()),
    "mmseg": (lambda: {"state_dict": {**prefixed("backbone.", mmseg()), **decode_head()}}, (0, 1, 2, 3)),
    "MoBY": (lambda: {"model": moby()}, (3,)),
    "SimMIM": (lambda: {"model": simmim()}, (3,)),
    "ours": (ours, (0, 1, 2, 3)),
    "ours in an smp model": (ours_in_smp, (0, 1, 2, 3)),
    "ours, data parallel": (lambda: {"state_dict": prefixed("module.", ours_in_smp())}, (0, 1, 2, 3)),
    "ours, Lightning around a wrapper": (
        lambda: {"state_dict": prefixed("model.model.", ours_in_smp())},
        (0, 1, 2, 3),
    ),
    "ours, compiled, data parallel": (lambda: prefixed("_orig_mod.module.", ours_in_smp()), (0, 1, 2, 3)),
    "ours, Lightning, compiled": (lambda: {"state_dict": prefixed("model._orig_mod.", ours_in_smp())}, (0, 1, 2, 3)),
    "ours, Lightning under another name": (lambda: {"state_dict": prefixed("net.", ours_in_smp())}, (0, 1, 2, 3)),
    "ours, beside a teacher": (
        lambda: {
            "state_dict": {
                **prefixed("model.", ours_in_smp()),
                **prefixed("teacher.encoder.", {key: value + 1 for key, value in ours().items()}),
            }
        },
        (0, 1, 2, 3),
    ),
    "ours, a student": (lambda: {"epoch": 3, "model_state_dict": prefixed("student.", ours())}, (0, 1, 2, 3)),
    "ours, DeepSpeed": (lambda: {"module": prefixed("model.", ours_in_smp()), "optimizer": {}}, (0, 1, 2, 3)),
    "timm, in a net": (lambda: {"net": timm(), "acc": 81.5, "epoch": 3}, (3,)),
    "timm, training with empty averages": (
        lambda: {"state_dict": timm(), "state_dict_ema": {}, "model_ema": {"decay": 0.99}},
        (3,),
    ),
}


def by_smp(weight: Tensor, in_channels: int) -> Tensor:
    """A kernel of three image channels as smp itself adapts it."""
    conv = nn.Conv2d(3, len(weight), weight.shape[2:])
    conv.weight = nn.Parameter(weight.clone())
    patch_first_conv(nn.Sequential(conv), new_in_channels=in_channels)
    return conv.weight.detach()
