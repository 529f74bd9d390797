"""The command of test_ray.py: a grid on Ray in a process of its own, whose cells may be told to misbehave.

    python ray_driver.py ADDRESS OUTPUT real|fake

ADDRESS is - for a Ray of its own. Tasks of fake cells find no token in OUTPUT. What the command is told comes out as
one JSON object per line: {"row": ...}, {"failed": cell, "type": ..., "message": ..., "trace": ...} or {"said": ...}.
"""

import faulthandler
import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from toy import toy_data

from experiments import cell_run
from experiments.cells import Cell
from experiments.data import SegmentationData
from experiments.launch import RayResources, ray_grid, ray_worker, run_on_ray
from experiments.launch.stored import StoredData
from experiments.records import Row, append_row, provenance
from experiments.settings import Settings, data_id
from experiments.training import CHECKPOINT, Recipe

REAL = [Cell("swinx_n", "inline", decoder, 32, seed) for decoder, seed in (("FPN", 0), ("Unet", 0), ("FPN", 1))]
# By seed: 0 and 3 do their work, 1 raises, 2 does not end.
FAKE = [Cell("swinx_n", "inline", "Unet", 32, seed) for seed in (0, 1, 3, 2)]
# Set for the processes of the second node.
SECOND = "SWINX_TEST_SECOND_NODE"
STEPS = 3
WAIT_SECONDS = 120.0


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("", 0))
        return int(listener.getsockname()[1])


def settings(data: SegmentationData) -> Settings:
    return Settings(
        data=data.name,
        data_id=data_id(data),
        height=64,
        width=64,
        steps=STEPS,
        minutes=None,
        batch_size=2,
        precision="32",
        device="cpu",
        recipe=Recipe(validate_every=1),
    )


def content(cell: Cell) -> dict[str, bytes]:
    """The side files of a fake cell."""
    name = cell.id
    return {f"{name}.json": b"{}", f"{name}/0": b"", f"{name}/a/b.pt": bytes(range(256)) * 7 + name.encode()}


def marks(output: Path, cell: Cell) -> Path:
    """The log of a cell: a line for each execution that began and each step taken."""
    return output / ".marks" / cell.id


def real_cell(cell: Cell, data: SegmentationData, settings: Settings, output: Path, origin: Row) -> Row | None:
    """A real cell. On the second node it stops for good once it has a checkpoint, on the first it waits until then."""
    second = SECOND in os.environ
    stuck = output / ".stuck"
    checkpoint = output / "cells" / cell.id / CHECKPOINT
    marks(output, cell).parent.mkdir(exist_ok=True)

    def mark(line: str) -> None:
        with marks(output, cell).open("a") as file:
            file.write(line + "\n")

    def on_step(progress: float, loss: float) -> None:
        mark(f"step on {'second' if second else 'first'}")
        if second and checkpoint.exists():
            stuck.write_text(cell.id)
            time.sleep(10 * WAIT_SECONDS)

    deadline = time.monotonic() + WAIT_SECONDS
    while not second and not stuck.exists():
        if time.monotonic() > deadline:
            raise TimeoutError("no cell began on the second node")
        time.sleep(0.1)
    mark(f"begun on {'second' if second else 'first'}, checkpoint {checkpoint.exists()}")
    return cell_run.run_cell(cell, data, settings, output, origin, on_step)


def fake_cell(cell: Cell, data: SegmentationData, settings: Settings, output: Path, origin: Row) -> Row:
    """Writes the files of content() and a row of where it is; or raises, or does not end, by its seed."""
    if cell.seed == 1:
        raise ZeroDivisionError(f"{cell.id} has no loss")
    if cell.seed == 2:
        (Path(origin["output"]) / ".hanging").write_text(str(os.getpid()))
        while True:
            time.sleep(0.1)
    for name, part in content(cell).items():
        path = output / "cells" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(part)
    (output / "cells" / cell.id / CHECKPOINT).write_bytes(b"state of training")
    return {
        **origin,
        "cell": cell.id,
        "seed": cell.seed,
        "code": ray_worker.__file__,
        "worked_in": str(output),
        "data_id": data_id(data),
        "in_store": in_store(data.train.images),
        "threads": torch.get_num_threads(),
    }


def in_store(tensor: torch.Tensor) -> bool:
    """Whether a tensor lies in Ray's memory, of which other processes have the same pages, not in that of the task."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(side, 16) for side in line.split()[0].split("-"))
        if start <= tensor.data_ptr() < end:
            return "plasma" in line
    return False


def real_task(cell: Cell, stored: StoredData, job: ray_worker.Job) -> ray_worker.Result:
    ray_worker.run_cell = real_cell  # type: ignore[assignment]
    return ray_worker.execute(cell, stored, job)


def fake_task(cell: Cell, stored: StoredData, job: ray_worker.Job) -> ray_worker.Result:
    ray_worker.run_cell = fake_cell  # type: ignore[assignment]
    return ray_worker.execute(cell, stored, job)


def tell(**event: Any) -> None:
    print(json.dumps(event), flush=True)


@contextmanager
def missing_token(output: Path) -> Iterator[ray_worker.Token]:
    yield ray_worker.Token(output / ".ray-elsewhere", "")


def main(address: str, folder: str, kind: str) -> None:
    output = Path(folder)
    data = toy_data()
    ray_grid.execute = {"real": real_task, "fake": fake_task}[kind]
    if kind == "fake":
        ray_grid._token = missing_token

    def collect(row: Row) -> None:
        append_row(output / "results.jsonl", row)
        cell_run.finish(row["cell"], output)
        tell(row=row)

    def fail(cell: Cell, error: BaseException) -> None:
        trace = "".join(traceback.format_exception(error))
        (output / ".failed").touch()
        tell(failed=cell.id, type=type(error).__name__, message=str(error), trace=trace)

    run_on_ray(
        {"real": REAL, "fake": FAKE}[kind],
        data,
        settings(data),
        output,
        {
            **provenance(torch.device("cpu")),
            "output": str(output),
            "host": "of the command",
            "command": "of the command",
        },
        collect=collect,
        fail=fail,
        say=lambda line: tell(said=line),
        resources=RayResources(None if address == "-" else address),
    )


if __name__ == "__main__":
    faulthandler.enable()
    # Tests that a shell started in the background ignore Ctrl-C, and so would this process and all that it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main(*sys.argv[1:])
