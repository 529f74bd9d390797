"""Are the Triton kernels right on this machine, and fast? One command answers both.

    python -m swinx.attention.check
    python -m swinx.attention.check --output record.json

Holds outputs and gradients against float64 in every dtype, computes one case fifty times for equal bits, and times the
kernels beside torch's own ways and a plain copy of memory. Prints a verdict, and writes a JSON record that belongs into
a report of a fault, or into swinx/attention/triton/records, which gives the kernels to `auto` on that kind of GPU.
Most of its time on a GPU is compiling. Without one it runs in Triton's interpreter, which says nothing
about speed. Leaves with status 1 where anything is wrong.
"""

import argparse
import functools
import importlib
import itertools
import json
import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from . import speed
from .triton import support, trial

INTERPRET = "TRITON_INTERPRET"
HEAD_DIM = 32
# (window, head_dim, whether the scores are those of Swin V2)
WINDOWS = (
    ((7, 7), 32, False), ((12, 12), 32, False), ((8, 8), 32, True),
    ((8, 8), 32, False), ((4, 5), 24, False), ((12, 12), 32, True), ((16, 16), 32, True),
)  # fmt: skip
# How many of WINDOWS each dtype goes through. Every case is compiled on a GPU, and slow in the interpreter, which lacks
# bfloat16.
ON_A_GPU = {torch.bfloat16: 7, torch.float16: 3, torch.float32: 3}
INTERPRETED = {torch.float16: 1, torch.float32: 3}
REPEATED, REPEATS = ((7, 7), (12, 12)), 50
REPEATED_INTERPRETED, REPEATS_INTERPRETED = ((4, 5), (9, 9)), 20
# Compiling is most of the time, and a kernel that reads beyond its memory makes all later work of its process fail.
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
PROCESSES = max(2, min(8, CORES))
OUT_OF_MEMORY = torch.OutOfMemoryError.__name__  # how the reason of a row then begins
WAYS = ("triton", "sdpa", "compiled reference", "flex_attention")

STAGES = {
    "swinx_t, 224 pixels, stage 1, batch 32": speed.stage(32, 56, 3, 7),
    "swinx_b, 512 pixels, stage 1, batch 16": speed.stage(16, 128, 4, 12),
    "swinx_v2_t, 256 pixels, stage 1, batch 32": speed.stage(32, 64, 3, 8, cosine=True),
}


def machine(device: torch.device) -> dict[str, Any]:
    """What the numbers come from."""
    gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if gpu else f"Triton's interpreter on {platform.machine()}",
        "capability": list(torch.cuda.get_device_capability(device)) if gpu else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": importlib.import_module("triton").__version__,  # its distribution has several names
        "python": platform.python_version(),
        "swinx": getattr(importlib.import_module("..", __package__), "__version__", None),  # a copy may have none
        "c_compiler": compiler(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": f"python -m {__package__}.check",
    }


def compiler() -> str | None:
    """Name of the C compiler that Triton's first launch finds, or None."""
    found = next(filter(shutil.which, (os.environ.get("CC", ""), "clang", "gcc", "cc")), None)
    return Path(found).name if found else None


def right(device: torch.device) -> list[dict[str, Any]]:
    """A row for each case: its largest error over the one allowed, or why there is none."""
    counts = (ON_A_GPU if device.type == "cuda" else INTERPRETED).items()
    kinds = [(device, dtype, *window) for dtype, count in counts for window in WINDOWS[:count]]
    rows, short = [], []
    for kind, found in zip(kinds, _apart(_cases, kinds), strict=True):
        if any((row.get("reason") or "").startswith(OUT_OF_MEMORY) for row in found or []):
            short.append(kind)  # the memory was that of several processes
        else:
            rows += _printed(kind, found)
    for kind in short:
        print("Not enough memory beside other cases; now alone:", flush=True)
        rows += _printed(kind, next(_apart(_cases, [kind])))
    return rows


