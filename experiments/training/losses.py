"""What training minimises: weighted cross-entropy, Dice and Lovász, over the pixels that are not ignored.

Shapes: N images of a split, B images of a batch, K classes, H W pixels.
"""

from collections.abc import Sequence

import torch
from segmentation_models_pytorch.losses import DiceLoss, LovaszLoss
from torch import Tensor, distributed, nn
from torch.nn import functional

from experiments.data import SegmentationData
from experiments.records.options import Recipe

MAX_CLASS_WEIGHT = 4.0


class Objective(nn.Module):
    """Sum of losses.

    forward: logits (B, K, H, W) in any floating type, masks (B, H, W) of ids -> scalar, float32 or wider.

    names: among ce, dice, lovasz. class_weights: (K,) float32, of the cross-entropy. Images without a labelled pixel
    give 0. Under several processes that average their gradients, the cross-entropy is the one of all their images
    together; Dice and Lovász, which are no sums over pixels, are means of each process's own.
    """

    class_weights: Tensor

    def __init__(self, names: Sequence[str], class_weights: Tensor, ignore_index: int) -> None:
        super().__init__()
        self.names = tuple(names)
        self.ignore_index = ignore_index
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.dice = DiceLoss("multiclass", from_logits=True, ignore_index=ignore_index)
        self.lovasz = LovaszLoss("multiclass", from_logits=True, ignore_index=ignore_index)

    def forward(self, logits: Tensor, masks: Tensor) -> Tensor:
        logits, target = logits.to(torch.promote_types(logits.dtype, torch.float32)), masks.long()
        total = self.cross_entropy(logits, target) if "ce" in self.names else logits.new_zeros(())
        if self.names == ("ce",):
            return total
        if not bool((target != self.ignore_index).any()):
            return total + 0 * logits.sum()  # smp's losses are not made for it
        if "dice" in self.names:
            total = total + self.dice(logits, target)
        if "lovasz" in self.names:
            total = total + self.lovasz(logits, target)
        return total

    def cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        """Mean over pixels, weighted by class; 0 where all are ignored."""
        weights = self.class_weights.to(logits.dtype)
        total = functional.cross_entropy(
            logits, target, weight=weights, ignore_index=self.ignore_index, reduction="sum"
        )
        # An ignore_index beyond the classes must not be looked up.
        kept = target != self.ignore_index
        weight = weights[target.where(kept, 0)].mul(kept).sum()
        if distributed.is_initialized():
            distributed.all_reduce(weight)
            weight = weight / distributed.get_world_size()
        return total / weight.clamp_min(1e-6)


def objective(data: SegmentationData, recipe: Recipe) -> Objective:
    """What a run minimises on data; raises ValueError as class_weights does."""
    weights = class_weights(data.train.masks, len(data.class_names), data.ignore_index, recipe.class_weighting)
    return Objective(recipe.losses, weights, data.ignore_index)


def class_weights(masks: Tensor, classes: int, ignore_index: int, weighting: str = "sqrt") -> Tensor:
    """Cross-entropy weights (K,) float32 from pixel counts: square root of median over own frequency, capped.

    masks: (N, H, W) uint8. Classes without a pixel get weight 1; no weight exceeds MAX_CLASS_WEIGHT. The weighting
    "none" gives every class 1.

    Raises:
        ValueError: every pixel is ignored, or fewer than two classes occur.
    """
    counts = torch.bincount(masks.flatten(), minlength=256)
    counts[ignore_index] = 0
    counts = counts[:classes].double()
    present = counts > 0
    if present.sum() < 2:
        found = present.nonzero().flatten().tolist()
        raise ValueError(f"training masks must show at least two classes besides the ignored pixels, got ids {found}")
    weights = torch.ones(classes, dtype=torch.float64)
    if weighting == "sqrt":
        weights[present] = (counts[present].median() / counts[present]).sqrt().clamp(max=MAX_CLASS_WEIGHT)
    return weights.float()
