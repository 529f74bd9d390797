"""The Triton kernels as an operator of torch: gradients, fakes, compiler, export, autocast, FLOPs, memory."""

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from kernel_cases import DEVICE, Case
from releases import KERNELS
from torch import Tensor, distributed
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import swinx

pytestmark = [KERNELS, pytest.mark.usefixtures("no_first_use")]

WINDOWS = [(4, 5), (9, 9)]  # one tile, several tiles


def rule(case: Case) -> dict:
    return {"window_size": case.window, "shift": case.shift, "dilation": case.dilation, "impl": "triton"}


def leaves(case: Case) -> list[Tensor]:
    return [tensor.detach().requires_grad_() for tensor in case.inputs()]


@pytest.mark.skipif(DEVICE == "cuda", reason="the kernels take float64 in the interpreter only")
@pytest.mark.parametrize(("window", "exhaustive"), [((1, 2), True), ((4, 5), False), ((9, 9), False)])
@pytest.mark.parametrize("cosine", [False, True])
def test_gradcheck(window: tuple[int, int], exhaustive: bool, cosine: bool) -> None:
    """All elements one by one where the window is small, else along random directions.

    The sweep holds all elements against the derivative that torch takes of the oracle; here torch's wiring is tried.
    """
    shift, width = (window[0] // 2, window[1] // 2), 3 if exhaustive else 4
    case = Case(1, width, window, shift, heads=1, head_dim=2, cosine=cosine, dtype=torch.float64)

    def attention(qkv: Tensor, bias: Tensor, pad: Tensor, scale: Tensor | None = None) -> Tensor:
        return swinx.window_attention(qkv, bias, pad_qkv=pad, cosine_scale=scale, **rule(case))

    assert torch.autograd.gradcheck(attention, leaves(case), fast_mode=not exhaustive)


@pytest.mark.parametrize(
    ("window", "attended", "cosine"),
    [((4, 5), True, False), ((4, 5), False, True), ((4, 5), True, True), ((9, 9), True, True)],
)
def test_opcheck(window: tuple[int, int], attended: bool, cosine: bool) -> None:
    case = Case(3, 4, window, (1, 2), heads=2, head_dim=3, attended=attended, cosine=cosine)
    inputs = [None if t is None else t.detach().requires_grad_() for t in case.inputs()]
    inputs += [None] * (not cosine)
    torch.library.opcheck(torch.ops.swinx.window_attention, (*inputs, list(window), [1, 2], 1))


@pytest.mark.parametrize(("window", "cosine"), [((4, 5), False), ((4, 5), True), ((9, 9), True)])
def test_opcheck_of_the_backward_operator(window: tuple[int, int], cosine: bool) -> None:
    inputs = Case(3, 4, window, (1, 2), heads=2, head_dim=3, cosine=cosine).inputs() + [None] * (not cosine)
    operator = torch.ops.swinx.window_attention
    out, lse = operator(*inputs, list(window), [1, 2], 1)
    saved = (out, lse) if lse.numel() else (None, None)
    arguments = (torch.ones_like(out), *inputs, *saved, list(window), [1, 2], 1)
    # It has no derivative of its own: a second derivative is refused.
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.swinx.window_attention_backward, arguments, test_utils=tests)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2)])
def test_gradients_of_some_inputs_alone(wanted: tuple[int, ...]) -> None:
    case = Case(3, 7, (4, 5), (1, 2), heads=1)
    complete = leaves(case)
    swinx.window_attention(complete[0], complete[1], pad_qkv=complete[2], **rule(case)).sum().backward()
    inputs = case.inputs()
    for index in wanted:
        inputs[index].requires_grad_()
    swinx.window_attention(inputs[0], inputs[1], pad_qkv=inputs[2], **rule(case)).sum().backward()
    for index, tensor in enumerate(inputs):
        assert (tensor.grad is not None) == (index in wanted)
        assert tensor.grad is None or torch.equal(tensor.grad, complete[index].grad)


