"""What a model costs: operations and latency."""

import copy

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


def latency(model: nn.Module, image: Tensor, precision: str, *, seconds: float = 0.4) -> speed.Times:
    """Time of model in eval mode on image (1, 3, H, W), measured for about so many seconds; see speed.measure."""
    model.eval()

    @torch.inference_mode()
    def call() -> None:
        with autocast(image.device, precision):
            model(image)

    return speed.measure(call, image.device, cold=False, queued=False, seconds=seconds)
