"""A segmentation set held in memory.

Shapes: N images, H W pixels, K classes; h w pixels of one image at its own resolution.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Split:
    """One split of a set.

    images: (N, 3, H, W) uint8, RGB. masks: (N, H, W) uint8, class ids. names: N names, each of them once. groups: what
    each image belongs to (a drive, a film, a patient): those of one group are not independent; empty where every image
    stands for itself. Of a test split, if asked for and where images were resized: native_masks: N masks (h, w) uint8
    at the resolution of their files; shown: rows and columns, at the top left of the tensors, that show each image from
    edge to edge, the rest being padding. short_side: of images that were resized, the median of the shorter side in
    pixels that whole pictures have at their scale, without padding and with what was cropped.
    """

    images: Tensor
    masks: Tensor
    names: tuple[str, ...]
    groups: tuple[str, ...] = ()
    native_masks: tuple[Tensor, ...] | None = None
    shown: tuple[tuple[int, int], ...] | None = None
    short_side: int | None = None


@dataclass(frozen=True)
class SegmentationData:
    """Train, validation and test split with the classes they share.

    class_names has K entries, ids 0..K-1. colors has K + 1 RGB entries 0..255, the last one for ignored pixels, which
    are ignore_index in masks and left out of loss and metrics. thin_classes are the ids of thin structures, which
    reports single out. note says what a reader must know. left_out lists files that were not read, with the reason.
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
    left_out: tuple[str, ...] = ()
