"""Run by torchrun, or alone, in the tests of distributed training: python train_together.py FOLDER equal|stems|norm

equal: five steps of a network without random parts, in float64; writes its losses, weights and validations to
FOLDER/WORLD.pt.
stems: one step of every stem under every decoder; writes one line for each to FOLDER/stems.txt.
norm: SyncBatchNorm2d in training, forward and backward, with 2 images in the first process and 3 in the second; writes
what comes out of each to FOLDER/norm-RANK.pt.
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
from experiments.training.sync_norm import SyncBatchNorm2d
from swinx.config import STEMS

CPU = torch.device("cpu")
# Name, type of the images, whether there are weight and bias, momentum of the running statistics.
NORMS = [
    ("double", torch.float64, True, 0.1),
    ("plain", torch.float64, False, None),
    ("bfloat16", torch.bfloat16, True, 0.1),
]


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


def norm_input(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (5, 3, 7, 11) far from zero, of which the first 2 are the first process's, and the gradient of a loss."""
    generator = torch.Generator().manual_seed(0)
    x, gradient = torch.randn(2, 5, 3, 7, 11, generator=generator, dtype=torch.float64)
    return (10 + x * torch.arange(1, 4)[:, None, None]).to(dtype), gradient.to(dtype)


def pass_through(layer: nn.BatchNorm2d, x: torch.Tensor, gradient: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a layer makes of x, its gradients, and its buffers afterwards."""
    if layer.affine:
        with torch.no_grad():
            layer.weight.copy_(torch.tensor([0.5, -2.0, 3.0]))
            layer.bias.copy_(torch.tensor([1.0, 0.0, -4.0]))
    x = x.clone().requires_grad_()
    out = layer(x)
    out.backward(gradient)
    own = {name: parameter.grad for name, parameter in layer.named_parameters()}
    return {"out": out.detach(), "x": x.grad, **own, **dict(layer.named_buffers())}


def norm(folder: Path) -> None:
    torch.distributed.init_process_group("gloo")
    rank = processes().rank
    share = slice(0, 2) if rank == 0 else slice(2, 5)
    results = {}
    for name, dtype, affine, momentum in NORMS:
        layer = SyncBatchNorm2d(3, affine=affine, momentum=momentum)
        layer = layer.double() if dtype == torch.float64 else layer
        x, gradient = norm_input(dtype)
        results[name] = pass_through(layer, x[share], gradient[share])
    torch.save(results, folder / f"norm-{rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"equal": equal, "stems": stems, "norm": norm}[sys.argv[2]](Path(sys.argv[1]))