def test_forward_mode_is_refused_not_wrong() -> None:
    case = Case(5, 4, (4, 5), heads=1)
    qkv, bias, pad = case.inputs()
    with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
        torch.func.jvp(
            lambda t: swinx.window_attention(t, bias, pad_qkv=pad, **rule(case)), (qkv,), (torch.ones_like(qkv),)
        )


@pytest.mark.skipif(DEVICE == "cuda", reason="the kernels take float64 in the interpreter only")
def test_autocast_leaves_float64_alone() -> None:
    case = Case(5, 4, (4, 5), heads=1, dtype=torch.float64)
    qkv, bias, pad = case.inputs()
    plain = swinx.window_attention(qkv, bias, pad_qkv=pad, **rule(case))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(swinx.window_attention(qkv, bias, pad_qkv=pad, **rule(case)), plain)


def test_a_second_derivative_is_refused_not_wrong() -> None:
    case = Case(5, 4, (4, 5), heads=1)
    qkv, bias, pad = leaves(case)
    out = swinx.window_attention(qkv, bias, pad_qkv=pad, **rule(case))
    (gradient,) = torch.autograd.grad(out.square().sum(), qkv, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        gradient.sum().backward()


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("sizes", [[(2, 4, 7), (3, 2, 5)], [(1, 4, 5), (1, 11, 10)]])  # the last two: 1 and 4 windows
def test_one_graph_for_every_size_forward_and_backward(
    window: tuple[int, int], sizes: list[tuple[int, int, int]]
) -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    def attention(qkv: Tensor, bias: Tensor, pad: Tensor) -> Tensor:
        return swinx.window_attention(qkv, bias, window_size=window, shift=(1, 2), pad_qkv=pad, impl="triton")

    compiled = torch.compile(attention, backend=counter, fullgraph=True, dynamic=True)
    for batch, height, width in sizes:  # torch compiles a batch of 1 apart, and equal sizes
        case = Case(height, width, window, (1, 2), batch=batch, heads=1)
        eager = case.run("triton", case.inputs(), torch.ones(batch, height, width, 16, device=DEVICE))
        inputs = leaves(case)
        out = compiled(*inputs)
        out.sum().backward()
        assert torch.equal(out.detach().double().cpu(), eager["out"])
        for tensor, name in zip(inputs, ("qkv", "bias", "pad_qkv"), strict=True):
            assert torch.equal(tensor.grad.double().cpu(), eager[name])
    assert counter.frame_count == 1


def test_export_with_dynamic_sizes() -> None:
    class Attention(torch.nn.Module):
        def forward(self, qkv: Tensor, bias: Tensor, pad: Tensor) -> Tensor:
            return swinx.window_attention(qkv, bias, window_size=(4, 5), shift=(2, 2), pad_qkv=pad, impl="triton")

    case = Case(4, 7, (4, 5), (2, 2), batch=2)
    sizes = {0: Dim("batch"), 1: Dim("height"), 2: Dim("width")}
    program = torch.export.export(Attention(), tuple(case.inputs()), dynamic_shapes=(sizes, None, None), strict=True)
    assert "swinx.window_attention" in program.graph_module.code
    other = Case(5, 4, (4, 5), (2, 2), batch=3).inputs()
    assert torch.equal(program.module()(*other), Attention()(*other))


@pytest.mark.parametrize("window", WINDOWS)
def test_autocast_lowers_qkv_and_keeps_the_bias(window: tuple[int, int]) -> None:
    """float16 on the CPU too: the interpreter multiplies bfloat16 wrongly."""
    case = Case(3, 7, window, (1, 2), heads=1)
    inputs = leaves(case)
    with torch.autocast(DEVICE, torch.float16):
        out = swinx.window_attention(inputs[0], inputs[1], pad_qkv=inputs[2], **rule(case))
    assert out.dtype == torch.float16
    lowered = leaves(case)
    half = swinx.window_attention(lowered[0].half(), lowered[1], pad_qkv=lowered[2], **rule(case))
    assert torch.equal(out, half)
    out.float().square().sum().backward()
    half.float().square().sum().backward()
    for tensor, other in zip(inputs, lowered, strict=True):
        assert tensor.grad.dtype == torch.float32
        assert torch.equal(tensor.grad, other.grad)


def test_flops_are_those_of_the_products() -> None:
    """Padded windows times heads times N * N * D, 2 products forward and 5 backward."""
    case = Case(6, 7, (4, 5), (1, 2), dilation=2, batch=2)
    inputs = leaves(case)
    windows = 2 * 4 * math.ceil(3 / 4) * math.ceil(4 / 5)
    product = 2 * windows * 2 * 20 * 20 * 16
    with FlopCounterMode(display=False) as counter:
        out = swinx.window_attention(inputs[0], inputs[1], pad_qkv=inputs[2], **rule(case))
        assert counter.get_total_flops() == 2 * product
        out.sum().backward()
    assert counter.get_total_flops() == 7 * product


@pytest.mark.parametrize("window", WINDOWS)
def test_checkpointing_and_inference_mode_change_no_bit(window: tuple[int, int]) -> None:
    case = Case(3, 7, window, (1, 2), heads=1)
    plain, kept = leaves(case), leaves(case)

    def attention(qkv: Tensor, bias: Tensor, pad: Tensor) -> Tensor:
        return swinx.window_attention(qkv, bias, pad_qkv=pad, **rule(case))

    out = attention(*plain)
    out.sum().backward()
    checkpoint(attention, *kept, use_reentrant=False).sum().backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(plain, kept, strict=True))
    with torch.inference_mode():
        assert torch.equal(attention(*case.inputs()), out)


