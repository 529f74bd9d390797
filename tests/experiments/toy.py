"""A tiny set whose masks can be read off its images."""

import torch

from experiments.data import Split

HEIGHT, WIDTH, IGNORE = 64, 64, 255
# Grey level of each class; any blend or brightness change keeps the order.
LEVELS = (30, 120, 220)


def color_coded(count: int, seed: int, height: int = HEIGHT, width: int = WIDTH, block: int = 16) -> Split:
    """Blocks of flat grey, one level per class, with an ignored frame of 3 pixels along the left edge."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, len(LEVELS), (count, height // block, width // block), generator=generator)
    masks = coarse.repeat_interleave(block, 1).repeat_interleave(block, 2).to(torch.uint8)
    images = torch.tensor(LEVELS, dtype=torch.uint8)[masks.long()].unsqueeze(1).repeat(1, 3, 1, 1)
    masks[:, :, :3] = IGNORE
    return Split(images, masks, tuple(f"toy_{seed}_{i}" for i in range(count)))
