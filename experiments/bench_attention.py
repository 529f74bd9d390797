"""Window attention by every way that a user could take today: time, memory, and whether the result is right.

    python -m experiments.bench_attention                     # on a GPU four minutes, on a CPU one
    python -m experiments.bench_attention --providers triton sdpa --phases forward --output DIR
    python -m experiments.bench_attention --report --output DIR

Appends a row for each case, provider and phase to results.jsonl, and writes report.md from all rows. What has a row is
not measured again. All providers of a case run one after the other in one process, on the same inputs, and each is held
against the reference in float32 first: a wrong result gets no time.

Shapes: B images, H W grid, h heads, D head_dim, N tokens in a window, C = h * D.
"""

import functools
import gc
import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import Tensor

import swinx
from experiments.records.files import write_whole
from experiments.records.results import Row, append_rows, provenance, read_rows
from swinx.attention import speed
from swinx.windows import WindowGeometry, cyclic_shift

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# Largest difference from the float32 reference, as a share of its largest value: some roundings of each type.
TOLERANCE = {"bf16": 0.03, "fp16": 0.005, "fp32": 2e-5}
HEAD_DIM = 32
COMPILED = ("compiled reference", "compiled sdpa", "flex_attention")
PROVIDERS = ("triton", "triton, CUDA graph", "reference", "sdpa", *COMPILED)
Phase = Literal["forward", "forward_backward"]


@dataclass(frozen=True)
class Case:
    """Window attention on square grids, as a stage runs it. side: of the grid, in tokens."""

    batch: int
    side: int
    heads: int
    window: int
    shifted: bool = True
    dilation: int = 1
    dtype: Literal["bf16", "fp16", "fp32"] = "bf16"

    @property
    def geometry(self) -> WindowGeometry:
        shift = cyclic_shift(self.side, self.window, self.dilation) if self.shifted else 0
        return WindowGeometry(self.batch, self.side, self.side, 2 * (self.window,), 2 * (shift,), self.dilation)

    def as_row(self) -> Row:
        """The fields of a row that say what was computed."""
        batch, height, width, (window, _), (shift, _), dilation = self.geometry
        row: Row = {"batch": batch, "height": height, "width": width, "heads": self.heads, "head_dim": HEAD_DIM}
        return row | {"window": window, "shift": shift, "dilation": dilation, "dtype": self.dtype}

    def inputs(self, device: torch.device) -> list[Tensor]:
        """qkv (B, H, W, 3, h, D) in the case's dtype; bias (h, N, N) and pad_qkv (3, h, D) in float32; leaves."""
        random = functools.partial(torch.randn, generator=torch.Generator().manual_seed(0))
        qkv = random(self.batch, self.side, self.side, 3, self.heads, HEAD_DIM).to(device, DTYPES[self.dtype])
        bias = random(self.heads, self.window**2, self.window**2).to(device)
        # Exact in every dtype, so that all providers attend to the same padding.
        pad_qkv = random(3, self.heads, HEAD_DIM).bfloat16().float().to(device)
        return [tensor.requires_grad_() for tensor in (qkv, bias, pad_qkv)]

    def bytes_moved(self, phase: Phase) -> int:
        """Least bytes between memory and chip: forward reads qkv and writes out; backward adds qkv, dout and dqkv."""
        channels = self.heads * HEAD_DIM * DTYPES[self.dtype].itemsize
        return self.batch * self.side**2 * channels * (4 if phase == "forward" else 4 + 7)


# Stages of swinx_t (3 heads in stage 1) and swinx_b (4): large ones for throughput, a small one for overhead; every
# dtype, window and period once. What has to be compiled for each case is measured on COMPARED alone.
COMPARED = (Case(32, 56, 3, 7), Case(16, 128, 3, 8), Case(16, 128, 4, 12))
HEADLINE = (
    *COMPARED, Case(16, 128, 3, 7), Case(16, 128, 3, 8, shifted=False), Case(16, 128, 3, 8, dilation=2),
    Case(16, 128, 3, 8, dilation=4), Case(16, 128, 4, 7), Case(16, 64, 8, 7), Case(32, 14, 12, 7), Case(1, 56, 3, 7),
    Case(64, 56, 3, 7), Case(32, 56, 3, 7, dtype="fp16"), Case(32, 56, 3, 7, dtype="fp32"),
    Case(16, 128, 4, 12, dtype="fp32"),
)  # fmt: skip
# For the CPU: a second or two each.
SMALL = (
    Case(1, 56, 3, 7, dtype="fp32"), Case(2, 14, 12, 7, dtype="fp32"), Case(1, 64, 3, 8, dilation=2, dtype="fp32"),
    Case(1, 48, 3, 12, dtype="fp32"),
)  # fmt: skip


