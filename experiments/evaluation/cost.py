"""What a model costs: parameters, operations, latency, memory."""

import contextlib
import copy
import resource
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import swinx
from swinx.attention import speed

AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "16": torch.float16}


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Autocast of a precision: none for "32", otherwise its 16-bit type."""
    dtype = AUTOCAST_DTYPES.get(precision)
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


def parameters(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


@torch.inference_mode()
def flops(model: nn.Module, image: Tensor) -> int:
    """Floating-point operations, two per multiply-add, of model in eval mode on image (1, 3, H, W).

    Counted by torch on a copy: matrix products and convolutions count, pointwise work does not. Fused attention, which
    torch counts as nothing on the CPU, is taken apart into its products, that of swinx by its reference implementation.
    """
    model = copy.deepcopy(model).eval()
    if any(isinstance(module, swinx.SwinXEncoder) for module in model.modules()):
        swinx.set_attention(model, "reference")
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(image)
    return int(counter.get_total_flops())


@torch.inference_mode()
def latency(
    model: nn.Module, image: Tensor, precision: str, *, warmup: int = 5, runs: int = 30
) -> tuple[float, float, float]:
    """Percentiles 20, 50 and 80 of the time of model in eval mode on image (1, 3, H, W), in milliseconds by the clock,
    from an idle device to an idle device."""
    model.eval()
    times = []
    for _ in range(warmup + runs):
        _wait(image.device)
        start = time.perf_counter()
        with autocast(image.device, precision):
            model(image)
        _wait(image.device)
        times.append(1e3 * (time.perf_counter() - start))
    return speed.percentiles(times[warmup:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class PeakMemory:
    """Peak memory from construction to megabytes(), in units of 10^6 bytes.

    scope says what is measured: allocations by torch on a GPU, or the resident set of the whole process. Where the
    system cannot reset the latter's peak (only Linux can), it counts from the start of the process.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            self.scope = "GPU allocations"
            torch.cuda.reset_peak_memory_stats(device)
            return
        self.scope = "resident set since process start"
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
            self.scope = "resident set during the run"

    def megabytes(self) -> float:
        """The peak so far."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 1e6
        with contextlib.suppress(OSError):
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024 / 1e6
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
