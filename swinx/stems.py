"""Stems: from the image to level 1 (stride 2) and to the tokens of stage 1 (stride 4).

Shapes: B images, I input channels, H W image, C channels of stage 1, C1 channels of level 1.
Any image size gives ceil(H / 2) and ceil(H / 4). The amount of padding is the same at every size, so that one compiled
graph serves them all.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swinx.config import PATCH_SIZE, Stem


def _pad_end(image: Tensor) -> Tensor:
    """Three rows and columns of zeros at bottom and right: a last patch is completed, a complete one gets no successor.

    Channels last, so that the convolution that follows writes the layout that the norms read.
    """
    padded = F.pad(image, (0, 3, 0, 3))  # PATCH_SIZE - 1: TorchScript reads no globals
    return padded.contiguous(memory_format=torch.channels_last)


class PatchEmbed(nn.Module):
    """Stem "none": 4 x 4 patches, projected and normalised; level 1 has no channels.

    `level1_offset` and `token_offset` are the centres of the first position, in input pixels.
    """

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        self.level1_channels = 0
        self.level1_offset = 1.0
        self.token_offset = 2.0
        self.proj = nn.Conv2d(in_channels, dim, PATCH_SIZE, PATCH_SIZE)
        self.norm = nn.LayerNorm(dim)

    def project(self, image: Tensor, stride: int) -> Tensor:
        """Patches at the given stride: (B, I, H, W) -> (B, ceil(H / stride), ceil(W / stride), C)."""
        return F.conv2d(_pad_end(image), self.proj.weight, self.proj.bias, stride).permute(0, 2, 3, 1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(B, I, H, W) -> level 1 (B, C1, ceil(H / 2), ceil(W / 2)) and tokens (B, ceil(H / 4), ceil(W / 4), C)."""
        size = ((image.shape[2] + 1) // 2, (image.shape[3] + 1) // 2)
        return image.new_zeros(image.shape[0], 0, size[0], size[1]), self.norm(self.project(image, 4))

    @torch.jit.unused
    def input_convolutions(self) -> list[nn.Conv2d]:
        """The convolutions that read the image."""
        return [self.proj]


class SharedStem(PatchEmbed):
    """Stem "shared": the patch embedding and its norm at stride 2; every second row and column are the tokens."""

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__(in_channels, dim)
        self.level1_channels = dim
        self.level1_offset = 2.0

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """See `PatchEmbed.forward`; C1 = C."""
        patches = self.project(image, 2)
        # Made apart in training: where no decoder reads level 1, the backward pass leaves it out.
        tokens = self.project(image, 4) if self.training else patches[:, ::2, ::2]
        return self.norm(patches).permute(0, 3, 1, 2), self.norm(tokens)


class ConvNormAct(nn.Module):
    """3 x 3 convolution, LayerNorm over channels, GELU: (B, C, H, W) -> (B, C', ceil(H / s), ceil(W / s))."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm = nn.LayerNorm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', ceil(H / s), ceil(W / s))."""
        return F.gelu(self.norm(self.conv(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


class BranchStem(PatchEmbed):
    """Stem "branch": two narrow convolutions beside the patch embedding make level 1."""

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__(in_channels, dim)
        # Half width: at stride 2, full-width convolutions would cost as much as the backbone.
        self.level1_channels = dim // 2
        self.level1_offset = 0.5
        self.conv1 = ConvNormAct(in_channels, dim // 2, stride=2)
        self.conv2 = ConvNormAct(dim // 2, dim // 2, stride=1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """See `PatchEmbed.forward`; C1 = C // 2."""
        level1 = self.conv2(self.conv1(image.contiguous(memory_format=torch.channels_last)))
        return level1, self.norm(self.project(image, 4))

    @torch.jit.unused
    def input_convolutions(self) -> list[nn.Conv2d]:
        """The convolutions that read the image."""
        return [self.proj, self.conv1.conv]


class InlineStem(nn.Module):
    """Stem "inline": convolutions are the way to stride 4, and level 1 lies on it; there is no patch embedding."""

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        self.level1_channels = dim // 2
        self.level1_offset = 0.5
        self.token_offset = 0.5
        self.conv1 = ConvNormAct(in_channels, dim // 2, stride=2)
        self.conv2 = ConvNormAct(dim // 2, dim // 2, stride=1)
        self.proj = nn.Conv2d(dim // 2, dim, 3, stride=2, padding=1)
        self.norm = nn.LayerNorm(dim)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """See `PatchEmbed.forward`; C1 = C // 2."""
        level1 = self.conv2(self.conv1(image.contiguous(memory_format=torch.channels_last)))
        return level1, self.norm(self.proj(level1).permute(0, 2, 3, 1))

    @torch.jit.unused
    def input_convolutions(self) -> list[nn.Conv2d]:
        """The convolutions that read the image."""
        return [self.conv1.conv]


def make_stem(stem: Stem, in_channels: int, dim: int) -> PatchEmbed | InlineStem:
    """The stem of that name, for dim channels at stage 1."""
    if stem == "inline":
        return InlineStem(in_channels, dim)
    if stem == "branch":
        return BranchStem(in_channels, dim)
    return SharedStem(in_channels, dim) if stem == "shared" else PatchEmbed(in_channels, dim)


def adapt_input_weight(weight: Tensor, in_channels: int) -> Tensor:
    """A pretrained kernel for another number of input channels, by smp's rule: (C, I, k, k) -> (C, in_channels, k, k).

    One channel takes the sum over the old ones; otherwise the old ones are repeated in turn and scaled by
    I / in_channels, which keeps the mean response to images whose channels are alike.
    """
    old = weight.shape[1]
    if in_channels == 1:
        return weight.sum(dim=1, keepdim=True)
    order = torch.arange(in_channels, device=weight.device) % old
    return weight[:, order] * (old / in_channels)
