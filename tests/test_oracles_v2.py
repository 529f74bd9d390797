"""The Swin V2 oracles checked against each other, against timm where timm is right, and against their properties."""

from collections.abc import Iterator, Sequence
from itertools import product
from math import exp, log, log2

import pytest
import torch
import torch.nn.functional as F
from oracles import Pair, _linear
from oracles_v2 import (
    continuous_bias,
    cosine_qkv_bias,
    cosine_scale,
    naive_cosine_attention,
    random_swin_v2_state_dict,
    v2_attention,
    v2_stage,
    v2_stage_outputs,
)
from releases import needs
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import Tensor

EMBED, DEPTHS, HEADS = 16, (1, 2, 2, 1), (1, 2, 4, 8)
NAME = "layers.1.blocks.1"  # a block to test alone: 32 channels, 2 heads

# (height, width), window, shift: grids of one window, below, at and above it; shifts of one axis and of both
CASES = [
    ((13, 17), (4, 5), (2, 2)),
    ((13, 17), (4, 5), (0, 0)),
    ((11, 7), (4, 5), (2, 0)),
    ((8, 10), (4, 5), (3, 4)),
    ((3, 12), (4, 5), (0, 2)),
    ((3, 5), (4, 5), (1, 2)),
    ((1, 1), (4, 5), (0, 0)),
    ((9, 11), (7, 7), (3, 3)),
    ((6, 5), (1, 4), (0, 2)),
]

# (image height, width), the window of each stage, the pretrained one of each, depths
TIMM_CASES = [
    ((128, 128), [(4, 4)] * 4, [(4, 4)] * 4, DEPTHS),
    ((64, 64), [(8, 8), (8, 8), (4, 4), (2, 2)], [(6, 6), (6, 6), (6, 6), (3, 3)], (2, 1, 2, 1)),
    ((96, 128), [(3, 4), (4, 2), (3, 4), (3, 2)], [(5, 2), (4, 2), (1, 3), (8, 8)], (2, 2, 2, 2)),
    ((72, 104), [(9, 13), (9, 13), (5, 7), (3, 4)], [(8, 8)] * 4, (2, 2, 1, 1)),  # odd grids: 9x13, then 5x7
]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """The tensors are tiny: threads that wait for one another cost more than they give."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weights(depths: Sequence[int] = DEPTHS) -> dict[str, Tensor]:
    return random_swin_v2_state_dict(EMBED, depths, HEADS, torch.Generator().manual_seed(11))


def exact_coordinate(offset: int, pretrained: int) -> float:
    size = log2(1 + abs(8 * offset / max(pretrained - 1, 1))) / log2(8)
    return size if offset > 0 else -size


def timm_model(
    image_size: Pair, windows: Sequence[Pair], pretrained: Sequence[Pair], depths: Sequence[int]
) -> SwinTransformerV2:
    """timm's model of `weights(depths)` in float64, also its table of coordinates, which timm rounds to float32."""
    model = SwinTransformerV2(
        image_size,
        num_classes=0,
        embed_dim=EMBED,
        depths=depths,
        num_heads=HEADS,
        window_size=windows,
        pretrained_window_sizes=pretrained,
    )
    model = model.double().eval()
    missing, unexpected = model.load_state_dict(weights(depths), strict=False)
    assert (set(missing), unexpected) == ({"norm.weight", "norm.bias"}, [])
    for layer, window, sides in zip(model.layers, windows, pretrained, strict=True):
        (wh, ww), (ph, pw) = window, sides
        offsets = product(range(1 - wh, wh), range(1 - ww, ww))
        exact = torch.tensor(
            [(exact_coordinate(y, ph), exact_coordinate(x, pw)) for y, x in offsets], dtype=torch.float64
        )
        exact = exact.reshape(1, 2 * wh - 1, 2 * ww - 1, 2)
        for block in layer.blocks:
            assert block.window_size == window, "timm has cut the window"
            torch.testing.assert_close(block.attn.relative_coords_table, exact, rtol=0, atol=1e-6)
            block.attn.relative_coords_table.copy_(exact)
    return model


@needs("timm", "1.0.31", "has one window for all stages of Swin V2 before it")
@pytest.mark.parametrize(("image_size", "windows", "pretrained", "depths"), TIMM_CASES)
def test_stages_equal_timm_where_grids_divide(
    image_size: Pair, windows: Sequence[Pair], pretrained: Sequence[Pair], depths: Sequence[int]
) -> None:
    model = timm_model(image_size, windows, pretrained, depths)
    image = randn(2, 3, *image_size)
    outputs = v2_stage_outputs(weights(depths), image, depths, HEADS, windows, pretrained)
    with torch.no_grad():
        x = model.patch_embed(image)
        for layer, output in zip(model.layers, outputs, strict=True):
            x = layer(x)
            torch.testing.assert_close(output, x, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("size", "window", "shift"), CASES)
