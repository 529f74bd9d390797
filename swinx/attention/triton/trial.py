"""The kernels on a few tokens, held against the reference in float64: what a first use and a check are made of.

Shapes: B images, H W grid, h heads, D head_dim, N tokens in a window, C = h * D.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ...windows import WindowGeometry
from ..api import window_attention
from ..backends import AttentionImpl
from . import operator

# Of qkv, bias and what else of the inputs of a trial is not None; or the name of an implementation. That of the kernels
# stands for their operator: the public function would begin with a first use, which is made of trials.
Attention = Callable[..., Tensor]


class Trial(NamedTuple):
    """One call. attended: whether padding tokens are attended. cosine: the scores of Swin V2."""

    geometry: WindowGeometry
    heads: int
    head_dim: int
    attended: bool = True
    cosine: bool = False

    def inputs(self, dtype: torch.dtype, device: torch.device) -> list[Tensor | None]:
        """qkv in dtype; bias, pad_qkv and cosine_scale in at least float32, as parameters are."""
        generator = torch.Generator(device).manual_seed(0)  # the caller's random numbers stay as they are

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64, device=device)

        batch, height, width, window_size = self.geometry[:4]
        tokens, parameters = window_size[0] * window_size[1], torch.promote_types(dtype, torch.float32)
        qkv = random(batch, height, width, 3, self.heads, self.head_dim).to(dtype)
        bias = (2 * random(self.heads, tokens, tokens)).to(parameters)
        # pad_qkv is rounded to qkv's dtype by every implementation.
        pad = random(3, self.heads, self.head_dim).to(dtype).to(parameters) if self.attended else None
        scale = (10 * random(self.heads).abs() + 1).to(parameters) if self.cosine else None
        return [qkv, bias, pad, scale]

    def excess(
        self, dtype: torch.dtype, device: torch.device, backward: bool, attention: AttentionImpl | Attention = "triton"
    ) -> float:
        """The largest error over the one allowed, of the kernels or of another attention: above 1 it is wrong.

        Errors are differences from float64. Allowed are twice the error of the reference in the same dtype (three times
        for gradients), and some roundings of the largest value: more in float64, where what is taken for exact has
        errors too.
        """
        inputs = self.inputs(dtype, device)
        exact = self._run("reference", [None if t is None else t.double() for t in inputs], backward)
        reference = self._run("reference", inputs, backward)
        ours = self._run(attention, inputs, backward)
        worst = 0.0
        for name, value in exact.items():
            roundings = 64 if dtype == torch.float64 else 4 if name == "out" else 8
            band = roundings * torch.finfo(dtype).eps * value.abs().max()
            allowed = float((2 if name == "out" else 3) * (reference[name] - value).abs().max() + band)
            error = float((ours[name] - value).abs().max())
            if error != 0:  # nothing is allowed where a gradient is zero, as that of padding where there is none
                ratio = error / allowed if allowed > 0 else math.inf
                worst = max(worst, math.inf if math.isnan(ratio) else ratio)
        return worst

    def results(self, dtype: torch.dtype, device: torch.device, backward: bool) -> dict[str, Tensor]:
        """What the kernels compute."""
        return self._run("triton", self.inputs(dtype, device), backward)

    def _run(
        self, attention: AttentionImpl | Attention, inputs: list[Tensor | None], backward: bool
    ) -> dict[str, Tensor]:
        """Output, and the gradients of every input for a fixed gradient of it, in float64."""
        _, _, _, window_size, shift, dilation = self.geometry
        names = ("qkv", "bias", "pad_qkv", "cosine_scale")
        leaves = {
            name: tensor.detach().clone().requires_grad_(backward)
            for name, tensor in zip(names, inputs, strict=True)
            if tensor is not None
        }
        if attention == "triton":
            pad, scale = leaves.get("pad_qkv"), leaves.get("cosine_scale")
            out = operator.attend(leaves["qkv"], leaves["bias"], pad, scale, self.geometry)
        elif isinstance(attention, str):
            out = window_attention(**leaves, window_size=window_size, shift=shift, dilation=dilation, impl=attention)
        else:
            out = attention(*leaves.values())
        results = {"out": out.detach().double()}
        if backward:
            cotangent = torch.linspace(-1, 1, out.numel(), dtype=torch.float64, device=out.device)
            cotangent = cotangent.view(out.shape).to(out.dtype)
            gradients = torch.autograd.grad(out, list(leaves.values()), cotangent, materialize_grads=True)
            results |= {name: grad.double() for name, grad in zip(leaves, gradients, strict=True)}
        return results


def one_line(failure: Exception) -> str:
    """An error in one line: what is said of an implementation that raises it."""
    return f"{type(failure).__name__}: {failure}".splitlines()[0][:300]


def trials(window_size: tuple[int, int], head_dim: int, cosine: bool) -> list[Trial]:
    """Whole windows without shift, and what else a kernel carries: padding, shift, dilation, two regions a window."""
    height, width = window_size
    shift = (height // 2, width // 2)
    return [
        Trial(WindowGeometry(1, height, width, window_size, (0, 0), 1), 2, head_dim, cosine=cosine),
        Trial(WindowGeometry(1, height + 1, width + 2, window_size, shift, 1), 2, head_dim, cosine=cosine),
        Trial(WindowGeometry(2, height + 3, 2 * width, window_size, shift, 2), 2, head_dim, cosine=cosine),
    ]