@dataclass(frozen=True)
class Options:
    """Measure window attention by every provider."""

    output: Path = Path("runs/bench_attention")
    """folder for results.jsonl and report.md"""
    providers: tuple[str, ...] = PROVIDERS
    """ways to compute it"""
    phases: tuple[Phase, ...] = ("forward", "forward_backward")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seconds: float = 0.3
    """for each measurement"""
    report: bool = False
    """measure nothing: write the report from the rows that are there"""


class NotApplicableError(Exception):
    """A provider cannot compute a case; the message says why."""


def build(provider: str, case: Case, device: torch.device, phase: Phase) -> speed.Attention:
    """The attention of a provider, from (B, H, W, 3, h, D) to (B, H, W, C); raises NotApplicableError."""
    if provider.startswith("triton") and device.type != "cuda":
        raise NotApplicableError("the Triton kernels need a GPU; the interpreter is no measure of them")
    if provider == "flex_attention":
        if device.type == "cpu" and phase != "forward":
            raise NotApplicableError("flex_attention has no backward pass on the CPU")
        return speed.flex_attention(case.geometry, device)
    _, _, _, window, shift, dilation = case.geometry
    impl: Any = provider.removeprefix("compiled ").removesuffix(", CUDA graph")
    rule = {"window_size": window, "shift": shift, "dilation": dilation, "impl": impl}

    def attention(qkv: Tensor, bias: Tensor, pad: Tensor) -> Tensor:
        return swinx.window_attention(qkv, bias, pad_qkv=pad, **rule)

    if provider.startswith("compiled "):
        torch._dynamo.reset()
        return torch.compile(attention, dynamic=False, fullgraph=True)
    if not provider.endswith("graph"):
        return attention
    if phase != "forward":
        raise NotApplicableError("captured for inference only")
    graph = torch.cuda.CUDAGraph()
    results: list[Tensor] = []

    def replay(*inputs: Tensor) -> Tensor:
        """What is left of a small case without the cost of launching it; computes the inputs of its first call."""
        if not results:
            with torch.inference_mode():
                attention(*inputs)
                with torch.cuda.graph(graph):
                    results.append(attention(*inputs))
        graph.replay()
        return results[0]

    return replay


def difference(case: Case, attention: speed.Attention, phase: Phase, device: torch.device) -> float:
    """Largest difference of output or gradients from the float32 reference, as a share of the largest value there."""
    inputs, direction = case.inputs(device), "forward" if phase == "forward" else "both"
    exact = [tensor.detach().float().requires_grad_() for tensor in inputs]
    expected = speed.run(build("reference", case, device, phase), exact, direction)
    got = speed.run(attention, inputs, direction)
    pairs = [(ours.detach().float(), theirs.detach()) for ours, theirs in zip(got, expected, strict=True)]
    return max(float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-6)) for ours, theirs in pairs)


def measure(case: Case, provider: str, phase: Phase, device: torch.device, seconds: float, copy: float) -> Row:
    """One row: what it is, status, and where that is "ok" the measurements. copy: bytes a second of a device copy."""
    row: Row = {"kind": "attention", **case.as_row(), "provider": provider, "phase": phase}
    try:
        attention = build(provider, case, device, phase)
        error = difference(case, attention, phase, device)
    except NotApplicableError as reason:
        return row | {"status": "not applicable", "reason": str(reason)}
    except Exception as failure:  # whatever a provider raises is a result about it
        return row | {"status": "failed", "reason": f"{type(failure).__name__}: {failure}".splitlines()[0][:300]}
    if not error <= TOLERANCE[case.dtype]:
        return row | {"status": "wrong", "reason": f"differs from the reference by {error:.2g}"}
    inputs, gpu = case.inputs(device), device.type == "cuda"
    call = functools.partial(speed.run, attention, inputs, "forward" if phase == "forward" else "both")
    times = speed.measure(call, device, seconds=seconds)
    warm = speed.measure(call, device, cold=False, seconds=seconds) if gpu else times
    row |= {"status": "ok", "error": error, "ms_p20": times.p20, "ms_p50": times.p50, "ms_p80": times.p80}
    row |= {"ms_p50_warm": warm.p50, "bandwidth_share": case.bytes_moved(phase) / (1e-3 * times.p50) / copy}
    row |= {"copy_gb_per_s": copy / 1e9, "peak_memory_mb": None, "saved_mb": None}
    if gpu:
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        row["peak_memory_mb"] = (torch.cuda.max_memory_allocated(device) - before) / 1e6
    if phase != "forward":
        row["saved_mb"] = saved_bytes(lambda: attention(*inputs)) / 1e6
    return row


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