def test_restatements_of_attention_agree(size: Pair, window: Pair, shift: Pair) -> None:
    state_dict, x = weights(), randn(2, *size, 2 * EMBED)
    x.requires_grad_()
    expected = v2_attention(state_dict, NAME, x, window, (8, 3), shift)

    qkv_bias = cosine_qkv_bias(state_dict, NAME)
    qkv = F.linear(x, state_dict[f"{NAME}.attn.qkv.weight"], qkv_bias).reshape(2, *size, 3, HEADS[1], -1)
    bias = continuous_bias(state_dict, NAME, window, (8, 3))
    pad_qkv = qkv_bias.reshape(3, HEADS[1], -1)
    naive = naive_cosine_attention(qkv, cosine_scale(state_dict, NAME), bias, window, shift, pad_qkv=pad_qkv)
    naive = _linear(state_dict, f"{NAME}.attn.proj", naive)
    torch.testing.assert_close(naive, expected, rtol=0, atol=1e-11)

    weight = randn(*x.shape, seed=1)
    gradients = [torch.autograd.grad((y * weight).sum(), x)[0] for y in (naive, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-10)


def test_naive_attention_dilates_phase_by_phase() -> None:
    qkv, scale, bias, pad_qkv = (
        randn(1, 9, 7, 3, 2, 4),
        torch.tensor([5.0, 50.0]).double(),
        randn(2, 6, 6),
        randn(3, 2, 4),
    )
    out = naive_cosine_attention(qkv, scale, bias, (2, 3), (1, 1), 2, pad_qkv)
    first = naive_cosine_attention(qkv[:, ::2, ::2], scale, bias, (2, 3), (1, 1), 1, pad_qkv)
    torch.testing.assert_close(out[:, ::2, ::2], first, rtol=0, atol=1e-13)


@pytest.mark.parametrize("pad", [True, False])
def test_padding_is_seen_if_it_has_a_qkv(pad: bool) -> None:
    qkv, bias = randn(1, 1, 1, 3, 1, 4), torch.zeros(1, 4, 4).double()
    pad_qkv = torch.stack([torch.ones(1, 4), torch.zeros(1, 4), torch.ones(1, 4)]).double() if pad else None
    out = naive_cosine_attention(qkv, torch.tensor([7.0]), bias, 2, 0, pad_qkv=pad_qkv)
    q, k, v = qkv.flatten(0, 2).reshape(3, 4)
    share = exp(7 * F.cosine_similarity(q, k, dim=0))  # of the token; each of three padding tokens has exp(0)
    expected = (share * v + 3) / (share + 3) if pad else v
    torch.testing.assert_close(out.flatten(), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("window", "pretrained"), [((4, 4), (4, 4)), ((3, 5), (8, 2)), ((1, 6), (1, 3))])
def test_bias_of_every_pair(window: Pair, pretrained: Pair) -> None:
    state_dict = weights()
    bias = continuous_bias(state_dict, NAME, window, pretrained)
    first, last = state_dict[f"{NAME}.attn.cpb_mlp.0.weight"], state_dict[f"{NAME}.attn.cpb_mlp.2.weight"]
    positions = list(product(range(window[0]), range(window[1])))
    for (i, query), (j, key) in product(enumerate(positions), repeat=2):
        offsets = [exact_coordinate(a - b, p) for a, b, p in zip(query, key, pretrained, strict=True)]
        hidden = first[:, 0] * offsets[0] + first[:, 1] * offsets[1] + state_dict[f"{NAME}.attn.cpb_mlp.0.bias"]
        expected = 16 / (1 + (-(last * hidden.clamp(min=0)).sum(1)).exp())
        torch.testing.assert_close(bias[:, i, j], expected, rtol=0, atol=1e-12)


def test_random_weights_matter() -> None:
    state_dict = weights()
    for i, (depth, heads) in enumerate(zip(DEPTHS, HEADS, strict=True)):
        biases = [continuous_bias(state_dict, f"layers.{i}.blocks.{j}", (4, 4), (4, 4)) for j in range(depth)]
        assert all(len(bias) == heads for bias in biases)
        assert min(bias.std().item() for bias in torch.cat(biases)) > 1
        scales = [state_dict[f"layers.{i}.blocks.{j}.attn.logit_scale"] for j in range(depth)]
        assert torch.cat(scales).max() > log(100)
        if depth * heads > 1:
            assert torch.cat(scales).min() < log(100)

    def second(state_dict: dict[str, Tensor]) -> Tensor:
        return v2_stage(state_dict, randn(1, 7, 9, EMBED), 1, DEPTHS, HEADS, (2, 3), (2, 3))

    expected = second(state_dict)
    assert expected.shape == (1, 4, 5, 2 * EMBED)
    for key in (key for key in state_dict if key.startswith("layers.1.")):
        value = state_dict[key]
        changed = second(state_dict | {key: value + 0.01 * value.sign()})
        is_clamped = key.endswith("logit_scale") and bool((value > log(100)).all())
        assert torch.equal(changed, expected) == is_clamped, key


def test_activations_at_an_awkward_size() -> None:
    windows = [(2, 3), (3, 2), (2, 2), (2, 2)]
    outputs = v2_stage_outputs(weights(), randn(1, 3, 50, 70), DEPTHS, HEADS, windows, windows)
    assert [tuple(x.shape) for x in outputs] == [(1, 13, 18, 16), (1, 7, 9, 32), (1, 4, 5, 64), (1, 2, 3, 128)]
    assert all(0.3 < x.std() < 5 for x in outputs)


def test_a_stage_is_local() -> None:
    """Padding comes before the roll: no token sees one across the border of the image."""
    depths, state_dict, x = (2, 2, 2, 1), weights((2, 2, 2, 1)), randn(1, 13, 17, EMBED)
    expected = v2_stage(state_dict, x, 0, depths, HEADS, (4, 4), (4, 4))
    changed = x.clone()
    changed[:, 0] += 1
    moved = (v2_stage(state_dict, changed, 0, depths, HEADS, (4, 4), (4, 4)) - expected).abs().amax((0, 2, 3))
    assert moved.nonzero().flatten().tolist() == list(range(6))  # the first window, and those shifted ones it feeds
