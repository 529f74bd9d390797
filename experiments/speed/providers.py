"""Ways to compute window attention that a user could take today, all from (B, H, W, 3, h, D) to (B, H, W, C).

Whoever needs windows cut out pays for the cutting. Shape letters: B images, H W grid, h heads, D head_dim, N tokens in
a window, M windows of the batch, C = h * D.
"""

import importlib.util
from functools import partial

import torch
from torch import Tensor

import swinx
from experiments.speed.cases import Case
from swinx import windows
from swinx.attention.speed import Attention, cut_windows, flex_attention, join_windows

COMPILED = ("compiled reference", "compiled sdpa", "flex_attention")
PROVIDERS = ("triton", "triton, CUDA graph", "reference", "sdpa", *COMPILED, "flash_swin_attn", "natten")


class NotApplicableError(Exception):
    """A provider cannot compute a case correctly, or is not there; the message says why."""


def build(name: str, case: Case, device: torch.device, backward: bool) -> Attention:
    """The provider for a case.

    Raises:
        NotApplicableError: as its name says.
        ValueError: no provider has this name.
    """
    if name == "triton":
        return _triton(case, device)
    if name == "triton, CUDA graph":
        return _captured(case, device, backward)
    if name in ("reference", "sdpa"):
        return _own(name, case)
    if name in ("compiled reference", "compiled sdpa"):
        torch._dynamo.reset()
        return torch.compile(_own(name.removeprefix("compiled "), case), dynamic=False, fullgraph=True)
    if name == "flex_attention":
        if device.type == "cpu" and backward:
            raise NotApplicableError("flex_attention has no backward pass on the CPU")
        return flex_attention(case.geometry, device)
    if name == "flash_swin_attn":
        return _flash_swin(case, device, backward)
    if name == "natten":
        raise NotApplicableError("natten has no relative position bias")
    raise ValueError(f"provider must be one of {', '.join(PROVIDERS)}, got {name!r}")


def _own(impl: str, case: Case) -> Attention:
    _, _, _, window, shift, dilation = case.geometry
    attention = partial(swinx.window_attention, window_size=window, shift=shift, dilation=dilation, impl=impl)
    return lambda qkv, bias, pad: attention(qkv, bias, pad_qkv=pad)


def _triton(case: Case, device: torch.device) -> Attention:
    if device.type != "cuda":
        raise NotApplicableError("the Triton kernels need a GPU; the interpreter is no measure of them")
    return _own("triton", case)


def _captured(case: Case, device: torch.device, backward: bool) -> Attention:
    """What is left of a small case without the cost of launching it; computes the inputs of its first call."""
    if backward:
        raise NotApplicableError("captured for inference only")
    attention = _triton(case, device)
    graph, results = torch.cuda.CUDAGraph(), []

    def replay(qkv: Tensor, bias: Tensor, pad: Tensor) -> Tensor:
        if not results:
            with torch.inference_mode():
                attention(qkv, bias, pad)
                with torch.cuda.graph(graph):
                    results.append(attention(qkv, bias, pad))
        graph.replay()
        return results[0]

    return replay


def _flash_swin(case: Case, device: torch.device, backward: bool) -> Attention:
    """https://github.com/zzd1992/FlashWindowAttention, where installed."""
    if importlib.util.find_spec("flash_swin_attn") is None:
        raise NotApplicableError("flash_swin_attn is not installed")
    if device.type != "cuda":
        raise NotApplicableError("flash_swin_attn needs a GPU")
    if case.shift:
        raise NotApplicableError("flash_swin_attn has no mask for shifted windows")
    if backward:
        raise NotApplicableError("flash_swin_attn leaves the scale out of its gradients of q and k")
    from flash_swin_attn import flash_swin_attn_func

    geometry, tokens = case.geometry, case.window**2
    index, scatter = windows.gather_index(geometry, device), windows.scatter_index(geometry, device)

    def attention(qkv: Tensor, bias: Tensor, pad: Tensor) -> Tensor:
        q, k, v = (part.contiguous() for part in cut_windows(qkv, pad, index, tokens))
        out = flash_swin_attn_func(q, k, v, bias.to(qkv.dtype), q.shape[-1] ** -0.5)
        return join_windows(out, scatter, qkv)

    return attention
