"""What the Triton kernels take, and why not: GPU, version of Triton, dtype, window, head_dim. Needs torch alone."""

import importlib
import importlib.util
import os

import torch

MAX_SIDE = 16
MAX_HEAD_DIM = 128
MIN_CAPABILITY = (8, 0)  # Ampere: bfloat16 in the matrix units
# Ampere, Ada and Hopper: 3.2 joins no tuples. Blackwell: 3.4 to 3.7 make traps of float32 kernels.
MIN_TRITON = {8: (3, 3), 10: (3, 8)}


def triton_too_old(generation: int) -> str | None:
    """Why the installed Triton does not serve GPUs of a generation (first part of the compute capability), or None."""
    floor = max((version for start, version in MIN_TRITON.items() if generation >= start), default=None)
    if floor is None:
        return None
    found: str = importlib.import_module("triton").__version__
    if tuple(int(part) for part in found.split(".")[:2]) >= floor:
        return None
    needed = ".".join(map(str, floor))
    return f"on GPUs of compute capability {generation}.x it takes Triton {needed} and newer, got {found}"


def slow(dtype: torch.dtype, recording: bool) -> bool:
    """Whether a network is slower with the kernels than with SDPA, or that is unknown.

    Measured on an H100: eager training, where launching the kernels takes the host longer than running them takes the
    GPU. Not timed: compiled training, and float32, whose kernels spill hundreds of values before Hopper.
    """
    return dtype == torch.float32 or recording


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch leaves it without types
def triton_missing() -> str | None:
    """Why the kernels cannot run at all here, or None."""
    return None if importlib.util.find_spec("triton") else "the package triton is not installed"


def unsupported(
    device: torch.device, dtype: torch.dtype, window_size: tuple[int, int], head_dim: int, contiguous: bool = True
) -> str | None:
    """Why the kernels do not take a case, naming what they take, or None.

    contiguous: whether the last dimension of qkv has stride 1.
    """
    reason = _device_reason(device)
    if reason is not None:
        return reason
    interpreted = device.type == "cpu"
    # The interpreter multiplies the raw bits of bfloat16; the matrix units have no float64 path worth a kernel.
    types = (torch.float16, torch.float32, torch.float64 if interpreted else torch.bfloat16)
    if dtype not in types:
        where = "in Triton's interpreter" if interpreted else "on a GPU"
        return f"{where} it takes {', '.join(str(d).removeprefix('torch.') for d in types)}, got {dtype}"
    if max(window_size) > MAX_SIDE:
        return f"it takes windows of up to {MAX_SIDE} tokens a side, got {window_size}"
    if head_dim > MAX_HEAD_DIM:
        return f"it takes a head_dim of up to {MAX_HEAD_DIM}, got {head_dim}"
    return None if contiguous else "it takes a qkv whose last dimension is contiguous"


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch leaves it without types
def _device_reason(device: torch.device) -> str | None:
    missing = triton_missing()
    if missing is not None:
        return missing
    if os.environ.get("TRITON_INTERPRET") == "1":
        return None if device.type == "cpu" else f"with TRITON_INTERPRET=1 it takes tensors on the CPU, got {device}"
    if device.type != "cuda" or torch.version.cuda is None:
        return (
            f"it takes tensors on an NVIDIA GPU (or, with TRITON_INTERPRET=1 in the environment, the CPU), got {device}"
        )
    capability = torch.cuda.get_device_capability(device)
    if capability < MIN_CAPABILITY:
        return f"it takes GPUs of compute capability {MIN_CAPABILITY} and above, got {capability}"
    return triton_too_old(capability[0])
