"""Batches from a split in memory: a pure function of (seed, step), so that every model sees the same ones.

Shapes: B images per batch, H W pixels. Images are (3, H, W) uint8, masks (H, W) uint8.
"""

from functools import lru_cache
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from experiments.data import Split


class ScaleCrop(v2.RandomResizedCrop):
    """Zoom by a random factor of 1 to 2 and crop to the original size, done as a crop that is enlarged.

    Masks take the nearest pixel by its centre ("nearest-exact"). The library's own choice for masks, "nearest", rounds
    down, which moves a mask against its bilinear image by up to half a pixel: as much as a thin structure is wide.
    """

    def __init__(self, height: int, width: int) -> None:
        ratio = width / height
        super().__init__((height, width), scale=(0.25, 1.0), ratio=(ratio, ratio), antialias=False)

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """One image or mask, cropped and enlarged with the sample's parameters."""
        if not isinstance(inpt, tv_tensors.Mask):
            return super().transform(inpt, params)
        plain = inpt.as_subclass(Tensor)
        resized = v2.functional.resized_crop(
            plain[None], **params, size=self.size, interpolation=v2.InterpolationMode.NEAREST_EXACT
        )
        return tv_tensors.wrap(resized[0], like=inpt)


def augmentation(height: int, width: int) -> v2.Transform:
    """Scale and crop, horizontal flip, brightness, contrast and saturation; the size stays."""
    return v2.Compose(
        [
            ScaleCrop(height, width),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3),
        ]
    )


class Batches(Dataset[tuple[Tensor, Tensor]]):
    """Augmented batches by step: item i is (images (B, 3, H, W) uint8, masks (B, H, W) uint8) of step i.

    Samples come from one shuffled pass over the split after another, without gaps. Neither the order of calls nor the
    global random state changes an item, so training can stop and go on at any step.

    Raises:
        ValueError: batch_size below 2 or above the number of images.
    """

    def __init__(self, split: Split, batch_size: int, seed: int, steps: int) -> None:
        count = len(split.images)
        if batch_size < 2:
            raise ValueError(f"batch_size must be at least 2 (BatchNorm cannot train on one image), got {batch_size}")
        if batch_size > count:
            raise ValueError(f"batch_size must not exceed the number of training images, {count}, got {batch_size}")
        self.split, self.batch_size, self.seed, self.steps = split, batch_size, seed, steps
        self.augment = augmentation(*split.images.shape[-2:])
        self._shuffled = lru_cache(maxsize=2)(self._shuffle)

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        if not 0 <= step < self.steps:
            raise IndexError(step)
        images, masks = [], []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_seed(self.seed, 1, step))
            for index in self.indices(step):
                image, mask = self.augment(
                    tv_tensors.Image(self.split.images[index]), tv_tensors.Mask(self.split.masks[index])
                )
                images.append(image.as_subclass(Tensor))
                masks.append(mask.as_subclass(Tensor))
        return torch.stack(images), torch.stack(masks)

    def indices(self, step: int) -> list[int]:
        """Which images of the split step takes, B of them."""
        count = len(self.split.images)
        first = step * self.batch_size
        return [self._shuffled(i // count)[i % count] for i in range(first, first + self.batch_size)]

    def _shuffle(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(_seed(self.seed, 0, epoch))
        order: list[int] = torch.randperm(len(self.split.images), generator=generator).tolist()
        return order


def _seed(*parts: int) -> int:
    """A seed of 64 bits from several integers; neighbouring integers give unrelated seeds."""
    return int(numpy.random.SeedSequence(parts).generate_state(1, numpy.uint64)[0])
