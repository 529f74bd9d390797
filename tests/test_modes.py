"""Evaluation in slices on the CPU is an optimisation that nobody can tell apart from the plain forward."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import swinx
from swinx import layers, stage
from swinx.config import VARIANTS


@pytest.fixture
def encoder() -> swinx.SwinXEncoder:
    torch.manual_seed(0)
    return swinx.SwinXEncoder(replace(VARIANTS["swinx_n"], window_size=7)).eval()


def plain(encoder: swinx.SwinXEncoder, x: Tensor) -> list[Tensor]:
    """Features by the forward that training uses, which stochastic depth does not touch in evaluation."""
    return [level.detach() for level in encoder(x)]


@pytest.mark.parametrize("impl", ["reference", "sdpa", "auto"])
@pytest.mark.parametrize("batch", [1, 4, 7])
def test_sliced_evaluation_equals_the_plain_forward(
    encoder: swinx.SwinXEncoder, batch: int, impl: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "TOKENS_PER_SLICE", 101)
    monkeypatch.setattr(stage, "VALUES_PER_SLICE", 40_000)  # one or two images at a time in stage 1
    swinx.set_attention(encoder, impl)
    x = torch.randn(batch, 3, 101, 131)
    kept = x.clone()
    expected = plain(encoder, x)
    with torch.no_grad():
        sliced = encoder(x)
    assert torch.equal(x, kept)
    for got, want in zip(sliced, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_stage_leaves_its_input_as_it_was(encoder: swinx.SwinXEncoder) -> None:
    for index, module in enumerate(encoder.layers):
        x = torch.randn(2, 13, 17, 32 * 2 ** max(index - 1, 0))
        kept = x.clone()
        module(x)
        assert torch.equal(x, kept)


@torch.no_grad()
def test_hooks_see_whole_grids(encoder: swinx.SwinXEncoder) -> None:
    shapes: list[tuple[int, ...]] = []
    block = encoder.layers[0].blocks[1]

    def note(module: nn.Module, inputs: object, output: Tensor) -> None:
        shapes.append(tuple(output.shape))

    for module in (block, block.mlp):
        module.register_forward_hook(note)
    encoder(torch.randn(2, 3, 256, 256))
    assert shapes == [(2, 64, 64, 32), (2, 64, 64, 32)]


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:.*trace.*:DeprecationWarning")
@torch.no_grad()
def test_a_trace_equals_eager_at_its_size(encoder: swinx.SwinXEncoder) -> None:
    traced = torch.jit.trace(encoder, torch.randn(1, 3, 101, 131), check_trace=False)
    x = torch.randn(1, 3, 101, 131)
    for got, want in zip(traced(x), encoder(x), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_features_from_inference_mode_do_not_spoil_training(encoder: swinx.SwinXEncoder) -> None:
    x = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        encoder(x)
    encoder.train()
    sum(level.square().mean() for level in encoder(x)[1:]).backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


def test_a_run_on_fake_tensors_leaves_nothing_behind(encoder: swinx.SwinXEncoder) -> None:
    x = torch.randn(1, 3, 71, 83)  # a size that no other test asks for
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        encoder(mode.from_tensor(x))
    with torch.no_grad():
        levels = encoder(x)
    for got, want in zip(levels, plain(encoder, x), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_an_empty_grid_stays_part_of_the_graph() -> None:
    qkv = torch.randn(0, 5, 7, 3, 2, 4, requires_grad=True)
    swinx.window_attention(qkv, torch.zeros(2, 9, 9), window_size=(3, 3)).sum().backward()
    assert qkv.grad is not None
