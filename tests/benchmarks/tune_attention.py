"""Choose the launch parameters of the Triton kernels, and write swinx/attention/triton/table.py.

    python -m tests.benchmarks.tune_attention            # by time, for the GPU that is there
    python -m tests.benchmarks.tune_attention --compile  # by the instructions in the machine code, without a GPU

By time: each candidate runs a large stage, and the fastest median wins. By instructions: the candidate wins that issues
the fewest for a window (warps times instructions of the loop, a spill counted as four more), by the worst of the
versions of Triton that docs/benchmarks/kernel-candidates.jsonl has rows of: run it under each. It gets three stages, as
many programs as fit onto a large GPU at once, and in the forward kernel 128 registers where that spills no more, so
that four programs fit onto a multiprocessor. Where the assembler, left to itself, gives up and puts nearly everything
into memory, it is told to use all registers. What has been timed stays, and so do entries of other generations.
"""

import functools
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import triton
import tyro

from experiments.records.files import write_whole
from experiments.records.results import Row, append_rows, read_rows
from swinx.attention import speed
from swinx.attention.triton import support, table
from swinx.attention.triton.parameters import ALL_REGISTERS, GENERATIONS, Kernel, Launch, fitting_stages, table_key
from swinx.attention.triton.trial import Trial
from swinx.windows import WindowGeometry
from tests.benchmarks.common import DTYPES
from tests.benchmarks.kernel_resources import SHARED_MEMORY, Case, compile_kernel

CANDIDATES = Path("docs/benchmarks/kernel-candidates.jsonl")
# Kernels, and windows that stand for one tile and for several.
KERNELS: tuple[tuple[Kernel, int], ...] = (
    ("forward", 7), ("forward", 12), ("backward", 7), ("query", 12), ("key", 12),
)  # fmt: skip
MULTIPROCESSORS = {8: 108, 9: 132, 10: 148}  # of A100, H100 and B200
SPILL = 4  # instructions that a spill counts as
GIVEN_UP = 32  # registers that ptxas leaves a kernel with when it finds no way to keep what is needed

Parameters = tuple[int, int, int | None, int]
Key = tuple[str, int, int, int, int]


@dataclass(frozen=True)
class Options:
    """Choose launch parameters and write the table."""

    compile: bool = False
    """choose by machine code, without a GPU"""


def cases(generations: Iterable[int]) -> Iterator[tuple[Key, Case]]:
    """Every entry of the table, and the case that stands for it: bf16 for both 16-bit types."""
    for generation, dtype, head_dim, kernel in itertools.product(generations, ("bf16", "fp32"), (32, 64), KERNELS):
        name, window = kernel
        key = table_key(name, window * window, head_dim, DTYPES[dtype].itemsize, generation)
        yield key, Case(name, window, head_dim, dtype, cosine=False, capability=10 * generation)


def compiled(key: Key, case: Case, warps: int, limit: int | None) -> list[Row]:
    """What a candidate compiles to by each version of Triton; limit: of its registers."""
    candidate = {"entry": "-".join(map(str, key)), "warps": warps, "limit": limit}
    rows = [row for row in read_rows(CANDIDATES) if candidate.items() <= row.items()]
    if triton.__version__ not in [row["triton"] for row in rows]:
        shared = SHARED_MEMORY[case.capability]
        stages = fitting_stages(3, case.window**2, case.head_dim, DTYPES[case.dtype], shared)
        row = candidate | case._asdict() | compile_kernel(case, Launch(warps, stages, limit, 0))
        row["cost"] = warps * (row["loop_instructions"] + SPILL * row["spills"])
        append_rows(CANDIDATES, [row])
        rows.append(row)
    return rows


