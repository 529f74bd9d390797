"""Window attention by every way that a user could take today: time, memory, and whether the result is right.

    python -m tests.benchmarks.bench_attention
    python -m tests.benchmarks.bench_attention --providers triton sdpa --phases forward --output DIR

Appends a row for each case, provider and phase to results.jsonl, and writes report.md from all rows. What has a row is
not measured again. All providers of a case run one after the other in one process, on the same inputs, and each is held
against the reference in float64 first, as by `swinx.attention.check`: a wrong result gets no time.

Shapes: B images, H W grid, h heads, D head_dim, N tokens in a window, C = h * D.
"""

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import tyro
from torch import Tensor

from experiments.records.results import RESULTS, Row, read_rows
from swinx.attention import speed
from swinx.attention.triton.trial import Trial, one_line
from swinx.windows import WindowGeometry
from tests.benchmarks import common

COMPILED = ("compiled reference", "compiled sdpa", "flex_attention")
Provider = Literal[
    "triton", "triton, CUDA graph", "reference", "sdpa", "compiled reference", "compiled sdpa", "flex_attention"
]
PROVIDERS: tuple[Provider, ...] = get_args(Provider)
Phase = Literal["forward", "forward_backward"]
COLUMNS = (
    *("batch", "height", "heads", "window", "shift", "dilation", "dtype", "phase", "provider", "ms_p50", "ms_p20"),
    *("ms_p80", "bandwidth_share", "copy_gb_per_s", "saved_mb", "peak_memory_mb", "status", "reason"),
)
Case = tuple[Trial, str]


def stage(batch: int, side: int, heads: int, window: int, dtype: str = "bf16", **options: Any) -> Case:
    """A block of a stage (speed.stage, which takes the options), and its dtype."""
    return speed.stage(batch, side, heads, window, **options), dtype


# Stages of swinx_t (3 heads in stage 1) and swinx_b (4): large ones for throughput, a small one for overhead; every
# dtype, window and period once. What has to be compiled for each case is measured on COMPARED alone.
COMPARED = (stage(32, 56, 3, 7), stage(16, 128, 3, 8), stage(16, 128, 4, 12))
HEADLINE = (
    *COMPARED, stage(16, 128, 3, 7), stage(16, 128, 3, 8, shifted=False), stage(16, 128, 3, 8, dilation=2),
    stage(16, 128, 3, 8, dilation=4), stage(16, 128, 4, 7), stage(16, 64, 8, 7), stage(32, 14, 12, 7),
    stage(1, 56, 3, 7), stage(64, 56, 3, 7), stage(32, 56, 3, 7, "fp16"), stage(32, 56, 3, 7, "fp32"),
    stage(16, 128, 4, 12, "fp32"),
)  # fmt: skip
# For the CPU: a second or two each.
SMALL = (
    stage(1, 56, 3, 7, "fp32"), stage(2, 14, 12, 7, "fp32"), stage(1, 64, 3, 8, "fp32", dilation=2),
    stage(1, 48, 3, 12, "fp32"),
)  # fmt: skip


@dataclass(frozen=True)
class Options(common.Options):
    """Measure window attention by every provider."""

    output: Path = Path("runs/bench_attention")
    providers: tuple[Provider, ...] = PROVIDERS
    """ways to compute it; none writes the report alone"""
    phases: tuple[Phase, ...] = ("forward", "forward_backward")
    seconds: float = 0.3
    """for each measurement"""


def fields(trial: Trial, dtype: str) -> Row:
    """The fields of a row that say what was computed."""
    batch, height, width, (window, _), (shift, _), dilation = trial.geometry
    row: Row = {"batch": batch, "height": height, "width": width, "heads": trial.heads, "head_dim": trial.head_dim}
    return row | {"window": window, "shift": shift, "dilation": dilation, "dtype": dtype}


def build(provider: str, geometry: WindowGeometry, phase: Phase, inputs: list[Tensor]) -> speed.Attention:
    """The attention of a provider, from (B, H, W, 3, h, D) to (B, H, W, C).

    Raises:
        NotImplementedError: it cannot compute the case; the message says why.
    """
    name, graph, _ = provider.partition(", CUDA graph")
    device = inputs[0].device
    if name == "triton" and device.type != "cuda":
        raise NotImplementedError("the Triton kernels need a GPU; the interpreter is no measure of them")
    if name == "flex_attention" and device.type == "cpu" and phase != "forward":
        raise NotImplementedError("flex_attention has no backward pass on the CPU")
    if graph and phase != "forward":
        raise NotImplementedError("captured for inference only")
    attention = speed.provider(name, geometry, device)
    # What is left of a small case without the cost of launching it.
    return torch.cuda.make_graphed_callables(attention, tuple(t.detach() for t in inputs)) if graph else attention


def measure(case: Case, provider: str, phase: Phase, device: torch.device, seconds: float, copy: float) -> Row:
    """Status, and where that is "ok" the measurements, else the reason. copy: bytes a second of a device copy."""
    trial, dtype, backward = case[0], common.DTYPES[case[1]], phase != "forward"
    inputs, _ = speed.leaves(trial, dtype, device)
    try:
        attention = build(provider, trial.geometry, phase, inputs)
        excess = trial.excess(dtype, device, backward, attention)
    except NotImplementedError as reason:
        return {"status": "not applicable", "reason": str(reason)}
    except Exception as failure:  # whatever a provider raises is a result about it
        return {"status": "failed", "reason": one_line(failure)}
    if not excess <= 1:
        return {"status": "wrong", "reason": f"{excess:.2g} times the error allowed"}
    call = functools.partial(speed.run, attention, inputs, speed.cotangent(inputs[0], backward))
    times = speed.measure(call, device, seconds=seconds)
    warm = speed.measure(call, device, cold=False, seconds=seconds) if device.type == "cuda" else times
    row: Row = {"status": "ok", "excess": excess, "ms_p20": times.p20, "ms_p50": times.p50, "ms_p80": times.p80}
    row |= {"ms_p50_warm": warm.p50, "copy_gb_per_s": copy / 1e9}
    row |= {"bandwidth_share": speed.least_bytes(inputs[0], backward) / (1e-3 * times.p50) / copy}
    row |= {"peak_memory_mb": common.peak_megabytes(call, device)}
    return row | {"saved_mb": saved_bytes(lambda: attention(*inputs)) / 1e6 if backward else None}


def saved_bytes(forward: Callable[[], Tensor]) -> int:
    """Bytes that autograd keeps alive from a forward pass for the backward pass, each memory counted once."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        forward()
    return sum(kept.values())


def main(options: Options) -> None:
    """Measure what is missing, print it as it comes, then write the report."""
    device = options.torch_device()
    there, copy = read_rows(options.output / RESULTS), speed.copy_speed(device)
    cases = HEADLINE if device.type == "cuda" else SMALL
    for case, phase, provider in itertools.product(cases, options.phases, options.providers):
        row: Row = {"kind": "attention", **fields(*case), "provider": provider, "phase": phase}
        compared = provider not in COMPILED or case in (*COMPARED, *SMALL)
        if compared and not any(row.items() <= known.items() for known in there):
            found = measure(case, provider, phase, device, options.seconds, copy)
            common.append(options.output, [row | found], device)
            print(*row.values(), found["status"], found.get("ms_p50", found.get("reason")), flush=True)
    common.report(options.output, COLUMNS)


if __name__ == "__main__":
    main(tyro.cli(Options))
