"""Whether the kernels work on this machine: tried on a few tokens before a model that did not ask for them gets them.

A machine may have no C compiler, which Triton's first launch needs, an old Triton, a GPU without enough shared memory.
"""

import warnings

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode

# What was tried, and why it did not work, or None.
_tried: dict[tuple[object, ...], str | None] = {}
_warned: set[str] = set()


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch leaves it without types
def failure(
    device: torch.device,
    dtype: torch.dtype,
    window_size: tuple[int, int],
    head_dim: int,
    cosine: bool,
    recording: bool,
    traced: bool,
) -> str | None:
    """Why the kernels fail on small inputs of a kind, or None where they do not. Tried once; a failure warns.

    Args:
        device, dtype, window_size, head_dim, cosine, recording: see `swinx.attention.backends.Case`.
        traced: whether code is being traced. Nothing is tried then: what was not tried before counts as working.
    """
    key = (device, dtype, window_size, head_dim, cosine, recording)
    if key in _tried:
        return _tried[key]
    if traced or _get_current_dispatch_mode() is not None:
        return None
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return "nothing can be tried while a CUDA graph is captured: call the model once before"
    _tried[key] = reason = _try(device, dtype, window_size, head_dim, cosine, recording)
    if reason is not None:
        warn_once(f"the Triton kernels do not work here, so attention takes another implementation: {reason}")
    return reason


def _try(
    device: torch.device,
    dtype: torch.dtype,
    window_size: tuple[int, int],
    head_dim: int,
    cosine: bool,
    recording: bool,
) -> str | None:
    from swinx.attention.triton import trial  # needs the public function, which needs this module

    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        for case in trial.trials(window_size, head_dim, cosine):
            try:
                excess = case.excess(dtype, device, recording)
            except Exception as error:  # whatever is missing on this machine
                return f"{type(error).__name__}: {error}".splitlines()[0][:300]
            if excess > 1:
                return f"their error is {excess:.2g} times the one allowed, in {case.geometry}"
    return None


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch leaves it without types
def warn_once(message: str) -> None:
    """Warn, the first time a message comes."""
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, stacklevel=2)
