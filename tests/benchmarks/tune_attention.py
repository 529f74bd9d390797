"""Choose the launch parameters of the Triton kernels, and write swinx/attention/triton/table.py.

    python -m tests.benchmarks.tune_attention            # by time, for the GPU that is there
    python -m tests.benchmarks.tune_attention --compile  # by the instructions in the machine code, without a GPU

By time: candidates run a large stage, each with two numbers of programs, the three fastest with more, and the fastest
median wins. They are compiled ahead by several processes. By instructions: the candidate wins that issues
the fewest for a window (warps times instructions of the loop, a spill counted as four more), by the worst of the
versions of Triton that docs/benchmarks/kernel-candidates.jsonl has rows of: run it under each. It gets three stages, as
many programs as fit onto a large GPU at once, and in the forward kernel 128 registers where that spills no more, so
that four programs fit onto a multiprocessor. Where the assembler, left to itself, gives up and puts nearly everything
into memory, it is told to use all registers. Either way rows are kept, what has one is not measured again, and the
table follows from the rows: an entry that was timed takes the fastest on the GPU that was timed last, every other one
the fewest instructions. After a change of a kernel delete its rows.
"""

import contextlib
import functools
import itertools
import multiprocessing
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import triton
import tyro

from experiments.records.files import write_whole
from experiments.records.results import Row, append_rows, read_rows
from swinx.attention import speed
from swinx.attention.triton import operator, support, table
from swinx.attention.triton.parameters import ALL_REGISTERS, GENERATIONS, Kernel, Launch, fitting_stages, table_key
from swinx.attention.triton.trial import Trial, one_line
from swinx.windows import WindowGeometry
from tests.benchmarks.common import DTYPES
from tests.benchmarks.kernel_resources import SHARED_MEMORY, Case, compile_kernel

CANDIDATES = Path("docs/benchmarks/kernel-candidates.jsonl")
TIMINGS = Path("docs/benchmarks/kernel-timings.jsonl")
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
    dtypes: tuple[Literal["bf16", "fp32"], ...] = ("bf16", "fp32")
    """time entries of these alone; bf16 stands for float16 too"""


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


def variants(case: Case) -> list[tuple[int, int, int | None]]:
    """Warps, stages and limit of registers of every candidate that is timed."""
    shared: int = torch.cuda.get_device_properties().shared_memory_per_block_optin
    fitting = fitting_stages(3, case.window**2, case.head_dim, DTYPES[case.dtype], shared)
    return list(itertools.product((4, 8), range(1, fitting + 1), (None, 128, 168, ALL_REGISTERS)))


