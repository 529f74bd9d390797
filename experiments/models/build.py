"""The smp model of a cell."""

from collections.abc import Mapping

import segmentation_models_pytorch as smp
from torch import Tensor

import swinx
from experiments.cells import Cell, own_stem
from experiments.decoders import DECODERS
from experiments.models.alignment import centre_levels
from experiments.models.dilation import set_rule


def build_model(
    cell: Cell, classes: int, weights: str | None = None, *, state: Mapping[str, Tensor] | None = None
) -> smp.base.SegmentationModel:
    """The smp model of a cell: images (B, 3, H, W) in, logits (B, classes, H, W) out.

    weights: smp's tag of pretrained encoder weights; None builds the encoder untrained. state: the state_dict of the
    same model at any output stride under the rule exact or dense, to load before the cell's own rule is set, which may
    resize what is loaded.

    Raises:
        Exception: whatever smp or the encoder raises where the encoder does not support the decoder or the stride.
    """
    rule = DECODERS[cell.decoder]
    options = {"encoder_output_stride": cell.output_stride} if rule.by_argument else {}
    decoder = getattr(smp, cell.decoder)
    model: smp.base.SegmentationModel = decoder(
        _encoder_name(cell), encoder_weights=weights, classes=classes, **options
    )
    if cell.output_stride != 32 and not rule.by_argument:
        model.encoder.make_dilated(cell.output_stride)
    if state is not None:
        model.load_state_dict(state)
    if cell.dilation is not None:
        set_rule(model.encoder, cell.dilation)
    if cell.alignment == "centred":
        centre_levels(model.encoder)
    return model


def _encoder_name(cell: Cell) -> str:
    """The name under which smp finds the cell's encoder; variants of swinx's are registered on the way."""
    changes: dict[str, object] = {}
    if cell.stem not in (None, own_stem(cell.encoder)):
        changes["stem"] = cell.stem
    if cell.window is not None:
        changes["window_size"] = cell.window
    if not changes:
        return cell.encoder
    name = "_".join([cell.encoder, *(f"{key.split('_')[0]}-{value}" for key, value in changes.items())])
    swinx.register_encoder(name, base=cell.encoder, **changes)
    return name
