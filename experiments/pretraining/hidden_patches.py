"""Pretraining without masks: an encoder sees parts of an image and predicts the pixels of the parts that are hidden.

Source: SimMIM (Xie et al. 2022, https://arxiv.org/abs/2111.09886), but with the mean colour in the place of its mask
token, so that any stem takes it. Pretraining on no other images than those of the task is from El-Nouby et al. 2021,
https://arxiv.org/abs/2112.10740.

Shapes: B images, H W pixels, h w patches of PATCH pixels a side (rounded up), C channels of the last level.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from experiments.records.grid import PAD_MULTIPLE
from experiments.training.models import Normalise
from swinx import SwinXEncoder

PATCH = PAD_MULTIPLE  # pixels: one token of the last level at output stride 32


class HiddenPatches(nn.Module):
    """An encoder with one linear layer that draws what is hidden.

    forward: images (B, 3, H, W) uint8, RGB -> mean absolute error of each image (B,), in standard deviations of
    ImageNet's colours, over the pixels of its hidden patches alone. Which patches are hidden is drawn anew at each call
    from torch's random numbers: share of them, at least one, in each image.

    encoder: at output stride 32. share: of patches that are hidden, above 0 and below 1.
    """

    def __init__(self, encoder: SwinXEncoder, share: float) -> None:
        super().__init__()
        self.encoder, self.share, self.normalise = encoder, share, Normalise()
        self.head = nn.Conv2d(encoder.out_channels[-1], 3 * PATCH**2, 1)

    def forward(self, images: Tensor) -> Tensor:
        real = self.normalise(images)
        count, _, height, width = real.shape
        patches = height // PATCH * (width // PATCH)
        order = torch.rand(count, patches, device=images.device).argsort(1).argsort(1)
        hidden = (order < max(1, round(self.share * patches))).view(count, 1, height // PATCH, width // PATCH)
        hidden = hidden.repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)
        drawn = functional.pixel_shuffle(self.head(self.encoder(real.masked_fill(hidden, 0))[-1]), PATCH)
        asked = hidden.clone()
        asked[..., images.shape[2] :, :] = False
        asked[..., images.shape[3] :] = False
        return ((drawn - real).abs() * asked).sum((1, 2, 3)) / (3 * asked.sum((1, 2, 3)))
