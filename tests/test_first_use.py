"""Who gets the kernels: the environment, and a first use that may fail. In the interpreter or on a GPU."""

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from kernel_cases import DEVICE, DTYPES, Case
from releases import KERNELS
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import swinx
from swinx.attention import backends
from swinx.attention.triton import first_use, launch, parameters, trial
from swinx.windows import WindowGeometry, needs_padding

pytestmark = KERNELS
CASE = Case(3, 6, (4, 5), (2, 1), heads=1)
TRIALS = trial.trials
KIND = (
    r"impl='triton': the kernels do not work on \w+.* for torch.float32, windows of 4 x 5, head_dim 16, scaled scores"
)
CHECK = "`python -m swinx.attention.check`"
NO_COMPILER = "Failed to find C compiler. Please specify via CC environment variable or set triton.knobs.build.impl."


@pytest.fixture(autouse=True)
def nothing_tried(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """And one small input is tried in place of three."""
    monkeypatch.setattr(trial, "trials", lambda *case: TRIALS(*case)[:1])
    tried, warned = dict(first_use._tried), set(first_use._warned)
    first_use._tried.clear()
    first_use._warned.clear()
    yield
    first_use._tried.clear()
    first_use._tried.update(tried)
    first_use._warned.clear()
    first_use._warned.update(warned)


@pytest.fixture
def wished(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWINX_ATTENTION", "triton")


def attention(impl: str, inputs: list[Tensor]) -> Tensor:
    qkv, bias, pad = inputs
    return swinx.window_attention(qkv, bias, pad_qkv=pad, window_size=(4, 5), shift=(2, 1), impl=impl)


class Attention(torch.nn.Module):
    def forward(self, *inputs: Tensor) -> Tensor:
        return attention("auto", list(inputs))


def count_launches(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    seen: list[torch.Size] = []
    plain = launch.forward

    def forward(qkv: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        seen.append(qkv.shape)
        return plain(qkv, *rest)

    monkeypatch.setattr(launch, "forward", forward)
    return seen


def test_the_environment_chooses_in_place_of_auto(monkeypatch: pytest.MonkeyPatch, wished: None) -> None:
    monkeypatch.setattr(trial, "trials", TRIALS)
    inputs = CASE.inputs()
    seen = count_launches(monkeypatch)
    assert torch.equal(attention("auto", inputs), attention("triton", inputs))
    assert len(seen) == 3 + 1 + 1  # three small inputs tried, for both choices, then the two calls
    attention("auto", inputs)
    assert len(seen) == 6  # nothing is tried twice
    attention("reference", inputs)
    assert len(seen) == 6  # what the program says goes before the environment
    monkeypatch.setenv("SWINX_ATTENTION", "sdpa")
    assert torch.equal(attention("auto", inputs), attention("sdpa", inputs))
    monkeypatch.setenv("SWINX_ATTENTION", "auto")
    attention("auto", inputs)
    assert len(seen) == 6
    monkeypatch.setenv("SWINX_ATTENTION", "flash")
    message = "SWINX_ATTENTION must be one of auto, reference, sdpa, triton, got 'flash'"
    with pytest.raises(ValueError, match=message):
        attention("auto", inputs)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_trained_is_tried_with_its_gradients(
    monkeypatch: pytest.MonkeyPatch, wished: None, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(trial, "trials", TRIALS)
    inputs = [tensor.requires_grad_() for tensor in replace(CASE, dtype=dtype).inputs()]
    assert torch.equal(attention("auto", inputs), attention("triton", inputs))
    assert list(first_use._tried.values()) == [None]


def test_another_precision_of_float32_products_is_tried_anew(monkeypatch: pytest.MonkeyPatch, wished: None) -> None:
    """It takes other kernels. Which settings of torch allow which, test_triton_operator says."""
    inputs = CASE.inputs()
    for precision, tried in (("ieee", 1), ("tf32", 2), ("ieee", 2)):
        monkeypatch.setattr(parameters, "precision", lambda dtype, device, chosen=precision: chosen)
        attention("auto", inputs)
        assert len(first_use._tried) == tried


def test_set_attention_goes_before_the_environment(monkeypatch: pytest.MonkeyPatch, wished: None) -> None:
    config = swinx.SwinConfig(16, (1, 1, 1, 1), (1, 1, 2, 2), 4, 0.0)
    model = swinx.SwinXEncoder(config).eval().to(DEVICE)
    image = torch.randn(1, 3, 32, 32, device=DEVICE)
    seen = count_launches(monkeypatch)
    swinx.set_attention(model, "reference")
    model(image)
    assert not seen
    swinx.set_attention(model, "auto")
    with torch.no_grad():
        model(image)
    assert torch.Size([1, 8, 8, 3, 1, 16]) in seen


def assert_gives_way(monkeypatch: pytest.MonkeyPatch, warning: str) -> tuple[list[Tensor], Tensor]:
    """The environment asks for kernels that fail: one warning, then none. Returns inputs and result."""
    inputs = [tensor.requires_grad_() for tensor in CASE.inputs()]
    with pytest.warns(UserWarning, match=warning) as caught:
        out = attention("auto", inputs)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(attention("auto", inputs), out)
    monkeypatch.delenv("SWINX_ATTENTION")
    assert torch.equal(attention("auto", inputs), out)
    return inputs, out


@pytest.mark.parametrize("failing", ["forward", "backward"])
def test_a_kernel_that_cannot_start_gives_way_with_one_warning(
    monkeypatch: pytest.MonkeyPatch, wished: None, failing: str
) -> None:
    def fails(*call: Any) -> None:
        raise RuntimeError(NO_COMPILER)

    monkeypatch.setattr(launch, failing, fails)
    assert_gives_way(monkeypatch, "kernels do not work here.*Failed to find C compiler")


@pytest.mark.parametrize("failing", ["forward", "backward"])
def test_a_kernel_that_cannot_start_is_an_error_where_it_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """Before anything is computed: a backward kernel that cannot start is not left to the backward pass."""
    seen: list[int] = []

    def fails(*call: Any) -> None:
        seen.append(0)
        raise RuntimeError(NO_COMPILER)

    monkeypatch.setattr(launch, failing, fails)
    inputs = [tensor.requires_grad_() for tensor in CASE.inputs()]
    for _ in range(2):
        with pytest.raises(RuntimeError, match=f"{KIND}, with gradients: RuntimeError: {NO_COMPILER[:25]}.*{CHECK}"):
            attention("triton", inputs)
    assert len(seen) == 1  # the failure is kept


def break_kernel(
    monkeypatch: pytest.MonkeyPatch,
    failing: str,
    factor: float = 1.01,
    where: Callable[[WindowGeometry], bool] = lambda geometry: True,
) -> None:
    """Results of the forward or the backward kernel are multiplied in the last row, in some geometries only."""
    plain = getattr(launch, failing)

    def wrong(*call: Any) -> tuple[Tensor, ...]:
        first, *rest = plain(*call)
        if where(call[-1]):
            first[:, -1] *= factor
        return first, *rest

    monkeypatch.setattr(launch, failing, wrong)


@pytest.mark.parametrize("failing", ["forward", "backward"])
@pytest.mark.parametrize("factor", [1.01, math.nan])
def test_a_kernel_that_is_wrong_gives_way_with_one_warning(
    monkeypatch: pytest.MonkeyPatch, wished: None, failing: str, factor: float
) -> None:
    break_kernel(monkeypatch, failing, factor)
    inputs, out = assert_gives_way(monkeypatch, r"their error is .* times the one allowed")
    assert torch.equal(attention("reference" if DEVICE == "cpu" else "sdpa", inputs), out)


@pytest.mark.parametrize("failing", ["forward", "backward"])
def test_a_kernel_that_is_wrong_is_an_error_where_it_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    inputs = [tensor.requires_grad_() for tensor in CASE.inputs()]
    break_kernel(monkeypatch, failing)
    seen = count_launches(monkeypatch)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=rf"{KIND}, with gradients: their error is \d.* times the one .*{CHECK}"):
            attention("triton", inputs)
    assert len(seen) == 1
    if failing == "backward":  # what is not trained has no use for it
        with torch.no_grad():
            torch.testing.assert_close(attention("triton", inputs), attention("reference", inputs))
    else:
        with torch.no_grad(), pytest.raises(RuntimeError, match=f"{KIND}, without gradients"):
            attention("triton", inputs)


@pytest.mark.parametrize(
    "where",
    [
        lambda geometry: geometry.shift[0] > 0,
        lambda geometry: geometry.shift[1] > 0,
        lambda geometry: geometry.dilation > 1,
        needs_padding,
    ],
    ids=["shifted down", "shifted right", "dilated", "padded"],
)
def test_a_kernel_that_is_wrong_in_some_windows_only_is_found(
    monkeypatch: pytest.MonkeyPatch, where: Callable[[WindowGeometry], bool]
) -> None:
    monkeypatch.setattr(trial, "trials", TRIALS)
    break_kernel(monkeypatch, "forward", where=where)
    with torch.no_grad(), pytest.raises(RuntimeError, match=f"{KIND}, without gradients: their error"):
        attention("triton", CASE.inputs())


def test_a_model_that_asked_for_wrong_kernels_gets_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    config = swinx.SwinConfig(16, (1, 1, 1, 1), (1, 1, 2, 2), 4, 0.0)
    model = swinx.SwinXEncoder(config).eval().to(DEVICE)
    swinx.set_attention(model, "triton")
    break_kernel(monkeypatch, "forward")
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"kernels do not work on .* windows of 4 x 4, head_dim 16"):
        model(torch.randn(1, 3, 32, 32, device=DEVICE))


def test_the_operator_itself_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    qkv, bias, pad = CASE.inputs()
    break_kernel(monkeypatch, "forward")
    out, _ = torch.ops.swinx.window_attention(qkv, bias, pad, None, [4, 5], [2, 1], 1)
    expected = attention("reference", [qkv, bias, pad])
    assert not torch.allclose(out[:, -1], expected[:, -1])
    torch.testing.assert_close(out[:, :-1], expected[:, :-1])
    assert not first_use._tried


def test_what_the_kernels_do_not_take_gives_way_with_one_warning(wished: None) -> None:
    tokens = 17 * 4
    qkv, bias = torch.randn(1, 18, 5, 3, 1, 16, device=DEVICE), torch.zeros(1, tokens, tokens, device=DEVICE)
    with pytest.warns(
        UserWarning, match=r"SWINX_ATTENTION=triton gives way to auto's choice: .*up to 16 tokens a side"
    ):
        out = swinx.window_attention(qkv, bias, window_size=(17, 4))
    torch.testing.assert_close(out, swinx.window_attention(qkv, bias, window_size=(17, 4), impl="reference"))


@pytest.mark.parametrize("impl", ["auto", "triton"])
def test_nothing_is_tried_in_traced_code(monkeypatch: pytest.MonkeyPatch, wished: None, impl: str) -> None:
    seen = count_launches(monkeypatch)
    inputs = CASE.inputs()
    compiled = torch.compile(attention, backend="eager", fullgraph=True)
    compiled(impl, inputs)
    assert len(seen) == 1
    if impl == "triton":  # auto takes other operations in traces
        trace = torch.jit.trace(lambda *given: attention(impl, list(given)), tuple(inputs), check_trace=False)
        assert "swinx::window_attention" in str(trace.inlined_graph)
        assert len(seen) == 2
    assert not first_use._tried
    attention(impl, inputs)
    assert len(first_use._tried) == 1


def test_nothing_is_tried_during_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    """auto then takes what it knows to work; the kernels run where they were asked for."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    case = backends.Case(torch.device("cuda"), torch.float16, (7, 7), 32, recording=False)
    with pytest.warns(UserWarning, match="while a CUDA graph is captured"):
        assert not backends._triton_works(case)
    backends._require_triton(case)
    assert not first_use._tried
    first_use._tried[case, "ieee"] = "it was broken"
    with pytest.raises(RuntimeError, match="it was broken"):
        backends._require_triton(case)


def test_compiled_code_takes_nothing_that_has_failed_here(monkeypatch: pytest.MonkeyPatch, wished: None) -> None:
    """Sizes may be symbols there, of which nothing must be asked."""
    inputs = CASE.inputs()

    def compiled() -> Tensor:
        torch._dynamo.reset()
        return torch.compile(attention, backend="eager", fullgraph=True, dynamic=True)("auto", inputs)

    expected = attention("triton", inputs)
    seen = count_launches(monkeypatch)
    assert torch.equal(compiled(), expected)
    assert len(seen) == 1
    other = backends.Case(inputs[0].device, torch.float32, (7, 7), 32, recording=False)
    first_use._tried[other, "tf32x3"] = "it was broken"
    torch.testing.assert_close(compiled(), attention("reference", inputs))
    assert len(seen) == 1


def test_traces_hold_operations_of_torch(wished: None) -> None:
    inputs = CASE.inputs()
    with pytest.warns(UserWarning, match="exports, traces and transformations hold torch's own operations"):
        trace = torch.jit.trace(lambda *given: attention("auto", list(given)), tuple(inputs))
    assert "swinx::window_attention" not in str(trace.inlined_graph)
    exported = torch.export.export(Attention(), tuple(inputs))
    assert "swinx.window_attention" not in str(exported.graph)


@pytest.mark.parametrize("mode", ["checkpoint", "default device", "autocast", "saved on the CPU"])
def test_a_first_use_knows_nothing_of_the_modes_around_it(wished: None, mode: str) -> None:
    inputs = [tensor.requires_grad_() for tensor in CASE.inputs()]
    expected = torch.autograd.grad(attention("triton", inputs).square().sum(), inputs)
    first_use._tried.clear()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*kernels do not work.*")
        if mode == "checkpoint":
            out = checkpoint(lambda *given: attention("auto", list(given)), *inputs, use_reentrant=False)
        elif mode == "default device":
            with torch.device("meta"):
                out = attention("auto", inputs)
        elif mode == "autocast":
            with torch.autocast(DEVICE, dtype=torch.float16):
                attention("auto", inputs)
            out = attention("auto", inputs)
        else:
            with torch.autograd.graph.save_on_cpu():
                out = attention("auto", inputs)
        gradients = torch.autograd.grad(out.square().sum(), inputs)
    assert all(torch.equal(one, other) for one, other in zip(gradients, expected, strict=True))
    assert set(first_use._tried.values()) == {None}


def test_nothing_is_tried_under_a_dispatch_mode() -> None:
    inputs = CASE.inputs()
    with FlopCounterMode(display=False):
        out = attention("triton", inputs)
    assert not first_use._tried
    assert torch.equal(attention("triton", inputs), out)
    assert len(first_use._tried) == 1


def test_memory_that_ran_out_once_is_tried_again(monkeypatch: pytest.MonkeyPatch, wished: None) -> None:
    inputs, plain = CASE.inputs(), launch.forward

    def fails(*call: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(launch, "forward", fails)
    with pytest.warns(UserWarning, match="CUDA out of memory"):
        attention("auto", inputs)
    monkeypatch.setattr(launch, "forward", plain)
    assert torch.equal(attention("auto", inputs), attention("triton", inputs))


def test_nothing_is_asked_of_a_driver_that_is_not_there() -> None:
    with FakeTensorMode():
        qkv = torch.empty(1, 5, 4, 3, 2, 8, device="cuda")
        out = swinx.window_attention(qkv, torch.empty(2, 6, 6, device="cuda"), window_size=(2, 3))
    assert out.shape == (1, 5, 4, 16)


def test_trying_changes_no_random_numbers_and_no_modes(wished: None) -> None:
    inputs = CASE.inputs()
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    with torch.inference_mode():
        attention("auto", inputs)
        assert torch.is_inference_mode_enabled()
    assert torch.equal(torch.rand(4), expected)
    assert list(first_use._tried.values()) == [None]


def test_every_name_is_a_choice() -> None:
    assert set(backends.BACKENDS) == set(swinx.attention.IMPLEMENTATIONS) - {"auto"}
