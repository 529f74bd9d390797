"""Run by torchrun, or alone, in the tests of distributed training: python train_together.py FOLDER

Five steps of a network without random parts, in float64, cut off and resumed where processes are several; writes its
losses, weights and validations to FOLDER/WORLD.pt. Several processes then train other networks for one step, diverge,
and meet a validation that is not finite and folders that differ: FOLDER/RANK.json says what came of it.
"""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from toy import toy_data, toy_settings

import swinx
from experiments.records.grid import Run
from experiments.records.options import Recipe
from experiments.training.losses import objective
from experiments.training.models import Segmenter, build_model
from experiments.training.train import DivergedError, Training, fit, processes

# Their levels are read by the decoder all, and in part: parameters without a gradient must not stop a run.
OTHERS = [("Unet", "branch"), ("PSPNet", "inline")]


def train(
    run: Run,
    folder: Path,
    steps: int,
    recipe: Recipe,
    validate: Callable[[nn.Module], float],
    dtype: torch.dtype = torch.float32,
    on_step: Callable[[float, float], None] = lambda share, loss: None,
) -> tuple[Segmenter, Training]:
    torch.manual_seed(0)
    data = toy_data(32)
    model = Segmenter(build_model(run, len(data.class_names))).to(dtype)
    for module in model.modules():
        if isinstance(module, nn.Dropout2d) and dtype == torch.float64:
            module.p = 0.0
    settings = toy_settings(recipe, steps=steps, batch_size=4)
    common: dict[str, Any] = {"seed": 3, "folder": folder, "device": torch.device("cpu")}
    common |= {"validate": validate, "evaluate": lambda *_: None, "on_step": on_step}
    return model, fit(model, objective(data, recipe), data, settings, **common)


def equal(folder: Path) -> None:
    """FPN normalises over channels, not over the batch, and leaves the norms of levels that it does not read."""
    swinx.register_encoder("swinx_n_still", base="swinx_n", drop_path_rate=0.0)
    run, world = Run("swinx_n_still", "inline", "FPN", 32, 0), processes().world
    steps = 0

    def cut(share: float, loss: float) -> None:
        nonlocal steps
        steps += 1
        if steps == 3 and world > 1:
            raise InterruptedError

    def weight(model: nn.Module) -> float:
        """A number that tells the averaged weights apart."""
        return float(next(model.parameters()).double().sum())

    recipe = Recipe(validate_every=2, accumulate=2, gradient_clip=0.5)
    try:
        model, training = train(run, folder / str(world), 5, recipe, weight, torch.float64, cut)
    except InterruptedError:
        model, training = train(run, folder / str(world), 5, recipe, weight, torch.float64)
    if processes().rank == 0:
        content = {"losses": training.losses, "state": model.state_dict(), "validations": training.validations}
        torch.save(content, folder / f"{world}.pt")


def others(folder: Path) -> dict[str, Any]:
    """What came of the trainings that several processes do besides."""
    found: dict[str, Any] = {}
    for decoder, stem in OTHERS:
        run = Run("swinx_n", stem, decoder, 32, 0)
        _, training = train(run, folder / decoder, 1, Recipe(), lambda model: 1.0)
        found[decoder] = (training.losses, training.validations)

    try:
        train(run, folder / "diverges", 9, Recipe(learning_rate=1e30, warmup=0.0), lambda model: 1.0)
    except DivergedError as error:
        found["diverges"] = str(error)

    def breaks(model: nn.Module) -> float:
        raise FloatingPointError("logits are not finite")

    try:
        train(run, folder / "breaks", 1, Recipe(), breaks)
    except FloatingPointError as error:
        found["breaks"] = str(error)
    try:
        train(run, folder / f"own{processes().rank}", 1, Recipe(), lambda model: math.nan)
    except RuntimeError as error:
        found["folders"] = str(error)
    return found


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    equal(folder)
    if processes().world > 1:
        (folder / f"{processes().rank}.json").write_text(json.dumps(others(folder)), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
