"""Cases for the Triton kernels: inputs between NaNs, exact results, and how large an error may be.

Shape letters: B images, H W grid, h heads, D head_dim, N tokens in a window.
"""

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from oracles import naive_window_attention
from oracles_v2 import naive_cosine_attention
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

import swinx
from swinx.attention.triton import parameters
from swinx.windows import WindowGeometry, lattice_windows, needs_padding, window_count

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# bfloat16 products are wrong in Triton's interpreter, float64 has no kernel on a GPU.
DTYPES = [torch.float32, torch.float16, torch.bfloat16 if DEVICE == "cuda" else torch.float64]
LAYOUTS = ("contiguous", "transposed", "sliced")

_plain_call = InterpretedFunction.__call__
_prepared: set[str] = set()


def _call(function: InterpretedFunction, *args: Any, **kwargs: Any) -> Any:
    """Triton's interpreter prepares its language anew for each call of a helper, which takes half of all time."""
    module = function.fn.__module__
    if module in _prepared:
        return function.rewrite()(*args, **kwargs)
    _prepared.add(module)
    return _plain_call(function, *args, **kwargs)


InterpretedFunction.__call__ = _call


@dataclass(frozen=True)
class Case:
    """One call of window_attention."""

    height: int
    width: int
    window: tuple[int, int]
    shift: tuple[int, int] = (0, 0)
    dilation: int = 1
    batch: int = 1
    heads: int = 2
    head_dim: int = 16
    attended: bool = True
    cosine: bool = False
    layout: str = "contiguous"
    dtype: torch.dtype = torch.float32

    def geometry(self) -> WindowGeometry:
        """Its windows."""
        return WindowGeometry(self.batch, self.height, self.width, self.window, self.shift, self.dilation)

    def inputs(self) -> list[Tensor | None]:
        """qkv in the case's dtype; bias and pad_qkv in at least float32, as the parameters that they come from.

        With the scores of Swin V2 also cosine_scale.
        """
        generator = torch.Generator().manual_seed(hash((self.height, self.width, self.dilation)) % 2**31)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        tokens = self.window[0] * self.window[1]
        qkv = random(self.batch, self.height, self.width, 3, self.heads, self.head_dim)
        bias = 2 * random(self.heads, tokens, tokens)
        pad = random(3, self.heads, self.head_dim) if self.attended else None
        parameters = torch.promote_types(self.dtype, torch.float32)
        placed = self._place(qkv.to(DEVICE, self.dtype))
        # pad_qkv is rounded to qkv's dtype by every implementation: start from what survives that.
        kept = None if pad is None else between_nans(pad.to(self.dtype).to(DEVICE, parameters))
        inputs = [placed, between_nans(bias.to(DEVICE, parameters)), kept]
        if self.cosine:
            inputs.append(between_nans((1 + 10 * random(self.heads).abs()).to(DEVICE, parameters)))
        return inputs

    def _place(self, qkv: Tensor) -> Tensor:
        """The same values under other strides; whatever is read beside them is NaN."""
        if self.layout == "transposed":
            return between_nans(qkv.permute(4, 2, 0, 3, 1, 5).contiguous()).permute(2, 4, 1, 3, 0, 5)
        if self.layout == "sliced":
            batch, height, width, _, heads, head_dim = qkv.shape
            wide = qkv.new_full((batch + 1, height + 2, width + 1, 5, heads + 1, head_dim + 8), torch.nan)
            inner = wide[:batch, 1:-1, :width, 1:4, 1:, :head_dim]
            return inner.copy_(qkv)
        return between_nans(qkv)

    def run(self, impl: str, inputs: list[Tensor | None], cotangent: Tensor) -> dict[str, Tensor]:
        """Output and gradients, in float64 on the CPU."""
        leaves = [None if t is None else t.detach().requires_grad_() for t in inputs]
        qkv, bias, pad, *scale = leaves
        rule = {"window_size": self.window, "shift": self.shift, "dilation": self.dilation}
        if impl == "exact" and self.cosine:
            out = naive_cosine_attention(qkv, scale[0], bias, self.window, self.shift, self.dilation, pad)
        elif impl == "exact":
            out = naive_window_attention(qkv, bias, self.window, self.shift, self.dilation, pad)
        else:
            out = swinx.window_attention(
                qkv, bias, pad_qkv=pad, cosine_scale=scale[0] if self.cosine else None, impl=impl, **rule
            )
            assert out.dtype == self.dtype
            assert impl == "reference" or out.is_contiguous()
        out.backward(cotangent.to(out))
        names = ("qkv", "bias", "pad_qkv", "cosine_scale")
        named = {name: leaf for name, leaf in zip(names, leaves, strict=False) if leaf is not None}
        gradients = {name: leaf.grad for name, leaf in named.items()}
        zeros = {name: torch.zeros_like(leaf) for name, leaf in named.items()}
        results = {"out": out.detach()}
        results |= {name: zeros[name] if grad is None else grad for name, grad in gradients.items()}
        return {name: value.double().cpu() for name, value in results.items()}

    def check(self) -> None:
        """Error against float64 at most twice (gradients: three times) the eager reference's, and rounding."""
        inputs = self.inputs()
        generator = torch.Generator().manual_seed(7)
        shape = (self.batch, self.height, self.width, self.heads * self.head_dim)
        cotangent = torch.randn(shape, generator=generator, dtype=torch.float64).to(self.dtype)
        exact = self.run("exact", [None if t is None else t.detach().cpu().double() for t in inputs], cotangent.cpu())
        reference = self.run("reference", inputs, cotangent.to(DEVICE))
        ours = self.run("triton", inputs, cotangent.to(DEVICE))
        for name, value in exact.items():
            if value.numel() == 0:
                assert ours[name].shape == value.shape
                continue
            # The gradients of bias and padding are sums over the whole batch, kept in the parameters' dtype.
            # A gradient is a difference of products, P dP - P delta, and keeps their roundings where they cancel.
            roundings = 4 if name == "out" else 8
            if self.dtype == torch.float64:
                roundings = 64  # what is taken for exact has errors too
            largest = value.abs().max()
            if name == "cosine_scale" and self.dtype == torch.float64:
                largest = largest.clamp(min=1)  # of the terms: their sum, one number a head, may be next to nothing
            band = roundings * torch.finfo(self.dtype).eps * largest
            allowed = (2 if name == "out" else 3) * (reference[name] - value).abs().max() + band
            error = (ours[name] - value).abs().max()
            assert error <= allowed, f"{name}: error {error:.2e}, allowed {allowed:.2e}, in {self}"


