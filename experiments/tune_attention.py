"""Choose the launch parameters of the Triton kernels, and write swinx/attention/triton/table.py.

    python -m experiments.tune_attention            # by time, for the GPU that is there
    python -m experiments.tune_attention --compile  # by the instructions in the machine code, for all GPUs, without one

By time: each candidate runs the operator on a large stage, and the fastest median wins. By instructions: the candidate
wins that issues the fewest for a window (warps times instructions of the loop, a spill counted as four more), by the
worst of the versions of Triton that --candidates has rows of: run it under each, with the same file. It gets three
stages, as many programs as fit onto a large GPU at once, and in the forward kernel 128 registers where nothing spills
by it, so that four programs fit onto a multiprocessor. Where the assembler, left to itself, gives up and puts nearly
everything into memory, it is told to use all registers. What has been timed stays. Entries of other generations stay as
they are.
"""

import importlib.metadata
import itertools
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import tyro

from experiments.kernel_resources import DTYPES, SHARED_MEMORY, compile_kernel
from experiments.records.files import write_whole
from experiments.records.results import append_rows, read_rows
from swinx.attention.speed import measure
from swinx.attention.triton import operator, support
from swinx.attention.triton import table as table_module
from swinx.attention.triton.parameters import ALL_REGISTERS, GENERATIONS, Kernel, Launch, fitting_stages, table_key
from swinx.windows import WindowGeometry

TABLE_FILE = Path(table_module.__file__)
# Windows that stand for one tile and for several, heads for up to 32 channels and for more.
CASES: tuple[tuple[Kernel, int], ...] = (
    ("forward", 7), ("forward", 12), ("backward", 7), ("query", 12), ("key", 12),
)  # fmt: skip
HEAD_DIMS = (32, 64)
PRECISIONS = ("bf16", "fp32")
CAPABILITIES = {8: 80, 9: 90, 10: 100}
# Of A100, H100 and B200: multiprocessors, and bytes of shared memory of each.
MULTIPROCESSORS = {8: 108, 9: 132, 10: 148}
SHARED = {8: 167936, 9: 233472, 10: 233472}
SPILL = 4  # instructions that a spill counts as
GIVEN_UP = 32  # registers that ptxas leaves a kernel with when it finds no way to keep what is needed

Parameters = tuple[int, int, int | None, int]
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
    name, version, generation = "-".join(map(str, key)), importlib.metadata.version("triton"), key[-1]
    known = [row for row in read_rows(path) if row["entry"] == name]

    def worst(candidate: tuple[int, int | None], field: str) -> float:
        return max(row[field] for row in known if (row["warps"], row["limit"]) == candidate)

    free: dict[int, tuple[int, int | None]] = {}  # by warps: the candidate without a limit, or with the highest
    candidates: list[tuple[int, int | None]] = []
    for warps, registers in itertools.product((4, 8), (None, ALL_REGISTERS, 128)):
        found = [row["registers"] for row in known if (row["warps"], row["limit"]) == (warps, None)]
        if registers == ALL_REGISTERS and min(found) > GIVEN_UP:
            continue
        if registers == 128 and kernel != "forward":
            continue
        candidates.append((warps, registers))
        if registers != 128:
            free[warps] = warps, registers
        if any((row["triton"], row["warps"], row["limit"]) == (version, warps, registers) for row in known):
            continue
        wanted = Launch(warps, 3, registers, 0)
        shared = SHARED_MEMORY[CAPABILITIES[generation]]
        stages = fitting_stages(wanted.stages, window * window, head_dim, DTYPES[precision], shared)
        used = compile_kernel(
            kernel, window, head_dim, precision, CAPABILITIES[generation], wanted._replace(stages=stages)
        )
        row = {"entry": name, "limit": registers, **asdict(used)}
        known.append(row | {"cost": warps * (used.loop_instructions + SPILL * used.spills)})
        append_rows(path, [known[-1]])

    allowed = [
        candidate for candidate in candidates if worst(candidate, "spills") <= worst(free[candidate[0]], "spills")
    ]
    warps = min(allowed, key=lambda candidate: worst(candidate, "cost"))[0]
    chosen = (4, 128) if warps == 4 and (4, 128) in allowed else free[warps]
    by_registers = 65536 // (32 * warps * 8 * -(-int(worst(chosen, "registers")) // 8))
    by_memory = SHARED[generation] // (1024 + int(worst(chosen, "shared_bytes")))
    resident = max(1, min(4, by_registers, by_memory))
    return warps, 3, chosen[1], resident * MULTIPROCESSORS[generation]


