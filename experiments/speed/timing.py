"""Time of a single call, memory and saved bytes; repeated calls are timed by `swinx.attention.speed`."""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from swinx.attention.speed import Call


def once(call: Call, device: torch.device) -> float:
    """Milliseconds of one call by the clock, from an idle device to an idle device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 1e3 * (time.perf_counter() - start)


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
