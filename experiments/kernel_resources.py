"""Registers, spills and shared memory of the Triton kernels, compiled for GPUs that need not be there.

    python -m experiments.kernel_resources
    python -m experiments.kernel_resources --windows 7 8 --dtypes bf16 --capabilities 90 --output resources.jsonl
    python -m experiments.kernel_resources --versions resources-*.jsonl  # which Triton compiles for which GPU

Compiles each kernel as it is launched on shifted, padded grids, for a cubin, and reads it with the cuobjdump that comes
with Triton. Prints a Markdown table, and writes one JSON row a kernel with --output. For
another version of Triton: pip install --no-deps --target FOLDER triton==VERSION, and PYTHONPATH=FOLDER.

A spill is a local load or store (LDL, STL) in the machine code: a value that found no register. loop counts the
instructions for one window, and narrow the loads of single 8- or 16-bit values, which aligned tokens need none of.
ahead says how many groups of asynchronous copies may still be under way where the loop waits for one: 0 means that no
copy runs ahead. What does not compile has a reason in place of all that; a kernel without matrix instructions has been
compiled into a trap.
"""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import tyro

from swinx.attention.triton.parameters import ONE_TILE, Kernel, Launch, launch, next_power_of_2, options, tiles

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# Bytes of shared memory that a program may have: CUDA programming guide, technical specifications.
SHARED_MEMORY = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448, 120: 101376}
KERNELS: tuple[Kernel, ...] = get_args(Kernel)


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel takes of a streaming multiprocessor."""

    kernel: str
    window: int
    head_dim: int
    dtype: str
    cosine: bool
    capability: int
    warps: int
    stages: int
    registers: int
    stack_bytes: int
    spills: int
    shared_bytes: int
    loop_instructions: int
    narrow_loads: int
    matrix_instructions: int
    copies_ahead: int
    triton: str


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
    """file for JSON rows"""
    versions: tuple[Path, ...] = ()
    """compile nothing: a table of versions of Triton and GPUs, from files of rows"""


def compile_kernel(
    kernel: Kernel,
    window: int,
    head_dim: int,
    dtype: str,
    capability: int,
    parameters: Launch | None = None,
    cosine: bool = False,
) -> Resources:
    """Compile one kernel for one case, with the launch parameters that it runs with unless others are given.

    cosine: with the scores of Swin V2.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from swinx.attention.triton import backward, backward_tiled, forward

    functions = {
        "forward": forward.forward_kernel,
        "backward": backward.backward_kernel,
        "query": backward_tiled.query_kernel,
        "key": backward_tiled.key_kernel,
    }
    function = functions[kernel]
    constants = _constants(kernel, window, head_dim, cosine)
    names = function.arg_names
    pointer = {"bf16": "*bf16", "fp16": "*fp16", "fp32": "*fp32"}[dtype]
    # Kept in fp32.
    sums = {"bias", "cosine", "lse", "delta_in", "delta_out", "grad_bias", "grad_padding", "grad_cosine"}
    tensors = {"qkv", "pad_qkv", "out", "grad_out", "grad_qkv"}
    # As a launch sees them: whether integers are multiples of 16. Those of three heads on a grid of 57 columns.
    strides = {"stride_h": 1, "stride_s": 3, "stride_x": 9, "stride_y": 9 * 57, "stride_b": 9 * 57 * 57}
    aligned = tensors | sums | {name for name, factor in strides.items() if factor * head_dim % 16 == 0}
    signature = {
        name: "constexpr"
        if name in constants
        else "*fp32"
        if name in sums
        else pointer
        if name in tensors
        else "i64"
        if name == "stride_b"
        else "i32"
        for name in names
    }
    attributes = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name in aligned}
    source = ASTSource(
        function, signature, {(names.index(key),): value for key, value in constants.items()}, attributes
    )
    if parameters is None:
        shared = SHARED_MEMORY[capability]
        parameters = launch(kernel, window * window, head_dim, DTYPES[dtype], capability // 10, shared)
    binary = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options(parameters))
    usage, code = _disassemble(binary.asm["cubin"])
    return Resources(
        kernel, window, head_dim, dtype, cosine, capability, parameters.warps, parameters.stages,
        registers=_number(r"REG:(\d+)", usage),
        stack_bytes=_number(r"STACK:(\d+)", usage),
        spills=len(re.findall(r"\b(?:LDL|STL)\b", code)),
        shared_bytes=binary.metadata.shared,
        loop_instructions=_longest_loop(code),
        narrow_loads=len(re.findall(r"\bLDG\.E\.[US]?(?:8|16)\b", code)),
        matrix_instructions=len(re.findall(r"\b(?:HMMA|HGMMA|UTCHMMA|UTCQMMA|DMMA)\b", code)),
        copies_ahead=max((int(n, 16) for n in re.findall(r"DEPBAR\.LE SB0, 0x([0-9a-f]+)", code)), default=0),
        triton=triton.__version__,
    )  # fmt: skip


