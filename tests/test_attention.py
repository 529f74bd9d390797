"""window_attention against the loop-by-loop oracle, and its contract."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from oracles import naive_window_attention
from torch import Tensor

import swinx
from swinx import windows
from swinx.attention import api, backends, reference
from swinx.attention.contract import MAX_DILATION
from swinx.attention.triton import first_use, records, support
from swinx.config import VARIANTS

IMPLEMENTATIONS = ["reference", "sdpa"]
# (height, width, window, shift, dilation): grids below, at and above the window, distinct primes, ragged lattices.
GEOMETRIES = [
    (1, 1, (4, 4), (0, 0), 1),
    (1, 13, (4, 4), (0, 2), 1),
    (3, 5, (4, 4), (2, 2), 1),
    (4, 4, (4, 4), (0, 0), 1),
    (13, 17, (4, 5), (2, 2), 1),
    (13, 17, (4, 5), (0, 3), 2),
    (17, 13, (7, 7), (3, 3), 1),
    (17, 13, (7, 7), (3, 3), 2),
    (29, 11, (3, 4), (1, 2), 3),
    (11, 23, (2, 3), (1, 1), 4),
    (1, 2, (4, 4), (0, 0), 4),
    (8, 12, (4, 4), (2, 2), 1),
]


def choose(
    impl: str,
    device: torch.device,
    dtype: torch.dtype,
    window: tuple[int, int],
    head_dim: int,
    recording: bool,
    **more: bool,
) -> str:
    return backends.resolve_implementation(impl, backends.Case(device, dtype, window, head_dim, recording, **more))


def inputs(height: int, width: int, window: tuple[int, int], pad: bool, batch: int = 2) -> list[Tensor | None]:
    generator = torch.Generator().manual_seed(height * 31 + width)
    heads, head_dim, tokens = 3, 5, window[0] * window[1]

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    qkv = random(batch, height, width, 3, heads, head_dim)
    return [qkv, 2 * random(heads, tokens, tokens), random(3, heads, head_dim) if pad else None]


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("pad", [True, False], ids=["attended", "masked"])
@pytest.mark.parametrize(("height", "width", "window", "shift", "dilation"), GEOMETRIES)
def test_output_and_gradients_equal_the_oracle(
    height: int, width: int, window: tuple[int, int], shift: tuple[int, int], dilation: int, pad: bool, impl: str
) -> None:
    ours = [t if t is None else t.clone().requires_grad_() for t in inputs(height, width, window, pad)]
    oracle = [t if t is None else t.clone().requires_grad_() for t in inputs(height, width, window, pad)]
    out = swinx.window_attention(
        ours[0], ours[1], window_size=window, shift=shift, dilation=dilation, pad_qkv=ours[2], impl=impl
    )
    expected = naive_window_attention(oracle[0], oracle[1], window, shift, dilation, oracle[2])
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    cotangent = torch.randn_like(expected)
    (out * cotangent).sum().backward()
    (expected * cotangent).sum().backward()
    for mine, theirs in zip(ours, oracle, strict=True):
        if mine is not None:
            expected_grad = torch.zeros_like(theirs) if theirs.grad is None else theirs.grad
            got = torch.zeros_like(mine) if mine.grad is None else mine.grad
            torch.testing.assert_close(got, expected_grad, rtol=0, atol=1e-11)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_strided_qkv_gives_what_contiguous_qkv_gives(impl: str) -> None:
    qkv, bias, pad = inputs(13, 17, (4, 5), True)
    transposed = qkv.permute(3, 2, 1, 4, 0, 5).contiguous().permute(4, 2, 1, 0, 3, 5)
    assert transposed.stride() != qkv.stride()
    wide = torch.cat([qkv, qkv.flip(2)], dim=2)[:, :, :17]
    for variant in (transposed, wide):
        out = swinx.window_attention(variant, bias, window_size=(4, 5), shift=(2, 1), pad_qkv=pad, impl=impl)
        expected = swinx.window_attention(qkv, bias, window_size=(4, 5), shift=(2, 1), pad_qkv=pad, impl=impl)
        assert torch.equal(out, expected)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("shape", [(0, 5, 7), (2, 0, 7), (2, 5, 0)])
def test_empty_batch_and_empty_grid_give_empty_results(shape: tuple[int, int, int], impl: str) -> None:
    out = swinx.window_attention(torch.empty(*shape, 3, 2, 4), torch.zeros(2, 9, 9), window_size=(3, 3), impl=impl)
    assert out.shape == (*shape, 8)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("pad", [True, False], ids=["attended", "masked"])
def test_nan_stays_in_its_window(pad: bool, impl: str) -> None:
    qkv, bias, fill = inputs(13, 17, (4, 5), pad)
    clean = swinx.window_attention(qkv, bias, window_size=(4, 5), shift=(2, 2), pad_qkv=fill, impl=impl)
    qkv[0, 3, 7] = float("nan")
    dirty = swinx.window_attention(qkv, bias, window_size=(4, 5), shift=(2, 2), pad_qkv=fill, impl=impl)
    touched = dirty.isnan().any(-1)
    # Shift 2 starts windows at rows 2, 6, 10 and columns 2, 7, 12.
    expected = torch.zeros(2, 13, 17, dtype=torch.bool)
    expected[0, 2:6, 7:12] = True
    assert torch.equal(touched, expected)
    torch.testing.assert_close(dirty[~touched], clean[~touched], rtol=0, atol=1e-14)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_same_inputs_give_the_same_bits(impl: str) -> None:
    qkv, bias, fill = (t.float().requires_grad_() for t in inputs(29, 17, (7, 7), True))
    results = []
    for _ in range(5):
        out = swinx.window_attention(qkv, bias, window_size=(7, 7), shift=(3, 3), pad_qkv=fill, impl=impl)
        results.append([out, *torch.autograd.grad(out.square().sum(), (qkv, bias, fill))])
    for later in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], later, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_error_stays_within_twice_that_of_the_reference(dtype: torch.dtype) -> None:
    qkv, bias, fill = inputs(29, 17, (7, 7), True)
    exact = naive_window_attention(qkv, bias, (7, 7), (3, 3), 1, fill)
    errors = {}
    for impl in IMPLEMENTATIONS:
        out = swinx.window_attention(
            qkv.to(dtype), bias.to(dtype), window_size=(7, 7), shift=(3, 3), pad_qkv=fill.to(dtype), impl=impl
        )
        assert out.dtype == dtype
        errors[impl] = (out.double() - exact).abs().max()
    band = torch.finfo(dtype).eps * exact.abs().max()
    assert errors["sdpa"] <= 2 * errors["reference"] + band
    assert errors["reference"] <= 32 * band  # inputs rounded once, products of a few dozen terms


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_softmax_of_the_reference_is_not_in_low_precision(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, 2, 35, 16, generator=generator).to(dtype) for _ in range(3))
    bias, visible = 8 * torch.randn(2, 35, 35, generator=generator), torch.rand(3, 35, 35, generator=generator) < 0.7
    scores = torch.matmul(q * 0.25, k.transpose(-2, -1)).double() + bias.double()
    probabilities = scores.masked_fill(~visible[:, None], float("-inf")).softmax(-1)
    error = (reference.attention(q, k, v, bias, visible, 0.25).double() - probabilities @ v.double()).abs()
    # Probabilities and their sum are rounded once each, by half an eps at most; very small ones by more.
    assert (error <= torch.finfo(dtype).eps * (probabilities @ v.double().abs()) + 1e-5).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"qkv": torch.zeros(2, 5, 7, 3, 2)}, "qkv must be"),
        ({"qkv": torch.zeros(2, 5, 7, 2, 2, 4)}, "qkv must be"),
        (
            {"qkv": torch.zeros(2, 5, 7, 3, 2, 4, dtype=torch.int64)},
            "qkv must have a floating dtype of .* bits, got torch.int64",
        ),
        ({"bias": torch.zeros(2, 9, 8)}, r"bias must be .* = \(2, 9, 9\), got shape \(2, 9, 8\)"),
        ({"bias": torch.zeros(3, 9, 9)}, "bias must be"),
        ({"bias": torch.zeros(2, 9, 9, dtype=torch.int32)}, "bias must have a floating dtype"),
        ({"bias": torch.zeros(2, 9, 9, device="meta")}, "bias must be on the device of qkv, cpu, got meta"),
        ({"window_size": (0, 3)}, "window_size must be positive"),
        ({"window_size": (3,)}, "window_size must be two integers"),
        ({"window_size": (3.0, 3)}, "window_size must be two integers"),
        ({"shift": (3, 0)}, r"below window_size \(3, 3\) along each axis, got \(3, 0\)"),
        ({"shift": (-1, 0)}, "shift must be at least 0"),
        ({"dilation": 0}, "dilation must be an integer from 1 to 64, got 0"),
        ({"dilation": 10**30}, "dilation must be an integer from 1 to 64, got 10{30}"),
        ({"dilation": True}, "dilation must be an integer from 1 to 64, got True"),
        ({"qkv": [[1.0]]}, "qkv must be a tensor, got list"),
        ({"qkv": torch.zeros(2, 5, 7, 3, 2, 4).to_sparse()}, "qkv must be dense, got torch.sparse_coo"),
        ({"bias": torch.zeros(2, 9, 9).to_sparse()}, "bias must be dense, got torch.sparse_coo"),
        ({"pad_qkv": torch.zeros(3, 2, 5)}, "pad_qkv must be"),
        ({"qkv": torch.zeros(2, 5, 7, 3, 2, 4).to(torch.float8_e4m3fn)}, "64 bits, got torch.float8_e4m3fn"),
        ({"qkv": torch.nested.nested_tensor([torch.zeros(2, 2)])}, "qkv must be dense, got a nested one"),
        ({"pad_qkv": 0.0}, "pad_qkv must be a tensor, got float"),
        ({"pad_qkv": [[0.0]]}, "pad_qkv must be a tensor, got list"),
        ({"pad_qkv": torch.zeros(3, 2, 4).to_sparse()}, "pad_qkv must be dense, got torch.sparse_coo"),
        (
            {"pad_qkv": torch.zeros(3, 2, 4, dtype=torch.int8)},
            "pad_qkv must have a floating dtype of .* bits, got torch.int8",
        ),
        ({"qkv": torch.zeros(2, 5, 7, 3, 2, 0)}, r"qkv must be \(B, H, W, 3, heads, head_dim\), got .* 3, 2, 0\)"),
        ({"pad_qkv": torch.zeros(3, 2, 4, device="meta")}, "pad_qkv must be on the device of qkv, cpu, got meta"),
        ({"cosine_scale": [1.0, 1.0]}, "cosine_scale must be a tensor, got list"),
        (
            {"cosine_scale": torch.ones(2, dtype=torch.int64)},
            "cosine_scale must have a floating dtype of .* bits, got torch.int64",
        ),
        ({"cosine_scale": torch.ones(3)}, r"cosine_scale must be \(heads,\) = \(2,\), got shape \(3,\)"),
        ({"cosine_scale": torch.ones(2, 1)}, r"cosine_scale must be \(heads,\) = \(2,\), got shape \(2, 1\)"),
        ({"cosine_scale": torch.ones(2).to_sparse()}, "cosine_scale must be dense, got torch.sparse_coo"),
        ({"cosine_scale": torch.ones(2, device="meta")}, "cosine_scale must be on the device of qkv, cpu, got meta"),
        ({"impl": "flash"}, "impl must be one of auto, reference, sdpa, triton, got 'flash'"),
    ],
)
def test_bad_input_names_argument_rule_and_value(changes: dict, message: str) -> None:
    arguments = {"qkv": torch.zeros(2, 5, 7, 3, 2, 4), "bias": torch.zeros(2, 9, 9), "window_size": (3, 3)} | changes
    qkv, bias = arguments.pop("qkv"), arguments.pop("bias")
    with pytest.raises(ValueError, match=message):
        swinx.window_attention(qkv, bias, **arguments)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("pad", [True, False], ids=["attended", "masked"])
def test_a_period_beyond_the_grid_makes_every_token_a_lattice_and_costs_no_more(pad: bool, impl: str) -> None:
    qkv, bias, fill = inputs(5, 3, (4, 4), pad)
    expected = naive_window_attention(qkv, bias, (4, 4), (1, 2), 7, fill)
    seen: list[torch.Size] = []
    for dilation in (5, 7, MAX_DILATION):
        with monitored(seen):
            out = swinx.window_attention(
                qkv, bias, window_size=(4, 4), shift=(1, 2), dilation=dilation, pad_qkv=fill, impl=impl
            )
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    assert len(set(seen)) == 1, "as many windows at each period"


@contextmanager
def monitored(seen: list[torch.Size]) -> Iterator[None]:
    """Notes the shape of the gathered slots of every call."""
    plain = api.attend

    def attend(qkv: Tensor, *rest: Any) -> Tensor:
        seen.append(qkv.shape)
        return plain(qkv, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "attend", attend)
        yield


def test_triton_without_the_package_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "triton_missing", lambda: "the package triton is not installed")
    message = "impl='triton': the package triton is not installed; choose 'auto', 'reference' or 'sdpa'"
    with pytest.raises(NotImplementedError, match=message):
        swinx.window_attention(torch.zeros(1, 3, 3, 3, 1, 4), torch.zeros(1, 9, 9), window_size=(3, 3), impl="triton")
    with pytest.raises(NotImplementedError, match=message):
        swinx.set_attention(swinx.SwinXEncoder(VARIANTS["swinx_n"]), "triton")


def test_auto_follows_its_written_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    fp32, bf16 = torch.float32, torch.bfloat16
    w7, w8, w9, w12 = (7, 7), (8, 8), (13, 5), (12, 12)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert choose("auto", cpu, fp32, w7, 32, recording=True) == "reference"
    assert choose("auto", cpu, bf16, w12, 32, recording=True) == "reference"
    assert choose("auto", cpu, fp32, w8, 32, recording=False) == "reference"
    assert choose("auto", cpu, fp32, w9, 32, recording=False) == "sdpa"
    assert choose("auto", cpu, bf16, w7, 32, recording=False) == "sdpa"
    assert choose("auto", torch.device("mps"), fp32, w7, 32, recording=True) == "sdpa"
    assert choose("reference", cuda, fp32, w7, 32, recording=False) == "reference"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert choose("auto", cpu, fp32, w7, 32, recording=False) == "sdpa"

    def compiled(x: Tensor) -> Tensor:
        return x + (1 if choose("auto", x.device, fp32, w7, 32, recording=True) == "sdpa" else 2)

    assert torch.compile(compiled, backend="eager", fullgraph=True)(torch.zeros(())) == 1


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A GPU to be chosen for: its capability, those that records list, and what a first use finds."""
    about: dict[str, Any] = {"capability": (9, 0), "tested": {(8, 6), (9, 0), (10, 0)}, "failure": None}
    monkeypatch.setattr(support, "triton_missing", lambda: None)
    monkeypatch.setattr("triton.__version__", "3.9.0")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: about["capability"])
    monkeypatch.setattr(records, "tested_capabilities", lambda: about["tested"])
    monkeypatch.setattr(first_use, "failure", lambda case: about["failure"])
    return about


