"""Slow, explicit restatements of Swin Transformer V2 at any image size, to test the library against; no shared code.

Shape letters: B images, H W grid, C channels, h heads, D head_dim, N tokens in a window. Windows are (wh, ww) pairs.
State dicts have timm's key names. Everything runs on the CPU, in the dtype of its inputs; give float64.
"""

from collections.abc import Sequence
from math import log

import torch
import torch.nn.functional as F
from oracles import Pair, Weights, _linear, _norm, _windows, block_shift, pair, patch_embed, relative_bias
from torch import Tensor

Ints = Sequence[int]
Pairs = Sequence[Pair]


def cosine_scale(state_dict: Weights, name: str) -> Tensor:
    """What the cosines of each head of block `name` are multiplied by: (h, 1, 1), never more than 100."""
    return state_dict[f"{name}.attn.logit_scale"].clamp(max=log(100)).exp()


def cosine_qkv_bias(state_dict: Weights, name: str) -> Tensor:
    """The qkv bias (3·C,) of block `name`, which is also the qkv of a padding token: keys have no bias."""
    q_bias, v_bias = state_dict[f"{name}.attn.q_bias"], state_dict[f"{name}.attn.v_bias"]
    return torch.cat([q_bias, torch.zeros_like(q_bias), v_bias])


def continuous_bias(state_dict: Weights, name: str, window: Pair, pretrained_window: Pair) -> Tensor:
    """Position bias (h, N, N) of block `name`, between 0 and 16, by the offset of the query from the key.

    Offsets are counted in pretrained windows, so that a larger window asks the small network for larger coordinates.
    """
    axes = []
    for side, pretrained in zip(window, pretrained_window, strict=True):
        assert pretrained > 0, "here no 0 stands for the window itself"
        offsets = torch.arange(1 - side, side, dtype=state_dict[f"{name}.attn.cpb_mlp.0.weight"].dtype)
        scaled = 8 * offsets / max(pretrained - 1, 1)
        axes.append(scaled.sign() * torch.log2(1 + scaled.abs()) / 3)  # 3 = log2(8)
    hidden = _linear(state_dict, f"{name}.attn.cpb_mlp.0", torch.cartesian_prod(*axes)).relu()
    table = 16 * torch.sigmoid(_linear(state_dict, f"{name}.attn.cpb_mlp.2", hidden))  # ((2·wh-1)·(2·ww-1), h)
    return relative_bias(table, window)


