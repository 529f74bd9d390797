"""The oracles checked against each other, against timm where timm is right, and against properties they must have."""

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from oracles import (
    Pair,
    block,
    block_shift,
    dilated_stage_by_phases,
    naive_window_attention,
    official_stage_outputs,
    padded_window_attention,
    pair,
    patch_embed,
    random_swin_state_dict,
    relative_bias,
    stage,
)
from releases import ODD_GRIDS
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor

EMBED, DEPTHS, HEADS, WINDOW = 32, (2, 2, 2, 2), (1, 2, 4, 8), 7

# (height, width), window, shift: grids of one window, below, at and above it; shifts of one axis, odd, and the largest
CASES = [
    ((13, 17), (4, 5), (2, 2)),
    ((13, 17), (4, 5), (0, 0)),
    ((11, 7), (4, 5), (2, 0)),
    ((11, 7), (4, 5), (0, 3)),
    ((8, 10), (4, 5), (3, 4)),
    ((3, 23), (4, 5), (0, 2)),
    ((3, 5), (4, 5), (1, 2)),
    ((1, 1), (4, 5), (0, 0)),
    ((15, 19), (7, 7), (3, 3)),
    ((6, 8), (7, 7), (0, 3)),
]


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def random_bias(heads: int, window: int | Pair) -> Tensor:
    wh, ww = pair(window)
    return relative_bias(2 * randn((2 * wh - 1) * (2 * ww - 1), heads, seed=7), window)


def weights(window: int | Pair = WINDOW, depths: Sequence[int] = DEPTHS) -> dict[str, Tensor]:
    return random_swin_state_dict(EMBED, depths, HEADS, window, torch.Generator().manual_seed(11))