def covering(cases: list[Case], count: int) -> list[Case]:
    """So many of the cases, each with the most pairs of factors that those before it lack, for the time it takes."""
    left = {case: _pairs(case) for case in cases}
    chosen: list[Case] = []
    for _ in range(count):
        best = max(left, key=lambda case: len(left[case]) / _tiles(case))
        chosen.append(best)
        new = left.pop(best)
        left = {case: pairs - new for case, pairs in left.items()}
    return chosen


def _pairs(case: Case) -> set[tuple[tuple[str, object], ...]]:
    """Every two of a case's factors; one window along an axis, two, or some inside too; none of sizes alone."""
    geometry = case.geometry()
    factors = {key: value for key, value in vars(case).items() if key not in ("height", "width", "shift")}
    factors |= {"shifted": tuple(side > 0 for side in case.shift), "padded": needs_padding(geometry)}
    factors["windows"] = tuple(min(side, 3) for side in lattice_windows(geometry))
    return set(itertools.combinations(factors.items(), 2))


def _tiles(case: Case) -> int:
    """Tiles of all programs, which the time in the interpreter grows with."""
    number = parameters.tiles(case.window[0] * case.window[1]).number
    return window_count(case.geometry()) * case.heads * number


def between_nans(values: Tensor) -> Tensor:
    """A contiguous copy with NaN before and after it in memory."""
    margin = 256  # elements: keeps the alignment that a fresh tensor has
    flat = values.new_full((values.numel() + 2 * margin,), torch.nan)
    return flat[margin:-margin].view(values.shape).copy_(values)
