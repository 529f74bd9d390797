"""Evaluation in slices on the CPU, eager or compiled, cannot be told from the plain forward by what it gives."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import swinx
from swinx import inference, window_slices, windows
from swinx.config import VARIANTS


@pytest.fixture
def encoder() -> swinx.SwinXEncoder:
    torch.manual_seed(0)
    return swinx.SwinXEncoder(replace(VARIANTS["swinx_n"], window_size=7)).eval()


def plain(encoder: swinx.SwinXEncoder, x: Tensor) -> list[Tensor]:
    """Features by the forward that training uses, which stochastic depth does not touch in evaluation."""
    return [level.detach() for level in encoder(x)]


@pytest.fixture
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two windows of 49 tokens at a time."""
    monkeypatch.setattr(window_slices, "TOKENS_PER_SLICE", 101)
    inference._kept_slices.cache_clear()
    yield
    inference._kept_slices.cache_clear()


@pytest.mark.usefixtures("small_slices")
@pytest.mark.parametrize("output_stride", [32, 8])
@pytest.mark.parametrize("impl", ["reference", "bmm", "sdpa", "auto"])
@pytest.mark.parametrize("batch", [1, 4, 7])
def test_sliced_evaluation_equals_the_plain_forward(
    encoder: swinx.SwinXEncoder, batch: int, impl: str, output_stride: int
) -> None:
    swinx.set_attention(encoder, impl)
    encoder.double().make_dilated(output_stride)
    x = torch.randn(batch, 3, 101, 131, dtype=torch.float64)
    kept = x.clone()
    expected = plain(encoder, x)
    with torch.no_grad():
        sliced = encoder(x)
    assert torch.equal(x, kept)
    for got, want in zip(sliced, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


@pytest.mark.usefixtures("small_slices")
@pytest.mark.parametrize(("height", "width"), [(14, 28), (13, 17), (29, 7), (1, 3)])
@pytest.mark.parametrize("shift", [(0, 0), (3, 2)])
@pytest.mark.parametrize("dilation", [1, 2])
def test_slices_hold_every_token_once_with_what_it_sees(
    height: int, width: int, shift: tuple[int, int], dilation: int
) -> None:
    geometry = windows.WindowGeometry(3, height, width, (7, 7), shift, dilation)
    plan = windows.window_plan(geometry, shift != (0, 0), True, True, torch.device("cpu"))
    slices = window_slices.window_slices(plan, 49)
    tokens = 3 * height * width
    assert torch.equal(torch.cat([part.tokens for part in slices]).sort().values, torch.arange(tokens))
    window_of = plan.scatter // 49
    masked = 0
    for part in slices:
        scatter = torch.arange(len(part.tokens)) if part.scatter is None else part.scatter
        sees = (scatter[:, None] // 49) == (scatter[None] // 49)
        if part.visible is not None:
            masked += 1
            sees &= part.visible[scatter[:, None] // 49, scatter[:, None] % 49, scatter[None] % 49]
        expected = window_of[part.tokens][:, None] == window_of[part.tokens][None]
        if plan.visible is not None:
            slot = plan.scatter[part.tokens]
            expected &= plan.visible[slot[:, None] // 49, slot[:, None] % 49, slot[None] % 49]
        assert torch.equal(sees, expected)
        if part.gather is not None:
            assert torch.equal(part.gather[scatter], torch.arange(len(part.tokens)))
            assert (part.gather == len(part.tokens)).sum() == part.gather.numel() - len(part.tokens)
    assert masked < len(slices) or min(height, width) < 14 * dilation or shift == (0, 0)


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


@torch.no_grad()
def test_the_operator_obeys_the_rules_of_operators(encoder: swinx.SwinXEncoder) -> None:
    stage = encoder.layers[1]
    blocks = list(stage.blocks)
    weights = [block.get_parameter(name).detach() for block in blocks for name in inference.WEIGHTS]
    biases = [block.attn.position_bias().contiguous() for block in blocks]
    for impl in ("bmm", "sdpa", "auto"):
        arguments = (torch.randn(2, 13, 17, 64), weights, biases, (7, 7), (3, 3), 1, impl)
        torch.library.opcheck(torch.ops.swinx.infer_blocks.default, arguments)


@torch.no_grad()
def test_compiled_code_runs_what_stands_in_a_block(encoder: swinx.SwinXEncoder) -> None:
    """A replaced layer, a hook or autocast keep the operator, which knows the original weights only, out of the way."""

    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    x = torch.randn(2, 3, 67, 101)
    calls: list[int] = []
    original = encoder(x)
    layer = encoder.layers[1].blocks[0].mlp
    layer.fc2.__class__ = Doubled
    changed = encoder(x)
    assert (changed[3] - original[3]).abs().max() > 1e-2
    compiled = torch.compile(encoder, backend="eager", fullgraph=True)
    for got, want in zip(compiled(x), changed, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    layer.fc2.__class__ = nn.Linear
    layer.register_forward_hook(lambda *_: calls.append(1))
    torch._dynamo.reset()
    torch.compile(encoder, backend="eager")(x)
    assert calls == [1]
    with torch.autocast("cpu", torch.bfloat16):
        half = encoder(x)
        torch._dynamo.reset()
        for got, want in zip(torch.compile(encoder, backend="eager")(x), half, strict=True):
            torch.testing.assert_close(got, want, rtol=5e-2, atol=5e-2)
