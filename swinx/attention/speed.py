"""How attention is timed, and what else could compute it: for `swinx.attention.check` and for the benchmarks.

Shapes: B images, H W grid, h heads, D head_dim, N tokens in a window, M windows of the batch, C = h * D.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import windows
from ..windows import WindowGeometry, cyclic_shift
from .api import window_attention
from .triton.trial import Trial

Call = Callable[[], object]
# Maps qkv, bias (h, N, N) and pad_qkv (3, h, D) to the result.
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


class Times(NamedTuple):
    """Percentiles of the time of one call, in milliseconds."""

    p20: float
    p50: float
    p80: float


def stage(
    batch: int, side: int, heads: int, window: int, *, shifted: bool = True, dilation: int = 1, cosine: bool = False
) -> Trial:
    """A block as a stage of a network runs it: heads of 32 channels on square grids of so many tokens a side."""
    shift = cyclic_shift(side, window, dilation) if shifted else 0
    geometry = WindowGeometry(batch, side, side, (window, window), (shift, shift), dilation)
    return Trial(geometry, heads, 32, cosine=cosine)


def leaves(trial: Trial, dtype: torch.dtype, device: torch.device) -> tuple[list[Tensor], Tensor | None]:
    """qkv, bias and pad_qkv of a trial, which get gradients; and its cosine_scale."""
    *inputs, scale = trial.inputs(dtype, device)
    return [tensor.requires_grad_() for tensor in inputs if tensor is not None], scale


def measure(call: Call, device: torch.device, *, cold: bool = True, queued: bool = True, seconds: float = 0.4) -> Times:
    """Time a call again and again for about so many seconds after a warm-up: 5 to 200 times, on a GPU at least 20.

    On a GPU by events around each call. cold: the level-2 cache is overwritten before each; else the same call runs
    before it. queued: the GPU is kept busy until each call is in its queue, so that its own time is measured; else a
    call of many small kernels may wait for the host, as it does for users. On the CPU by the clock.
    """
    for _ in range(3):
        call()
    if device.type != "cuda":
        return percentiles(_clock(call, seconds))
    scratch = torch.empty(256 * 2**20, dtype=torch.int8, device=device)
    scratch.zero_()
    [clearing] = _by_events(scratch.zero_, 1, lambda: None, device)
    launches, totals = [], []
    for _ in range(3):
        start = time.perf_counter()
        call()
        launches.append(time.perf_counter() - start)
        torch.cuda.synchronize(device)
        totals.append(time.perf_counter() - start)
    clears = int(cold)
    if queued:
        clears += int(2e3 * max(launches) * (1 if cold else 2) / clearing)

    def before() -> None:
        for _ in range(clears):
            scratch.zero_()
        if not cold:
            call()

    runs = min(200, max(20, int(seconds / (min(totals) + 1e-3 * clears * clearing))))
    return percentiles(_by_events(call, runs, before, device))


def _by_events(call: Call, runs: int, before: Call, device: torch.device) -> list[float]:
    """Milliseconds of the GPU for each of so many calls, with something before each that is not timed."""
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(runs)]
    torch.cuda.synchronize(device)
    for start, end in events:
        before()
        start.record()
        call()
        end.record()
    torch.cuda.synchronize(device)
    return [start.elapsed_time(end) for start, end in events]


def _clock(call: Call, seconds: float) -> list[float]:
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 5 or (time.perf_counter() < end and len(times) < 200):
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return times


def percentiles(times: list[float]) -> Times:
    """20th, 50th and 80th."""
    return Times(*torch.tensor(times, dtype=torch.float64).quantile(torch.tensor([0.2, 0.5, 0.8]).double()).tolist())


def copy_speed(device: torch.device) -> float:
    """Bytes per second that a copy reads and writes, for memory far larger than any cache: what "100 %" means here."""
    size = 2**30 if device.type == "cuda" else 2**28
    source = torch.empty(size, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    return 2 * size / (1e-3 * measure(lambda: target.copy_(source), device).p50)


def least_bytes(qkv: Tensor, backward: bool) -> int:
    """Least bytes between memory and chip: forward reads qkv and writes out; backward adds qkv, dout and dqkv."""
    return qkv.nbytes // 3 * (4 + 7 if backward else 4)


def run(attention: Attention, inputs: list[Tensor], cotangent: Tensor | None) -> list[Tensor]:
    """Output, and where a gradient of it is given, those of all inputs."""
    if cotangent is None:
        with torch.inference_mode():
            return [attention(*inputs)]
    out = attention(*inputs)
    return [out, *torch.autograd.grad(out, inputs, cotangent, materialize_grads=True)]


def cotangent(qkv: Tensor, backward: bool) -> Tensor | None:
    """A gradient of ones for the output (B, H, W, C), for `run`; made once, as its memory is read and not written."""
    batch, height, width, _, heads, head_dim = qkv.shape
    return qkv.new_ones(batch, height, width, heads * head_dim) if backward else None


def provider(
    name: str, geometry: WindowGeometry, device: torch.device, cosine_scale: Tensor | None = None
) -> Attention:
    """An implementation of `window_attention`, with "compiled " before its name or not, or "flex_attention".

    cosine_scale: (h,), for the scores of Swin V2.

    Raises:
        NotImplementedError: flex_attention with cosine_scale.
    """
    if name == "flex_attention":
        if cosine_scale is not None:
            raise NotImplementedError("flex_attention takes no cosine_scale")
        return flex_attention(geometry, device)
    _, _, _, window_size, shift, dilation = geometry
    impl: Any = name.removeprefix("compiled ")

    def attention(qkv: Tensor, bias: Tensor, pad: Tensor) -> Tensor:
        return window_attention(
            qkv, bias, window_size=window_size, shift=shift, dilation=dilation, pad_qkv=pad,
            cosine_scale=cosine_scale, impl=impl,
        )  # fmt: skip

    return attention if name == impl else _compiled(attention)


def _compiled(attention: Attention) -> Attention:
    torch._dynamo.reset()
    compiled: Attention = torch.compile(attention, dynamic=False, fullgraph=True)
    return compiled


def flex_attention(geometry: WindowGeometry, device: torch.device) -> Attention:
    """torch's flex_attention with bias and regions in its score_mod, compiled with the cutting of windows around it."""
    from torch.nn.attention.flex_attention import flex_attention

    tokens = geometry.window_size[0] * geometry.window_size[1]
    index, scatter = windows.gather_index(geometry, device), windows.scatter_index(geometry, device)
    region = windows.slot_regions(windows.all_slots(geometry, device), geometry).view(-1, tokens).int()
    shifted = geometry.shift != (0, 0)

    def attention(qkv: Tensor, bias: Tensor, pad: Tensor) -> Tensor:
        def score_mod(score: Tensor, m: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
            score = score + bias[head, i, j]
            return torch.where(region[m, i] == region[m, j], score, -float("inf")) if shifted else score

        q, k, v = cut_windows(qkv, pad, index, tokens)
        return join_windows(flex_attention(q, k, v, score_mod=score_mod), scatter, qkv)

    return _compiled(attention)


def cut_windows(qkv: Tensor, pad: Tensor, index: Tensor, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v, (M, h, N, D) each."""
    _, _, _, _, heads, head_dim = qkv.shape
    flat = torch.cat([qkv.reshape(-1, 3, heads, head_dim), pad.to(qkv.dtype)[None]])
    q, k, v = flat[index].view(-1, tokens, 3, heads, head_dim).permute(2, 0, 3, 1, 4)
    return q, k, v


def join_windows(out: Tensor, scatter: Tensor, qkv: Tensor) -> Tensor:
    """(M, h, N, D) back to (B, H, W, C)."""
    batch, height, width, _, heads, head_dim = qkv.shape
    flat = out.transpose(1, 2).reshape(-1, heads * head_dim)
    return flat[scatter].view(batch, height, width, heads * head_dim)
