"""Registers, spills and shared memory of the Triton kernels, compiled for GPUs that need not be there.

    python -m tests.benchmarks.kernel_resources
    python -m tests.benchmarks.kernel_resources --windows 7 8 --dtypes bf16 --capabilities 90 --output resources.jsonl

Compiles each kernel as it is launched on shifted, padded grids, for a cubin, and reads it with the cuobjdump that comes
with Triton. With --output adds one JSON row a kernel to a file. Prints a Markdown table, of all that the file has. To
compare versions of Triton, use the same file with each: pip install --no-deps --target FOLDER triton==VERSION, and
PYTHONPATH=FOLDER.

A spill is a local load or store (LDL, STL) in the machine code: a value that found no register. loop_instructions
counts those for one window, and narrow_loads the loads of single 8- or 16-bit values, which aligned tokens need none
of. copies_ahead says how many groups of asynchronous copies may still be under way where the loop waits for one: 0
means that no copy runs ahead. What does not compile has a reason in place of all that; a kernel without matrix
instructions has been compiled into a trap.
"""

import itertools
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pandas
import triton
import triton.language as tl
import tyro
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from experiments.records.results import Row, append_rows, read_rows
from swinx.attention.triton.backward import backward_kernel
from swinx.attention.triton.backward_tiled import key_kernel, query_kernel
from swinx.attention.triton.forward import forward_kernel
from swinx.attention.triton.parameters import ONE_TILE, Kernel, Launch, launch, next_power_of_2, options, tiles
from swinx.attention.triton.trial import one_line
from tests.benchmarks.common import DTYPES, markdown

# Bytes of shared memory that a program may have: CUDA programming guide, technical specifications.
SHARED_MEMORY = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448, 120: 101376}
KERNELS = {"forward": forward_kernel, "backward": backward_kernel, "query": query_kernel, "key": key_kernel}
# Arguments of the kernels that are of the type of qkv, and those that are kept in fp32; all others are integers.
TOKENS = {"qkv", "pad_qkv", "out", "grad_out", "grad_qkv"}
SUMS = {"bias", "cosine", "lse", "delta_in", "delta_out", "grad_bias", "grad_padding", "grad_cosine"}
# On grids of 57 columns and three heads they are odd multiples of head_dim.
STRIDES = {"stride_h", "stride_s", "stride_x", "stride_y", "stride_b"}


class Case(NamedTuple):
    """A kernel for square windows. capability: compute capability, without the dot. cosine: the scores of Swin V2."""

    kernel: Kernel
    window: int
    head_dim: int
    dtype: str
    cosine: bool
    capability: int


@dataclass(frozen=True)
class Options:
    """Compile the kernels and count what they take."""

    windows: tuple[int, ...] = (7, 8, 12)
    """sides of square windows"""
    head_dims: tuple[int, ...] = (32,)
    """channels of a head"""
    dtypes: tuple[Literal["bf16", "fp16", "fp32"], ...] = ("bf16", "fp16", "fp32")
    """type of qkv; the bias is fp32"""
    capabilities: tuple[int, ...] = (80, 89, 90, 100, 120)
    """compute capabilities, without the dot"""
    cosine: bool = False
    """with the scores of Swin V2"""
    output: Path | None = None
    """file to which JSON rows are added"""


def compile_kernel(case: Case, parameters: Launch | None = None) -> Row:
    """What one kernel takes, with the launch parameters that it runs with unless others are given."""
    kernel, window, head_dim, dtype, cosine, capability = case
    if parameters is None:
        shared = SHARED_MEMORY[capability]
        parameters = launch(kernel, window * window, head_dim, DTYPES[dtype], capability // 10, shared)
    own, count, width, last = tiles(window * window)
    constants: dict[str, Any] = {
        **{"N": window * window, "WH": window, "WW": window, "D": head_dim, "DP": next_power_of_2(head_dim)},
        **{"T": own, "SCALE": head_dim**-0.5, "COSINE": cosine, "PRECISION": "tf32x3", "ACC": tl.float32},
        **{"PADDED": True, "ATTENDED": True, "SHIFTED": True, "ALIGNED": True, "WIDE": False},
        "dilation": 1,  # a launch makes a constant of an integer that is 1
    }
    if kernel != "backward":
        constants |= {"TILES": count, "WIDTH": width, "LAST": last}
    function = KERNELS[kernel]
    types = dict.fromkeys(function.arg_names, "i32") | {"stride_b": "i64"}
    types |= dict.fromkeys(constants, "constexpr") | dict.fromkeys(SUMS, "*fp32") | dict.fromkeys(TOKENS, f"*{dtype}")
    types["wraps"] = "*i32"
    signature = {name: types[name] for name in function.arg_names}
    # As a launch sees them: pointers and integers that are multiples of 16.
    aligned = TOKENS | SUMS | {"wraps"} | (STRIDES if head_dim % 16 == 0 else set())
    hints = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(signature) if name in aligned}
    source = ASTSource(function, signature, {(list(signature).index(k),): v for k, v in constants.items()}, hints)
    binary = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options(parameters))
    code = disassemble(binary.asm["cubin"])
    found = re.search(r"REG:(\d+) STACK:(\d+)", code)
    if found is None:
        raise RuntimeError(f"cuobjdump must print registers and stack, got {code[:200]!r}")
    return {
        "warps": parameters.warps,
        "stages": parameters.stages,
        "registers": int(found[1]),
        "stack_bytes": int(found[2]),
        "spills": len(re.findall(r"\b(?:LDL|STL)\b", code)),
        "shared_bytes": binary.metadata.shared,
        "loop_instructions": longest_loop(code),
        "narrow_loads": len(re.findall(r"\bLDG\.E\.[US]?(?:8|16)\b", code)),
        "matrix_instructions": len(re.findall(r"\b(?:HMMA|HGMMA|UTCHMMA|UTCQMMA|DMMA)\b", code)),
        "copies_ahead": max((int(n, 16) for n in re.findall(r"DEPBAR\.LE SB0, 0x([0-9a-f]+)", code)), default=0),
        "triton": triton.__version__,
    }


