"""A segmentation set for Ray's object store: arrays instead of tensors, which all tasks of a machine read in place.

Ray hands arrays out without a copy and tensors with one. Shapes: N images, H W pixels.
"""

import warnings
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy
import torch
from torch import Tensor

from experiments.data import SegmentationData, Split

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class StoredData:
    """What SegmentationData holds, with the tensors of its splits apart.

    skeleton: the set with empty tensors. arrays: by split and field, such as ("train", "images"), (N, 3, H, W) uint8.
    """

    skeleton: SegmentationData
    arrays: dict[tuple[str, str], Any]

    @classmethod
    def of(cls, data: SegmentationData) -> Self:
        """The same set, ready to be put into the store."""
        arrays = {
            (split, name): tensor.contiguous().numpy()
            for split in SPLITS
            for name, tensor in _tensors(getattr(data, split)).items()
        }
        empty = {
            split: replace(part, **{name: tensor[:0].clone() for name, tensor in _tensors(part).items()})
            for split, part in ((split, getattr(data, split)) for split in SPLITS)
        }
        return cls(replace(data, **empty), arrays)

    def load(self) -> SegmentationData:
        """The set again, without a copy. Its tensors lie in memory that other tasks share: they are only to be read."""
        tensors: dict[str, dict[str, Tensor]] = {split: {} for split in SPLITS}
        with warnings.catch_warnings():
            # torch has no read-only tensors and warns that these must not be written to; training draws copies.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            for (split, name), array in self.arrays.items():
                tensors[split][name] = torch.from_numpy(numpy.asarray(array))
        parts = {split: replace(getattr(self.skeleton, split), **tensors[split]) for split in SPLITS}
        return replace(self.skeleton, **parts)


def _tensors(split: Split) -> dict[str, Tensor]:
    values = {field.name: getattr(split, field.name) for field in fields(split)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}
