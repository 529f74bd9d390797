"""The model of a run: an smp decoder over an encoder, with what surrounds it, and which runs can exist at all.

Shapes: B images, K classes, H W pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn
from torch.nn import functional

import swinx
from experiments.records.grid import DECODERS, NotApplicable, Run, own_stem, padded, size_rule
from experiments.training.dilation_rules import centre_levels, set_rule

# ImageNet's statistics, which pretrained encoders expect and which do no harm to others.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class Normalise(nn.Module):
    """Images (B, 3, H, W) uint8, RGB -> what encoders take, in the dtype of the module.

    Images are padded at the bottom and right with the mean colour to the next multiple of grid.PAD_MULTIPLE, which
    every decoder accepts.
    """

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        normal = (images.to(self.mean.dtype) / 255 - self.mean) / self.std
        return functional.pad(normal, (0, padded(width) - width, 0, padded(height) - height))


class Segmenter(nn.Module):
    """Normalise, pad, apply the model and crop.

    forward: images (B, 3, H, W) uint8, RGB -> logits (B, K, H, W), in the model's dtype.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.normalise = model, Normalise()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(self.normalise(images))
        return logits[..., : images.shape[-2], : images.shape[-1]]


def build_model(
    run: Run, classes: int, weights: str | Path | None = None, *, state: Mapping[str, Tensor] | None = None
) -> smp.base.SegmentationModel:
    """The smp model of a run: images (B, 3, H, W) in, logits (B, classes, H, W) out.

    weights: of the encoder, smp's tag or a file that swinx.load_checkpoint reads; None builds it untrained. state: the
    state_dict of the same model at any output stride under the rule exact or dense. Both are loaded before the run's
    own rule is set, which may resize them.

    Raises:
        Exception: whatever smp or the encoder raises where the encoder does not support the decoder or the stride.
    """
    rule = DECODERS[run.decoder]
    tag = None if isinstance(weights, Path) else weights
    name = encoder_name(run.encoder, run.stem, run.window)
    built: dict[str, Any] = {"encoder_name": name, "encoder_weights": tag, "classes": classes}
    if rule.rates is not None:
        rates = [8 * rate // run.output_stride for rate in rule.rates]
        stride = min(16, run.output_stride)  # smp's constructor takes no 32
        model: smp.base.SegmentationModel = smp.DeepLabV3Plus(
            **built, encoder_output_stride=stride, decoder_atrous_rates=rates
        )
        if run.output_stride > stride:
            model.encoder.make_dilated(run.output_stride)
            model.decoder.up.scale_factor = run.output_stride / 4  # up to level 2
    elif rule.by_argument:
        model = getattr(smp, run.decoder)(**built, encoder_output_stride=run.output_stride)
    else:
        model = getattr(smp, run.decoder)(**built)
        if run.output_stride != 32:
            model.encoder.make_dilated(run.output_stride)
    if isinstance(weights, Path):
        swinx.load_checkpoint(model.encoder, weights)
    if state is not None:
        model.load_state_dict(state)
    if run.dilation is not None:
        set_rule(model.encoder, run.dilation)
    if run.alignment == "centred":
        centre_levels(model.encoder)
    return model


def encoder_name(encoder: str, stem: str | None, window: int | None) -> str:
    """The name under which smp finds an encoder with this stem and window; variants of swinx's are registered for it.

    None leaves the encoder its own.
    """
    changes: dict[str, object] = {}
    if stem not in (None, own_stem(encoder)):
        changes["stem"] = stem
    if window is not None:
        changes["window_size"] = window
    if not changes:
        return encoder
    name = "_".join([encoder, *(f"{key.split('_')[0]}-{value}" for key, value in changes.items())])
    swinx.register_encoder(name, base=encoder, **changes)
    return name


def encoder_weights(weights: str | None, seed: int) -> str | Path | None:
    """What --weights is for a run of this seed: a file where it has a dot or a slash, which no tag has."""
    if weights is None or not ("." in weights or "/" in weights):
        return weights
    return Path(weights.replace("{seed}", str(seed)))


def applicable(
    runs: Sequence[Run], sizes: Sequence[tuple[int, int]], classes: int
) -> tuple[list[Run], list[NotApplicable]]:
    """Split runs into those that work on images of all heights and widths in pixels, and those that do not, with why.

    Sizes that a decoder refuses are known (`records.grid`). Beyond that each distinct model is built untrained
    and run on one blank image in evaluation: encoders of other libraries fail there in their own ways, and the rule is
    then the type and first line of their error.

    Raises:
        OSError: memory or something else that the machine lacks, which says nothing of the run.
        Exception: what a model with an encoder of swinx's raises: all of them work, so that is a bug and no rule.
    """
    rules: dict[Run, str | None] = {}
    for model in dict.fromkeys(replace(run, seed=0) for run in runs):
        rules[model] = next(filter(None, (_failure(model, *size, classes) for size in dict.fromkeys(sizes))), None)
    found = [(run, rules[replace(run, seed=0)]) for run in runs]
    return [run for run, rule in found if rule is None], [NotApplicable(run, rule) for run, rule in found if rule]


def _failure(run: Run, height: int, width: int, classes: int) -> str | None:
    """Why a run's model does not give logits of the image's size; None where it does."""
    if rule := size_rule(run.decoder, run.output_stride, height, width):
        return rule
    images = torch.zeros(1, 3, height, width, dtype=torch.uint8)
    try:
        with torch.inference_mode():
            logits = Segmenter(build_model(run, classes)).eval()(images)
    except Exception as error:
        lines = str(error).strip().splitlines() or ["no message"]
        said = f"{type(error).__name__}: {lines[0]}"
        # torch's allocator on the CPU has no type of its own.
        if isinstance(error, MemoryError | OSError | torch.OutOfMemoryError) or "alloc_cpu" in str(error):
            raise OSError(f"{run.id} could not be tried: {said}") from error
        if own_stem(run.encoder) is not None:
            raise
        return said  # whatever the type: nothing in common is promised, and the words are kept for the reader
    if logits.shape[-2:] != (height, width):
        return f"logits have {logits.shape[-2]}x{logits.shape[-1]} pixels for images of {height}x{width}"
    return None