def report(rows: Sequence[Row]) -> str:
    """Markdown: a line a row, the fastest provider of a case and phase first; then where they come from."""
    names = ("case", "phase", "provider", "ms", "p20 to p80", "bandwidth share", "saved MB", "peak MB")
    lines = [names, ("---",) * 3 + ("---:",) * 5]
    order = list(dict.fromkeys((case_of(row), row["phase"]) for row in rows))
    for row in sorted(rows, key=lambda row: (order.index((case_of(row), row["phase"])), row.get("ms_p50", 1e9))):
        head = case_of(row), row["phase"], row["provider"]
        if row["status"] != "ok":
            lines.append((*head, f"{row['status']}: {row['reason']}", *("",) * 4))
            continue
        spread, share = f"{row['ms_p20']:.3f} to {row['ms_p80']:.3f}", f"{100 * row['bandwidth_share']:.0f} %"
        memory = ("" if row[name] is None else f"{row[name]:.0f}" for name in ("saved_mb", "peak_memory_mb"))
        lines.append((*head, f"{row['ms_p50']:.3f}", spread, share, *memory))
    told = ("host", "torch", "triton", "threads", "copy_gb_per_s", "commit", "command")
    origin = dict.fromkeys(f"- {name}: {row[name]}" for name in told for row in rows if name in row)
    return "\n".join(["# Window attention", "", *(f"| {' | '.join(line)} |" for line in lines), "", *origin, ""])


def case_of(row: Row) -> str:
    """The case of a row, in short."""
    grid = f"{row['batch']}x{row['height']}x{row['width']}, {row['heads']} heads"
    return f"{grid}, window {row['window']}, shift {row['shift']}, period {row['dilation']}, {row['dtype']}"


def main(options: Options) -> None:
    """Measure what is missing, print it as it comes, then write the report."""
    if unknown := [name for name in options.providers if name not in PROVIDERS]:
        raise SystemExit(f"--providers must be among {', '.join(PROVIDERS)}; got {', '.join(unknown)}")
    path = options.output / "results.jsonl"
    if not options.report:
        there = "cuda" if torch.cuda.is_available() else "cpu"
        device = torch.device(there if options.device == "auto" else options.device)
        done = {(case_of(row), row["provider"], row["phase"]) for row in read_rows(path)}
        triton = importlib.import_module("triton").__version__ if importlib.util.find_spec("triton") else None
        origin = provenance(device) | {"threads": torch.get_num_threads(), "triton": triton}
        copy = speed.copy_speed(device)
        for case in HEADLINE if device.type == "cuda" else SMALL:
            for provider in options.providers:
                if provider in COMPILED and case not in (*COMPARED, *SMALL):
                    continue
                for phase in options.phases:
                    if (case_of(case.as_row()), provider, phase) in done:
                        continue
                    row = measure(case, provider, phase, device, options.seconds, copy)
                    append_rows(path, [row | origin])
                    said = f"{row['ms_p50']:.3f} ms" if row["status"] == "ok" else f"{row['status']}: {row['reason']}"
                    print(f"{case_of(row)}, {provider}, {phase}: {said}", flush=True)
                    gc.collect()
                    if device.type == "cuda":
                        torch.cuda.empty_cache()
    rows = read_rows(path)
    if not rows:
        raise SystemExit(f"{path} holds no rows")
    text = report(rows)
    write_whole(options.output / "report.md", text)
    print(text)


if __name__ == "__main__":
    main(tyro.cli(Options))
