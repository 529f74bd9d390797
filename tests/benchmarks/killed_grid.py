"""A grid of twelve cells, once left alone and once killed three times at random moments: both must give one table.

    python -m tests.benchmarks.killed_grid runs/killed_grid

Runs experiments.compare_decoders on generated scenes of 64 x 80 pixels, four steps for each of six decoders and two
seeds, with SIGKILL after random times within the duration of the run that was left alone. Prints the moments of the
kills and both tables; exits with 1 where rows or side files differ. About three minutes on two cores of an AMD EPYC.
"""

import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from experiments.records import read_rows

DECODERS = ["DeepLabV3Plus", "FPN", "Linknet", "MAnet", "PSPNet", "Unet"]
ARGUMENTS = ["--size", "64", "80", "--steps", "4", "--validate-every", "1", "--batch-size", "4", "--seeds", "0", "1"]
VOLATILE = {
    *("time", "command", "commit", "dirty"),
    *("train_minutes", "latency_ms_p20", "latency_ms_p50", "latency_ms_p80", "peak_memory_mb"),
}
KILLS = 3


def start(output: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "experiments.compare_decoders", *ARGUMENTS, "--decoders", *DECODERS]
    return subprocess.Popen([*command, "--device", "cpu", "--output", str(output)], stdout=subprocess.DEVNULL)


def lasting(output: Path) -> dict[str, Any]:
    """Rows by cell and side files by name, without what a clock or the memory meter tells."""
    rows = read_rows(output / "results.jsonl")
    found: dict[str, Any] = {
        row["cell"]: {key: value for key, value in row.items() if key not in VOLATILE} for row in rows
    }
    assert len(found) == len(rows), "a cell has two rows"
    for path in (output / "cells").rglob("*"):
        if path.suffix in (".png", ".json"):
            found[str(path.relative_to(output))] = path.read_bytes()
    return found


def table(output: Path) -> str:
    lines = ["| cell | test mIoU % | val mIoU % | test F1 % | ECE % |", "| --- | ---: | ---: | ---: | ---: |"]
    for row in sorted(read_rows(output / "results.jsonl"), key=lambda row: str(row["cell"])):
        values = (row[key] for key in ("test_miou", "val_miou", "test_f1", "ece"))
        lines.append(f"| {row['cell']} | " + " | ".join(f"{value:.3f}" for value in values) + " |")
    return "\n".join(lines)


def main(folder: Path) -> int:
    began = time.perf_counter()
    assert start(folder / "alone").wait() == 0
    duration = time.perf_counter() - began
    generator = random.Random(time.time_ns())
    kills = []
    while len(kills) < KILLS:
        process = start(folder / "killed")
        try:
            process.wait(generator.uniform(0.15, 0.6) * duration)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills.append(len(read_rows(folder / "killed" / "results.jsonl")))
            continue
        break  # the grid was finished before it could be killed as often
    assert start(folder / "killed").wait() == 0
    finished = ", ".join(map(str, kills))
    print(f"left alone: {duration:.0f} s; killed {len(kills)} times, with {finished} cells finished\n")
    for name in ("alone", "killed"):
        print(f"{name}\n\n{table(folder / name)}\n")
    one, other = lasting(folder / "alone"), lasting(folder / "killed")
    differing = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
    print(json.dumps({"compared": len(one), "differing": differing}))
    return int(bool(differing) or len(kills) < KILLS)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
