"""Stems: from the image to level 1 (stride 2) and to the tokens of stage 1 (stride 4).

Shapes: B images, I input channels, H W image, C channels of stage 1, C1 channels of level 1.
Any image size gives ceil(H / 2) and ceil(H / 4). The amount of padding is the same at every size, so that one compiled
graph serves them all.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swinx.config import PATCH_SIZE, Stem
from swinx.plans import is_transformed


def _pad_end(image: Tensor) -> Tensor:
    """Three rows and columns of zeros at bottom and right: a last patch is completed, a complete one gets no successor.

    Channels last, for the convolution that follows.
    """
    return _channels_last(F.pad(image, (0, PATCH_SIZE - 1, 0, PATCH_SIZE - 1)))


def _channels_last(image: Tensor) -> Tensor:
    """The same values in the layout in which convolutions write what norms read; vmap knows one layout only."""
    return image if is_transformed() else image.contiguous(memory_format=torch.channels_last)


class PatchEmbed(nn.Module):
    """Stem "none": 4 x 4 patches, projected and normalised; level 1 has no channels.

    `level1_offset` and `token_offset` are the centres of the first position, in input pixels.
    """

    def __init__(self, in_channels: int, dim: int, stride: int = PATCH_SIZE) -> None:
        super().__init__()
        self.level1_channels = 0
        self.level1_offset = 1.0
        self.token_offset = 2.0
        self.proj = nn.Conv2d(in_channels, dim, PATCH_SIZE, stride)
        self.norm = nn.LayerNorm(dim)

    def project(self, image: Tensor, stride: int) -> Tensor:
        """Patches at the stride of `proj`: (B, I, H, W) -> (B, ceil(H / stride), ceil(W / stride), C).

        Raises:
            ValueError: what stands in proj's place has another stride.
        """
        patches = self.proj(_pad_end(image)).permute(0, 2, 3, 1)
        if not (torch.compiler.is_compiling() or torch.jit.is_tracing()):  # where sizes may be symbols
            wanted = tuple((side + stride - 1) // stride for side in image.shape[2:])
            if tuple(patches.shape[1:3]) != wanted:
                raise ValueError(
                    f"patch_embed.proj must have stride {stride} in this stem: {wanted} positions for an image of "
                    f"{tuple(image.shape[2:])}, got {tuple(patches.shape[1:3])}"
                )
        return patches

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(B, I, H, W) -> level 1 (B, C1, ceil(H / 2), ceil(W / 2)) and tokens (B, ceil(H / 4), ceil(W / 4), C)."""
        size = ((image.shape[2] + 1) // 2, (image.shape[3] + 1) // 2)
        return image.new_zeros(image.shape[0], 0, size[0], size[1]), self.norm(self.project(image, PATCH_SIZE))


class SharedStem(PatchEmbed):
    """Stem "shared": the patch embedding and its norm at stride 2; every second row and column are the tokens."""

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__(in_channels, dim, stride=2)
        self.level1_channels = dim
        self.level1_offset = 2.0

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """See `PatchEmbed.forward`; C1 = C."""
        patches = self.project(image, 2)
        # Two calls of the norm: where no decoder reads level 1, the backward pass leaves the first out.
        return self.norm(patches).permute(0, 3, 1, 2), self.norm(patches[:, ::2, ::2])


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
        level1 = self.conv2(self.conv1(_channels_last(image)))
        return level1, self.norm(self.project(image, PATCH_SIZE))


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
        level1 = self.conv2(self.conv1(_channels_last(image)))
        return level1, self.norm(self.proj(level1).permute(0, 2, 3, 1))


def input_convolutions(stem: nn.Module) -> dict[str, nn.Module]:
    """The convolutions of a stem that read the image, by name, also where something was put around it."""
    own = next((module for module in stem.modules() if isinstance(module, (PatchEmbed, InlineStem))), None)
    reading: dict[str, nn.Module] = {}
    if isinstance(own, PatchEmbed):
        reading["proj"] = own.proj
    if isinstance(own, (BranchStem, InlineStem)):
        reading["conv1.conv"] = own.conv1.conv
    return reading


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
    I / in_channels, which keeps the response to images whose channels are alike if I divides in_channels.
    """
    old = weight.shape[1]
    if in_channels == 1:
        return weight.sum(dim=1, keepdim=True)
    order = torch.arange(in_channels, device=weight.device) % old
    return weight[:, order] * (old / in_channels)
