"""Whether the kernels work on this machine: tried on a few tokens before a model that did not ask for them gets them.

A machine may have no C compiler, which Triton's first launch needs, an old Triton, a GPU without enough shared memory.
"""

import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode

# What was tried, and why it did not work, or None.
_tried: dict[tuple[object, ...], str | None] = {}
_warned: set[str] = set()
_lock = threading.Lock()


def failure(
    device: torch.device,
    dtype: torch.dtype,
    window_size: tuple[int, int],
    head_dim: int,
    cosine: bool,
    recording: bool,
) -> str | None:
    """Why the kernels fail on small inputs of a kind, or None where they do not. Tried once; a failure warns.

    Under a dispatch mode (fake tensors, counters) nothing is tried, and what was not tried before counts as working.
    During the capture of a CUDA graph it counts as failing.

    Args:
        device, dtype, window_size, head_dim, cosine, recording: see `swinx.attention.backends.Case`.
    """
    key = (device, dtype, window_size, head_dim, cosine, recording)
    with _lock:
        if key in _tried:
            return _tried[key]
        if _get_current_dispatch_mode() is not None:
            return None
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            reason: str | None = "nothing can be tried while a CUDA graph is captured: call the model once before"
        else:
            # A thread of its own has none of the caller's modes: hooks on saved tensors (a checkpoint would count those
            # of the trial), autocast, inference mode, a default device.
            with ThreadPoolExecutor(1) as thread:
                reason, lasting = thread.submit(_try, *key).result()
            if lasting:
                _tried[key] = reason
    if reason is not None:
        warn_once(f"the Triton kernels do not work here, so attention takes another implementation: {reason}")
    return reason


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch leaves it without types
def failed(device: torch.device) -> bool:
    """Whether any kind of input has failed on a device: what traced code asks, which tries nothing."""
    return any(key[0] == device and reason is not None for key, reason in _tried.items())


def _try(
    device: torch.device,
    dtype: torch.dtype,
    window_size: tuple[int, int],
    head_dim: int,
    cosine: bool,
    recording: bool,
) -> tuple[str | None, bool]:
    """Why they fail, or None; and whether that will stay so."""
    from swinx.attention.triton import trial  # needs the public function, which needs this module

    for case in trial.trials(window_size, head_dim, cosine):
        try:
            excess = case.excess(dtype, device, recording)
        except Exception as error:  # whatever is missing on this machine
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            return reason, not isinstance(error, torch.OutOfMemoryError)
        if excess > 1:
            return f"their error is {excess:.2g} times the one allowed, in {case.geometry}", True
    return None, True


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch leaves it without types
def warn_once(message: str) -> None:
    """Warn, the first time a message comes."""
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, stacklevel=2)