def test_distributed_data_parallel_changes_no_gradient(tmp_path: Path) -> None:
    class Attention(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias, self.pad = (torch.nn.Parameter(tensor) for tensor in case.inputs()[1:])

        def forward(self, qkv: Tensor) -> Tensor:
            return swinx.window_attention(qkv, self.bias, pad_qkv=self.pad, **rule(case))

    case = Case(3, 7, (4, 5), (1, 2), heads=1)
    qkv = case.inputs()[0]
    alone, parallel = Attention(), Attention()
    alone(qkv).square().sum().backward()
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        DistributedDataParallel(parallel)(qkv).square().sum().backward()
    finally:
        distributed.destroy_process_group()
    for ours, theirs in zip(parallel.parameters(), alone.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


@pytest.mark.parametrize(("window", "keeps_results"), [((7, 7), False), ((9, 9), True)])
def test_what_is_saved_for_backward(window: tuple[int, int], keeps_results: bool) -> None:
    """The inputs alone; for windows of several tiles also the result (which a projection keeps anyway) and lse."""
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.numel() * tensor.itemsize
        return tensor

    case = Case(window[0] + 1, window[1], window, (2, 1), dtype=torch.float16)
    inputs = leaves(case)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = swinx.window_attention(inputs[0], inputs[1], pad_qkv=inputs[2], **rule(case))
    lse_bytes = 4 * 2 * 2 * 81  # two heads, and two windows with padding
    expected = sum(t.numel() * t.itemsize for t in inputs) + keeps_results * (out.numel() * out.itemsize + lse_bytes)
    assert sum(saved.values()) == expected


def test_the_raw_operator_makes_channels_contiguous() -> None:
    qkv, bias, pad = Case(3, 6, (4, 5)).inputs()
    operator = torch.ops.swinx.window_attention
    turned = qkv.transpose(4, 5).contiguous().transpose(4, 5)
    results = []
    for given in (qkv, turned):
        leaf = given.detach().requires_grad_()
        out, _ = operator(leaf, bias, pad, None, [4, 5], [0, 0], 1)
        results.append((out, *torch.autograd.grad(out.square().sum(), leaf)))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"bias": torch.zeros(2, 19, 20)}, ValueError, r"bias must be \(heads, N, N\) = \(2, 20, 20\), got shape"),
        ({"pad": torch.zeros(3, 2, 15)}, ValueError, r"pad_qkv must be \(3, heads, head_dim\) = \(3, 2, 16\)"),
        ({"scale": torch.zeros(3)}, ValueError, r"cosine_scale must be \(heads,\) = \(2,\), got shape \(3,\)"),
        ({"bias": torch.zeros(2, 20, 20, dtype=torch.int64)}, ValueError, "bias must have a floating dtype"),
        ({"shift": [4, 0]}, ValueError, "shift must be at least 0 and below window_size"),
        ({"dilation": 0}, ValueError, "dilation must be an integer from 1 to 64, got 0"),
        ({"qkv": torch.zeros(1, 6, 7, 2, 2, 16)}, ValueError, r"qkv must be \(B, H, W, 3, heads, head_dim\)"),
        ({"qkv": torch.zeros(1, 6, 7, 3, 2, 129)}, NotImplementedError, "head_dim of up to 128, got 129"),
    ],
)
def test_the_raw_operator_refuses_what_does_not_belong_together(
    changes: dict, error: type[Exception], message: str
) -> None:
    """Before any kernel starts, which would read memory that is not there."""
    qkv, bias, pad = Case(6, 7, (4, 5)).inputs()
    given = {"qkv": qkv, "bias": bias, "pad": pad, "scale": None, "shift": [0, 0], "dilation": 1}
    given |= {name: value.to(DEVICE) if isinstance(value, Tensor) else value for name, value in changes.items()}
    if given["qkv"].shape[-1] == 129:
        given["pad"] = None
    with pytest.raises(error, match=message):
        torch.ops.swinx.window_attention(
            given["qkv"], given["bias"], given["pad"], given["scale"], [4, 5], given["shift"], given["dilation"]
        )


