"""Time the encoder of this checkout against that of another one and against timm's Swin, side by side in one run.

    git worktree add ../before REVISION
    python -m tests.benchmarks.against_checkout ../before --output rows.jsonl

Each side is a process of its own, and one of them computes at a time. A round times the three in random order;
a ratio is the median over rounds of one side's time over the other's in the same round. Where a process has its weights
in memory changes its matrix products by some 5 %, so for eager code, where starting is cheap, the processes are started
anew several times. Batch 1, swinx_t, random weights, evaluation without gradients.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[2]
TIMM = "tu-swin_tiny_patch4_window7_224"
SIDES = ("before", "after", "timm")
# (compiled, stem, image side, threads, starts, rounds of each)
SETTINGS = [
    *((False, "shared", size, threads, 4, rounds) for size, rounds in ((224, 13), (512, 7)) for threads in (1, 2)),
    *((True, stem, size, 2, 1, rounds) for size, rounds in ((224, 41), (512, 15)) for stem in ("none", "shared")),
]
# Idle threads of one process must not spin while another is timed; and how often the allocator gives memory back and
# takes it again, which differs from process to process by up to a tenth of the time, must not count for either side.
ENVIRONMENT = {
    "OMP_WAIT_POLICY": "passive",
    "MALLOC_MMAP_THRESHOLD_": "4000000000",
    "MALLOC_TRIM_THRESHOLD_": "8000000000",
    "MALLOC_TOP_PAD_": "268435456",
}


def worker(side: str) -> None:
    """Answers each line of settings with a line: the seconds of one call."""
    import torch
    from segmentation_models_pytorch.encoders import get_encoder

    made: dict[str, Any] = {}
    for line in sys.stdin:
        compiled, stem, size, threads = json.loads(line)
        if line not in made:
            made.clear()
            torch.manual_seed(0)
            torch.set_num_threads(threads)
            if side == "timm":
                model = get_encoder(TIMM, weights=None, img_size=size).eval()
            else:
                import swinx

                if f"swinx_t_{stem}" not in swinx.list_encoders():
                    swinx.register_encoder(f"swinx_t_{stem}", base="swinx_t", stem=stem)
                model = get_encoder(f"swinx_t_{stem}", weights=None).eval()
            made[line] = torch.compile(model) if compiled else model, torch.randn(1, 3, size, size)
            with torch.no_grad():
                for _ in range(3):
                    made[line][0](made[line][1])
        model, image = made[line]
        start = time.perf_counter()
        with torch.no_grad():
            model(image)
        print(time.perf_counter() - start, flush=True)


def run(roots: dict[str, Path], settings: tuple[Any, ...], rounds: int) -> dict[str, list[float]]:
    """Seconds of each side's calls, in processes of their own; the first round does not count."""
    command = [sys.executable, "-P", __file__, "--worker"]
    processes = {
        side: subprocess.Popen(
            [*command, side],
            env=os.environ | ENVIRONMENT | {"PYTHONPATH": str(root)},
            stdin=-1,
            stdout=-1,
            text=True,
            cwd=root,
        )
        for side, root in roots.items()
    }
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(rounds + 1):
        # Whoever comes twice in a row finds its memory in the cache: so must nobody more often than others.
        for side in random.sample(SIDES, len(SIDES)):
            times[side].append(ask(processes[side], settings))
    for process in processes.values():
        process.kill()
        process.wait()
    return {side: measured[1:] for side, measured in times.items()}


def ask(process: "subprocess.Popen[str]", settings: tuple[Any, ...]) -> float:
    """Seconds of one call."""
    process.stdin.write(json.dumps(settings) + "\n")  # type: ignore[union-attr]  # opened as a pipe
    process.stdin.flush()  # type: ignore[union-attr]
    return float(process.stdout.readline())  # type: ignore[union-attr]


def main() -> None:
    """Write a row for each setting and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("other", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--only", choices=("eager", "compiled"), help="leave out the other settings")
    options = parser.parse_args()
    roots = {"before": options.other.resolve(), "after": HERE, "timm": HERE}
    commits = {
        side: subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True).stdout.strip()
        for side, root in roots.items()
    }
    for settings in SETTINGS:
        compiled, stem, size, threads, starts, rounds = settings
        if options.only == ("eager" if compiled else "compiled"):
            continue
        times: dict[str, list[float]] = {side: [] for side in SIDES}
        for _ in range(starts):
            for side, measured in run(roots, settings[:4], rounds).items():
                times[side] += measured
        row: dict[str, Any] = {"kind": "encoder", "model": "swinx_t", "mode": "inference", "compiled": compiled}
        row |= {"stem": stem, "dtype": "fp32", "batch": 1, "height": size, "width": size, "threads": threads}
        row |= {"output_stride": 32, "rounds": rounds, "starts": starts}
        for side in SIDES:
            row[f"{side}_ms_p50"] = round(1e3 * statistics.median(times[side]), 2)
        for name, one, other in (
            ("after", "before", "after"),
            ("before_timm", "timm", "before"),
            ("after_timm", "timm", "after"),
        ):
            ratios = [a / b for a, b in zip(times[one], times[other], strict=True)]
            quartiles = statistics.quantiles(ratios, n=4)
            row |= {f"ratio_{name}_p{p}": round(q, 3) for p, q in zip((25, 50, 75), quartiles, strict=True)}
        row |= {"commit": commits["after"], "commit_before": commits["before"], **provenance()}
        print(json.dumps(row), flush=True)
        with options.output.open("a") as file:
            file.write(json.dumps(row) + "\n")


def provenance() -> dict[str, Any]:
    """Where the numbers come from."""
    import numpy
    import segmentation_models_pytorch as smp
    import timm
    import torch

    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": f"{models[0].partition(': ')[2]}, {os.cpu_count()} cores",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "python": sys.version.split()[0],
        **{package.__name__: package.__version__ for package in (torch, timm, numpy)},
        "smp": smp.__version__,
        "command": "python -m tests.benchmarks.against_checkout ../before",
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(sys.argv[2])
    else:
        main()
