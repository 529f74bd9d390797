"""What people do to the modules of a model, as functions that do it to the first block of an encoder's second stage.

Each must act alike in every mode; `tests/test_modes.py` runs them all.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from torch.optim.swa_utils import AveragedModel

import swinx
from swinx.layers import Mlp, SwinBlock


class Scaled(SwinBlock):
    """A subclass."""

    def forward(self, *arguments: Any) -> Tensor:
        """The block's result, scaled."""
        return super().forward(*arguments) * 1.5


class Around(nn.Module):
    """A wrapper."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *arguments: Any) -> Tensor:
        """What the inner module gives, changed as no norm undoes."""
        out = self.inner(*arguments)
        return out + 0.5 * out.abs()


class LowRank(nn.Module):
    """An adapter (Hu et al. 2021, https://arxiv.org/abs/2106.09685): no weight of its own, with or without a bias."""

    def __init__(self, base: nn.Linear, bias: bool) -> None:
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, 4, bias=False).to(base.weight)
        self.up = nn.Linear(4, base.out_features, bias=bias).to(base.weight)

    def forward(self, x: Tensor) -> Tensor:
        """The layer and its low-rank update."""
        return self.base_layer(x) + self.up(self.down(x))


class SqueezeExcitation(nn.Module):
    """An MLP that looks at whole grids."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.mlp = mlp

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C), each channel scaled by its mean over the grid."""
        return self.mlp(x) * x.mean((1, 2), keepdim=True).sigmoid()