def _printed(kind: tuple[Any, ...], found: list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    """The rows that were found for one kind of input, printed; one that says so where its process broke down."""
    _, dtype, window, head_dim, cosine = kind
    rows = found or [_row(dtype, window, head_dim, cosine, 0) | {"reason": "the process broke down"}]
    for row in rows:
        said = row.get("reason") or f"{row['excess']:.2f} of the error allowed"
        name = f"{row['dtype']:9} window {window!s:9} head_dim {head_dim} {'cosine' if cosine else 'scaled'}"
        print(f"{name}, case {row['case']}: {said}", flush=True)
    return rows


def _cases(
    device: torch.device, dtype: torch.dtype, window: tuple[int, int], head_dim: int, cosine: bool
) -> list[dict[str, Any]]:
    """The rows of one kind of input."""
    rows = []
    for number, case in enumerate(trial.trials(window, head_dim, cosine)):
        row = _row(dtype, window, head_dim, cosine, number)
        try:
            row["excess"] = case.excess(dtype, device, backward=True)
            row["right"] = row["excess"] <= 1
        except Exception as failure:  # whatever it is, it is the result
            row["reason"] = trial.one_line(failure)
        rows.append(row)
    return rows


def _row(dtype: torch.dtype, window: tuple[int, int], head_dim: int, cosine: bool, case: int) -> dict[str, Any]:
    """A case of which nothing is known yet."""
    row: dict[str, Any] = {"dtype": str(dtype).removeprefix("torch."), "window": window, "head_dim": head_dim}
    return row | {"cosine": cosine, "case": case, "excess": None, "right": False}


def _apart(work: Callable[..., Any], calls: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
    """What work gives for each call, in order, each in a process of its own; None where that broke down."""
    if PROCESSES < 2:
        yield from (work(*call) for call in calls)
        return
    threads = ThreadPoolExecutor(PROCESSES)
    try:
        yield from threads.map(functools.partial(_in_a_process, work), calls)
    finally:  # also after Ctrl-C: nothing more is begun
        threads.shutdown(cancel_futures=True)


def _in_a_process(work: Callable[..., Any], call: tuple[Any, ...]) -> Any:
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            return pool.submit(work, *call).result()
    except BrokenProcessPool:
        return None


def same_bits(device: torch.device) -> int:
    """How often one case gave the same bits, in windows of one tile and of several; 0 where it ever gave others."""
    gpu = device.type == "cuda"
    windows, repeats = (REPEATED, REPEATS) if gpu else (REPEATED_INTERPRETED, REPEATS_INTERPRETED)
    for window in windows:
        case = trial.trials(window, HEAD_DIM if gpu else 16, cosine=False)[1]
        first = case.results(torch.float16, device, backward=True)
        for _ in range(repeats - 1):
            again = case.results(torch.float16, device, backward=True)
            if any(not torch.equal(first[name], again[name]) for name in first):
                return 0
    return repeats


def _built(device: torch.device, stage: str, way: str) -> tuple[list[torch.Tensor], speed.Attention]:
    """Inputs of a stage, and a way of computing it."""
    inputs, scale = speed.leaves(STAGES[stage], torch.bfloat16, device)
    return inputs, speed.provider(way, STAGES[stage].geometry, device, scale)


def _compile(device: torch.device, stage: str, way: str) -> None:
    """Leave what a way needs in the compilers' caches on the disk; what fails here fails again when it is timed."""
    try:
        inputs, attention = _built(device, stage, way)
        for backward in (False, True):
            speed.run(attention, inputs, speed.cotangent(inputs[0], backward))
    except Exception:
        return


def timed(device: torch.device) -> list[dict[str, Any]]:
    """A row for each stage, direction and way of computing it: median milliseconds, in bfloat16."""
    timings = [
        (stage, way) for stage, way in itertools.product(STAGES, WAYS)
        if way != "flex_attention" or not STAGES[stage].cosine
    ]  # fmt: skip
    list(_apart(_compile, [(device, stage, way) for stage, way in timings if way != "sdpa"]))
    copy, rows = speed.copy_speed(device), []
    for stage, name in timings:
        built = None
        for direction in ("forward", "both"):
            row: dict[str, Any] = {"stage": stage, "direction": direction, "way": name}
            backward = direction == "both"
            try:
                built = built or _built(device, stage, name)
                inputs, attention = built
                cotangent = speed.cotangent(inputs[0], backward)
                times = speed.measure(functools.partial(speed.run, attention, inputs, cotangent), device)
            except Exception as failure:  # of the kernels or of what they are held against
                row["reason"] = trial.one_line(failure)
            else:
                row |= {"ms": times.p50, "ms_p20": times.p20, "ms_p80": times.p80}
                row["copy_share"] = speed.least_bytes(inputs[0], backward) / (1e-3 * times.p50) / copy
            rows.append(row)
            said = row.get("reason") or f"{row['ms']:.3f} ms, {row['copy_share']:.0%} of the speed of a copy"
            print(f"{stage}, {direction}, {name}: {said}", flush=True)
    return rows


def faster(rows: list[dict[str, Any]]) -> bool:
    """Whether the kernels beat SDPA, which `auto` would take in their place, in every stage and direction."""
    times = {(row["stage"], row["direction"], row["way"]): row.get("ms") for row in rows}
    ours = {key: ms for key, ms in times.items() if key[2] == "triton"}
    return bool(ours) and all(
        ms is not None and (times.get((stage, direction, "sdpa")) or float("inf")) > ms
        for (stage, direction, _), ms in ours.items()
    )


def verdict(record: dict[str, Any]) -> list[str]:
    """The record in sentences."""
    rows = record["cases"]
    wrong = [row for row in rows if not row["right"]]
    worst = max((row["excess"] for row in rows if row["excess"] is not None), default=float("nan"))
    said = [f"{record['device']}, torch {record['torch']}, Triton {record['triton']}."]
    if record["c_compiler"] is None:
        said.append("There is no C compiler, which Triton's first launch on a GPU needs: install gcc or set CC.")
    said.append(f"Right: {len(rows) - len(wrong)} of {len(rows)} cases; largest error {worst:.2f} of the one allowed.")
    if record["same_bits"]:
        said.append(f"Equal bits in {record['same_bits']} runs.")
    elif not wrong:
        said.append("Not reproducible: equal inputs gave different bits.")
    if not record["times"]:
        said.append("Speed: unknown, as no GPU is here. On a GPU, auto takes SDPA until a record of its kind is there.")
    elif record["faster"]:
        said.append("Fast: faster than SDPA in every stage timed.")
    else:
        said.append("Not fast: SDPA is faster, or failed to run beside the kernels, in some of the stages timed.")
    return said


def _try_to_write(path: Path) -> None:
    """Open a file for writing and leave everything as it was: raises OSError now and not after minutes of work."""
    existed = path.exists()
    path.open("a").close()
    if not existed:
        path.unlink()


def main() -> None:
    """Check, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="file for the JSON record")
    options = parser.parse_args()
    if options.output is not None:
        try:
            _try_to_write(options.output)
        except OSError as failure:
            parser.error(f"--output {options.output} cannot be written: {failure.strerror}")
    if not torch.cuda.is_available() and os.environ.get(INTERPRET) != "1":
        # Triton reads it when it is imported, which has happened.
        command = [sys.executable, "-m", f"{__package__}.check", *sys.argv[1:]]
        raise SystemExit(subprocess.run(command, env=os.environ | {INTERPRET: "1"}, check=False).returncode)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    reason = support.unsupported(device, torch.float16, (7, 7), HEAD_DIM)
    if reason is not None:
        raise SystemExit(f"The Triton kernels cannot run here: {reason}.")
    if device.type == "cpu":
        print("No NVIDIA GPU here: small cases in Triton's interpreter, for some minutes, and no times.", flush=True)
    record: dict[str, Any] = machine(device) | {"cases": right(device)}
    record["same_bits"] = same_bits(device) if all(row["right"] for row in record["cases"]) else 0
    record["times"] = timed(device) if device.type == "cuda" else []
    record |= {"right": record["same_bits"] > 0, "faster": faster(record["times"])}
    record["verdict"] = verdict(record)
    print("\n".join(["", *record["verdict"]]))
    if options.output is not None:
        options.output.write_text(json.dumps(record, indent=1) + "\n")
    raise SystemExit(0 if record["right"] else 1)


if __name__ == "__main__":
    main()
