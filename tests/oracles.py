"""Slow, explicit restatements of what the library computes, to test it against. They share no code with it.

Shape letters: B images, H W grid, C channels, h heads, D head_dim, N tokens in a window.
State dicts have timm's key names. Everything runs on the CPU, in the dtype of its inputs; give float64.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor

Pair = tuple[int, int]
Weights = Mapping[str, Tensor]


def pair(value: int | Pair) -> Pair:
    """One number for both axes, or one for each."""
    return (value, value) if isinstance(value, int) else value


def _region(position: int, length: int, window: int, shift: int) -> int:
    """Which of the slices [0, L-w), [L-w, L-s), [L-s, L) holds a rolled position; one single region when s = 0."""
    if shift == 0 or position < length - window:
        return 0
    return 1 if position < length - shift else 2


def _windows(height: int, width: int, window: Pair, shift: Pair, dilation: int) -> Iterator[tuple[list[int], Tensor]]:
    """Every window of every phase: its N sources (y·W + x of a token, H·W of a padding token) and its N region ids."""
    # All phases share the geometry of the first and largest; a later one just has more padding in it.
    rows, cols = (ceil(ceil(n / dilation) / w) * w for n, w in zip((height, width), window, strict=True))
    for p, q in product(range(dilation), repeat=2):
        for top, left in product(range(0, rows, window[0]), range(0, cols, window[1])):
            sources, regions = [], []
            for r, c in product(range(top, top + window[0]), range(left, left + window[1])):
                y = p + dilation * ((r + shift[0]) % rows)
                x = q + dilation * ((c + shift[1]) % cols)
                sources.append(y * width + x if y < height and x < width else height * width)
                regions.append(3 * _region(r, rows, window[0], shift[0]) + _region(c, cols, window[1], shift[1]))
            yield sources, torch.tensor(regions)


def naive_window_attention(
    qkv: Tensor,
    bias: Tensor,
    window_size: int | Pair,
    shift: int | Pair,
    dilation: int = 1,
    pad_qkv: Tensor | None = None,
) -> Tensor:
    """Attention in shifted windows of each lattice x[:, p::d, q::d], one window at a time; differentiable.

    qkv (B, H, W, 3, h, D), bias (h, N, N), pad_qkv (3, h, D) -> (B, H, W, h·D). The shift is taken as given, also where
    the lattice is no larger than the window. Padding tokens have pad_qkv and are attended; without it no one sees them.
    """
    batch, height, width, _, heads, head_dim = qkv.shape
    padding = height * width
    tokens = qkv.flatten(1, 2)  # (B, H·W, 3, h, D)
    if pad_qkv is not None:
        tokens = torch.cat([tokens, pad_qkv.expand(batch, 1, *pad_qkv.shape)], dim=1)  # token number H·W
    outputs, written = [], []
    for sources, regions in _windows(height, width, pair(window_size), pair(shift), dilation):
        queries = [i for i, source in enumerate(sources) if source != padding]
        if not queries:  # a window past the end of a ragged phase
            continue
        keys = queries if pad_qkv is None else list(range(len(sources)))
        query_tokens = tokens[:, [sources[i] for i in queries]]  # (B, queries, 3, h, D)
        key_tokens = tokens[:, [sources[i] for i in keys]]
        scores = torch.einsum("bnhd,bmhd->bhnm", query_tokens[:, :, 0], key_tokens[:, :, 1]) / head_dim**0.5
        scores = scores + bias[:, queries][:, :, keys]
        scores = scores.masked_fill(regions[queries][:, None] != regions[keys][None, :], -torch.inf)
        outputs.append(torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), key_tokens[:, :, 2]))
        written += [sources[i] for i in queries]
    assert sorted(written) == list(range(padding)), "every token belongs to exactly one window"
    in_order = torch.cat(outputs, dim=1)[:, torch.tensor(written).argsort()]  # (B, H·W, h, D)
    return in_order.reshape(batch, height, width, heads * head_dim)


def relative_bias(table: Tensor, window_size: int | Pair) -> Tensor:
    """Bias table ((2·wh-1)·(2·ww-1), h) -> bias (h, N, N), by the offset of the query from the key."""
    wh, ww = pair(window_size)
    positions = list(product(range(wh), range(ww)))
    index = [[(y - v + wh - 1) * (2 * ww - 1) + x - u + ww - 1 for v, u in positions] for y, x in positions]
    return table[torch.tensor(index)].permute(2, 0, 1)


def padded_window_attention(
    x: Tensor, qkv_weight: Tensor, qkv_bias: Tensor, bias: Tensor, window_size: int | Pair, shift: int | Pair
) -> Tensor:
    """Undilated attention as segmentation Swin writes it: pad the normed x by zeros, roll, partition, project, attend.

    x (B, H, W, C), qkv_weight (3·C, C), qkv_bias (3·C,), bias (h, N, N) -> (B, H, W, C), before the output projection.
    """
    (wh, ww), (sh, sw), heads = pair(window_size), pair(shift), len(bias)
    batch, height, width, channels = x.shape
    x = F.pad(x, (0, 0, 0, -width % ww, 0, -height % wh))
    rows, cols = x.shape[1:3]
    region_map = torch.zeros(1, rows, cols, 1, dtype=torch.long)
    bands = [[slice(0, -w), slice(-w, -s), slice(-s, None)] if s else [slice(None)] for w, s in ((wh, sh), (ww, sw))]
    for number, (band_y, band_x) in enumerate(product(*bands)):
        region_map[:, band_y, band_x] = number

    def partition(grid: Tensor) -> Tensor:  # (B, rows, cols, ·) -> (B, windows, N, ·)
        grid = grid.reshape(len(grid), rows // wh, wh, cols // ww, ww, -1)
        return grid.transpose(2, 3).flatten(3, 4).flatten(1, 2)

    regions = partition(region_map).transpose(2, 3)  # (1, windows, 1, N)
    hidden = regions[..., :, None] != regions[..., None, :]  # (1, windows, 1, N, N)
    windows = partition(torch.roll(x, (-sh, -sw), dims=(1, 2)))
    qkv = F.linear(windows, qkv_weight, qkv_bias).reshape(batch, -1, wh * ww, 3, heads, channels // heads)
    q, k, v = qkv.permute(3, 0, 1, 4, 2, 5)  # each (B, windows, h, N, D)
    scores = q @ k.transpose(-1, -2) * (channels // heads) ** -0.5 + bias
    out = (scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v).transpose(2, 3)  # (B, windows, N, h, D)
    out = out.reshape(batch, rows // wh, cols // ww, wh, ww, channels).transpose(2, 3)
    return torch.roll(out.reshape(batch, rows, cols, channels), (sh, sw), dims=(1, 2))[:, :height, :width]


def _norm(state_dict: Weights, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state_dict[f"{name}.weight"], state_dict[f"{name}.bias"], eps=1e-5)


def _linear(state_dict: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, state_dict[f"{name}.weight"], state_dict.get(f"{name}.bias"))


def patch_embed(state_dict: Weights, image: Tensor) -> Tensor:
    """Image (B, 3, height, width), end-padded by zeros to multiples of 4 -> normed tokens (B, H, W, C)."""
    image = F.pad(image, (0, -image.shape[3] % 4, 0, -image.shape[2] % 4))
    x = F.conv2d(image, state_dict["patch_embed.proj.weight"], state_dict["patch_embed.proj.bias"], stride=4)
    return _norm(state_dict, "patch_embed.norm", x.permute(0, 2, 3, 1))


def block(state_dict: Weights, name: str, x: Tensor, window_size: int | Pair, attend: Callable[..., Tensor]) -> Tensor:
    """One block on x (B, H, W, C). `attend` takes the normed x and, like padded_window_attention, the next three."""
    qkv_weight, qkv_bias = state_dict[f"{name}.attn.qkv.weight"], state_dict[f"{name}.attn.qkv.bias"]
    bias = relative_bias(state_dict[f"{name}.attn.relative_position_bias_table"], window_size)
    attended = attend(_norm(state_dict, f"{name}.norm1", x), qkv_weight, qkv_bias, bias)
    x = x + _linear(state_dict, f"{name}.attn.proj", attended)
    hidden = F.gelu(_linear(state_dict, f"{name}.mlp.fc1", _norm(state_dict, f"{name}.norm2", x)))  # exact, not tanh
    return x + _linear(state_dict, f"{name}.mlp.fc2", hidden)


def block_shift(number: int, extents: Sequence[int], window_size: int | Pair) -> Pair:
    """Half a window in odd blocks, but 0 along an axis whose lattice extent is no larger than the window."""
    rows, cols = (w // 2 if number % 2 and n > w else 0 for n, w in zip(extents, pair(window_size), strict=True))
    return rows, cols


def stage(
    state_dict: Weights, x: Tensor, index: int, depths: Sequence[int], num_heads: Sequence[int], window_size: int | Pair
) -> Tensor:
    """One undilated stage: x (B, H, W, C) -> the same shape for index 0, else (B, ceil(H/2), ceil(W/2), 2·C)."""
    assert len(state_dict[f"layers.{index}.blocks.0.attn.relative_position_bias_table"].T) == num_heads[index]
    if index > 0:
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        taps = [x[:, row::2, col::2] for row, col in ((0, 0), (1, 0), (0, 1), (1, 1))]
        normed = _norm(state_dict, f"layers.{index}.downsample.norm", torch.cat(taps, dim=-1))
        x = _linear(state_dict, f"layers.{index}.downsample.reduction", normed)
    for number in range(depths[index]):
        shift = block_shift(number, x.shape[1:3], window_size)
        attend = partial(padded_window_attention, window_size=window_size, shift=shift)
        x = block(state_dict, f"layers.{index}.blocks.{number}", x, window_size, attend)
    return x


def official_stage_outputs(
    state_dict: Weights, image: Tensor, depths: Sequence[int], num_heads: Sequence[int], window_size: int | Pair
) -> list[Tensor]:
    """Outputs (B, H, W, C) of the four stages of undilated Swin, before any norm of a level; image (B, 3, ·, ·)."""
    outputs = [patch_embed(state_dict, image)]
    for index in range(len(depths)):
        outputs.append(stage(state_dict, outputs[-1], index, depths, num_heads, window_size))
    return outputs[1:]


def dilated_stage_by_phases(
    state_dict: Weights,
    x: Tensor,
    index: int,
    incoming_period: int,
    depths: Sequence[int],
    num_heads: Sequence[int],
    window_size: int | Pair,
) -> Tensor:
    """A stage that keeps its grid: x (B, H, W, C) of period e -> (B, H, W, 2·C) of period 2·e, phase by phase.

    Phase p + e·t is the undilated stage on incoming lattice p without its first t rows and columns, t in {0, 1}².
    """
    e = incoming_period
    batch, height, width, channels = x.shape
    if index == 0 or height % (2 * e) or width % (2 * e):
        raise ValueError(f"stage {index} cannot be dilated from period {e} on a {height}x{width} grid")
    out = x.new_full((batch, height, width, 2 * channels), torch.nan)  # NaN: a phase left out would show
    for p, q, t, u in product(range(e), range(e), range(2), range(2)):
        lattice = x[:, p::e, q::e][:, t:, u:]
        after = stage(state_dict, lattice, index, depths, num_heads, window_size)
        out[:, p + e * t :: 2 * e, q + e * u :: 2 * e] = after
    return out


def random_swin_state_dict(
    embed_dim: int,
    depths: Sequence[int],
    num_heads: Sequence[int],
    window_size: int | Pair,
    generator: torch.Generator,
    bias_scale: float = 2.0,
    dtype: torch.dtype = torch.float64,
) -> dict[str, Tensor]:
    """Random weights under timm's names, without final norm and head. Activations stay O(1).

    Unlike at initialisation, bias tables (std bias_scale), qkv biases and norms all change the output.
    """
    weights: dict[str, Tensor] = {}

    def draw(name: str, *shape: int, std: float, mean: float = 0.0) -> None:
        weights[name] = mean + std * torch.randn(shape, generator=generator, dtype=dtype)

    def norm(name: str, channels: int) -> None:
        draw(f"{name}.weight", channels, std=0.2, mean=1.0)
        draw(f"{name}.bias", channels, std=0.2)

    def linear(name: str, inputs: int, outputs: int, bias_std: float = 0.2) -> None:
        draw(f"{name}.weight", outputs, inputs, std=inputs**-0.5)
        draw(f"{name}.bias", outputs, std=bias_std)

    draw("patch_embed.proj.weight", embed_dim, 3, 4, 4, std=48**-0.5)
    draw("patch_embed.proj.bias", embed_dim, std=0.2)
    norm("patch_embed.norm", embed_dim)
    wh, ww = pair(window_size)
    for i, (depth, heads) in enumerate(zip(depths, num_heads, strict=True)):
        channels = embed_dim * 2**i
        if i > 0:
            norm(f"layers.{i}.downsample.norm", 2 * channels)  # four taps of half the channels
            draw(f"layers.{i}.downsample.reduction.weight", channels, 2 * channels, std=(2 * channels) ** -0.5)
        for j in range(depth):
            name = f"layers.{i}.blocks.{j}"
            norm(f"{name}.norm1", channels)
            linear(f"{name}.attn.qkv", channels, 3 * channels, bias_std=1.0)  # large: what padding tokens become
            draw(f"{name}.attn.relative_position_bias_table", (2 * wh - 1) * (2 * ww - 1), heads, std=bias_scale)
            linear(f"{name}.attn.proj", channels, channels)
            norm(f"{name}.norm2", channels)
            linear(f"{name}.mlp.fc1", channels, 4 * channels)
            linear(f"{name}.mlp.fc2", 4 * channels, channels)
    return weights
