"""Window attention by every way there is: time, memory, and whether the result is right.

    python -m experiments.bench_attention                     # on a GPU four minutes, on a CPU one
    python -m experiments.bench_attention --report --output runs/bench_attention
    python -m experiments.bench_attention --cases full --providers triton reference

Writes results.jsonl (one row for each case, provider and direction), report.md and report.html into a folder. Rows that
are there already are not measured again. All providers of a case run one after the other in one process, on the same
inputs, and each is held against the reference in float32 first: a wrong result gets no time.
"""

import functools
import gc
import importlib.util
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from rich.console import Console

import swinx
from experiments.records import Row, append_row, provenance, read_rows
from experiments.speed import attention_report, providers, timing
from experiments.speed.cases import COMPARED, Case, full, headline, small
from swinx.attention import speed

# Largest difference from the float32 reference, as a share of its largest value: some roundings of each type.
TOLERANCE = {"bf16": 0.03, "fp16": 0.005, "fp32": 2e-5}


@dataclass(frozen=True)
class Options:
    """Measure window attention by every provider."""

    output: Path = Path("runs/bench_attention")
    """folder for results.jsonl, report.md and report.html"""
    cases: Literal["headline", "small", "full"] | None = None
    """which shapes (default: headline on a GPU, small on a CPU; full takes hours)"""
    only: str = ""
    """measure only cases whose name contains this"""
    providers: tuple[str, ...] = providers.PROVIDERS
    """which ways to compute it"""
    directions: tuple[Literal["forward", "both"], ...] = ("forward", "both")
    """forward alone, and forward with backward"""
    device: str | None = None
    """cuda or cpu (default: cuda where there is one)"""
    seconds: float = 0.3
    """for each measurement"""
    report: bool = False
    """measure nothing: write the report from the rows that are there"""


def chosen_cases(options: Options, device: torch.device) -> list[Case]:
    """The cases that the options name, in order."""
    kind = options.cases or ("headline" if device.type == "cuda" else "small")
    cases = {"headline": headline, "small": small, "full": full}[kind]()
    return [case for case in cases if options.only in case.name]


def runs_here(provider: str, case: Case) -> bool:
    """Whether a case is one that this provider is measured on: compilation takes half a minute a case."""
    return provider not in providers.COMPILED or case not in headline() or case.name in COMPARED


def measure(case: Case, provider: str, direction: str, device: torch.device, seconds: float, copy: float) -> Row:
    """One row: what it is, status, and where that is "ok" the measurements."""
    row: Row = {"case": case.name, **asdict(case), "provider": provider, "direction": direction}
    try:
        attention = providers.build(provider, case, device, direction == "both")
        error = difference(case, attention, direction, device)
    except providers.NotApplicableError as reason:
        return row | {"status": "not applicable", "reason": str(reason)}
    except Exception as failure:  # whatever a provider raises is a result about it
        return row | {"status": "failed", "reason": f"{type(failure).__name__}: {failure}".splitlines()[0][:300]}
    if not error <= TOLERANCE[case.dtype]:
        return row | {"status": "wrong", "reason": f"differs from the reference by {error:.2g}", "error": None}
    inputs = case.inputs(device)
    call = functools.partial(speed.run, attention, inputs, direction)
    times = speed.measure(call, device, seconds=seconds)
    warm = speed.measure(call, device, cold=False, seconds=seconds) if device.type == "cuda" else times
    saved = timing.saved_bytes(lambda: attention(*inputs)) if direction == "both" else None
    return row | {
        "status": "ok",
        "error": error,
        **{f"ms_{name}": value for name, value in times._asdict().items()},
        "ms_p50_warm": warm.p50,
        "copy_share": case.bytes_moved(direction == "both") / (1e-3 * times.p50) / copy,
        "peak_bytes": timing.peak_bytes(call, device),
        "saved_bytes": saved,
        "copy_bytes_per_second": copy,
    }


def difference(case: Case, attention: providers.Attention, direction: str, device: torch.device) -> float:
    """Largest difference of output or gradients from the float32 reference, as a share of the largest value there."""
    inputs = case.inputs(device)
    exact = [tensor.detach().float().requires_grad_() for tensor in inputs]
    _, _, _, window, shift, dilation = case.geometry
    rule = {"window_size": window, "shift": shift, "dilation": dilation, "impl": "reference"}
    expected = speed.run(
        lambda qkv, bias, pad: swinx.window_attention(qkv, bias, pad_qkv=pad, **rule), exact, direction
    )
    got = speed.run(attention, inputs, direction)
    worst = 0.0
    for ours, theirs in zip(got, expected, strict=True):
        scale = theirs.abs().max().clamp_min(1e-6)
        worst = max(worst, float((ours.detach().float() - theirs.detach()).abs().max() / scale.detach()))
    return worst


def main(options: Options) -> None:
    """Measure what is missing, then write the report."""
    unknown = [name for name in options.providers if name not in providers.PROVIDERS]
    if unknown:
        raise SystemExit(f"--providers must be among {', '.join(providers.PROVIDERS)}; got {', '.join(unknown)}")
    path = options.output / "results.jsonl"
    if not options.report:
        device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        done = {(row["case"], row["provider"], row["direction"]) for row in read_rows(path)}
        origin = provenance(device) | {"threads": torch.get_num_threads(), "triton": _triton_version()}
        copy = speed.copy_speed(device)
        console = Console()
        for case in chosen_cases(options, device):
            for provider in options.providers:
                for direction in options.directions:
                    if (case.name, provider, direction) in done or not runs_here(provider, case):
                        continue
                    row = measure(case, provider, direction, device, options.seconds, copy)
                    append_row(path, row | origin)
                    console.print(attention_report.line(row), highlight=False, soft_wrap=True)
                    gc.collect()
                    if device.type == "cuda":
                        torch.cuda.empty_cache()
    rows = read_rows(path)
    if not rows:
        raise SystemExit(f"{path} holds no rows")
    attention_report.write(options.output, rows)
    print(f"{options.output / 'report.html'}")


def _triton_version() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return None
    import triton

    return str(triton.__version__)


if __name__ == "__main__":
    main(tyro.cli(Options))