def stage(case: Case, batch: int = 16) -> speed.Call:
    """What candidates run: so many grids of 126 x 126 tokens, shifted, 128 channels."""
    window, device = case.window, torch.device("cuda")
    geometry = WindowGeometry(batch, 126, 126, (window, window), (window // 2, window // 2), 1)
    inputs, _ = speed.leaves(Trial(geometry, 128 // case.head_dim, case.head_dim), DTYPES[case.dtype], device)

    def attention(qkv: torch.Tensor, bias: torch.Tensor, pad: torch.Tensor) -> torch.Tensor:
        return operator.attend(qkv, bias, pad, None, geometry)  # without the trials of a first use

    cotangent = speed.cotangent(inputs[0], case.kernel != "forward")
    return functools.partial(speed.run, attention, inputs, cotangent)


def compile_ahead(key: Key, case: Case, variant: tuple[int, int, int | None]) -> None:
    """Leave a candidate in Triton's cache on the disk; one that fails here fails again when it is timed."""
    before = table.TABLE[key]
    table.TABLE[key] = (*variant, before[3])
    try:
        stage(case, batch=1)()
    except Exception:
        return
    finally:
        table.TABLE[key] = before


def machine() -> Row:
    """What times are of."""
    return {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "triton": triton.__version__}


def time_entry(key: Key, case: Case, there: list[Row]) -> None:
    """Add the rows of an entry's candidates to TIMINGS; there: the rows that it has of this machine."""
    times = {parameters(row): row["ms"] for row in there if row["ms"] is not None}
    call, before, several = stage(case), table.TABLE[key], MULTIPROCESSORS[key[-1]]
    done = {parameters(row) for row in there}

    def run(candidate: Parameters) -> None:
        if candidate in done:
            return
        done.add(candidate)
        row: Row = {"entry": "-".join(map(str, key)), "ms": None, "reason": None}
        row |= dict(zip(("warps", "stages", "limit", "programs"), candidate, strict=True))
        table.TABLE[key] = candidate
        try:
            row["ms"] = times[candidate] = speed.measure(call, torch.device("cuda"), seconds=0.06).p50
        except Exception as failure:  # out of registers or shared memory
            row["reason"] = one_line(failure)
        append_rows(TIMINGS, [row | machine()])
        print(*key, *candidate, row["ms"] or row["reason"], flush=True)

    try:
        for variant, count in itertools.product(variants(case), (2, 4)):
            run((*variant, count * several))
        for candidate in sorted(times, key=times.__getitem__)[:3]:
            for count in (1, 3, 6, 8):
                run((*candidate[:3], count * several))
    finally:
        table.TABLE[key] = before


def parameters(row: Row) -> Parameters:
    """The candidate that a row of TIMINGS is of."""
    return row["warps"], row["stages"], row["limit"], row["programs"]


def timings(key: Key, of: Row | None = None) -> list[Row]:
    """The rows of an entry in TIMINGS, of one machine: by default the one that was timed last."""
    rows = [row for row in read_rows(TIMINGS) if row["entry"] == "-".join(map(str, key))]
    of = of or {name: rows[-1][name] for name in ("device", "torch", "triton") if rows}
    return [row for row in rows if of.items() <= row.items()]


def by_time(key: Key) -> Parameters | None:
    """The fastest candidate that was timed, or None where none was."""
    rows = [row for row in timings(key) if row["ms"] is not None]
    return parameters(min(rows, key=lambda row: row["ms"])) if rows else None


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
    """Measure every entry, then write the table whole."""
    generations = [generation for generation in GENERATIONS if support.triton_too_old(generation) is None]
    if not options.compile:
        if not torch.cuda.is_available():
            raise SystemExit("no GPU to time on: --compile chooses by machine code")
        major = torch.cuda.get_device_capability()[0]
        generations = [max(generation for generation in GENERATIONS if generation <= major)]
        found = [(key, case) for key, case in cases(generations) if case.dtype in options.dtypes]
        context, jobs = multiprocessing.get_context("spawn"), min(16, os.cpu_count() or 1)
        with ProcessPoolExecutor(jobs, context) as pool:
            waiting = [
                pool.submit(compile_ahead, key, case, variant)
                for key, case in found
                for variant in set(variants(case)) - {parameters(row)[:3] for row in timings(key, machine())}
            ]
            for future in waiting:
                with contextlib.suppress(BrokenProcessPool):  # then candidates are compiled as they are timed
                    future.result()
        for key, case in found:
            time_entry(key, case, timings(key, machine()))
    entries, origins = dict(table.TABLE), dict(table.ORIGINS)
    for generation in generations:
        for key, case in cases([generation]):
            entries[key] = chosen(key, case) if options.compile else by_time(key) or entries[key]
            print(*key, "->", *entries[key], flush=True)
        origins[generation] = origin(generation)
    write_whole(Path(table.__file__), render(entries, origins))


def chosen(key: Key, case: Case) -> Parameters:
    """By time where there are times, else by instructions."""
    return by_time(key) or by_instructions(key, case)


def origin(generation: int) -> str:
    """Where the entries of a generation come from, in words."""
    keys = [key for key, _ in cases([generation])]
    timed = {key[3]: rows[-1] for key in keys if (rows := timings(key))}
    said = [f"{bits} bits timed on {row['device']}, Triton {row['triton']}" for bits, row in timed.items()]
    counted = [row for row in read_rows(CANDIDATES) if row["capability"] == 10 * generation]
    versions = " and ".join(sorted({row["triton"] for row in counted}))
    if any(not timings(key) for key in keys):
        said.append(f"{'others ' if said else ''}fewest instructions, Triton {versions}; not timed")
    return "; ".join(said)


if __name__ == "__main__":
    main(tyro.cli(Options))
