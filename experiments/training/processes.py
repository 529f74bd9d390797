"""The processes that train one model together, as torchrun starts them (DistributedDataParallel, Li et al. 2020)."""

import copy
import os
from dataclasses import dataclass
from datetime import timedelta

import torch
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch import Tensor, nn


@dataclass(frozen=True)
class Processes:
    """This process among all: its rank, its rank on its machine, their number, and their number on this machine."""

    rank: int
    local_rank: int
    world: int
    local_world: int


def processes() -> Processes:
    """The processes that torchrun started, told by its environment variables; one where it did not."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return Processes(0, 0, 1, 1)
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    return Processes(*(int(os.environ[name]) for name in names))


def strategy(model: nn.Module, images: Tensor, together: Processes, device: torch.device) -> Strategy | str:
    """Lightning's strategy for these processes.

    DistributedDataParallel is told to look for parameters without a gradient where the model has some, and only there:
    looking costs a pass over the graph in each step.
    """
    if together.world == 1:
        return "auto"
    return DDPStrategy(
        find_unused_parameters=bool(unused_parameters(model, images)),
        timeout=timedelta(hours=6),  # how long the first process may evaluate
        broadcast_buffers=False,  # normalisation is synchronised: buffers are equal as it is
        process_group_backend="nccl" if device.type == "cuda" else "gloo",
    )


def unused_parameters(model: nn.Module, images: Tensor) -> list[str]:
    """Names of the parameters that a training step on images (B, 3, H, W) uint8 leaves without a gradient.

    Such are the norms of levels that a decoder does not read. The model and the random state stay as they are.
    """
    twin = copy.deepcopy(model).train().requires_grad_(True)
    with torch.random.fork_rng(devices=[]):
        twin(images).float().sum().backward()
    return [name for name, parameter in twin.named_parameters() if parameter.grad is None]
