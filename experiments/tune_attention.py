"""Choose warps and registers of the Triton kernels, and write swinx/attention/triton_table.py.

    python -m experiments.tune_attention            # by time, for the GPU that is there: five minutes
    python -m experiments.tune_attention --compile  # by the instructions in the machine code, for all GPUs, without one

By time: each candidate runs the operator on a large stage, and the fastest median wins. By instructions: the candidate
wins that issues the fewest for a window (warps times instructions of the loop, a spill counted as four more), by the
worst of the versions of Triton that --candidates has rows of: run it under each, with the same file. What has been
timed stays. Entries of other generations stay as they are.
"""

import importlib.metadata
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import tyro

from experiments.kernel_resources import DTYPES, compile_kernel
from experiments.records import append_row, read_rows, write_whole
from swinx.attention import ops, triton_table
from swinx.attention.triton_launch import GENERATIONS, Kernel, Launch, table_key
from swinx.windows import WindowGeometry

TABLE_FILE = Path(triton_table.__file__)
# Windows that stand for one tile and for several, heads for up to 32 channels and for more.
CASES: tuple[tuple[Kernel, int], ...] = (
    ("forward", 7), ("forward", 12), ("backward", 7), ("query", 12), ("key", 12),
)  # fmt: skip
HEAD_DIMS = (32, 64)
PRECISIONS = ("bf16", "fp32")
CAPABILITIES = {8: 80, 9: 90, 10: 100}
SPILL = 4  # instructions that a spill counts as

Parameters = tuple[int, int | None]
Key = tuple[str, int, int, int, int]


@dataclass(frozen=True)
class Options:
    """Choose launch parameters and write the table."""

    compile: bool = False
    """choose by machine code, without a GPU"""
    candidates: Path = Path("docs/benchmarks/kernel-candidates.jsonl")
    """rows of what each candidate compiles to, by version of Triton; kept and added to by --compile"""
    head_dims: tuple[int, ...] = HEAD_DIMS
    """32 stands for heads of up to 32 channels, 64 for more"""
    precisions: tuple[str, ...] = PRECISIONS
    """bf16 stands for both 16-bit types"""


def by_instructions(key: Key, kernel: Kernel, window: int, head_dim: int, precision: str, path: Path) -> Parameters:
    """The candidate that issues the fewest instructions for a window, by the worst version of Triton."""
    name, version = "-".join(map(str, key)), importlib.metadata.version("triton")
    known = [row for row in read_rows(path) if row["entry"] == name]
    for warps in (4, 8):
        if any(row["triton"] == version and row["warps"] == warps for row in known):
            continue
        used = compile_kernel(kernel, window, head_dim, precision, CAPABILITIES[key[-1]], Launch(warps, 2, None))
        known.append({"entry": name, **asdict(used), "cost": warps * (used.loop_instructions + SPILL * used.spills)})
        append_row(path, known[-1])
    worst = {warps: max(row["cost"] for row in known if row["warps"] == warps) for warps in (4, 8)}
    return min(worst, key=worst.__getitem__), None


def by_time(key: Key, kernel: Kernel, window: int, head_dim: int, precision: str) -> Parameters:
    """The fastest candidate on the GPU."""
    from experiments.speed.timing import measure

    device = torch.device("cuda")
    run = _operator(kernel, window, head_dim, precision, device)
    before, times = triton_table.TABLE[key], {}
    for parameters in ((warps, registers) for warps in (2, 4, 8) for registers in (None, 128, 168)):
        triton_table.TABLE[key] = parameters
        times[parameters] = measure(run, device, seconds=0.1).p50
        print(f"{kernel:9} w{window:<3} D{head_dim:<4} {precision} {parameters!s:10} {times[parameters]:.3f} ms")
    triton_table.TABLE[key] = before
    return min(times, key=times.__getitem__)


def _operator(kernel: Kernel, window: int, head_dim: int, precision: str, device: torch.device) -> Callable[[], object]:
    """The forward or the backward operator on 16 grids of 126 x 126 tokens, shifted, 128 channels."""
    heads, tokens, side = 128 // head_dim, window * window, 126
    geometry = WindowGeometry(16, side, side, (window, window), (window // 2, window // 2), 1)
    qkv = torch.randn(16, side, side, 3, heads, head_dim, device=device, dtype=DTYPES[precision])
    bias = torch.randn(heads, tokens, tokens, device=device)
    pad = torch.randn(3, heads, head_dim, device=device)
    rule = (geometry.window_size, geometry.shift, geometry.dilation)
    if kernel == "forward":
        return lambda: ops.window_attention(qkv, bias, pad, *rule)
    out, lse = ops.window_attention(qkv, bias, pad, *rule)
    saved = (out, lse) if kernel != "backward" else (None, None)
    return lambda: ops.window_attention_backward(torch.ones_like(out), qkv, bias, pad, *saved, *rule)


def cases(options: Options, generations: tuple[int, ...]) -> Iterator[tuple[Kernel, int, int, str, int]]:
    """Every entry of the table that is to be chosen."""
    for generation in generations:
        for precision in options.precisions:
            for head_dim in options.head_dims:
                for kernel, window in CASES:
                    yield kernel, window, head_dim, precision, generation


def render(table: dict[Key, Parameters], origins: dict[int, str]) -> str:
    """The module that holds the table."""
    lines = [
        '"""Warps and registers of each kernel. Written by `python -m experiments.tune_attention`; do not edit."""'
    ]
    lines += ["", "# Where the entries of each generation come from.", "ORIGINS: dict[int, str] = {"]
    lines += [f'    {generation}: "{origin}",' for generation, origin in sorted(origins.items())]
    lines += ["}", ""]
    lines += ["# (kernel, N up to, D up to, bits, generation): (warps, registers; None: what the compiler wants)"]
    lines += ["TABLE: dict[tuple[str, int, int, int, int], tuple[int, int | None]] = {"]
    lines += [f"    {key!r}: {value!r},".replace("'", '"') for key, value in sorted(table.items())]
    return "\n".join([*lines, "}", ""])


def main(options: Options) -> None:
    """Choose every entry, then write the table whole."""
    origins = dict(triton_table.ORIGINS)
    version = importlib.metadata.version("triton")
    if options.compile:
        fit = [generation for generation in GENERATIONS if ops.triton_too_old(generation) is None]
        generations = tuple(generation for generation in fit if "timed on" not in origins.get(generation, ""))
    elif torch.cuda.is_available():
        generations = (torch.cuda.get_device_capability()[0],)
        origins[generations[0]] = f"timed on {torch.cuda.get_device_name()}, Triton {version}"
    else:
        raise SystemExit("no GPU to time on: --compile chooses by machine code")
    table = dict(triton_table.TABLE)
    for kernel, window, head_dim, precision, generation in cases(options, generations):
        key = table_key(kernel, window * window, head_dim, DTYPES[precision].itemsize, generation)
        if options.compile:
            table[key] = by_instructions(key, kernel, window, head_dim, precision, options.candidates)
        else:
            table[key] = by_time(key, kernel, window, head_dim, precision)
        print(*key, "->", *table[key], flush=True)
    if options.compile:
        for generation in generations:
            rows = [row for row in read_rows(options.candidates) if row["capability"] == CAPABILITIES[generation]]
            versions = " and ".join(sorted({row["triton"] for row in rows}))
            origins[generation] = f"fewest instructions, Triton {versions}; not timed"
    write_whole(TABLE_FILE, render(table, origins))


if __name__ == "__main__":
    main(tyro.cli(Options))
