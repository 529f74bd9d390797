"""How a model is trained: everything that is not data, model or budget."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

Loss = Literal["ce", "dice", "lovasz"]
ClassWeighting = Literal["sqrt", "none"]
Selection = Literal["last", "best"]


@dataclass(frozen=True)
class Recipe:
    """How every cell is trained.

    Raises:
        ValueError: a value outside the rules of its field; the message names the option.
    """

    losses: tuple[Loss, ...] = ("ce",)
    """summed with equal weight: cross-entropy, Dice, Lovász-softmax (smp.losses)"""
    class_weighting: ClassWeighting = "sqrt"
    """of cross-entropy: square root of median over own frequency, at most 4; or none"""
    learning_rate: float = 1e-3
    """peak of AdamW's, after a linear warmup and before a cosine to zero"""
    weight_decay: float = 0.05
    """of matrices and kernels; norms, biases and position bias tables have none"""
    warmup: float = 0.05
    """share of the budget, 0 up to 1"""
    ema_decay: float = 0.999
    """of the moving average of weights, which is what is evaluated; 0 evaluates the weights themselves"""
    gradient_clip: float = 5.0
    """largest norm of the gradient of a step"""
    accumulate: int = 1
    """batches whose gradients make one step"""
    crop: tuple[int, int] | None = None
    """height and width trained on; by default the size of the images (--tile of this size evaluates at it)"""
    zoom: tuple[float, float] = (1.0, 2.0)
    """range of the random enlargement before the crop"""
    color: float = 0.3
    """largest relative change of brightness, contrast and saturation"""
    weights: str | None = None
    """pretrained encoder weights by smp's tag, such as imagenet; by default training is from scratch"""
    layer_decay: float = 1.0
    """factor of the learning rate from each block of a swinx encoder to the one before it; 1 is none"""
    validate_every: int | None = None
    """steps between validations; by default ten of them with --steps, every 200 steps with --minutes"""
    patience: int | None = None
    """validations without a new best after which training stops; by default it never stops early"""
    select: Selection = "last"
    """weights that are evaluated: the last, or those of the best validation"""

    def __post_init__(self) -> None:
        if not self.losses or len(set(self.losses)) < len(self.losses) or not set(self.losses) <= set(get_args(Loss)):
            choices = ", ".join(get_args(Loss))
            raise ValueError(f"--losses must be different names among {choices}, got {' '.join(self.losses) or 'none'}")
        _positive("learning-rate", self.learning_rate)
        _positive("gradient-clip", self.gradient_clip)
        for name, value, least, bound in (
            ("weight-decay", self.weight_decay, 0, math.inf),
            ("warmup", self.warmup, 0, 1),
            ("ema-decay", self.ema_decay, 0, 1),
            ("color", self.color, 0, 1),
        ):
            if not least <= value < bound:
                raise ValueError(f"--{name} must be at least {least} and below {bound}, got {value}")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"--layer-decay must be above 0 and at most 1, got {self.layer_decay}")
        for name, count in (
            ("accumulate", self.accumulate),
            ("validate-every", self.validate_every),
            ("patience", self.patience),
        ):
            if count is not None and count < 1:
                raise ValueError(f"--{name} must be at least 1, got {count}")
        if self.crop is not None and min(self.crop) < 1:
            raise ValueError(f"--crop must be height and width of at least 1, got {self.crop[0]} {self.crop[1]}")
        if not 1 <= self.zoom[0] <= self.zoom[1] < math.inf:
            raise ValueError(f"--zoom must be two finite factors of at least 1, rising, got {self.zoom}")
        if self.layer_decay < 1 and self.weights is None:
            raise ValueError(f"--layer-decay is for pretrained encoders, got {self.layer_decay} without --weights")


def _positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"--{name} must be positive and finite, got {value}")
