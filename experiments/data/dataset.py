"""A segmentation set held in memory.

Shapes: N images, H W pixels, K classes.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Split:
    """One split of a set.

    images: (N, 3, H, W) uint8, RGB. masks: (N, H, W) uint8, class ids. names: N stems, in the order of the tensors.
    """

    images: Tensor
    masks: Tensor
    names: tuple[str, ...]


@dataclass(frozen=True)
class SegmentationData:
    """Train, validation and test split with the classes they share.

    class_names has K entries, ids 0..K-1. colors has K + 1 RGB entries 0..255, the last one for ignored pixels.
    ignore_index is the id left out of loss and metrics. thin_classes are the ids of thin structures, which reports
    single out (empty where unknown). note says in one sentence what a reader must know (for example that validation
    shares its drive with train).
    """

    name: str
    train: Split
    val: Split
    test: Split
    class_names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    ignore_index: int
    thin_classes: tuple[int, ...] = ()
    note: str = ""
