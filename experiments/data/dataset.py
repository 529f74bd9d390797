"""A segmentation set held in memory.

Shapes: N images, H W pixels, K classes; h w pixels of one image at its own resolution.
"""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class Placement(NamedTuple):
    """The rectangle of an (H, W) tensor that shows an image from edge to edge, in pixels; the rest is padding."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class Split:
    """One split of a set.

    images: (N, 3, H, W) uint8, RGB. masks: (N, H, W) uint8, class ids. names: N names, in the order of the tensors,
    each of them once. groups: N names of what images belong to (a drive, a film, a patient), within which they are not
    independent; empty where every image stands for itself. native_masks: N masks (h, w) uint8, class ids, at the
    resolution of their files, and placements of the N images in the tensors: of a test split only, if asked for; None
    where nothing was resized, as masks have that resolution then.
    """

    images: Tensor
    masks: Tensor
    names: tuple[str, ...]
    groups: tuple[str, ...] = ()
    native_masks: tuple[Tensor, ...] | None = None
    placements: tuple[Placement, ...] | None = None


@dataclass(frozen=True)
class SegmentationData:
    """Train, validation and test split with the classes they share.

    class_names has K entries, ids 0..K-1. colors has K + 1 RGB entries 0..255, the last one for ignored pixels.
    ignore_index is the id left out of loss and metrics. thin_classes are the ids of thin structures, which reports
    single out (empty where unknown). note says in one sentence what a reader must know (for example that validation
    shares its drive with train). left_out lists files that were not read, each with the reason.
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