def by_instructions(key: Key, case: Case) -> Parameters:
    """The candidate that issues the fewest instructions for a window, by the worst version of Triton."""

    def worst(rows: list[Row], field: str) -> int:
        return max(row[field] for row in rows)

    candidates = []
    for warps in (4, 8):
        rows = compiled(key, case, warps, None)
        if min(row["registers"] for row in rows) <= GIVEN_UP:
            rows = compiled(key, case, warps, ALL_REGISTERS)
        if (case.kernel, warps) == ("forward", 4):
            limited = compiled(key, case, warps, 128)
            rows = limited if worst(limited, "spills") <= worst(rows, "spills") else rows
        candidates.append(rows)
    rows = min(candidates, key=lambda rows: worst(rows, "cost"))
    warps = rows[0]["warps"]
    by_registers = 65536 // (32 * warps * 8 * -(-worst(rows, "registers") // 8))
    # A multiprocessor keeps 1 KiB for each program, and has 1 KiB more than a single program may use.
    by_memory = (SHARED_MEMORY[case.capability] + 1024) // (worst(rows, "shared_bytes") + 1024)
    resident = max(1, min(4, by_registers, by_memory))
    return warps, 3, rows[0]["limit"], resident * MULTIPROCESSORS[key[-1]]


def by_time(key: Key, case: Case) -> Parameters:
    """The fastest candidate on the GPU, by 16 grids of 126 x 126 tokens, shifted, 128 channels."""
    window, device = case.window, torch.device("cuda")
    geometry = WindowGeometry(16, 126, 126, (window, window), (window // 2, window // 2), 1)
    trial = Trial(geometry, 128 // case.head_dim, case.head_dim)
    inputs, _ = speed.leaves(trial, DTYPES[case.dtype], device)
    attention = speed.provider("triton", geometry, device)
    call = functools.partial(speed.run, attention, inputs, case.kernel != "forward")
    before, times = table.TABLE[key], {}
    programs = [count * before[3] // 2 for count in (1, 2, 3, 4, 8)]
    for candidate in itertools.product((2, 4, 8), (1, 2, 3), (None, ALL_REGISTERS, 128, 168), programs):
        table.TABLE[key] = candidate
        times[candidate] = speed.measure(call, device, seconds=0.1).p50
        print(*key, *candidate, f"{times[candidate]:.3f} ms", flush=True)
    table.TABLE[key] = before
    return min(times, key=times.__getitem__)


def render(entries: dict[Key, Parameters], origins: dict[int, str]) -> str:
    """The module that holds the table."""
    lines = [
        '"""Launch parameters of each kernel. Written by `python -m tests.benchmarks.tune_attention`; do not edit."""',
        "",
        "# Where the entries of each generation come from.",
        "ORIGINS: dict[int, str] = {",
        *(f'    {generation}: "{origin}",' for generation, origin in sorted(origins.items())),
        "}",
        "",
        "# (kernel, N up to, D up to, bits, generation): (warps, stages, registers, programs), see `parameters.Launch`",
        "TABLE: dict[tuple[str, int, int, int, int], tuple[int, int, int | None, int]] = {",
        *(f"    {key!r}: {value!r},".replace("'", '"') for key, value in sorted(entries.items())),
        "}",
        "",
    ]
    return "\n".join(lines)


def main(options: Options) -> None:
    """Choose every entry, then write the table whole."""
    origins, entries = dict(table.ORIGINS), dict(table.TABLE)
    if options.compile:
        fit = [generation for generation in GENERATIONS if support.triton_too_old(generation) is None]
        generations = [generation for generation in fit if not origins.get(generation, "").startswith("timed")]
    elif torch.cuda.is_available():
        generations = [torch.cuda.get_device_capability()[0]]
    else:
        raise SystemExit("no GPU to time on: --compile chooses by machine code")
    for key, case in cases(generations):
        entries[key] = by_instructions(key, case) if options.compile else by_time(key, case)
        print(*key, "->", *entries[key], flush=True)
    for generation in generations:
        if options.compile:
            rows = [row for row in read_rows(CANDIDATES) if row["capability"] == 10 * generation]
            versions = " and ".join(sorted({row["triton"] for row in rows}))
            origins[generation] = f"fewest instructions, Triton {versions}; not timed"
        else:
            origins[generation] = f"timed on {torch.cuda.get_device_name()}, Triton {triton.__version__}"
    write_whole(Path(table.__file__), render(entries, origins))


if __name__ == "__main__":
    main(tyro.cli(Options))
