"""Class probabilities by plain, tiled and augmented inference.

Shapes: B images, K classes, H W pixels, n tiles along an axis, t pixels of a tile along it.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from experiments.evaluation.cost import autocast
from experiments.records.options import Inference, Size


@torch.inference_mode()
def probabilities(model: nn.Module, images: Tensor, inference: Inference, *, precision: str) -> Tensor:
    """Class probabilities (B, K, H, W) float32 of images (B, 3, H, W) uint8 on the model's device.

    model: images (B, 3, h, w) uint8 to logits (B, K, h, w), in eval mode, at any size. It is called with B crops of one
    size at a time, under autocast of precision; softmax and all averages are float32.

    Averages are of probabilities, over scales and flips as well as where tiles overlap: logits are known only up to a
    constant per pixel, and their mean would follow whichever view has the larger ones.
    """
    size = images.shape[-2:]
    total: Tensor | None = None
    for scale in inference.scales:
        scaled = _resized_images(images, scale)
        view = _tiled(model, scaled, inference, precision)
        if inference.flip:
            mirrored = _tiled(model, scaled.flip(-1), inference, precision).flip(-1)
            view = view.add_(mirrored).div_(2)
        view = resized(view, (size[0], size[1]))
        total = view if total is None else total.add_(view)
    assert total is not None  # Inference has at least one scale
    return total.div_(len(inference.scales))


def _tiled(model: nn.Module, images: Tensor, inference: Inference, precision: str) -> Tensor:
    """Probabilities (B, K, H, W), tile by tile where the images are larger than a tile."""
    size = images.shape[-2:]
    height, width = size if inference.tile is None else map(min, size, inference.tile)
    rows, columns = (tile_starts(*axis, inference.overlap) for axis in zip(size, (height, width), strict=True))
    if len(rows) == len(columns) == 1:
        return _softmax(model, images, precision)
    row_shares = tile_shares(rows, height).to(images.device)
    column_shares = tile_shares(columns, width).to(images.device)
    total: Tensor | None = None
    for top, row_share in zip(rows, row_shares, strict=True):
        for left, column_share in zip(columns, column_shares, strict=True):
            window = (..., slice(top, top + height), slice(left, left + width))
            tile = _softmax(model, images[window], precision).mul_(row_share[:, None] * column_share)
            if total is None:
                total = tile.new_zeros(*tile.shape[:2], *size)
            total[window].add_(tile)
    assert total is not None  # there is at least one tile
    return total


def tile_starts(length: int, tile: int, overlap: float) -> list[int]:
    """First pixels of evenly spaced tiles that cover an axis of length pixels, the last one flush with its end.

    Neighbours have at least overlap × tile pixels in common, or all but one where that would be the whole tile.
    tile is at most length.
    """
    step = max(1, tile - math.ceil(overlap * tile))
    count = 1 + math.ceil((length - tile) / step)
    return [i * (length - tile) // max(1, count - 1) for i in range(count)]


def tile_shares(starts: list[int], tile: int) -> Tensor:
    """The share (n, t) float32 that each tile has in the result at each of its pixels; at any pixel they add up to 1.

    The weight of a tile is a Hann window taken at the middle of pixels: largest at the centre, where the model sees
    most around a pixel, going to the edges smoothly and to next to nothing, so that no seam shows, yet nowhere to zero,
    so that a pixel that one tile alone covers is still defined. Dividing by the sum over tiles makes shares of it, one
    axis at a time: tiles form a grid, so the shares of both axes multiply.
    """
    weight = (torch.pi * (torch.arange(tile, dtype=torch.float64) + 0.5) / tile).sin().square()
    total = torch.zeros(starts[-1] + tile, dtype=torch.float64)
    for start in starts:
        total[start : start + tile] += weight
    return torch.stack([weight / total[start : start + tile] for start in starts]).float()


def _softmax(model: nn.Module, images: Tensor, precision: str) -> Tensor:
    with autocast(images.device, precision):
        logits = model(images)
    return logits.float().softmax(1)


def _resized_images(images: Tensor, scale: float) -> Tensor:
    """Images (B, 3, H, W) uint8 scaled by a factor, at least one pixel large."""
    height, width = (max(1, round(size * scale)) for size in images.shape[-2:])
    if (height, width) == images.shape[-2:]:
        return images
    # By way of float32: on CUDA bytes cannot be resized with antialiasing.
    return resized(images.float(), (height, width)).round_().clamp_(0, 255).to(torch.uint8)


def resized(values: Tensor, size: Size) -> Tensor:
    """Values (B, C, H, W) float brought to another height and width, bilinear and, where they shrink, antialiased."""
    if values.shape[-2:] == size:
        return values
    return functional.interpolate(values, size, mode="bilinear", antialias=True)