def test_auto_takes_the_kernels_on_a_tested_gpu_where_they_take_the_case(
    gpu: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = torch.device("cuda")
    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    cases = [(bf16, (7, 7), 32, True), (torch.float64, (7, 7), 32, True), (fp16, (17, 7), 32, True)]
    cases += [(fp32, (12, 12), 129, True), (fp32, (12, 12), 128, False)]
    chosen = [
        choose("auto", cuda, dtype, window, head_dim, recording=False, contiguous=contiguous)
        for dtype, window, head_dim, contiguous in cases
    ]
    assert chosen == ["triton", "sdpa", "sdpa", "sdpa", "sdpa"]
    assert choose("auto", cuda, bf16, (8, 8), 32, recording=False, cosine=True) == "triton"
    assert choose("auto", cuda, bf16, (8, 8), 32, recording=True) == "sdpa"  # launches take longer than kernels
    gpu["capability"] = (8, 6)
    for window in ((7, 7), (12, 12)):
        assert choose("auto", cuda, fp32, window, 32, recording=False) == "sdpa"  # not timed
        assert choose("auto", cuda, bf16, window, 32, recording=False) == "triton"
    monkeypatch.setattr("triton.__version__", "3.2.0")
    assert choose("auto", cuda, bf16, (7, 7), 32, recording=False) == "sdpa"
    with pytest.raises(NotImplementedError, match=r"compute capability 8.x it takes Triton 3.3 and newer, got 3.2.0"):
        choose("triton", cuda, bf16, (7, 7), 32, recording=True)
    gpu["capability"] = (10, 0)
    monkeypatch.setattr("triton.__version__", "3.7.1")
    assert choose("auto", cuda, bf16, (7, 7), 32, recording=False) == "sdpa"
    with pytest.raises(NotImplementedError, match=r"compute capability 10.x it takes Triton 3.8 and newer, got 3.7.1"):
        choose("triton", cuda, bf16, (7, 7), 32, recording=True)
    monkeypatch.setattr("triton.__version__", "3.10.0")
    assert choose("auto", cuda, bf16, (7, 7), 32, recording=False) == "triton"
    gpu["capability"] = (7, 5)
    assert choose("auto", cuda, fp16, (7, 7), 32, recording=False) == "sdpa"
    with pytest.raises(NotImplementedError, match=r"compute capability \(8, 0\) and above, got \(7, 5\)"):
        choose("triton", cuda, fp16, (7, 7), 32, recording=True)
    with pytest.raises(NotImplementedError, match=r"it takes tensors on an NVIDIA GPU .*, got mps"):
        choose("triton", torch.device("mps"), fp16, (7, 7), 32, recording=True)


def test_auto_leaves_the_kernels_alone_on_a_gpu_that_no_record_lists(gpu: dict[str, Any]) -> None:
    gpu["tested"] = set()
    cuda = torch.device("cuda")
    assert choose("auto", cuda, torch.bfloat16, (7, 7), 32, recording=False) == "sdpa"
    assert choose("triton", cuda, torch.bfloat16, (7, 7), 32, recording=True) == "triton"


def test_a_failure_at_first_use_is_a_warning_or_an_error(gpu: dict[str, Any]) -> None:
    gpu["failure"] = "RuntimeError: Failed to find C compiler, called from test_attention"
    cuda = torch.device("cuda")
    with pytest.warns(UserWarning, match="attention takes another implementation: .*called from test_attention"):
        assert choose("auto", cuda, torch.bfloat16, (7, 7), 32, recording=False) == "sdpa"
    with pytest.raises(RuntimeError, match=r"impl='triton': .* on cuda for torch.bfloat16.*called from test_attention"):
        choose("triton", cuda, torch.bfloat16, (7, 7), 32, recording=True)


@pytest.mark.parametrize(("height", "width", "window", "shift", "dilation"), GEOMETRIES)
def test_gather_and_scatter_are_inverse(
    height: int, width: int, window: tuple[int, int], shift: tuple[int, int], dilation: int
) -> None:
    device, batch = torch.device("cpu"), 3
    geometry = windows.WindowGeometry(batch, height, width, window, shift, dilation)
    gather, scatter = windows.gather_index(geometry, device), windows.scatter_index(geometry, device)
    tokens = batch * height * width
    assert torch.equal(gather[scatter], torch.arange(tokens))
    assert (gather == tokens).sum() == gather.numel() - tokens
    assert gather.numel() > tokens or not windows.needs_padding(geometry)


def test_shift_is_half_a_window_unless_one_window_covers_the_lattice() -> None:
    for window in (4, 5, 7, 8, 12):
        for dilation in (1, 2, 4):
            for size in range(1, 60):
                extent = -(-size // dilation)
                expected = window // 2 if extent > window else 0
                assert windows.cyclic_shift(size, window, dilation) == expected, (size, window, dilation)
