"""Batches from a split in memory: a pure function of (seed, batch number), so that every model sees the same ones.

Shapes: B images per batch, H W pixels of a crop. Images are (3, H, W) uint8, masks (H, W) uint8.
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


class ScaleCrop(v2.Transform):
    """Zoom by a random factor and crop to (height, width), done as a crop of the image that is enlarged.

    The factor f is drawn so that the area of the crop, 1/f^2 of the largest one, is uniform. Masks take the nearest
    pixel by its centre ("nearest-exact"). The library's own choice for masks, "nearest", rounds down, which moves a
    mask against its bilinear image by up to half a pixel: as much as a thin structure is wide.
    """

    def __init__(self, height: int, width: int, zoom: tuple[float, float] = (1.0, 2.0)) -> None:
        super().__init__()
        self.size = (height, width)
        self.zoom = zoom

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Position and size of the crop, in pixels of the image."""
        image_height, image_width = v2.functional.get_size(flat_inputs[0])
        height, width = self.size
        areas = torch.empty(1).uniform_(self.zoom[1] ** -2, self.zoom[0] ** -2)
        share = float(areas.sqrt())
        crop_height, crop_width = max(1, round(height * share)), max(1, round(width * share))
        top = int(torch.randint(0, image_height - crop_height + 1, (1,)))
        left = int(torch.randint(0, image_width - crop_width + 1, (1,)))
        return {"top": top, "left": left, "height": crop_height, "width": crop_width}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """One image or mask, cropped and enlarged with the sample's parameters."""
        if not isinstance(inpt, tv_tensors.Mask):
            return v2.functional.resized_crop(inpt, **params, size=list(self.size), antialias=False)
        plain = inpt.as_subclass(Tensor)
        resized = v2.functional.resized_crop(
            plain[None], **params, size=list(self.size), interpolation=v2.InterpolationMode.NEAREST_EXACT
        )
        return tv_tensors.wrap(resized[0], like=inpt)


def augmentation(size: tuple[int, int], zoom: tuple[float, float], color: float) -> v2.Transform:
    """Scale and crop to size, horizontal flip, brightness, contrast and saturation."""
    steps: list[v2.Transform] = [ScaleCrop(*size, zoom), v2.RandomHorizontalFlip()]
    if color:
        steps.append(v2.ColorJitter(brightness=color, contrast=color, saturation=color))
    return v2.Compose(steps)


class Batches(Dataset[tuple[Tensor, Tensor]]):
    """Augmented batches by number: item i is (images (B, 3, H, W) uint8, masks (B, H, W) uint8) of batch i.

    Samples come from one shuffled pass over the split after another, without gaps. Neither the order of calls nor the
    global random state changes an item, so training can stop and go on anywhere. Of a batch of batch_size images,
    process `rank` of `world` takes its share, B = batch_size / world: together they see what one process would.
    """

    def __init__(
        self, split: Split, batch_size: int, seed: int, augment: v2.Transform, *, rank: int = 0, world: int = 1
    ) -> None:
        self.split, self.batch_size, self.seed, self.augment = split, batch_size, seed, augment
        self.rank, self.world = rank, world

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        images, masks = [], []
        with torch.random.fork_rng(devices=[]):
            for sample, index in zip(self._samples(number), self.indices(number), strict=True):
                torch.manual_seed(mixed_seed(self.seed, 1, sample))
                image, mask = self.augment(
                    tv_tensors.Image(self.split.images[index]), tv_tensors.Mask(self.split.masks[index])
                )
                images.append(image.as_subclass(Tensor))
                masks.append(mask.as_subclass(Tensor))
        return torch.stack(images), torch.stack(masks)

    def indices(self, number: int) -> list[int]:
        """Which images of the split this process takes for a batch, B of them."""
        count = len(self.split.images)
        return [_order(self.seed, sample // count, count)[sample % count] for sample in self._samples(number)]

    def _samples(self, number: int) -> range:
        share = self.batch_size // self.world
        first = number * self.batch_size + self.rank * share
        return range(first, first + share)


@lru_cache(maxsize=2)  # a batch at the end of an epoch takes from two
def _order(seed: int, epoch: int, count: int) -> list[int]:
    """The order of all images in an epoch."""
    generator = torch.Generator().manual_seed(mixed_seed(seed, 0, epoch))
    order: list[int] = torch.randperm(count, generator=generator).tolist()
    return order


def mixed_seed(*parts: int) -> int:
    """A seed of 64 bits from several integers; neighbouring integers give unrelated seeds."""
    return int(numpy.random.SeedSequence(parts).generate_state(1, numpy.uint64)[0])