def v2_attention(
    state_dict: Weights, name: str, x: Tensor, window: Pair, pretrained_window: Pair, shift: Pair
) -> Tensor:
    """Undilated attention of block `name`, with its output projection, on a grid of any size: (B, H, W, C) -> the same.

    Zero vectors pad the tokens, at the bottom and right, before the roll; they are projected and attended like others.
    """
    (wh, ww), (sh, sw) = window, shift
    batch, height, width, channels = x.shape
    x = F.pad(x, (0, 0, 0, -width % ww, 0, -height % wh))
    rows, cols = x.shape[1:3]

    def partition(grid: Tensor) -> Tensor:  # (B, rows, cols, ·) -> (B, windows, N, ·)
        grid = grid.reshape(len(grid), rows // wh, wh, cols // ww, ww, -1)
        return grid.transpose(2, 3).flatten(3, 4).flatten(1, 2)

    # Inside one window, two tokens see each other if along each axis the roll took both or neither past the edge.
    past_y, past_x = torch.arange(rows) >= rows - sh, torch.arange(cols) >= cols - sw
    regions = partition((2 * past_y[:, None] + past_x)[None, :, :, None]).transpose(2, 3)  # (1, windows, 1, N)
    hidden = regions[..., :, None] != regions[..., None, :]  # (1, windows, 1, N, N)

    scale = cosine_scale(state_dict, name)
    tokens = partition(torch.roll(x, (-sh, -sw), dims=(1, 2)))
    qkv = F.linear(tokens, state_dict[f"{name}.attn.qkv.weight"], cosine_qkv_bias(state_dict, name))
    qkv = qkv.reshape(*tokens.shape[:3], 3, len(scale), channels // len(scale))
    q, k, v = qkv.permute(3, 0, 1, 4, 2, 5)  # each (B, windows, h, N, D)
    cosines = F.normalize(q, dim=-1, eps=1e-12) @ F.normalize(k, dim=-1, eps=1e-12).transpose(-1, -2)
    scores = cosines * scale + continuous_bias(state_dict, name, window, pretrained_window)
    out = (scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v).transpose(2, 3)  # (B, windows, N, h, D)
    out = out.reshape(batch, rows // wh, cols // ww, wh, ww, channels).transpose(2, 3)
    out = torch.roll(out.reshape(batch, rows, cols, channels), (sh, sw), dims=(1, 2))[:, :height, :width]
    return _linear(state_dict, f"{name}.attn.proj", out)


def naive_cosine_attention(
    qkv: Tensor,
    scale: Tensor,
    bias: Tensor,
    window_size: int | Pair,
    shift: int | Pair,
    dilation: int = 1,
    pad_qkv: Tensor | None = None,
) -> Tensor:
    """Cosine attention in shifted windows of each lattice x[:, p::d, q::d], one query at a time; differentiable.

    qkv (B, H, W, 3, h, D), scale with h elements, bias (h, N, N), pad_qkv (3, h, D) -> (B, H, W, h·D), not projected.
    The shift is taken as given. Padding tokens have pad_qkv (key: zero) and are attended; without it no one sees them.
    """
    batch, height, width, _, heads, _ = qkv.shape
    padding = height * width
    tokens = list(qkv.flatten(1, 2).unbind(1))  # H·W times (B, 3, h, D)
    tokens.append((torch.zeros_like(qkv[0, 0, 0]) if pad_qkv is None else pad_qkv).expand_as(qkv[:, 0, 0]))

    def unit(vectors: Tensor) -> Tensor:
        return vectors / torch.linalg.vector_norm(vectors, dim=-1, keepdim=True).clamp(min=1e-12)

    outputs: dict[int, Tensor] = {}
    for sources, regions in _windows(height, width, pair(window_size), pair(shift), dilation):
        q, k, v = torch.stack([tokens[source] for source in sources]).unbind(2)  # each (N, B, h, D)
        q, k = unit(q), unit(k)
        keys = [j for j, source in enumerate(sources) if source != padding or pad_qkv is not None]
        for i, source in enumerate(sources):
            if source == padding:  # no one asks for its output
                continue
            assert source not in outputs, "every token belongs to exactly one window"
            seen = [j for j in keys if regions[j] == regions[i]]
            scores = (q[i] * k[seen]).sum(-1) * scale.reshape(heads) + bias[:, i, seen].T[:, None]  # (seen, B, h)
            outputs[source] = (scores.softmax(0)[..., None] * v[seen]).sum(0)  # (B, h, D)
    return torch.stack([outputs[source] for source in range(padding)], dim=1).reshape(batch, height, width, -1)


def v2_block(state_dict: Weights, name: str, x: Tensor, window: Pair, pretrained_window: Pair, shift: Pair) -> Tensor:
    """One undilated block on x (B, H, W, C): both norms come after what they norm, just before it is added."""
    attended = v2_attention(state_dict, name, x, window, pretrained_window, shift)
    x = x + _norm(state_dict, f"{name}.norm1", attended)
    hidden = F.gelu(_linear(state_dict, f"{name}.mlp.fc1", x))  # exact, not tanh
    return x + _norm(state_dict, f"{name}.norm2", _linear(state_dict, f"{name}.mlp.fc2", hidden))


def v2_stage(
    state_dict: Weights, x: Tensor, index: int, depths: Ints, num_heads: Ints, window: Pair, pretrained_window: Pair
) -> Tensor:
    """One undilated stage: x (B, H, W, C) -> the same shape for index 0, else (B, ceil(H/2), ceil(W/2), 2·C)."""
    if index > 0:
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        taps = [x[:, row::2, col::2] for row, col in ((0, 0), (1, 0), (0, 1), (1, 1))]
        reduced = _linear(state_dict, f"layers.{index}.downsample.reduction", torch.cat(taps, dim=-1))
        x = _norm(state_dict, f"layers.{index}.downsample.norm", reduced)
    for number in range(depths[index]):
        name = f"layers.{index}.blocks.{number}"
        assert len(state_dict[f"{name}.attn.logit_scale"]) == num_heads[index]
        x = v2_block(state_dict, name, x, window, pretrained_window, block_shift(number, x.shape[1:3], window))
    return x


def v2_stage_outputs(
    state_dict: Weights, image: Tensor, depths: Ints, num_heads: Ints, windows: Pairs, pretrained_windows: Pairs
) -> list[Tensor]:
    """Outputs (B, H, W, C) of the stages of undilated Swin V2, before any norm of a level; image (B, 3, ·, ·).

    Windows, one pair for each stage, are used as given: none is cut to a smaller grid, which is padded instead.
    """
    outputs = [patch_embed(state_dict, image)]
    for index, (window, pretrained) in enumerate(zip(windows, pretrained_windows, strict=True)):
        outputs.append(v2_stage(state_dict, outputs[-1], index, depths, num_heads, window, pretrained))
    return outputs[1:]


def random_swin_v2_state_dict(
    embed_dim: int, depths: Ints, num_heads: Ints, generator: torch.Generator, dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    """Random weights under timm's names, without final norm and head. Activations stay O(1).

    Unlike at initialisation, norms, q and v biases and position biases all change the output. The logit scales of each
    stage are spread from ln 300 down to ln 3 over its heads, so that some exceed the limit ln 100.
    """
    weights: dict[str, Tensor] = {}

    def draw(name: str, *shape: int, std: float, mean: float = 0.0) -> None:
        weights[name] = mean + std * torch.randn(shape, generator=generator, dtype=dtype)

    def norm(name: str, channels: int) -> None:
        draw(f"{name}.weight", channels, std=0.2, mean=1.0)
        draw(f"{name}.bias", channels, std=0.2)

    def linear(name: str, inputs: int, outputs: int, std: float | None = None, bias_std: float | None = 0.2) -> None:
        draw(f"{name}.weight", outputs, inputs, std=inputs**-0.5 if std is None else std)
        if bias_std is not None:
            draw(f"{name}.bias", outputs, std=bias_std)

    draw("patch_embed.proj.weight", embed_dim, 3, 4, 4, std=48**-0.5)
    draw("patch_embed.proj.bias", embed_dim, std=0.2)
    norm("patch_embed.norm", embed_dim)
    for i, (depth, heads) in enumerate(zip(depths, num_heads, strict=True)):
        channels = embed_dim * 2**i
        if i > 0:
            linear(f"layers.{i}.downsample.reduction", 2 * channels, channels, bias_std=None)  # 4 taps of C/2
            norm(f"layers.{i}.downsample.norm", channels)
        logit_scales = torch.linspace(log(300), log(3), depth * heads, dtype=dtype)
        logit_scales = logit_scales[torch.randperm(depth * heads, generator=generator)].reshape(depth, heads, 1, 1)
        for j in range(depth):
            name = f"layers.{i}.blocks.{j}"
            linear(f"{name}.attn.qkv", channels, 3 * channels, bias_std=None)
            draw(f"{name}.attn.q_bias", channels, std=1.0)  # large, as is the next: what padding tokens become
            draw(f"{name}.attn.v_bias", channels, std=1.0)
            weights[f"{name}.attn.logit_scale"] = logit_scales[j].clone()
            linear(f"{name}.attn.cpb_mlp.0", 2, 512, std=2.0, bias_std=0.5)
            linear(f"{name}.attn.cpb_mlp.2", 512, heads, std=0.06, bias_std=None)  # biases differ by several units
            linear(f"{name}.attn.proj", channels, channels)
            norm(f"{name}.norm1", channels)
            linear(f"{name}.mlp.fc1", channels, 4 * channels)
            linear(f"{name}.mlp.fc2", 4 * channels, channels)
            norm(f"{name}.norm2", channels)
    return weights
