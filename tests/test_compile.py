"""torch.compile and torch.export give what eager gives, at sizes they have not seen; torch.jit.script is refused."""

import io
from collections.abc import Callable
from dataclasses import replace

import pytest
import segmentation_models_pytorch as smp
import torch
from releases import DYNAMIC_EXPORT, older
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.export import Dim

import swinx
from swinx.config import SwinConfig
from swinx.stage import SwinStage

# Small, for the compiler's sake: a shifted block in the first stage, merges and dilation as everywhere.
SMALL = SwinConfig(16, (2, 1, 1, 1), (1, 2, 4, 8), 7, 0.0, stem="shared")
SIZES = [(2, 96, 128), (3, 67, 101), (5, 96, 64)]  # the first is traced; the others differ in everything


def encoder(stem: str = "shared", output_stride: int = 32, depth: int = 5, version: str = "v1") -> swinx.SwinXEncoder:
    torch.manual_seed(0)
    config = replace(SMALL, stem=stem, version=version)
    made = swinx.SwinXEncoder(config, output_stride=output_stride, depth=depth).eval()
    for name, parameter in made.named_parameters():
        if name.endswith(("norm1.weight", "norm2.weight")):  # which begin at zero in v2
            nn.init.ones_(parameter)
    return made


def images() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(batch, 3, height, width, generator=generator) for batch, height, width in SIZES]


def assert_same(got: list[Tensor], expected: list[Tensor], tolerance: float = 1e-5) -> None:
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch._dynamo.reset()


# A stem is done with when the first stage begins, so the others need no dilation; at 8 periods are 1, 1, 2 and 4.
@pytest.mark.parametrize(
    ("stem", "output_stride", "depth", "version"),
    [
        ("branch", 8, 5, "v1"), ("shared", 32, 2, "v1"), ("inline", 32, 2, "v1"), ("none", 32, 2, "v1"),
        ("shared", 32, 2, "v2"),
    ],
)  # fmt: skip
@torch.no_grad()
def test_one_graph_serves_every_image_size(stem: str, output_stride: int, depth: int, version: str) -> None:
    model, counter = encoder(stem, output_stride, depth, version), CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True, dynamic=True)
    for image in images():
        assert_same(compiled(image), model(image))
    assert counter.frame_count == 1


def test_one_graph_serves_training_at_every_image_size() -> None:
    model, counter = encoder(depth=3).train(), CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True, dynamic=True)
    for image in images():
        sum(level.square().mean() for level in compiled(image)[1:]).backward()
    assert counter.frame_count == 1


def test_inductor_equals_eager_forward_and_backward() -> None:
    """Of a dilated stage: a dense merge, a block and a shifted one. Compiling C++ for more takes minutes."""
    torch.manual_seed(0)
    stage = SwinStage(replace(SMALL, depths=(1, 2, 1, 1)).stages[1], merge=True)
    stage.set_period(1, 2)
    compiled = torch.compile(stage, fullgraph=True, dynamic=True)
    for batch, height, width in [(2, 17, 23), (3, 19, 13)]:
        grid = torch.randn(batch, height, width, 16, requires_grad=True)
        results = []
        for function in (compiled, stage):
            out = function(grid)
            results.append([out, *torch.autograd.grad(out.square().mean(), [grid, *stage.parameters()])])
        assert_same(*results, tolerance=1e-4)


@pytest.mark.parametrize("impl", ["reference", "sdpa"])
def test_the_operation_alone_compiles_at_a_fixed_size(impl: str) -> None:
    qkv, bias = torch.randn(1, 9, 11, 3, 2, 8), torch.randn(2, 20, 20)

    def attention(qkv: Tensor, bias: Tensor) -> Tensor:
        return swinx.window_attention(qkv, bias, window_size=(4, 5), shift=(2, 2), dilation=2, impl=impl)

    compiled = torch.compile(attention, dynamic=False, fullgraph=True)
    torch.testing.assert_close(compiled(qkv, bias), attention(qkv, bias))


@DYNAMIC_EXPORT
@pytest.mark.parametrize(
    ("stem", "output_stride", "depth", "version"),
    [("shared", 8, 5, "v1"), ("inline", 32, 2, "v1"), ("branch", 32, 2, "v1"), ("shared", 32, 2, "v2")],
)
@torch.no_grad()
def test_strict_export_with_dynamic_batch_height_and_width(
    stem: str, output_stride: int, depth: int, version: str
) -> None:
    model = encoder(stem, output_stride, depth, version)
    dynamic = {"x": {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}}
    program = torch.export.export(model, (images()[0],), dynamic_shapes=dynamic, strict=True)
    assert not [node for node in program.graph.nodes if "swinx" in str(node.target)]  # runs without swinx
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    loaded = torch.export.load(io.BytesIO(buffer.getvalue())).module()
    for image in images():
        assert_same(loaded(image), model(image))


@pytest.mark.parametrize("build", [encoder, lambda: smp.Unet("swinx_n", encoder_weights=None)], ids=["encoder", "Unet"])
def test_scripting_is_refused_with_what_to_use_instead(build: Callable[[], nn.Module]) -> None:
    with pytest.raises(
        NotImplementedError, match=r"not for torch\.jit\.script.*use torch\.export or torch\.jit\.trace"
    ):
        torch.jit.script(build())


@pytest.mark.parametrize("threads", [1, 2])
def test_a_trace_made_with_gradients_passes_its_check_and_has_gradients(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`auto` chooses by gradients and threads; the check of a trace runs without gradients."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    model, image = encoder(), images()[0]
    trace = torch.jit.trace(model, image)
    assert_same(trace(image), model(image))
    gradients = []
    for run in (trace, model):
        model.zero_grad()
        sum(level.square().mean() for level in run(image)[1:]).backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    assert_same(*gradients)


@torch.no_grad()
def test_a_whole_smp_model_compiles_and_exports() -> None:
    torch.manual_seed(0)
    swinx.register_encoder("for_test_compile", base="swinx_n", depths=(1, 2, 1, 1))
    model = smp.DeepLabV3Plus("for_test_compile", encoder_weights=None, classes=5).eval()
    image = torch.randn(2, 3, 96, 128)
    expected = model(image)
    strict = not older("torch", "2.11")  # torch 2.8 refuses numbers read from tensors of fixed value
    program = torch.export.export(model, (image,), strict=strict)
    torch.testing.assert_close(program.module()(image), expected, rtol=1e-4, atol=1e-4)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(image), expected, rtol=1e-4, atol=1e-4)
