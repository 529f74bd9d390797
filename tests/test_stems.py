"""The four stems: identities between level 1 and the tokens of stage 1, parameters, sizes, gradients."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from decoders import build, image
from torch import Tensor, nn

import swinx
from swinx.config import STEMS

CONFIG = swinx.SwinConfig(12, (1, 2, 1, 1), (1, 2, 2, 4), (3, 5), 0.0)
SIZES = [(4, 4), (5, 131), (67, 71), (101, 127), (64, 96)]


def encoder(stem: str, *, seed: int = 0, **arguments: int) -> swinx.SwinXEncoder:
    """Float64, in evaluation mode, with norms and biases that are not the identity."""
    torch.manual_seed(seed)
    module = swinx.SwinXEncoder(replace(CONFIG, stem=stem), **arguments).double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module


def stage_one_tokens(module: swinx.SwinXEncoder, x: Tensor) -> Tensor:
    """(B, H, W, C), what the first stage is given."""
    caught: list[Tensor] = []
    hook = module.layers[0].register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    with torch.no_grad():
        module(x)
    hook.remove()
    return caught[0]


def levels(module: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        result: list[Tensor] = module(x)
    return result


def windows_at(x: Tensor, rows: Sequence[int], columns: Sequence[int], size: int, before: int) -> Tensor:
    """Windows of an image whose outside is zero: (B, rows, columns, C, size, size), starting `before` ahead."""
    padded = F.pad(x, (before, size, before, size))
    picked = [torch.stack([padded[:, :, i : i + size, j : j + size] for j in columns], 1) for i in rows]
    return torch.stack(picked, 1)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, before: int) -> Tensor:
    """A convolution by its definition, with zeros outside: (B, C, H, W) -> (B, ceil(H / s), ceil(W / s), C')."""
    rows, columns = range(0, x.shape[2], stride), range(0, x.shape[3], stride)
    patches = windows_at(x, rows, columns, weight.shape[-1], before)
    out = torch.einsum("bhwiyx,oiyx->bhwo", patches, weight)
    return out if bias is None else out + bias


def normalise(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """LayerNorm of the last axis by its definition."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


@pytest.mark.parametrize("stem", ["shared", "branch", "none"])
@pytest.mark.parametrize("size", SIZES)
def test_tokens_are_the_patch_embedding_at_stride_4_completed_with_zeros(stem: str, size: tuple[int, int]) -> None:
    module, x = encoder(stem), image(2, 3, *size).double()
    embed = module.patch_embed
    expected = normalise(convolve(x, embed.proj.weight, embed.proj.bias, 4, 0), embed.norm)
    torch.testing.assert_close(stage_one_tokens(module, x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("size", SIZES)
def test_shared_level_1_is_the_patch_embedding_at_stride_2_padded_at_the_end(size: tuple[int, int]) -> None:
    module, x = encoder("shared"), image(2, 3, *size).double()
    embed = module.patch_embed
    expected = normalise(convolve(x, embed.proj.weight, embed.proj.bias, 2, 0), embed.norm).permute(0, 3, 1, 2)
    torch.testing.assert_close(levels(module, x)[1], expected, rtol=1e-10, atol=1e-10)
    if size[0] % 4 == size[1] % 4 == 0:  # the usual way to say it, where nothing is ragged
        padded = F.pad(x, (0, 2, 0, 2))
        direct = embed.norm(F.conv2d(padded, embed.proj.weight, embed.proj.bias, 2).movedim(1, 3)).movedim(3, 1)
        torch.testing.assert_close(levels(module, x)[1], direct, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", SIZES)
def test_every_second_position_of_shared_level_1_is_exactly_the_tokens(
    size: tuple[int, int], dtype: torch.dtype
) -> None:
    module, x = encoder("shared").to(dtype), image(2, 3, *size).to(dtype)
    level1, tokens = levels(module, x)[1], stage_one_tokens(module, x)
    assert torch.equal(level1[..., ::2, ::2], tokens.permute(0, 3, 1, 2))


def test_shared_stem_adds_no_weights() -> None:
    shared, none = encoder("shared").state_dict(), encoder("none").state_dict()
    assert {key: value.shape for key, value in shared.items()} == {key: value.shape for key, value in none.items()}


@pytest.mark.parametrize("size", SIZES)
def test_none_and_shared_agree_from_level_2_on_and_none_has_an_empty_level_1(size: tuple[int, int]) -> None:
    none, shared = encoder("none"), encoder("shared", seed=1)
    shared.load_state_dict(none.state_dict())
    x = image(2, 3, *size).double()
    assert levels(none, x)[1].shape == (2, 0, (size[0] + 1) // 2, (size[1] + 1) // 2)
    assert none.out_channels[1] == none.feature_info[1].channels == 0
    for one, other in zip(levels(none, x)[2:], levels(shared, x)[2:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_branch_adds_its_own_weights_and_leaves_the_tokens_alone() -> None:
    branch, none = encoder("branch"), encoder("none", seed=1)
    own = {key for key in branch.state_dict() if key.startswith(("patch_embed.conv1.", "patch_embed.conv2."))}
    assert branch.state_dict().keys() - own == none.state_dict().keys()
    assert len(own) == 6
    none.load_state_dict({key: value for key, value in branch.state_dict().items() if key not in own})
    x = image(2, 3, 67, 71).double()
    assert torch.equal(stage_one_tokens(branch, x), stage_one_tokens(none, x))
    for one, other in zip(levels(branch, x)[2:], levels(none, x)[2:], strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("stem", ["branch", "inline"])
@pytest.mark.parametrize("size", SIZES)
def test_convolutional_level_1_is_two_3x3_convolutions_with_norm_and_gelu(stem: str, size: tuple[int, int]) -> None:
    module, x = encoder(stem), image(1, 3, *size).double()
    expected = x
    for layer, stride in ((module.patch_embed.conv1, 2), (module.patch_embed.conv2, 1)):
        normed = normalise(convolve(expected, layer.conv.weight, None, stride, 1), layer.norm)
        expected = (normed * 0.5 * (1 + torch.erf(normed / 2**0.5))).permute(0, 3, 1, 2)
    torch.testing.assert_close(levels(module, x)[1], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("size", SIZES)
def test_inline_tokens_are_made_from_level_1(size: tuple[int, int]) -> None:
    module, x = encoder("inline"), image(1, 3, *size).double()
    embed = module.patch_embed
    expected = normalise(convolve(levels(module, x)[1], embed.proj.weight, embed.proj.bias, 2, 1), embed.norm)
    torch.testing.assert_close(stage_one_tokens(module, x), expected, rtol=1e-10, atol=1e-10)


def test_inline_has_no_patch_embedding_of_the_pretrained_layout() -> None:
    """Nothing of it could be loaded: a kernel of 4 x 4 pixels is nowhere in it."""
    inline, none = encoder("inline").state_dict(), encoder("none").state_dict()
    assert all(value.shape[2:] == (3, 3) for value in inline.values() if value.ndim == 4)
    assert inline["patch_embed.proj.weight"].shape != none["patch_embed.proj.weight"].shape
    backbone = {key: value.shape for key, value in inline.items() if not key.startswith("patch_embed.")}
    assert backbone == {key: value.shape for key, value in none.items() if not key.startswith("patch_embed.")}


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("size", SIZES)
def test_levels_1_and_2_have_ceil_sizes_and_stated_channels(stem: str, size: tuple[int, int]) -> None:
    module = encoder(stem, depth=2)
    _, level1, level2 = levels(module, image(2, 3, *size).double())
    halves, quarters = tuple(-(-side // 2) for side in size), tuple(-(-side // 4) for side in size)
    assert level1.shape == (2, {"shared": 12, "branch": 6, "inline": 6, "none": 0}[stem], *halves)
    assert level2.shape == (2, 12, *quarters)
    assert module.out_channels == [3, level1.shape[1], 12]


@pytest.mark.parametrize("stem", STEMS)
def test_every_stem_works_at_depth_1(stem: str) -> None:
    """Without a stage, level 1 is the last level, and it equals that of a deep encoder."""
    shallow, deep = encoder(stem, depth=1), encoder(stem)
    keys = shallow.state_dict().keys()
    assert all(key.startswith("patch_embed.") for key in keys)
    shallow.load_state_dict({key: value for key, value in deep.state_dict().items() if key in keys})
    x = image(2, 3, 67, 71).double()
    assert len(levels(shallow, x)) == 2
    assert torch.equal(levels(shallow, x)[1], levels(deep, x)[1])


@pytest.mark.parametrize("stem", STEMS)
def test_unet_trains_every_parameter_of_the_stem(stem: str) -> None:
    name = f"swinx_n_{stem}_for_test_stems"
    swinx.register_encoder(name, base="swinx_n", stem=stem)
    model = build("Unet", 16, encoder=name)
    model(image(2, 3, 67, 71)).square().mean().backward()
    for key, parameter in model.encoder.patch_embed.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), key


@pytest.mark.parametrize("stem", STEMS)
def test_level_1_follows_the_image_by_two_pixels(stem: str) -> None:
    """Moving the image by 2 pixels moves level 1 by 1, away from the borders; a wrong stride or padding would not."""
    module = encoder(stem, depth=1)
    picture = image(1, 3, 61, 73).double()
    here, there = levels(module, picture[..., 2:, 2:])[1], levels(module, picture)[1][..., 1:, 1:]
    torch.testing.assert_close(here[..., 2:-2, 2:-2], there[..., 2:-2, 2:-2], rtol=1e-10, atol=1e-10)


def test_a_patch_embedding_of_another_stride_is_refused() -> None:
    module = encoder("shared")
    module.patch_embed.proj = nn.Conv2d(3, module.patch_embed.proj.out_channels, 4, 8)
    with pytest.raises(ValueError, match=r"patch_embed\.proj must have stride 2 in this stem: \(31, 37\) positions"):
        module(image(1, 3, 61, 73))


def test_wrong_stem_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"stem must be one of shared, branch, inline, none, got 'conv'"):
        replace(CONFIG, stem="conv")
    with pytest.raises(ValueError, match=r"stem must be one of .*, got None"):
        swinx.register_encoder("swinx_n_bad_stem", base="swinx_n", stem=None)
    assert "swinx_n_bad_stem" not in swinx.list_encoders()
