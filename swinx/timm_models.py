"""swinx encoders as timm's models: pyramids for `features_only`, and classifiers for pretraining.

Shapes: B images, H W image, C channels, K classes. `swinx.timm_registry` enters them under their names.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from timm.layers import ClassifierHead
from timm.models._features import feature_take_indices  # timm's own models import it from there
from torch import Tensor, nn

from swinx.checkpoint_layouts import take_apart
from swinx.checkpoints import convert_state_dict
from swinx.config import SwinConfig
from swinx.encoder import SwinXEncoder


class SwinXPyramid(nn.Module):
    """The levels of an encoder by timm's interface, for `timm.create_model(..., features_only=True)`.

    Args:
        config: architecture, output stride included.
        in_chans: channels of the image.
        depth: the last level that is made, 1 to 5.
    """

    def __init__(self, config: SwinConfig, in_chans: int = 3, depth: int = 5) -> None:
        super().__init__()
        self.in_chans = in_chans
        self.encoder = SwinXEncoder(config, in_channels=in_chans, depth=depth)
        self.first_level = 1 if self.encoder.feature_info[1].channels else 2

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """What timm asks of each level, from level 1 on, or from level 2 where level 1 has no channels."""
        modules = ["encoder", "encoder.patch_embed", *(f"encoder.norms.{i}" for i in range(len(self.encoder.norms)))]
        levels = zip(self.encoder.feature_info, modules, strict=True)
        return [
            {"num_chs": level.channels, "reduction": level.stride, "module": module}
            for level, module in list(levels)[self.first_level :]
        ]

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Levels of an image (B, in_chans, H, W).

        Args:
            x: the image.
            indices: which entries of feature_info, in timm's forms: all, the last n, or a list.
            norm, stop_early: taken for timm's sake, without effect: all levels of a pyramid end in their norms, and so
                does the last of a classifier, for which timm's Swin wants norm=True.
            output_fmt: "NCHW".
            intermediates_only: leave the first of the two results out.

        Returns:
            What `forward_features` gives, and a list of (B, C, ceil(H / stride), ceil(W / stride)).

        Raises:
            ValueError: another output_fmt.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be 'NCHW', got {output_fmt!r}")
        levels = self.encoder(x)
        given = levels[self.first_level :]
        taken, _ = feature_take_indices(len(given), indices)
        intermediates = [given[index] for index in taken]
        return intermediates if intermediates_only else (_channels_last(levels[-1]), intermediates)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.encoder.set_grad_checkpointing(enable)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that order the parameters for `timm.optim`'s layer-wise decay; what they leave out comes last."""
        patterns = self.encoder.group_matcher(coarse)
        blocks = patterns["blocks"]
        blocks = _inside(blocks) if isinstance(blocks, str) else [(_inside(pattern), at) for pattern, at in blocks]
        return {"stem": _inside(patterns["stem"]), "blocks": blocks}

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that give the position bias and the scale of the scores."""
        return {f"encoder.{name}" for name in self.encoder.no_weight_decay()}


class SwinXClassifier(SwinXPyramid):
    """Classifier by timm's interface: the encoder's last level, pooled, and one linear layer, as in timm's Swin.

    The norms of the levels before the last, which a classifier does not read, are left out, so that every parameter is
    trained. Its features are levels 2 to 5, the last with its norm and the others without one: what timm's Swin gives
    with norm=True. `swinx.load_checkpoint` loads what was trained into any encoder with that stem, whose own norms of
    these levels stay as they are.

    Args:
        config: architecture. The stem must not be "branch", whose convolutions a classifier does not read; a classifier
            with stem "shared" or "none" trains the same patch embedding.
        in_chans: channels of the image.
        num_classes: K; 0 leaves the linear layer out.
        global_pool: timm's name of a pooling, "avg", "max", "avgmax" and others; "" for none.
        drop_rate: dropout before the linear layer.

    Raises:
        ValueError: stem "branch".
    """

    def __init__(
        self,
        config: SwinConfig,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        if config.stem == "branch":
            raise ValueError(
                "stem must be shared, inline or none in a classifier, which does not read it, got 'branch'"
            )
        super().__init__(config, in_chans)
        self.first_level = 2
        *lower, last = self.encoder.norms
        self.encoder.norms = nn.ModuleList([*(nn.Identity() for _ in lower), last])
        self.num_features = self.encoder.feature_info[-1].channels
        self.num_classes = num_classes
        self.global_pool = global_pool
        self.head = ClassifierHead(
            self.num_features, num_classes, pool_type=global_pool, drop_rate=drop_rate, input_fmt="NHWC"
        )
        self.head_hidden_size = self._pooled_features()

    def get_classifier(self) -> nn.Module:
        """The linear layer, or the identity where there is none."""
        classifier: nn.Module = self.head.fc
        return classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new linear layer for another number of classes, 0 for none; global_pool: None keeps the pooling."""
        parameter = next(self.encoder.parameters())
        self.num_classes = num_classes
        self.head.reset(num_classes, pool_type=global_pool)
        self.head.to(parameter.device, parameter.dtype)
        self.head_hidden_size = self._pooled_features()
        if global_pool is not None:
            self.global_pool = global_pool

    def _pooled_features(self) -> int:
        return self.num_features * int(self.head.global_pool.feat_mult())

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, ceil(H / stride), ceil(W / stride), C)."""
        return _channels_last(self.encoder(x)[-1])

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, H', W', C) -> (B, K); pre_logits: the pooled (B, C)."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> logits (B, K)."""
        return self.forward_head(self.forward_features(x))


def pretrained_filter(state_dict: Mapping[str, Any], model: SwinXPyramid) -> dict[str, Any]:
    """Published weights, in any layout that `swinx.load_checkpoint` knows, as a state dict of the model.

    Raises:
        ValueError: they do not fit the encoder; the message lists every mismatch.
    """
    converted = {f"encoder.{key}": value for key, value in convert_state_dict(state_dict, model.encoder).items()}
    if isinstance(model, SwinXClassifier):
        entries = take_apart(state_dict).entries
        for end in ("weight", "bias"):
            found = [entries[key] for key in (f"head.fc.{end}", f"head.{end}") if key in entries]
            converted |= {f"head.fc.{end}": value for value in found[:1]}
    return converted


def _channels_last(level: Tensor) -> Tensor:
    return level.permute(0, 2, 3, 1)


def _inside(pattern: str) -> str:
    """A pattern of the encoder's names for names of the model."""
    return r"^encoder\." + pattern.removeprefix("^")
