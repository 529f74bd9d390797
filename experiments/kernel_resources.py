"""Registers, spills and shared memory of the Triton kernels, compiled for GPUs that need not be there.

    python -m experiments.kernel_resources
    python -m experiments.kernel_resources --windows 7 8 --dtypes bf16 --capabilities 90 --output resources.jsonl

Compiles each kernel as it is launched on shifted, padded grids, for a cubin, and reads it with the cuobjdump that comes
with Triton. Prints a Markdown table, and writes one JSON row a kernel with --output. Ten minutes for the default set on
a CPU core.

A spill is a local load or store (LDL, STL) in the machine code: a value that found no register. loop counts the
instructions for one window, and narrow the loads of single 8- or 16-bit values, which aligned tokens need none of.
ahead says how many groups of asynchronous copies may still be under way where the loop waits for one: 0 means that no
copy runs ahead.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import tyro

from swinx.attention.triton.parameters import ONE_TILE, Kernel, Launch, launch, next_power_of_2, options, tiles
from swinx.attention.triton.support import triton_too_old

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
    capabilities: tuple[int, ...] = (80, 89, 90, 100)
    """compute capabilities, without the dot"""
    output: Path | None = None
    """file for JSON rows"""


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

    Raises:
        RuntimeError: TRITON_INTERPRET is set, which leaves nothing to compile.
    """
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise RuntimeError("TRITON_INTERPRET must be unset: interpreted kernels are not compiled")
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
    aligned = tensors | sums | {"stride_b", "stride_y", "stride_x", "stride_s", "stride_h"}
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
    jumps = re.findall(r"/\*([0-9a-f]{4,})\*/[^;/]*\bBRA (?:\w+, )?0x([0-9a-f]+)", code)
    return max(((int(place, 16) - int(target, 16)) // 16 for place, target in jumps), default=0)


def _number(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    if match is None:
        raise RuntimeError(f"cuobjdump must print {pattern}, got {text[:200]!r}")
    return int(match[1])


def cases(chosen: Options) -> Iterator[Resources]:
    """Every kernel that runs in every case."""
    for capability in chosen.capabilities:
        if (reason := triton_too_old(capability // 10)) is not None:
            print(f"left out: {reason}", file=sys.stderr)
            continue
        for dtype in chosen.dtypes:
            for head_dim in chosen.head_dims:
                for window in chosen.windows:
                    tiled = window * window > ONE_TILE
                    for kernel in KERNELS:
                        if kernel == "forward" or (kernel in ("query", "key")) == tiled:
                            yield compile_kernel(kernel, window, head_dim, dtype, capability)


def markdown(rows: list[Resources]) -> str:
    """One line a kernel."""
    names = ("capability", "dtype", "window", "head_dim", "kernel", "warps", "stages", "registers", "spills")
    names += ("shared_bytes", "loop_instructions", "narrow_loads", "copies_ahead")
    lines = ["| " + " | ".join(name.replace("_", " ") for name in names) + " |", "|" + " --- |" * len(names)]
    lines += ["| " + " | ".join(f"{asdict(row)[name]}" for name in names) + " |" for row in rows]
    return "\n".join(lines)


def main(chosen: Options) -> None:
    """Compile, print, write."""
    rows = list(cases(chosen))
    print(f"Triton {rows[0].triton}\n\n{markdown(rows)}")
    if chosen.output is not None:
        chosen.output.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows))


if __name__ == "__main__":
    main(tyro.cli(Options))