def project(normed: Tensor, qkv_weight: Tensor, qkv_bias: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """The qkv (B, H, W, 3, h, D) of a normed grid, and the pad_qkv (3, h, D) of a zero vector."""
    shape = (3, heads, normed.shape[-1] // heads)
    return F.linear(normed, qkv_weight, qkv_bias).reshape(*normed.shape[:3], *shape), qkv_bias.reshape(shape)


def assert_near(actual: Tensor, expected: Tensor, atol: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


# --- attention


@pytest.mark.parametrize(("grid", "window", "shift"), CASES)
def test_naive_attention_equals_pad_roll_partition_with_gradients(grid: Pair, window: Pair, shift: Pair) -> None:
    heads, channels = 3, 6
    inputs = [
        randn(2, *grid, channels),
        randn(3 * channels, channels, seed=1),
        randn(3 * channels, seed=2),
        random_bias(heads, window),
    ]
    inputs = [tensor.requires_grad_() for tensor in inputs]
    x, weight, qkv_bias, bias = inputs
    qkv, pad_qkv = project(x, weight, qkv_bias, heads)
    naive = naive_window_attention(qkv, bias, window, shift, pad_qkv=pad_qkv)
    padded = padded_window_attention(x, weight, qkv_bias, bias, window, shift)
    assert naive.shape == (2, *grid, channels)
    assert_near(naive, padded)
    cotangent = randn(*naive.shape, seed=3)
    gradients = (torch.autograd.grad(output, inputs, cotangent) for output in (naive, padded))
    for ours, theirs in zip(*gradients, strict=True):
        assert_near(ours, theirs, atol=1e-11)


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("dilation", [2, 4])
def test_naive_dilated_attention_is_naive_attention_on_each_lattice(dilation: int, padded: bool) -> None:
    window, shift = (4, 5), (2, 2)
    qkv, pad_qkv = randn(2, 5 * dilation, 7 * dilation, 3, 2, 3), randn(3, 2, 3, seed=1) if padded else None
    bias = random_bias(2, window)
    out = naive_window_attention(qkv, bias, window, shift, dilation, pad_qkv)
    for p in range(dilation):
        for q in range(dilation):
            lattice = qkv[:, p::dilation, q::dilation]
            expected = naive_window_attention(lattice, bias, window, shift, pad_qkv=pad_qkv)
            assert_near(out[:, p::dilation, q::dilation], expected)


def test_ragged_phases_share_the_geometry_of_the_first() -> None:
    """9 rows at period 2 are lattices of 5 and 4 rows, both padded to 8: the second gets a whole window of padding."""
    window, shift, d = (4, 5), (2, 3), 2
    qkv, pad_qkv, bias = randn(1, 9, 13, 3, 2, 3), randn(3, 2, 3, seed=1), random_bias(2, window)
    out = naive_window_attention(qkv, bias, window, shift, d, pad_qkv)
    for p, q in ((0, 0), (0, 1), (1, 0), (1, 1)):
        lattice = qkv[:, p::d, q::d]
        _, rows, cols, *_ = lattice.shape
        filled = pad_qkv.expand(1, 5, 7, 3, 2, 3).clone()  # what is past the edge, written out as tokens
        filled[:, :rows, :cols] = lattice
        expected = naive_window_attention(filled, bias, window, shift, pad_qkv=pad_qkv)[:, :rows, :cols]
        assert_near(out[:, p::d, q::d], expected)
    by_itself = naive_window_attention(qkv[:, 1::d, ::d], bias, window, shift, pad_qkv=pad_qkv)
    assert not torch.allclose(out[:, 1::d, ::d], by_itself)


def test_masked_padding_is_not_seen_and_attended_padding_is() -> None:
    """On a grid inside one window, masking leaves plain attention, and padding tokens act as further keys."""
    qkv, bias = randn(1, 2, 3, 3, 2, 5), random_bias(2, (4, 5))
    real = [row * 5 + col for row in range(2) for col in range(3)]
    q, k, v = qkv.flatten(1, 2).permute(2, 0, 3, 1, 4)  # each (1, h, 6, D)
    plain = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[:, real][:, :, real])
    masked = naive_window_attention(qkv, bias, (4, 5), 0)
    assert_near(masked, plain.transpose(1, 2).reshape(1, 2, 3, 10))
    zero = torch.zeros(3, 2, 5, dtype=qkv.dtype)  # a zero key is a key: it takes its share of the softmax
    attended = naive_window_attention(qkv, bias, (4, 5), 0, pad_qkv=zero)
    assert (attended.abs() < masked.abs()).all()


def test_naive_attention_is_differentiable_in_every_input() -> None:
    qkv, pad_qkv, bias = randn(1, 5, 4, 3, 1, 2), randn(3, 1, 2, seed=1), random_bias(1, (2, 3))
    inputs = [tensor.clone().requires_grad_() for tensor in (qkv, bias, pad_qkv)]
    assert torch.autograd.gradcheck(lambda a, b, c: naive_window_attention(a, b, (2, 3), (1, 1), 2, c), inputs)


def test_relative_bias_depends_on_the_offset_alone() -> None:
    bias = random_bias(2, (4, 5)).reshape(2, 4, 5, 4, 5)  # (h, y, x, v, u)
    assert torch.equal(bias[:, 1:, 2:, 1:, 2:], bias[:, :-1, :-2, :-1, :-2])
    assert len(set(bias[0].flatten().tolist())) == 7 * 9


# --- whole networks


def timm_swin(state_dict: dict[str, Tensor], size: Pair, depths: Sequence[int]) -> SwinTransformer:
    model = SwinTransformer(
        img_size=size,  # of the images, since timm decides from it which blocks shift
        embed_dim=EMBED,
        depths=tuple(depths),
        num_heads=HEADS,
        window_size=WINDOW,
        strict_img_size=False,
    )
    model = model.double().eval()  # before loading, or the weights would be rounded to float32
    missing, unexpected = model.load_state_dict(state_dict, strict=False)
    assert not unexpected
    assert all(key.split(".")[0] in {"norm", "head"} for key in missing)
    return model


def timm_stage_outputs(state_dict: dict[str, Tensor], image: Tensor, depths: Sequence[int]) -> list[Tensor]:
    """Outputs (B, H, W, C) of timm's four stages."""
    model = timm_swin(state_dict, (image.shape[2], image.shape[3]), depths)
    outputs = [model.patch_embed(image)]
    for layer in model.layers:
        outputs.append(layer(outputs[-1]))
    return outputs[1:]


@torch.no_grad()
@pytest.mark.parametrize(
    ("size", "depths"),
    [
        ((224, 224), DEPTHS),  # every grid is a multiple of the window, but odd blocks of the last stage do not shift
        ((448, 224), DEPTHS),  # there they shift along one axis
        # Without shifts the order of padding and rolling is nothing; merges see odd grids.
        pytest.param((360, 480), (1, 1, 1, 1), marks=ODD_GRIDS),
    ],
)
def test_official_outputs_equal_timm_where_timm_is_right(size: Pair, depths: Sequence[int]) -> None:
    image, state_dict = randn(1, 3, *size), weights(depths=depths)
    ours = official_stage_outputs(state_dict, image, depths, HEADS, WINDOW)
    theirs = timm_stage_outputs(state_dict, image, depths)
    assert len(ours) == len(theirs) == 4
    for our, their in zip(ours, theirs, strict=True):
        assert 0.5 < our.std() < 10  # the comparison is of numbers of order one
        assert_near(our, their, atol=1e-10)


@ODD_GRIDS
@torch.no_grad()
def test_timm_differs_where_grids_do_not_divide() -> None:
    """At 360×480 timm pads after it rolls, so its padding lies amid the image: same shapes, other values."""
    image, state_dict = randn(1, 3, 360, 480), weights()
    inputs = [patch_embed(state_dict, image), *official_stage_outputs(state_dict, image, DEPTHS, HEADS, WINDOW)]
    assert [tuple(x.shape[1:3]) for x in inputs] == [(90, 120), (90, 120), (45, 60), (23, 30), (12, 15)]
    model, shares = timm_swin(state_dict, (360, 480), DEPTHS), []
    for layer, given, official in zip(model.layers, inputs, inputs[1:], strict=False):  # each on the official input
        shares.append(((layer(given) - official).abs().amax(-1) > 1e-6).double().mean().item())
    assert shares == pytest.approx([0.13, 0.13, 0.57, 0.73], abs=0.01)


@ODD_GRIDS
@torch.no_grad()
@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("at_end", [False, True])
def test_official_rule_is_local_at_the_border(axis: int, at_end: bool) -> None:
    """A border line of pixels changes stage 1 near that border only, bit for bit; timm's at the other border too."""
    image = randn(1, 3, 360, 480)
    perturbed = image.clone()
    perturbed.movedim(axis + 1, 0)[-1 if at_end else 0] += 1

    def changed_lines(first: Tensor, second: Tensor) -> list[int]:
        lines = (first != second).movedim(axis, 0).flatten(1).any(1)
        return (lines.flip(0) if at_end else lines).nonzero().flatten().tolist()  # counted from the perturbed border

    official, official_perturbed = (
        official_stage_outputs(weights(), x, DEPTHS[:1], HEADS[:1], WINDOW)[0] for x in (image, perturbed)
    )
    reach = 2 * WINDOW  # one block sees at most a window, and the next a window more
    lines = changed_lines(official, official_perturbed)
    assert 0 in lines
    assert max(lines) < reach
    timm_lines = changed_lines(*(timm_stage_outputs(weights(), x, DEPTHS)[0] for x in (image, perturbed)))
    assert max(timm_lines) == official.shape[axis] - 1


@torch.no_grad()
def test_images_and_odd_grids_are_padded_at_the_end_by_zeros() -> None:
    image = randn(1, 3, 67, 71)
    ours = official_stage_outputs(weights(), image, DEPTHS, HEADS, WINDOW)
    assert [tuple(output.shape[1:3]) for output in ours] == [(17, 18), (9, 9), (5, 5), (3, 3)]
    padded = torch.zeros(1, 3, 68, 72, dtype=image.dtype)
    padded[:, :, :67, :71] = image
    for a, b in zip(ours, official_stage_outputs(weights(), padded, DEPTHS, HEADS, WINDOW), strict=True):
        assert torch.equal(a, b)


# --- dilation


def dilated_stage_directly(state_dict: dict[str, Tensor], x: Tensor, index: int, e: int, window: int | Pair) -> Tensor:
    """What the recursion is derived from: a merge with taps e apart, then blocks on lattices of period 2·e."""
    _, height, width, _ = x.shape
    x = F.pad(x, (0, 0, 0, e, 0, e))
    taps = [x[:, r : r + height, c : c + width] for r, c in ((0, 0), (e, 0), (0, e), (e, e))]
    name, merged = f"layers.{index}.downsample", torch.cat(taps, dim=-1)
    normed = F.layer_norm(merged, merged.shape[-1:], state_dict[f"{name}.norm.weight"], state_dict[f"{name}.norm.bias"])
    x = F.linear(normed, state_dict[f"{name}.reduction.weight"])
    extents = (-(-height // (2 * e)), -(-width // (2 * e)))
    for number in range(DEPTHS[index]):
        shift = block_shift(number, extents, window)

        def attend(normed: Tensor, weight: Tensor, qkv_bias: Tensor, bias: Tensor, shift: Pair = shift) -> Tensor:
            qkv, pad_qkv = project(normed, weight, qkv_bias, HEADS[index])
            return naive_window_attention(qkv, bias, window, shift, 2 * e, pad_qkv)

        x = block(state_dict, f"layers.{index}.blocks.{number}", x, window, attend)
    return x


@torch.no_grad()
@pytest.mark.parametrize("window", [(4, 5), (7, 3)])
@pytest.mark.parametrize(
    ("index", "e", "grid"), [(3, 1, (18, 22)), (2, 1, (10, 26)), (3, 2, (20, 28)), (3, 4, (24, 40))]
)
def test_recursion_by_phases_equals_the_dense_definition(index: int, e: int, grid: Pair, window: Pair) -> None:
    x = randn(1, *grid, EMBED * 2 ** (index - 1))
    by_phases = dilated_stage_by_phases(weights(window), x, index, e, DEPTHS, HEADS, window)
    assert_near(by_phases, dilated_stage_directly(weights(window), x, index, e, window), atol=1e-11)


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 96), (352, 224)])
def test_phase_zero_all_the_way_down_is_the_undilated_network(size: Pair) -> None:
    state_dict, image = weights(), randn(1, 3, *size)
    arguments: tuple[Sequence[int], Sequence[int], int] = (DEPTHS, HEADS, WINDOW)
    _, stage2, stage3, stage4 = official_stage_outputs(state_dict, image, *arguments)
    dilated4 = dilated_stage_by_phases(state_dict, stage3, 3, 1, *arguments)  # output stride 16
    assert_near(dilated4[:, ::2, ::2], stage4)
    assert_near(dilated4[:, 1::2, ::2], stage(state_dict, stage3[:, 1:], 3, *arguments))
    dilated3 = dilated_stage_by_phases(state_dict, stage2, 2, 1, *arguments)  # output stride 8
    dilated4 = dilated_stage_by_phases(state_dict, dilated3, 3, 2, *arguments)
    assert_near(dilated3[:, ::2, ::2], stage3)
    assert_near(dilated4[:, ::4, ::4], stage4)
    phase_1_2 = stage(state_dict, stage(state_dict, stage2[:, 1:], 2, *arguments)[:, :, 1:], 3, *arguments)
    assert_near(dilated4[:, 1::4, 2::4], phase_1_2)


def test_dilation_refuses_what_it_does_not_promise() -> None:
    for index, e, grid in ((0, 1, (8, 8)), (3, 1, (7, 8)), (3, 2, (8, 6))):
        with pytest.raises(ValueError, match="cannot be dilated"):
            dilated_stage_by_phases(weights(), randn(1, *grid, 128), index, e, DEPTHS, HEADS, WINDOW)
