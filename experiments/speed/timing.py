"""Times, memory and saved bytes of a call; the speed of a device copy to hold them against."""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Call = Callable[[], object]


class Times(NamedTuple):
    """Percentiles of the time of one call, in milliseconds."""

    p20: float
    p50: float
    p80: float


def measure(call: Call, device: torch.device, cold: bool = True, seconds: float = 0.4) -> Times:
    """Time a call again and again for about so many seconds, 5 to 200 times, after a warm-up.

    On a GPU by events around each call; cold: with the level-2 cache overwritten before each. On the CPU by the clock.
    """
    for _ in range(3):
        call()
    if device.type != "cuda":
        return percentiles(_clock(call, seconds))
    flush = torch.empty(256 * 2**20 if cold else 1, dtype=torch.int8, device=device)
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    torch.cuda.synchronize(device)
    runs = min(200, max(20, int(seconds / max(time.perf_counter() - start, 1e-6))))
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(runs)]
    for before, after in events:
        flush.zero_()
        before.record()
        call()
        after.record()
    torch.cuda.synchronize(device)
    return percentiles([before.elapsed_time(after) for before, after in events])


def _clock(call: Call, seconds: float) -> list[float]:
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 5 or (time.perf_counter() < end and len(times) < 200):
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return times


def once(call: Call, device: torch.device) -> float:
    """Milliseconds of one call by the clock, from an idle device to an idle device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 1e3 * (time.perf_counter() - start)


def percentiles(times: list[float]) -> Times:
    """20th, 50th and 80th."""
    return Times(*torch.tensor(times, dtype=torch.float64).quantile(torch.tensor([0.2, 0.5, 0.8]).double()).tolist())


def copy_speed(device: torch.device) -> float:
    """Bytes per second that a copy reads and writes, for memory far larger than any cache: what "100 %" means here."""
    size = 2**30 if device.type == "cuda" else 2**28
    source = torch.empty(size, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    return 2 * size / (1e-3 * measure(lambda: target.copy_(source), device, cold=False).p50)


def saved_bytes(forward: Callable[[], Tensor]) -> int:
    """Bytes that autograd keeps alive from a forward pass for the backward pass, each memory counted once."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        forward()
    return sum(kept.values())


def peak_bytes(call: Call, device: torch.device) -> int | None:
    """GPU memory that a call allocates beyond what was there; None on the CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before
