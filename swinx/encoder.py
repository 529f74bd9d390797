"""SwinXEncoder: the feature pyramid, output strides, and the contract of segmentation_models_pytorch encoders.

Shapes: B images, H W image, C channels. Level 0 is the image, level i has nominal stride 2^i; all are (B, C, H', W').
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from segmentation_models_pytorch.encoders._base import EncoderMixin
from torch import Tensor, nn

from swinx.attention.api import AttentionImpl, check_implementation
from swinx.checkpoints import convert_state_dict
from swinx.config import OUTPUT_STRIDES, PATCH_SIZE, SwinConfig, window_pair
from swinx.stage import SwinStage
from swinx.stems import adapt_input_weight, make_stem


@dataclass(frozen=True)
class LevelInfo:
    """One level of the pyramid.

    channels: feature channels. stride: input pixels per token along one axis. period: dilation of the stage, 1 where it
    is not dilated. offset: centre of token 0 in input pixels from the image's edge; token i is centred at
    offset + i * stride. At a reduced output stride the offset stays that of the nominal stride.
    """

    channels: int
    stride: int
    period: int
    offset: float


class SwinXEncoder(nn.Module, EncoderMixin):  # type: ignore[misc]  # smp ships no type information
    """Swin Transformer with a full feature pyramid and exact dilation.

    Args:
        config: architecture; `swinx.config.VARIANTS` holds the published ones.
        in_channels: channels of the image, at least 1.
        depth: 1 to 5, the last level that is made; stages beyond it are not built.
        output_stride: 8, 16 or 32, see `make_dilated`.

    Raises:
        ValueError: a value outside these rules.
    """

    _is_torch_scriptable = True
    _is_torch_exportable = True
    _is_torch_compilable = True
    __jit_unused_properties__ = ["feature_info"]  # noqa: RUF012  # read from the class by torch.jit.script

    def __init__(self, config: SwinConfig, *, in_channels: int = 3, depth: int = 5, output_stride: int = 32) -> None:
        super().__init__()
        if not isinstance(config, SwinConfig):
            raise ValueError(f"config must be a SwinConfig, got {config!r}")
        if type(depth) is not int or not 1 <= depth <= 5:
            raise ValueError(f"depth must be 1, 2, 3, 4 or 5, got {depth!r}")
        _check_in_channels(in_channels)
        _check_output_stride(output_stride)
        self.config = config
        self._depth = depth
        self._in_channels = in_channels
        window = window_pair(config.window_size)
        stages = depth - 1
        dims = [config.embed_dim * 2**index for index in range(stages)]

        self.patch_embed = make_stem(config.stem, in_channels, config.embed_dim)
        blocks = sum(config.depths)
        rates = [config.drop_path_rate * index / max(blocks - 1, 1) for index in range(blocks)]
        first = [sum(config.depths[:index]) for index in range(stages)]
        self.layers = nn.ModuleList(
            SwinStage(
                dims[index],
                config.num_heads[index],
                window,
                rates[first[index] : first[index] + config.depths[index]],
                merge=index > 0,
            )
            for index in range(stages)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for dim in dims)
        for module in self.layers.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self._out_channels = [in_channels, self.patch_embed.level1_channels, *dims]
        self._output_stride = 32
        self.make_dilated(output_stride)

    @property
    def feature_info(self) -> tuple[LevelInfo, ...]:
        """What each level holds, level 0 first."""
        info = [
            LevelInfo(self._in_channels, 1, 1, 0.5),
            LevelInfo(self.patch_embed.level1_channels, 2, 1, self.patch_embed.level1_offset),
        ]
        offset = self.patch_embed.token_offset
        for index in range(len(self.layers)):
            nominal = PATCH_SIZE * 2**index
            if index > 0:  # a merged token is centred between its four taps, half an undilated token further
                offset += nominal / 4
            stride = min(nominal, self._output_stride)
            info.append(LevelInfo(self._out_channels[index + 2], stride, nominal // stride, offset))
        return tuple(info)

    @torch.jit.unused
    def make_dilated(self, output_stride: int) -> None:
        """Keep every level at or below the given stride by dilating the stages beyond it; 32 undoes it.

        Phase (0, 0) of a dilated level equals the level at output stride 32: no weight changes, and none is added.

        Raises:
            ValueError: output_stride is not 8, 16 or 32.
        """
        _check_output_stride(output_stride)
        self._output_stride = output_stride
        incoming = 1
        for index, stage in enumerate(self._stages()):
            period = max(PATCH_SIZE * 2**index // self._output_stride, 1)
            stage.set_period(incoming, period)
            incoming = period

    @torch.jit.unused
    def set_in_channels(self, in_channels: int, pretrained: bool = True) -> None:
        """Change the number of image channels.

        Args:
            in_channels: at least 1; the present number changes nothing.
            pretrained: adapt the weights that read the image (see `adapt_input_weight`), in the patch embedding and in
                the stem alike; otherwise initialise them anew.

        Raises:
            ValueError: in_channels is not a positive integer.
        """
        _check_in_channels(in_channels)
        if in_channels == self._in_channels:
            return
        for conv in self.patch_embed.input_convolutions():
            adapted = adapt_input_weight(conv.weight.detach(), in_channels)
            conv.in_channels = in_channels
            conv.weight = nn.Parameter(adapted, requires_grad=conv.weight.requires_grad)
            if not pretrained:
                conv.reset_parameters()
        self._in_channels = in_channels
        self._out_channels = [in_channels, *self._out_channels[1:]]

    @torch.jit.unused
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations (Chen et al. 2016)."""
        for stage in self._stages():
            stage.grad_checkpointing = enable

    @torch.jit.unused
    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights in our own layout or in any that `swinx.load_checkpoint` knows; smp calls this with timm's.

        Raises:
            ValueError: weights of another family or size, or incomplete ones; the message lists every mismatch.
        """
        converted = convert_state_dict(state_dict, self, strict)
        return super().load_state_dict(converted, strict=strict, assign=assign)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Levels 0 to depth of an image: (B, in_channels, H, W) floating, H and W at least 4.

        Returns:
            depth + 1 tensors (B, C, ceil(H / stride), ceil(W / stride)), level 0 the image itself.

        Raises:
            ValueError: the image is not of that form (not checked in compiled, exported or scripted code).
        """
        if not torch.jit.is_scripting():
            self._check_image(x)
        level1, tokens = self.patch_embed(x)
        levels = [x, level1]
        for stage, norm in zip(self.layers, self.norms):  # noqa: B905  # TorchScript's zip takes no strict
            tokens = stage(tokens)
            levels.append(norm(tokens).permute(0, 3, 1, 2))
        return levels

    @torch.jit.unused
    def _stages(self) -> list[SwinStage]:
        return [cast(SwinStage, stage) for stage in self.layers]

    @torch.jit.unused
    def _check_image(self, x: Tensor) -> None:
        if torch.compiler.is_compiling():  # asking a symbolic size would tie the graph to it
            return
        if not isinstance(x, Tensor):
            raise ValueError(f"image must be a tensor, got {type(x).__name__}")
        if x.ndim != 4:
            raise ValueError(f"image must be (B, C, H, W), got shape {tuple(x.shape)}")
        if not x.is_floating_point():
            raise ValueError(f"image must have a floating dtype, got {x.dtype}")
        if x.shape[1] != self._in_channels:
            raise ValueError(f"image must have {self._in_channels} channels, got shape {tuple(x.shape)}")
        if x.shape[0] == 0:
            raise ValueError(f"image batch must not be empty, got shape {tuple(x.shape)}")
        if min(x.shape[2:]) < PATCH_SIZE:
            raise ValueError(f"image must be at least {PATCH_SIZE} x {PATCH_SIZE} pixels, got shape {tuple(x.shape)}")


def _check_in_channels(in_channels: int) -> None:
    if type(in_channels) is not int or in_channels < 1:
        raise ValueError(f"in_channels must be a positive integer, got {in_channels!r}")


def _check_output_stride(output_stride: int) -> None:
    if type(output_stride) is not int or output_stride not in OUTPUT_STRIDES:
        raise ValueError(f"output_stride must be 8, 16 or 32, got {output_stride!r}")


def set_attention(model: nn.Module, impl: AttentionImpl) -> None:
    """Choose the attention implementation of every swinx encoder inside a model: see `swinx.window_attention`.

    TorchScript knows no choice: scripted models run sdpa.

    Raises:
        ValueError: unknown name, or no swinx encoder in the model.
        NotImplementedError: "triton" without the package; what else it does not take shows when it runs.
    """
    check_implementation(impl)
    stages = [module for module in model.modules() if isinstance(module, SwinStage)]
    if not any(isinstance(module, SwinXEncoder) for module in model.modules()):
        raise ValueError(f"model must contain a SwinXEncoder, got {type(model).__name__}")
    for stage in stages:
        stage.impl = impl
