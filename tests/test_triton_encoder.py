"""The whole encoder on the Triton kernels equals the encoder on the reference, training step included."""

from dataclasses import replace

import pytest
import torch
from kernel_cases import DEVICE
from releases import KERNELS

import swinx
from swinx.config import SwinConfig

pytestmark = [KERNELS, pytest.mark.usefixtures("no_first_use")]

# Small, for the interpreter's sake: a shifted block in the first stage, the only one whose grid is wider than a window.
TINY = SwinConfig(16, (2, 1, 1, 1), (1, 2, 1, 2), 4, 0.0, stem="shared")


def encoder(impl: str, version: str, output_stride: int, window: int, dtype: torch.dtype) -> swinx.SwinXEncoder:
    torch.manual_seed(0)
    model = swinx.SwinXEncoder(replace(TINY, version=version, window_size=window), output_stride=output_stride)
    for name, parameter in model.named_parameters():
        if "bias" in name or "norm" in name:
            torch.nn.init.normal_(parameter, std=2.0 if "table" in name else 0.5)
    swinx.set_attention(model, impl)
    return model.to(DEVICE, dtype)


@pytest.mark.parametrize(
    ("version", "output_stride", "window"),
    [("v1", 8, 4), ("v1", 16, 9), ("v2", 8, 4), ("v2", 32, 9)],
)
def test_training_step_and_evaluation(version: str, output_stride: int, window: int) -> None:
    """float64 in the interpreter, where nothing but a mistake can differ; float32 on a GPU.

    At output stride 8 periods are 1, 1, 2 and 4, at 16 they are 1, 1, 1 and 2. Windows of 9 take two tiles, and time.
    """
    dtype, tolerance = (torch.float64, 1e-9) if DEVICE == "cpu" else (torch.float32, 3e-3)
    image = torch.randn(2 if window == 4 else 1, 3, 18, 41, dtype=dtype, device=DEVICE)
    results = []
    for impl in ("triton", "reference"):
        model = encoder(impl, version, output_stride, window, dtype).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loss = sum(level.square().mean() for level in model(image)[1:])
        loss.backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        optimizer.step()
        with torch.no_grad():
            results.append((loss.detach(), gradients, model.eval()(image)))
    (loss, gradients, levels), (expected_loss, expected_gradients, expected_levels) = results
    torch.testing.assert_close(loss, expected_loss, rtol=tolerance, atol=0)
    assert gradients.keys() == expected_gradients.keys()
    learned = "bias_table" if version == "v1" else "logit_scale"
    assert all(gradient.any() for name, gradient in gradients.items() if learned in name)
    assert any(learned in name for name in gradients)
    for name, gradient in gradients.items():
        scale = expected_gradients[name].abs().max()
        assert (gradient - expected_gradients[name]).abs().max() <= tolerance * scale, name
    for level, expected in zip(levels, expected_levels, strict=True):
        torch.testing.assert_close(level, expected, rtol=tolerance, atol=tolerance)