class FakeQuantised(nn.Module):
    """Quantises the input of a linear layer by the range of the whole tensor, as dynamic quantisation does."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base

    def forward(self, x: Tensor) -> Tensor:
        """The layer on rounded inputs."""
        step = x.abs().amax() / 127
        return self.base((x / step).round() * step)


def block(encoder: nn.Module) -> Any:
    """The block that is changed."""
    return encoder.layers[1].blocks[0]


def _put(encoder: Any, place: str, make: Callable[[Any], nn.Module]) -> Any:
    holder, _, name = place.rpartition(".")
    holder = block(encoder).get_submodule(holder)
    setattr(holder, name, make(getattr(holder, name)))
    return encoder


def _subclass(encoder: Any) -> Any:
    block(encoder).__class__ = Scaled
    return encoder


def _wrap_block(encoder: Any) -> Any:
    encoder.layers[1].blocks[0] = Around(block(encoder))
    return encoder


def _wrap_stage(encoder: Any) -> Any:
    encoder.layers[1] = Around(encoder.layers[1])
    return encoder


def _wrap_merge(encoder: Any) -> Any:
    encoder.layers[1].downsample = Around(encoder.layers[1].downsample)
    return encoder


def _patch(place: str) -> Callable[[Any], Any]:
    def change(encoder: Any) -> Any:
        module = block(encoder).get_submodule(place)
        plain = module.forward
        module.forward = lambda *arguments: 2 * plain(*arguments)
        return encoder

    return change


def _hook(place: str, before: bool = False) -> Callable[[Any], Any]:
    """A hook that changes what passes."""

    def change(encoder: Any) -> Any:
        module = block(encoder).get_submodule(place)
        if before:
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0] * 1.5, *inputs[1:]))
        else:
            module.register_forward_hook(lambda module, inputs, output: output + output.abs() * output.mean().cos())
        return encoder

    return change


def _to(place: str, function: Callable[[nn.Module], Any]) -> Callable[[Any], Any]:
    def change(encoder: Any) -> Any:
        function(block(encoder).get_submodule(place))
        return encoder

    return change


def _stochastic_depth(encoder: Any) -> Any:
    drop_path = block(encoder).drop_path
    drop_path.drop_prob = 0.5
    drop_path.train()
    return encoder


def _stochastic_depth_frozen(encoder: Any) -> Any:
    return _stochastic_depth(encoder.requires_grad_(False))


def _average(encoder: Any) -> Any:
    average = AveragedModel(encoder, use_buffers=True)
    for shift in (0.1, 0.2):
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter += shift * parameter.abs().mean()
        average.update_parameters(encoder)
    return average.module


def _patched_method(encoder: Any) -> Any:
    attention = block(encoder).attn
    plain = attention.project
    attention.project = lambda rows: plain(rows) * rows.abs().amax()
    return encoder


def _norm_over_the_grid(encoder: Any) -> Any:
    norm = nn.LayerNorm((8, 12, 64))  # the grid of stage 2 of an image of 61 x 93
    block(encoder).norm2 = norm.double()
    return encoder


def _no_projection_bias(encoder: Any) -> Any:
    block(encoder).attn.qkv.bias = None
    return encoder


def _tied(encoder: Any) -> Any:
    blocks = encoder.layers[1].blocks
    blocks[1].mlp = blocks[0].mlp
    return encoder


def _replace_block(encoder: Any) -> Any:
    encoder.layers[1].blocks[0] = nn.Identity()
    return encoder


def _remove_block(encoder: Any) -> Any:
    del encoder.layers[1].blocks[0]
    return encoder


def prune_heads(attention: Any, kept: list[int]) -> None:
    """Take all other heads out of an attention, in place."""
    old, proj = attention.qkv, attention.proj
    head_dim, dim = proj.in_features // attention.num_heads, old.in_features
    rows = torch.cat([torch.arange(head * head_dim, (head + 1) * head_dim) for head in kept])
    attention.qkv = nn.Linear(dim, 3 * len(rows), bias=old.bias is not None).to(old.weight)
    attention.proj = nn.Linear(len(rows), dim).to(old.weight)
    attention.num_heads = len(kept)
    with torch.no_grad():
        attention.qkv.weight.copy_(old.weight.unflatten(0, (3, -1))[:, rows].flatten(0, 1))
        attention.proj.weight.copy_(proj.weight[:, rows])
        attention.proj.bias.copy_(proj.bias)
        if old.bias is not None:
            attention.qkv.bias.copy_(old.bias.unflatten(0, (3, -1))[:, rows].flatten())
    places: dict[str, tuple[int, Any]] = {
        "relative_position_bias_table": (1, kept), "logit_scale": (0, kept), "q_bias": (0, rows), "v_bias": (0, rows)
    }  # fmt: skip
    for name, (axis, indices) in places.items():
        if hasattr(attention, name):
            weight = getattr(attention, name).detach().index_select(axis, torch.as_tensor(indices))
            setattr(attention, name, nn.Parameter(weight))
    if hasattr(attention, "cpb_mlp"):
        last = attention.cpb_mlp[2]
        last.weight, last.out_features = nn.Parameter(last.weight.detach()[kept]), len(kept)


def _tensor_subclass(encoder: Any) -> Any:
    class Doubling(nn.Parameter):
        @classmethod
        def __torch_function__(cls, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
            result = super().__torch_function__(function, types, arguments, options or {})
            return 2 * result if function is F.linear else result

    linear = block(encoder).mlp.fc1
    linear.weight = Doubling(linear.weight.data)
    return encoder


MODIFICATIONS: dict[str, Callable[[Any], Any]] = {
    "subclass of the block": _subclass,
    "wrapped block": _wrap_block,
    "wrapped stage": _wrap_stage,
    "wrapped merge": _wrap_merge,
    "wrapped attention": lambda encoder: _put(encoder, "attn", Around),
    "wrapped MLP": lambda encoder: _put(encoder, "mlp", Around),
    "wrapped norm": lambda encoder: _put(encoder, "norm1", Around),
    "patched block": _patch(""),
    "patched attention": _patch("attn"),
    "patched projection": _patch("attn.qkv"),
    "hook on the block": _hook(""),
    "hook on the projection": _hook("attn.proj"),
    "hook before the MLP": _hook("mlp", before=True),
    "adapter": lambda encoder: _put(encoder, "attn.qkv", lambda base: LowRank(base, bias=False)),
    "adapter with bias": lambda encoder: _put(encoder, "attn.qkv", lambda base: LowRank(base, bias=True)),
    "adapter after attention": lambda encoder: _put(encoder, "attn.proj", lambda base: LowRank(base, bias=False)),
    "pruned": _to("attn.qkv", lambda module: prune.l1_unstructured(module, "weight", 0.5)),
    "pruned bias": _to("attn.qkv", lambda module: prune.random_unstructured(module, "bias", 0.5)),
    "weight norm by hook": _to("mlp.fc1", lambda module: (weight_norm(module), module.weight_g.data.mul_(1.5))),
    "weight norm": _to(
        "attn.qkv",
        lambda m: (parametrizations.weight_norm(m), m.parametrizations.weight.original0.data.mul_(1.5)),
    ),
    "spectral norm by hook": _to("mlp.fc2", spectral_norm),
    "spectral norm": _to("attn.qkv", parametrizations.spectral_norm),
    "orthogonal": _to("attn.proj", parametrizations.orthogonal),
    "quantised inputs": lambda encoder: _put(encoder, "attn.qkv", FakeQuantised),
    "replaced MLP": lambda encoder: _put(
        encoder, "mlp", lambda old: nn.Sequential(Mlp(64).to(old.fc1.weight), nn.Tanh())
    ),
    "MLP that looks at whole grids": lambda encoder: _put(encoder, "mlp", SqueezeExcitation),
    "MLP left out": lambda encoder: _put(encoder, "mlp", lambda old: nn.Identity()),
    "attention left out": lambda encoder: _put(encoder, "attn", lambda old: nn.Identity()),
    "block left out": _replace_block,
    "first block removed": _remove_block,
    "heads pruned": _to("attn", lambda module: prune_heads(module, [1])),
    "no bias of the projection": _no_projection_bias,
    "stochastic depth left on": _stochastic_depth,
    "stochastic depth left on, frozen": _stochastic_depth_frozen,
    "averaged weights and buffers": _average,
    "shared MLP": _tied,
    "patched method": _patched_method,
    "norm over the whole grid": _norm_over_the_grid,
    "weight of another type": _tensor_subclass,
}
# Those of Swin V2: of the part that it alone has, and of those that stand elsewhere than in V1.
MODIFICATIONS_V2: dict[str, Callable[[Any], Any]] = {
    "hook in the position MLP": _hook("attn.cpb_mlp.1"),
    **{name: MODIFICATIONS[name] for name in ("wrapped norm", "attention left out", "heads pruned")},
}


@contextlib.contextmanager
def global_hook(before: bool) -> Iterator[None]:
    """A hook on every module, that changes what MLPs take or give."""

    def changed(module: nn.Module, inputs: Any, output: Any = None) -> Any:
        if not isinstance(module, Mlp):
            return None
        return (inputs[0] * 1.5,) if before else output + output.abs() * output.mean().cos()

    handle = (register_module_forward_pre_hook if before else register_module_forward_hook)(changed)
    try:
        yield
    finally:
        handle.remove()


def encoder(version: Any = "v1") -> swinx.SwinXEncoder:
    """A small one in float64 without stochastic depth, with large biases, and norms that let every branch through."""
    torch.manual_seed(0)
    config = swinx.SwinConfig(32, (1, 2, 1, 1), (1, 2, 4, 8), 7, 0.0, stem="shared", version=version)
    made = swinx.SwinXEncoder(config, depth=3).double().eval()
    for name, parameter in made.named_parameters():
        if name.endswith(("bias_table", "qkv.bias", "q_bias", "v_bias", "cpb_mlp.0.weight")):
            nn.init.normal_(parameter)
        if version == "v2" and name.endswith(("norm1.weight", "norm2.weight")):  # which begin at zero
            nn.init.ones_(parameter)
    return made
