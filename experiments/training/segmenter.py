"""The model with what surrounds it: bytes in, logits out, at any image size."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from experiments.decoders import padded

# ImageNet's statistics, which pretrained encoders expect and which do no harm to others.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class Segmenter(nn.Module):
    """Normalise, pad, apply the model and crop.

    forward: images (B, 3, H, W) uint8, RGB -> logits (B, K, H, W), in the model's dtype. Images are padded at the
    bottom and right with the mean colour to the next multiple of decoders.PAD_MULTIPLE, which every decoder accepts.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        normal = (images.to(self.mean.dtype) / 255 - self.mean) / self.std
        normal = functional.pad(normal, (0, padded(width) - width, 0, padded(height) - height))
        logits: Tensor = self.model(normal)
        return logits[..., :height, :width]
