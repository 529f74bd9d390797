"""Which device a command computes on."""

import torch


def choose_device(asked: str, precision: str) -> str:
    """The device asked for, "cpu" or "cuda"; for "auto" the one there is.

    Raises:
        ValueError: no such device here, or a precision that it does not have.
    """
    available = torch.cuda.is_available()
    if asked == "cuda" and not available:
        raise ValueError("--device cuda: torch sees no CUDA device here")
    device = ("cuda" if available else "cpu") if asked == "auto" else asked
    check_precision(precision, device)
    return device


def check_precision(precision: str, device: str) -> None:
    """Raise ValueError where a device does not have a precision."""
    if precision == "16" and device == "cpu":
        raise ValueError("--precision 16 needs --device cuda; bf16 works on the CPU")
