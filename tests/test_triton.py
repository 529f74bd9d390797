"""The Triton kernels against float64: in Triton's interpreter, or on a GPU where there is one.

SWINX_SWEEP=full runs every grid of the sweep; else a few, in which nearly every two factors meet, keep the tests short.
"""

import itertools
import os
from dataclasses import replace

import pytest
import torch
from kernel_cases import DEVICE, DTYPES, LAYOUTS, Case, between_nans, covering
from releases import KERNELS
from torch import Tensor

import swinx
from swinx.attention.triton import launch, parameters
from swinx.windows import WindowGeometry

pytestmark = [KERNELS, pytest.mark.usefixtures("no_first_use")]

WINDOWS = [(4, 4), (7, 7), (8, 8), (12, 12), (4, 5)]
FULL = os.environ.get("SWINX_SWEEP") == "full"
SPLITS = parameters.splits


@pytest.fixture(autouse=True)
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several windows for each program, as on grids too large for the interpreter."""
    monkeypatch.setattr(parameters, "splits", lambda programs, *shape: SPLITS(7, *shape))


def sweep() -> list[Case]:
    """All grids of each window; the other factors take turns, with periods that share no divisor with one another."""
    cases = []
    for window in WINDOWS:
        heights = [1, window[0] - 1, window[0], window[0] + 1, 13, 17, 29]
        widths = [1, window[1] - 1, window[1], window[1] + 1, 13, 17, 29]
        for number, (height, width) in enumerate(itertools.product(heights, widths)):
            shifts = [(0, 0), (window[0] // 2, window[1] // 2), (1, 0), (0, window[1] - 1), (window[0] // 2, 1)]
            case = Case(
                height,
                width,
                window,
                shifts[number % 5],
                dilation=1 + number // 2 % 4,
                batch=(1, 3)[number % 3 == 0 and height * width < 200],
                heads=1 + number % 2,
                head_dim=(32, 16)[number % 11 < 6],
                attended=number % 3 != 2,
                cosine=number % 5 == 3,
                layout=LAYOUTS[number // 3 % 3],
                dtype=DTYPES[number // 2 % 3],
            )
            cases.append(case)
    return cases if FULL else covering(cases, 36)


def name(case: Case) -> str:
    return "-".join(str(value).replace(", ", "x").removeprefix("torch.") for value in vars(case).values())


@pytest.mark.parametrize("case", sweep(), ids=name)
def test_output_and_gradients_are_as_exact_as_the_reference(case: Case) -> None:
    case.check()


@pytest.mark.parametrize(
    ("window", "head_dim"),
    [((1, 1), 16), ((2, 3), 40), ((3, 16), 16), ((9, 9), 16), ((9, 9), 40), ((10, 10), 16), ((16, 16), 40)],
)
def test_windows_and_head_dims_that_no_tile_is_made_for(window: tuple[int, int], head_dim: int) -> None:
    """Tiles of 16 and 64 tokens, 64 and 32, 64 and 64, and four of 64; the sweep has 16, 32, 64 and 64 + 64 + 16."""
    shift, cosine = (window[0] // 2, window[1] // 2), head_dim == 40
    case = Case(window[0] // 2 + 1, window[1] + 2, window, shift, heads=1, head_dim=head_dim, cosine=cosine)
    replace(case, dtype=DTYPES[2]).check()


@pytest.mark.parametrize("window", [(4, 5), (9, 9)])
def test_as_many_programs_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch, window: tuple[int, int]) -> None:
    monkeypatch.setattr(parameters, "splits", SPLITS)
    Case(5, 7, window, (2, 1), dilation=2).check()


@pytest.mark.parametrize("head_dim", [1, 5, 64, 96, 128])
def test_head_dims_from_1_to_128(head_dim: int) -> None:
    Case(5, 3, (4, 4), (2, 2), head_dim=head_dim, attended=head_dim != 5).check()


@pytest.mark.parametrize("window", [(4, 5), (9, 9)])
@pytest.mark.parametrize("cosine", [False, True])
def test_scores_whose_powers_overflow_or_vanish(window: tuple[int, int], cosine: bool) -> None:
    """Around 150 in one head and -150 in the other: their powers are infinite or zero in float32.

    A score of 256 is rounded to within 2e-5, and so is its probability; with scores of 1 to within 1e-7.
    """
    case = Case(window[0] // 2 + 1, window[1] + 2, window, (2, 1), cosine=cosine)
    qkv, bias, pad, *scale = case.inputs()
    bias += torch.tensor([150.0, -150.0], device=DEVICE)[:, None, None]
    qkv[:, :, :, 0] *= 1 if cosine else 30
    scale = [between_nans(torch.full_like(one, 100.0)) for one in scale]
    inputs, cotangent = [qkv, bias, pad, *scale], torch.randn(1, case.height, case.width, 32).to(DEVICE)
    ours = case.run("triton", inputs, cotangent)
    for key, value in case.run("exact", [tensor.cpu().double() for tensor in inputs], cotangent.cpu()).items():
        torch.testing.assert_close(ours[key], value, rtol=0, atol=2e-4 * float(value.abs().max()), msg=key)


@pytest.mark.parametrize("window", [(4, 5), (9, 9)])
@pytest.mark.parametrize("attended", [True, False])
def test_cosines_of_zero_vectors_are_zero_and_so_are_their_gradients(window: tuple[int, int], attended: bool) -> None:
    """Keys of padding are zero in Swin V2: derivatives of a length of zero must not reach anything."""
    case = Case(window[0] // 2 + 1, window[1] + 2, window, (2, 1), heads=1, attended=attended, cosine=True)
    qkv, bias, pad, scale = case.inputs()
    qkv[:, ::3, :, 0] = 0
    qkv[:, :, ::2, 1] = 0
    qkv[:, 1, :, 0] *= 1e-13  # divided by 1e-12, not by its length
    if pad is not None:
        pad[1] = 0
    cotangent = torch.randn(1, case.height, case.width, 16).to(DEVICE)
    ours, theirs = (case.run(impl, [qkv, bias, pad, scale], cotangent) for impl in ("triton", "reference"))
    assert ours["qkv"][:, ::3, :, 0].eq(0).all()
    assert ours["qkv"][:, :, ::2, 1].eq(0).all()
    for results in (ours, theirs):
        results["qkv"][:, 1, :, 0] *= 1e-12
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tokens", range(1, 257))
def test_tiles_cover_every_window(tokens: int) -> None:
    own, count, width, last = parameters.tiles(tokens)
    assert (count - 1) * width < tokens <= (count - 1) * width + last
    assert last <= width  # none is wider than the rest
    assert all(side >= 16 and side & (side - 1) == 0 for side in (own, width, last))
    assert tokens > parameters.ONE_TILE or (count == 1 and own == last)  # the backward kernel has one tile


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
    """Results start as NaN (integers as -1), between canaries; gives (whole memory, result) of each."""
    buffers: list[tuple[Tensor, Tensor]] = []

    def empty(like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        size = torch.Size(shape).numel()
        memory = torch.full((size + 512,), 12345, dtype=dtype or like.dtype, device=like.device)
        memory[256:-256] = torch.nan if memory.is_floating_point() else -1
        buffers.append((memory, memory[256:-256].view(shape)))
        return buffers[-1][1]

    monkeypatch.setattr(launch, "_empty", empty)
    return buffers


@pytest.mark.parametrize("window", [(4, 5), (9, 9)])
@pytest.mark.parametrize(("attended", "cosine"), [(True, False), (False, True), (True, True)])
def test_all_of_every_result_is_written_and_nothing_else(
    guarded: list[tuple[Tensor, Tensor]], window: tuple[int, int], attended: bool, cosine: bool
) -> None:
    case = Case(7, 6, window, (2, 1), dilation=2, head_dim=16, attended=attended, cosine=cosine)
    inputs = case.inputs()
    case.run("triton", inputs, torch.ones(1, 7, 6, 32, device=DEVICE))
    assert len(guarded) >= 5
    for memory, result in guarded:
        assert memory[:256].eq(12345).all()
        assert memory[-256:].eq(12345).all()
        assert attended is False or not (result.isnan().any() or (result.dtype == torch.int32 and result.eq(-1).any()))
    out, grad_qkv = guarded[0][1], next(result for _, result in guarded if result.ndim == 6)
    assert not out.isnan().any()
    assert not grad_qkv.isnan().any()


@pytest.mark.parametrize("window", [(7, 7), (5, 13)])
def test_equal_inputs_give_the_same_bits(window: tuple[int, int]) -> None:
    """The check command does so more often."""
    case = Case(window[0] + 1, 5, window, (3, 2), heads=1, dtype=torch.float16)
    inputs, cotangent = case.inputs(), torch.randn(1, window[0] + 1, 5, 16).to(DEVICE)
    first = case.run("triton", inputs, cotangent)
    for _ in range(4 if DEVICE == "cpu" else 49):
        again = case.run("triton", inputs, cotangent)
        assert all(torch.equal(first[key], again[key]) for key in first)


@pytest.mark.parametrize("window", [(4, 5), (9, 9)])
def test_an_image_does_not_depend_on_its_batch(window: tuple[int, int]) -> None:
    case = Case(5, 2, window, (2, 2), dilation=2, batch=3, heads=1)
    qkv, bias, pad = case.inputs()
    rule = {"window_size": window, "shift": (2, 2), "dilation": 2, "pad_qkv": pad, "impl": "triton"}
    together = swinx.window_attention(qkv, bias, **rule)
    for index in range(3):
        assert torch.equal(swinx.window_attention(qkv[index : index + 1], bias, **rule)[0], together[index])


@pytest.mark.parametrize("attended", [True, False])
def test_nan_stays_in_its_window(attended: bool) -> None:
    qkv, bias, pad = Case(7, 9, (4, 5), batch=2, heads=1, attended=attended).inputs()
    rule = {"window_size": (4, 5), "shift": (2, 2), "pad_qkv": pad, "impl": "triton"}
    clean = swinx.window_attention(qkv, bias, **rule)
    qkv[0, 3, 8] = torch.nan
    dirty = swinx.window_attention(qkv, bias, **rule)
    expected = torch.zeros(2, 7, 9, dtype=torch.bool, device=DEVICE)
    expected[0, 2:6, [7, 8, 0, 1]] = True  # shift 2 starts windows at rows 2, 6 and columns 2, 7
    assert torch.equal(dirty.isnan().any(-1), expected)
    assert torch.equal(dirty[~expected], clean[~expected])


@pytest.mark.parametrize("shape", [(0, 5, 7), (2, 0, 7), (2, 5, 0)])
@pytest.mark.parametrize("window", [(3, 3), (9, 9)])
def test_empty_batch_and_empty_grid_give_empty_results(shape: tuple[int, int, int], window: tuple[int, int]) -> None:
    tokens = window[0] * window[1]
    qkv = torch.empty(*shape, 3, 2, 16, device=DEVICE, requires_grad=True)
    bias = torch.zeros(2, tokens, tokens, device=DEVICE, requires_grad=True)
    pad = torch.zeros(3, 2, 16, device=DEVICE, requires_grad=True)
    out = swinx.window_attention(qkv, bias, window_size=window, pad_qkv=pad, impl="triton")
    assert out.shape == (*shape, 32)
    out.sum().backward()
    out, _ = torch.ops.swinx.window_attention(qkv, bias, pad, None, window, (0, 0), 1)
    gradients = torch.autograd.grad(out.sum(), (qkv, bias, pad))
    assert [gradient.shape for gradient in gradients] == [qkv.shape, bias.shape, pad.shape]
    assert all(gradient.eq(0).all() for gradient in gradients)


@pytest.mark.parametrize("axis", range(5))
@pytest.mark.parametrize("window", [(4, 5), (9, 9)])
def test_offsets_beyond_32_bits(axis: int, window: tuple[int, int]) -> None:
    """The last element along one axis lies more than 2^31 from the first, in memory reserved and hardly touched.

    One step fits into 32 bits, so that only the products and sums of steps are too large for them.
    """
    batch, heads = (3 if axis == place else 1 for place in (0, 4))
    case = Case(4, 3, window, (2, 2), batch=batch, heads=heads, dtype=torch.float16)
    qkv, bias, pad = case.inputs()
    far = 2**31 // (qkv.shape[axis] - 1) + 64
    strides = list(qkv.stride())
    strides[axis] = far
    memory = torch.empty((qkv.shape[axis] - 1) * far + qkv.numel(), dtype=torch.float16, device=DEVICE)
    wide = memory.as_strided(qkv.shape, strides).copy_(qkv)
    results = []
    for variant in (qkv, wide):
        leaf = variant.detach().requires_grad_()
        out = swinx.window_attention(leaf, bias, window_size=window, shift=(2, 2), pad_qkv=pad, impl="triton")
        (gradient,) = torch.autograd.grad(out.square().sum(), leaf)
        results.append((out, gradient))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("window", [(3, 3), (9, 9)])
@pytest.mark.parametrize("attended", [True, False])
def test_a_bias_may_hide_keys(window: tuple[int, int], attended: bool) -> None:
    """-inf above the diagonal: some queries see one key only, and tokens past the window must not see none."""
    tokens = window[0] * window[1]
    qkv, _, pad = Case(window[0] // 2 + 1, window[1] + 2, window, heads=1, attended=attended).inputs()
    for hidden in (torch.ones(tokens, tokens).triu(1).bool(), torch.ones(tokens, tokens).tril(-1).bool()):
        bias = torch.zeros(1, tokens, tokens).masked_fill(hidden, -torch.inf).to(DEVICE)
        results = []
        for impl in ("triton", "reference"):
            leaf = qkv.detach().requires_grad_()
            out = swinx.window_attention(leaf, bias, window_size=window, pad_qkv=pad, impl=impl)
            results.append((out, *torch.autograd.grad(out.square().sum(), leaf)))
        for ours, theirs in zip(*results, strict=True):
            assert torch.equal(ours.isnan(), theirs.isnan())
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4, equal_nan=True)


def test_alignment_is_promised_only_where_it_holds() -> None:
    """Every start and every step a multiple of 16 bytes: 8 elements of float16."""
    geometry = WindowGeometry(1, 4, 5, (4, 4), (0, 0), 1)

    def aligned(qkv: Tensor, pad: Tensor) -> bool:
        call = launch._Call(qkv, torch.zeros(2, 16, 16), pad, None, geometry)
        return call.constants["ALIGNED"]

    memory, pad = torch.zeros(4096, dtype=torch.float16), torch.zeros(3, 2, 16, dtype=torch.float16)
    good = (0, 480, 96, 32, 16, 1)  # strides of qkv (1, 4, 5, 3, 2, 16)
    assert aligned(memory.as_strided((1, 4, 5, 3, 2, 16), good), pad)
    assert not aligned(memory[4:].as_strided((1, 4, 5, 3, 2, 16), good), pad)
    assert not aligned(memory.as_strided((1, 4, 5, 3, 2, 16), good), memory[4:100].view(3, 2, 16))
    for axis in range(5):
        strides = [stride + 4 * (place == axis) for place, stride in enumerate(good)]
        assert not aligned(memory.as_strided((1, 4, 5, 3, 2, 16), strides), pad)


def test_wide_addresses_give_what_narrow_ones_give(monkeypatch: pytest.MonkeyPatch) -> None:
    for window in ((4, 5), (9, 9)):
        case = Case(5, 6, window, (2, 1), dilation=2, heads=1)
        inputs, cotangent = case.inputs(), torch.randn(1, 5, 6, 16).to(DEVICE)
        narrow = case.run("triton", inputs, cotangent)
        with monkeypatch.context() as patch:
            patch.setattr(launch, "WIDE_FROM", 0)
            wide = case.run("triton", inputs, cotangent)
        assert all(torch.equal(narrow[key], wide[key]) for key in narrow)


def test_addresses_are_wide_where_an_image_of_qkv_or_of_its_gradient_spans_2_to_the_31() -> None:
    def wide(side: int, row: int, column: int) -> bool:
        """Of one image of side x side tokens with 48 channels, by strides of rows and columns."""
        qkv = torch.empty_strided((1, side, side, 3, 1, 16), (0, row, column, 16, 16, 1), device="meta")
        geometry = WindowGeometry(1, side, side, (4, 4), (0, 0), 1)
        return launch._Call(qkv, torch.zeros(1, 16, 16, device="meta"), None, None, geometry).constants["WIDE"]

    assert not wide(4096, 4096 * 48, 48)
    assert wide(8192, 8192 * 48, 48)
    assert wide(5, 2**29, 48), "few tokens, far apart in a larger tensor"
    assert wide(8192, 0, 0), "one token, expanded: its gradient is not"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window": (17, 4)}, r"windows of up to 16 tokens a side, got \(17, 4\)"),
        ({"head_dim": 129}, "head_dim of up to 128, got 129"),
        ({"dtype": torch.bfloat16 if DEVICE == "cpu" else torch.float64}, "it takes float16, float32, .*, got torch"),
    ],
)
def test_what_the_kernels_do_not_take_is_refused_with_the_reason(changes: dict, message: str) -> None:
    case = replace(Case(5, 7, (4, 4)), **changes)
    qkv, bias, pad = case.inputs()
    with pytest.raises(NotImplementedError, match="impl='triton': .*" + message):
        swinx.window_attention(qkv, bias, window_size=case.window, pad_qkv=pad, impl="triton")


def test_channels_must_be_contiguous() -> None:
    qkv, bias, _ = Case(5, 7, (4, 4)).inputs()
    turned = between_nans(qkv.transpose(4, 5).contiguous()).transpose(4, 5)
    with pytest.raises(NotImplementedError, match="last dimension is contiguous"):
        swinx.window_attention(turned, bias, window_size=(4, 4), impl="triton")


@pytest.mark.parametrize("window", [(4, 5), (9, 9)])
def test_a_gradient_that_starts_between_two_pieces_of_16_bytes_is_moved(
    monkeypatch: pytest.MonkeyPatch, window: tuple[int, int]
) -> None:
    """Where qkv is aligned the kernels load the output's gradient in such pieces too."""
    starts: list[int] = []
    for name in ("_backward_one_tile", "_backward_tiled"):
        plain = getattr(launch, name)
        monkeypatch.setattr(
            launch,
            name,
            lambda call, grad, *rest, plain=plain: starts.append(grad.data_ptr()) or plain(call, grad, *rest),
        )
    qkv, bias, pad = Case(5, 3, window).inputs()
    out, lse = torch.ops.swinx.window_attention(qkv, bias, pad, None, window, (0, 0), 1)
    saved = (out, lse) if lse.numel() else (None, None)
    grad = torch.randn(out.shape).to(DEVICE)
    shifted = torch.empty(out.numel() + 1, device=DEVICE)[1:].view(out.shape).copy_(grad)
    assert shifted.data_ptr() % 16
    backward = torch.ops.swinx.window_attention_backward
    results = [backward(g, qkv, bias, pad, None, *saved, window, (0, 0), 1) for g in (grad, shifted)]
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    assert all(start % 16 == 0 for start in starts)
    assert len(starts) == 2