def test_the_raw_backward_operator_refuses_results_of_another_shape() -> None:
    qkv, bias, pad = Case(6, 7, (9, 9)).inputs()
    out, lse = torch.ops.swinx.window_attention(qkv, bias, pad, None, [9, 9], [0, 0], 1)
    backward = torch.ops.swinx.window_attention_backward
    for grad, saved, name, shape in [
        (out[:, 1:], (out, lse), "grad_out", (1, 6, 7, 32)),
        (out, (None, lse), "out", (1, 6, 7, 32)),
        (out, (out, None), "lse", (2, 81)),
        (out, (out, lse.mT), "lse", (2, 81)),
    ]:
        with pytest.raises(ValueError, match=rf"^{name} must have shape {re.escape(str(shape))}, got "):
            backward(grad, qkv, bias, pad, None, *saved, [9, 9], [0, 0], 1)
    with pytest.raises(ValueError, match=r"lse must be torch\.float32 on .*, got torch\.float64"):
        backward(out, qkv, bias, pad, None, out, lse.double(), [9, 9], [0, 0], 1)


def test_saved_results_may_come_back_with_other_strides() -> None:
    """As hooks on saved tensors may give them."""
    case = Case(3, 10, (9, 9), (2, 1))
    gradients = []
    for turned in (lambda tensor: tensor, lambda tensor: tensor.mT.contiguous().mT if tensor.ndim < 6 else tensor):
        inputs = leaves(case)
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, turned):
            out = swinx.window_attention(inputs[0], inputs[1], pad_qkv=inputs[2], **rule(case))
            gradients.append(torch.autograd.grad(out.square().sum(), inputs))
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


@pytest.mark.parametrize("setting", ["legacy", "matmul", "all"])
def test_both_ways_to_allow_tf32_are_heard(setting: str) -> None:
    """In a process of its own: torch refuses the old name once the new one was used."""
    code = """
import torch
from swinx.attention.triton.parameters import precision
assert precision(torch.float32, torch.device("cuda")) == "tf32x3"
SET
assert precision(torch.float32, torch.device("cuda")) == "tf32"
assert precision(torch.float16, torch.device("cuda")) == precision(torch.float32, torch.device("cpu")) == "ieee"
"""
    allow = {
        "legacy": "torch.set_float32_matmul_precision('high')",
        "matmul": "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
        "all": "torch.backends.fp32_precision = 'tf32'",
    }
    if setting != "legacy" and not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        pytest.skip("this torch has the old name only")
    subprocess.run([sys.executable, "-c", code.replace("SET", allow[setting])], check=True)
