"""Run by torchrun, or alone, in the tests of distributed training: python train_together.py FOLDER equal|stems

equal: five steps of a network without random parts, in float64; writes its losses, weights and validations to
FOLDER/WORLD.pt.
stems: one step of every stem under every decoder; writes one line for each to FOLDER/stems.txt.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from toy import toy_data

import swinx
from experiments.cells import Cell
from experiments.decoders import DECODERS
from experiments.models import build_model
from experiments.training import Budget, Recipe, Segmenter, Training, fit, processes
from swinx.config import STEMS

CPU = torch.device("cpu")


def train(
    cell: Cell,
    folder: Path,
    steps: int,
    size: int,
    dtype: torch.dtype,
    validate: Callable[[nn.Module], float],
    **recipe: object,
) -> tuple[Segmenter, Training]:
    torch.manual_seed(0)
    data = toy_data(size)
    model = Segmenter(build_model(cell, len(data.class_names))).to(dtype)
    training = fit(
        model,
        data,
        Budget(steps=steps),
        Recipe(**recipe),
        folder=folder,
        batch_size=4,
        seed=3,
        device=CPU,
        precision="32",
        validate=validate,
    )
    return model, training


def equal(folder: Path) -> None:
    swinx.register_encoder("swinx_n_still", base="swinx_n", drop_path_rate=0.0)
    cell = Cell("swinx_n_still", "inline", "Unet", 32, 0)  # its decoder has BatchNorm and no dropout
    # A number that tells the averaged weights apart.
    weight = lambda model: float(next(model.parameters()).double().sum())  # noqa: E731
    model, training = train(cell, folder, 5, 64, torch.float64, weight, validate_every=2, accumulate=2)
    if processes().rank == 0:
        content = {"losses": training.losses, "state": model.state_dict(), "validations": training.validations}
        torch.save(content, folder / f"{processes().world}.pt")


def stems(folder: Path) -> None:
    for decoder, rule in DECODERS.items():
        for stem in STEMS:
            cell = Cell("swinx_n", stem, decoder, rule.default, 0)
            _, training = train(cell, folder, 1, 128 if rule.min_side else 64, torch.float32, lambda model: 0.0)
            if processes().rank == 0:
                (folder / "training.ckpt").unlink()
                with (folder / "stems.txt").open("a") as file:
                    file.write(f"{decoder} {stem} {training.losses}\n")
            torch.distributed.barrier()


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"equal": equal, "stems": stems}[sys.argv[2]](Path(sys.argv[1]))
