"""Whether the kernels work on this machine: tried on a few tokens before a model gets them.

A machine may have no C compiler, which Triton's first launch needs, an old Triton, a GPU without enough shared memory,
or a compiler that makes wrong kernels.
"""

import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode

from . import parameters

if TYPE_CHECKING:
    from ..backends import Case

CAPTURING = "nothing can be tried while a CUDA graph is captured: call the model once before"
# What was tried, with the precision of float32 products, for each of which there are other kernels; and why it did not
# work, or None.
_tried: dict[tuple["Case", str], str | None] = {}
_warned: set[str] = set()
_lock = threading.Lock()


def failure(case: "Case") -> str | None:
    """Why the kernels fail on small inputs like a case, or None where they do not. Tried once.

    Under a dispatch mode (fake tensors, counters) nothing is tried, and what was not tried before counts as working.
    During the capture of a CUDA graph the answer is CAPTURING for it.
    """
    if not case.contiguous:
        case = case._replace(contiguous=True)  # the operator makes channels so
    key = case, parameters.precision(case.dtype, case.device)
    with _lock:
        if key in _tried:
            return _tried[key]
        if _get_current_dispatch_mode() is not None:
            return None
        if case.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return CAPTURING
        # A thread of its own has none of the caller's modes: hooks on saved tensors (a checkpoint would count those of
        # the trial), autocast, inference mode, a default device.
        with ThreadPoolExecutor(1) as thread:
            reason, lasting = thread.submit(_try, case).result()
        if lasting:
            _tried[key] = reason
    return reason


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch leaves it without types
def failed(device: torch.device) -> bool:
    """Whether any kind of input has failed on a device: what traced code asks, which tries nothing."""
    return any(case.device == device and reason is not None for (case, _), reason in _tried.items())


def _try(case: "Case") -> tuple[str | None, bool]:
    """Why they fail, or None; and whether that will stay so."""
    from . import trial  # needs the public function, which needs this module

    for small in trial.trials(case.window_size, case.head_dim, case.cosine):
        try:
            excess = small.excess(case.dtype, case.device, case.recording)
        except Exception as error:  # whatever is missing on this machine
            return trial.one_line(error), not isinstance(error, torch.OutOfMemoryError)
        if excess > 1:
            return f"their error is {excess:.2g} times the one allowed, in {small.geometry}", True
    return None, True


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch leaves it without types
def warn_once(message: str) -> None:
    """Warn, the first time a message comes."""
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, stacklevel=2)
