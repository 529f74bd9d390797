"""SwinXEncoder: the feature pyramid, output strides, and the contract of segmentation_models_pytorch encoders.

Shapes: B images, H W image, C channels. Level 0 is the image, level i has nominal stride 2^i; all are (B, C, H', W').
"""

import contextlib
import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from segmentation_models_pytorch.encoders._base import EncoderMixin
from torch import Tensor, nn

from swinx.checkpoints import convert_state_dict
from swinx.config import PATCH_SIZE, SwinConfig, check_output_stride, shown
from swinx.stage import SwinStage
from swinx.stems import adapt_input_weight, input_convolutions, make_stem


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
        output_stride: 8 or 16, see `make_dilated`; 32, which smp passes where a decoder asks for nothing, leaves it to
            `config.output_stride`.

    Raises:
        ValueError: a value outside these rules.
    """

    _is_torch_scriptable = False
    _is_torch_exportable = True
    _is_torch_compilable = True

    def __init__(self, config: SwinConfig, *, in_channels: int = 3, depth: int = 5, output_stride: int = 32) -> None:
        super().__init__()
        if not isinstance(config, SwinConfig):
            raise ValueError(f"config must be a SwinConfig, got {shown(config)}")
        if type(depth) is not int or not 1 <= depth <= 5:
            raise ValueError(f"depth must be 1, 2, 3, 4 or 5, got {shown(depth)}")
        _check_in_channels(in_channels)
        check_output_stride(output_stride)
        self.config = config
        self._depth = depth
        self._in_channels = in_channels
        stages = config.stages[: depth - 1]
        dims = [stage.dim for stage in stages]

        self.patch_embed = make_stem(config.stem, in_channels, config.embed_dim)
        self.layers = nn.ModuleList(SwinStage(stage, merge=index > 0) for index, stage in enumerate(stages))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for dim in dims)
        for module in self.layers.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self._out_channels = [in_channels, self.patch_embed.level1_channels, *dims]
        self._level1_offset = self.patch_embed.level1_offset
        self._token_offset = self.patch_embed.token_offset
        self._output_stride = 32
        self.make_dilated(config.output_stride if output_stride == 32 else output_stride)

    @property
    def feature_info(self) -> tuple[LevelInfo, ...]:
        """What each level holds, level 0 first."""
        info = [
            LevelInfo(self._in_channels, 1, 1, 0.5),
            LevelInfo(self._out_channels[1], 2, 1, self._level1_offset),
        ]
        offset = self._token_offset
        for index in range(len(self.layers)):
            nominal = PATCH_SIZE * 2**index
            if index > 0:  # a merged token is centred between its four taps, half an undilated token further
                offset += nominal / 4
            stride = min(nominal, self._output_stride)
            info.append(LevelInfo(self._out_channels[index + 2], stride, nominal // stride, offset))
        return tuple(info)

    def make_dilated(self, output_stride: int) -> None:
        """Keep every level at or below the given stride by dilating the stages beyond it; 32 undoes it.

        Phase (0, 0) of a dilated level equals the level at output stride 32: no weight changes, and none is added.

        Raises:
            ValueError: output_stride is not 8, 16 or 32, or a stage or its merge was replaced by something else.
        """
        check_output_stride(output_stride)
        stages = self.stages()
        merges = [len(stage.merges()) for stage in stages[1:]]
        if merges != [1] * len(merges):  # before the first stage changes
            raise ValueError(f"output_stride needs one PatchMerging in each stage but the first, got {merges} of them")
        self._output_stride = output_stride
        incoming = 1
        for index, stage in enumerate(stages):
            period = max(PATCH_SIZE * 2**index // output_stride, 1)
            stage.set_period(incoming, period)
            incoming = period

    def set_in_channels(self, in_channels: int, pretrained: bool = True) -> None:
        """Change the number of image channels.

        Args:
            in_channels: at least 1; the present number changes nothing.
            pretrained: adapt the weights that read the image (see `adapt_input_weight`), in the patch embedding and in
                the stem alike; otherwise initialise them anew.

        Raises:
            ValueError: in_channels is not a positive integer, or what reads the image is no plain convolution.
        """
        _check_in_channels(in_channels)
        if in_channels == self._in_channels:
            return
        convolutions: list[nn.Conv2d] = []
        reading = input_convolutions(self.patch_embed)
        if not reading:
            kind = type(self.patch_embed).__name__
            raise ValueError(f"in_channels can change only while patch_embed holds a stem of swinx, got {kind}")
        for name, module in reading.items():
            if type(module) is not nn.Conv2d or "weight" not in module._parameters:
                kind = type(module).__name__
                raise ValueError(f"in_channels can change only while patch_embed.{name} is a plain Conv2d, got {kind}")
            convolutions.append(module)
        weights = [adapt_input_weight(conv.weight.detach(), in_channels) for conv in convolutions]
        for conv, adapted in zip(convolutions, weights, strict=True):
            conv.in_channels = in_channels
            conv.weight = nn.Parameter(adapted, requires_grad=conv.weight.requires_grad)
            if not pretrained:
                conv.reset_parameters()
        self._in_channels = in_channels
        self._out_channels = [in_channels, *self._out_channels[1:]]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations (Chen et al. 2016)."""
        for stage in self.stages():
            stage.grad_checkpointing = enable

    def freeze_stages(self, stages: int) -> None:
        """Freeze the stem and the first stages, each with the norm of its level; the others stay as they are.

        Frozen stages keep features without stochastic depth in training too.

        Args:
            stages: 0 freezes the stem alone, as `frozen_stages` of mmsegmentation does; at most the number of stages.

        Raises:
            ValueError: stages is not such an integer.
        """
        if type(stages) is not int or not 0 <= stages <= len(self.layers):
            raise ValueError(f"stages must be an integer from 0 to {len(self.layers)}, got {shown(stages)}")
        for module in (self.patch_embed, *self.layers[:stages], *self.norms[:stages]):
            module.requires_grad_(False)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that order the parameters for `timm.optim`'s layer-wise decay: the stem, then blocks, or stages."""
        if coarse:
            return {"stem": r"^patch_embed", "blocks": r"^(?:layers|norms)\.(\d+)"}
        last = [(rf"^norms\.({index})\.", (depth - 1,)) for index, depth in enumerate(self.config.depths)]
        blocks = [(r"^layers\.(\d+)\.downsample", (0,)), (r"^layers\.(\d+)\.blocks\.(\d+)", None), *last]
        return {"stem": r"^patch_embed", "blocks": blocks}

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that give the position bias and the scale of the scores."""
        marks = ("relative_position_bias_table", "cpb_mlp", "logit_scale")
        return {name for name, _ in self.named_parameters() if any(mark in name for mark in marks)}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights in our own layout or in any that `swinx.load_checkpoint` knows; smp calls this with timm's.

        Raises:
            ValueError: weights of another family or size, incomplete ones, or entries that are not finite, dense,
                floating tensors; the message lists every mismatch, and no weight has changed.
        """
        converted = convert_state_dict(state_dict, self, strict, assign)
        kept = copy.deepcopy(super().state_dict())
        places: list[tuple[dict[str, Any], dict[str, Any]]] = [
            (part, dict(part)) for module in self.modules() for part in (module._parameters, module._buffers)
        ]
        try:
            return super().load_state_dict(converted, strict=strict, assign=assign)
        except Exception as error:  # of modules that are not ours, which may ask for anything
            for part, before in places:
                part.update(before)
            with contextlib.suppress(Exception):  # what could not be written was not
                super().load_state_dict(kept)
            raise ValueError(f"the checkpoint does not fit a module in the encoder: {error}") from error

    def forward(self, x: Tensor) -> list[Tensor]:
        """Levels 0 to depth of an image: (B, in_channels, H, W) floating, H and W at least 4.

        Returns:
            depth + 1 tensors (B, C, ceil(H / stride), ceil(W / stride)), level 0 the image itself.

        Raises:
            ValueError: the image is not of that form (not checked in compiled and exported code).
        """
        self._check_image(x)
        level1, tokens = self.patch_embed(x)
        levels = [x, level1]
        for stage, norm in zip(self.layers, self.norms, strict=True):
            tokens = stage(tokens)
            levels.append(norm(tokens).permute(0, 3, 1, 2))
        return levels

    def stages(self) -> list[SwinStage]:
        """The stages, also where something was put around one.

        Raises:
            ValueError: one was replaced by something else.
        """
        stages = [module for module in self.layers.modules() if isinstance(module, SwinStage)]
        if len(stages) != len(self.layers):
            raise ValueError(f"encoder must hold its {len(self.layers)} stages for this, got {len(stages)} of them")
        return stages

    def __prepare_scriptable__(self) -> NoReturn:
        raise NotImplementedError(
            "SwinXEncoder is not for torch.jit.script, which torch has deprecated; use torch.export or torch.jit.trace"
        )

    def _check_image(self, x: Tensor) -> None:
        if torch.compiler.is_compiling():  # asking a symbolic size would tie the graph to it
            return
        if not isinstance(x, Tensor):
            raise ValueError(f"image must be a tensor, got {type(x).__name__}")
        if x.ndim != 4:
            raise ValueError(f"image must be (B, C, H, W), got shape {tuple(x.shape)}")
        if x.layout is not torch.strided:
            raise ValueError(f"image must be dense, got layout {x.layout}")
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
        raise ValueError(f"in_channels must be a positive integer, got {shown(in_channels)}")
