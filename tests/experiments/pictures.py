"""Pictures on the disk and a model that stands in for a file of weights, for the tests of experiments.predict."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from experiments.prediction import prediction
from experiments.records.grid import Run
from experiments.training.weights import Trained

RUN = Run("swinx_n", "inline", "FPN", 32, 0)
COLORS = ((20, 20, 90), (90, 160, 90), (240, 220, 90), (0, 0, 0))
KINDS = ("masks", "overlays", "confidence")


class Pixelwise(nn.Module):
    """Logits (B, 3, H, W) of each pixel alone; keeps what it was called with."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(3, 3, generator=generator) * 4)
        self.calls: list[Tensor] = []

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        return [tuple(images.shape) for images in self.calls]

    def forward(self, images: Tensor) -> Tensor:
        self.calls.append(images)
        return torch.einsum("kc,bchw->bkhw", self.weight, images / 255 - 0.5)


def stand_in(
    monkeypatch: pytest.MonkeyPatch,
    weights: Path,
    run: Run = RUN,
    size: tuple[int, int] = (64, 96),
    crop: tuple[int, int] | None = None,
) -> Pixelwise:
    """A model of run, trained on (crops of) images of this height and width, for the file weights, never read."""
    model = Pixelwise().eval()
    weights.write_bytes(b"stands for a file of weights")
    trained = Trained(model, run, ("dark", "grey", "bright <&>"), COLORS, 255, *size, min(size), "toy", crop)
    monkeypatch.setattr(prediction, "load_weights", lambda path, device: trained)
    return model


def picture(seed: int, height: int = 64, width: int = 96) -> Image.Image:
    """Soft blobs of colour."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def fill(root: Path, sizes: dict[str, tuple[int, int]]) -> Path:
    for seed, (name, size) in enumerate(sizes.items()):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        picture(seed, *size).save(root / name)
    return root


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def arguments(tmp_path: Path, *more: str, images: str = "in", output: str = "out") -> list[str]:
    return [
        str(tmp_path / "w.pt"),
        str(tmp_path / images),
        "--output",
        str(tmp_path / output),
        "--device",
        "cpu",
        *more,
    ]