def disassemble(cubin: bytes) -> str:
    """What cuobjdump says of resources, and the machine code."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [tool, "-res-usage", "-sass", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def longest_loop(code: str) -> int:
    """Instructions between a jump backwards and its target: those of one window, branches not taken included."""
    jumps = re.findall(r"/\*([0-9a-f]{4,})\*/[^;/]*\bBRA(?:\.U)? (?:!?\w+, )?0x([0-9a-f]+)", code)
    return max(((int(place, 16) - int(target, 16)) // 16 for place, target in jumps), default=0)


def resources(chosen: Options) -> Iterator[Row]:
    """A row for every kernel that runs in every case: what it takes, or why it does not compile."""
    cases = itertools.product(chosen.capabilities, chosen.dtypes, chosen.head_dims, chosen.windows)
    for capability, dtype, head_dim, window in cases:
        for kernel in ("forward", "backward") if window * window <= ONE_TILE else ("forward", "query", "key"):
            case = Case(kernel, window, head_dim, dtype, chosen.cosine, capability)
            try:
                row = case._asdict() | compile_kernel(case)
                yield row if row["matrix_instructions"] else row | {"reason": "compiled into a trap"}
            except Exception as failure:  # Triton's compiler has many ways to give up
                yield case._asdict() | {"triton": triton.__version__, "reason": one_line(failure)}


def tables(rows: pandas.DataFrame) -> str:
    """Markdown: how many kernels compile and spill by version of Triton, then what each takes by the versions there."""
    rows = rows.assign(compiles=rows["reason"].isna() if "reason" in rows else True)
    rows["spilling"] = rows["compiles"] & (rows["spills"].fillna(0) > 0)
    kinds = ["window", "head_dim", "dtype", "cosine"]
    counts = rows.groupby([*kinds, "triton", "capability"])[["compiles", "spilling"]].agg(["sum", "size"])
    said = [f"{c} of {n}, {s} spilling" for c, n, s in counts.iloc[:, [0, 1, 2]].itertuples(index=False)]
    by_version = pandas.Series(said, counts.index).unstack("capability").add_prefix("sm_").reset_index()
    parts = [markdown(by_version)]
    rows = rows[rows["compiles"]].rename(columns={"loop_instructions": "loop", "copies_ahead": "ahead"})
    for (capability, dtype), part in rows.groupby(["capability", "dtype"]):
        versions = sorted(part["triton"].unique())
        shown = part.set_index(["window", "head_dim", "cosine", "kernel", "warps", "stages", "triton"])
        shown = shown[["registers", "spills", "shared_bytes", "loop", "ahead"]].astype("Int64").astype(str)
        by_count = shown.unstack("triton").fillna("–").T.groupby(level=0, sort=False)
        table = markdown(by_count.agg(" / ".join).T.reset_index())
        parts.append(f"## sm_{capability}, {dtype}, Triton {' / '.join(versions)}\n\n{table}")
    return "\n\n".join(parts)


def main(chosen: Options) -> None:
    """Compile, print, write."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise SystemExit("TRITON_INTERPRET must be unset: interpreted kernels are not compiled")
    rows = read_rows(chosen.output) if chosen.output is not None else []
    for row in resources(chosen):
        print(*(f"{name}={value}" for name, value in row.items()), file=sys.stderr, flush=True)
        rows.append(row)
        if chosen.output is not None:
            append_rows(chosen.output, [row])
    print(tables(pandas.DataFrame(rows).drop_duplicates([*Case._fields, "triton"], keep="last")))


if __name__ == "__main__":
    main(tyro.cli(Options))