def by_time(key: Key, kernel: Kernel, window: int, head_dim: int, precision: str) -> Parameters:
    """The fastest candidate on the GPU: first warps, stages and registers, then how many programs."""
    device = torch.device("cuda")
    run = _operator(kernel, window, head_dim, precision, device)
    before = table_module.TABLE[key]

    def fastest(candidates: list[Parameters]) -> Parameters:
        times = {}
        for parameters in candidates:
            table_module.TABLE[key] = parameters
            times[parameters] = measure(run, device, seconds=0.1).p50
            print(f"{kernel:9} w{window:<3} D{head_dim:<4} {precision} {parameters!s:22} {times[parameters]:.3f} ms")
        return min(times, key=times.__getitem__)

    *launch, programs = fastest(
        [
            (warps, stages, registers, before[3])
            for warps in (2, 4, 8)
            for stages in (1, 2, 3)
            for registers in (None, ALL_REGISTERS, 128, 168)
        ]
    )
    best = fastest([(launch[0], launch[1], launch[2], count * programs // 2) for count in (1, 2, 3, 4, 8)])
    table_module.TABLE[key] = before
    return best


def _operator(kernel: Kernel, window: int, head_dim: int, precision: str, device: torch.device) -> Callable[[], object]:
    """The forward or the backward operator on 16 grids of 126 x 126 tokens, shifted, 128 channels."""
    heads, tokens, side = 128 // head_dim, window * window, 126
    geometry = WindowGeometry(16, side, side, (window, window), (window // 2, window // 2), 1)
    qkv = torch.randn(16, side, side, 3, heads, head_dim, device=device, dtype=DTYPES[precision])
    bias = torch.randn(heads, tokens, tokens, device=device)
    pad = torch.randn(3, heads, head_dim, device=device)
    rule = (geometry.window_size, geometry.shift, geometry.dilation)
    if kernel == "forward":
        return lambda: operator.window_attention(qkv, bias, pad, None, *rule)
    out, lse = operator.window_attention(qkv, bias, pad, None, *rule)
    saved = (out, lse) if kernel != "backward" else (None, None)
    return lambda: operator.window_attention_backward(torch.ones_like(out), qkv, bias, pad, None, *saved, *rule)


def cases(options: Options, generations: tuple[int, ...]) -> Iterator[tuple[Kernel, int, int, str, int]]:
    """Every entry of the table that is to be chosen."""
    for generation in generations:
        for precision in options.precisions:
            for head_dim in options.head_dims:
                for kernel, window in CASES:
                    yield kernel, window, head_dim, precision, generation


def render(table: dict[Key, Parameters], origins: dict[int, str]) -> str:
    """The module that holds the table."""
    lines = ['"""Launch parameters of each kernel. Written by `python -m experiments.tune_attention`; do not edit."""']
    lines += ["", "# Where the entries of each generation come from.", "ORIGINS: dict[int, str] = {"]
    lines += [f'    {generation}: "{origin}",' for generation, origin in sorted(origins.items())]
    lines += ["}", ""]
    lines += [
        "# (kernel, N up to, D up to, bits, generation): (warps, stages, registers, programs), see `parameters.Launch`"
    ]
    lines += ["TABLE: dict[tuple[str, int, int, int, int], tuple[int, int, int | None, int]] = {"]
    lines += [f"    {key!r}: {value!r},".replace("'", '"') for key, value in sorted(table.items())]
    return "\n".join([*lines, "}", ""])


def main(options: Options) -> None:
    """Choose every entry, then write the table whole."""
    origins = dict(table_module.ORIGINS)
    version = importlib.metadata.version("triton")
    if options.compile:
        fit = [generation for generation in GENERATIONS if support.triton_too_old(generation) is None]
        generations = tuple(generation for generation in fit if "timed on" not in origins.get(generation, ""))
    elif torch.cuda.is_available():
        generations = (torch.cuda.get_device_capability()[0],)
        origins[generations[0]] = f"timed on {torch.cuda.get_device_name()}, Triton {version}"
    else:
        raise SystemExit("no GPU to time on: --compile chooses by machine code")
    table = dict(table_module.TABLE)
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
