"""A comparison of two tiny runs that kills itself: the target of the processes that test_killed.py starts."""

import os
import signal
from typing import Any

import torch
from toy import toy_data

from experiments import data
from experiments.compare_decoders import main
from experiments.evaluation import cost
from experiments.reporting import pages

ARGUMENTS = ["--decoders", "FPN", "DeepLabV3Plus", "--steps", "5", "--batch-size", "2", "--validate-every", "2"]


def run(output: str, kill_at: int | None, torn_row: bool) -> None:
    """Run the command; SIGKILL at its kill_at-th file put in place (odd: after, even: before), or amid a row."""
    torch.set_num_threads(1)
    data.make_scenes = lambda **_: toy_data()  # type: ignore[assignment]
    pages._figures = lambda _: []  # type: ignore[assignment]
    latency = cost.latency
    cost.latency = lambda *a: latency(*a, seconds=0)  # type: ignore[assignment]
    replace, write = os.replace, os.write
    count = 0

    def counted(*arguments: Any) -> None:
        nonlocal count
        count += 1
        if count == kill_at and count % 2 == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*arguments)
        if count == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def torn(descriptor: int, line: bytes) -> int:
        write(descriptor, line[: len(line) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    os.replace = counted  # type: ignore[assignment]
    if torn_row:
        os.write = torn  # type: ignore[assignment]
    raise SystemExit(main([*ARGUMENTS, "--device", "cpu", "--output", output]))