def _constants(kernel: Kernel, window: int, head_dim: int, cosine: bool) -> dict[str, Any]:
    import triton.language as tl

    own, count, width, last = tiles(window * window)
    constants: dict[str, Any] = {"N": window * window, "WH": window, "WW": window, "D": head_dim}
    constants |= {"DP": next_power_of_2(head_dim), "SCALE": head_dim**-0.5, "PRECISION": "tf32x3", "ACC": tl.float32}
    constants |= {"PADDED": True, "ATTENDED": True, "SHIFTED": True, "ALIGNED": True, "WIDE": False, "T": own}
    constants |= {"COSINE": cosine, "dilation": 1}  # a launch makes a constant of an integer that is 1
    if kernel != "backward":
        constants |= {"TILES": count, "WIDTH": width, "LAST": last}
    return constants


def _disassemble(cubin: bytes) -> tuple[str, str]:
    """What cuobjdump says of resources, and the machine code."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage, code = (
            subprocess.run([tool, option, path], capture_output=True, text=True, check=True).stdout
            for option in ("-res-usage", "-sass")
        )
    return usage, code


def _longest_loop(code: str) -> int:
    """Instructions between a jump backwards and its target: those of one window, branches not taken included."""
    jumps = re.findall(r"/\*([0-9a-f]{4,})\*/[^;/]*\bBRA(?:\.U)? (?:!?\w+, )?0x([0-9a-f]+)", code)
    return max(((int(place, 16) - int(target, 16)) // 16 for place, target in jumps), default=0)


def _number(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    if match is None:
        raise RuntimeError(f"cuobjdump must print {pattern}, got {text[:200]!r}")
    return int(match[1])


def cases(chosen: Options) -> Iterator[dict[str, Any]]:
    """A row for every kernel that runs in every case."""
    for capability in chosen.capabilities:
        for dtype in chosen.dtypes:
            for head_dim in chosen.head_dims:
                for window in chosen.windows:
                    tiled = window * window > ONE_TILE
                    for kernel in KERNELS:
                        if kernel == "forward" or (kernel in ("query", "key")) == tiled:
                            yield row(kernel, window, head_dim, dtype, capability, chosen.cosine)


def row(kernel: Kernel, window: int, head_dim: int, dtype: str, capability: int, cosine: bool) -> dict[str, Any]:
    """The resources of a kernel, or why it does not compile."""
    try:
        used = asdict(compile_kernel(kernel, window, head_dim, dtype, capability, cosine=cosine))
    except Exception as failure:  # Triton's compiler has many ways to give up
        used = {"kernel": kernel, "window": window, "head_dim": head_dim, "dtype": dtype, "cosine": cosine}
        used |= {"capability": capability, "triton": importlib.metadata.version("triton")}
        return used | {"reason": f"{type(failure).__name__}: {failure}".splitlines()[0][:200]}
    return used | ({} if used["matrix_instructions"] else {"reason": "compiled into a trap"})


def markdown(rows: list[dict[str, Any]]) -> str:
    """One line a kernel."""
    names = ("capability", "dtype", "window", "head_dim", "cosine", "kernel", "warps", "stages", "registers", "spills")
    names += ("shared_bytes", "loop_instructions", "narrow_loads", "copies_ahead", "reason")
    lines = ["| " + " | ".join(name.replace("_", " ") for name in names) + " |", "|" + " --- |" * len(names)]
    lines += ["| " + " | ".join(f"{row.get(name, '')}" for name in names) + " |" for row in rows]
    return "\n".join(lines)


def versions(rows: list[dict[str, Any]]) -> str:
    """Versions of Triton by compute capabilities: how many kernels compile, and how many of them spill."""
    capabilities = sorted({row["capability"] for row in rows})
    found = sorted({row["triton"] for row in rows}, key=lambda version: [int(part) for part in version.split(".")])
    lines = ["| Triton | " + " | ".join(f"sm_{capability}" for capability in capabilities) + " |"]
    lines += ["|" + " --- |" * (1 + len(capabilities))]
    for version in found:
        cells = []
        for capability in capabilities:
            chosen = [row for row in rows if (row["triton"], row["capability"]) == (version, capability)]
            good = [row for row in chosen if "reason" not in row]
            spilling = sum(row["spills"] > 0 for row in good)
            cells.append(f"{len(good)} of {len(chosen)}, {spilling} spill" if chosen else "")
        lines.append(f"| {version} | " + " | ".join(cells) + " |")
    reasons = Counter((row["triton"], row["capability"], row["reason"]) for row in rows if "reason" in row)
    lines += ["", *(f"- Triton {v}, sm_{c}, {count} kernels: {reason}" for (v, c, reason), count in reasons.items())]
    return "\n".join(lines)


def main(chosen: Options) -> None:
    """Compile, print, write."""
    if chosen.versions:
        print(versions([json.loads(line) for path in chosen.versions for line in path.read_text().splitlines()]))
        return
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise SystemExit("TRITON_INTERPRET must be unset: interpreted kernels are not compiled")
    rows = []
    for found in cases(chosen):
        rows.append(found)
        print(*(f"{name}={value}" for name, value in found.items()), file=sys.stderr, flush=True)
    print(f"Triton {rows[0]['triton']}\n\n{markdown(rows)}")
    if chosen.output is not None:
        chosen.output.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main(tyro.cli(Options))
