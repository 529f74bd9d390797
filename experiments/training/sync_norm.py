"""BatchNorm over the images of all processes, for processors: torch's own SyncBatchNorm takes GPU tensors only.

Shapes: B images of one process, C channels, H W grid.
"""

from typing import Any

import torch
from torch import Tensor, distributed, nn


class _Sum(torch.autograd.Function):
    """Sum over processes. Its gradient is the sum of theirs: each one's loss depends on everyone's input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        distributed.all_reduce(total)
        return total


def _sum(x: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(x)
    return total


class SyncBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d whose training statistics are those of all processes together (Peng et al. 2017, MegDet).

    Parameters, buffers and evaluation are BatchNorm2d's. Statistics are float32 or wider.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if not (self.training and distributed.is_initialized() and distributed.get_world_size() > 1):
            return super().forward(x)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        count = _sum(wide.new_tensor(float(x.numel() // x.shape[1])))
        mean = _sum(wide.sum((0, 2, 3))) / count
        centred = wide - mean[:, None, None]
        variance = _sum(centred.square().sum((0, 2, 3))) / count
        if self.track_running_stats:
            self._track(mean.detach(), variance.detach() * count / (count - 1))
        out = centred * (variance + self.eps).rsqrt()[:, None, None]
        if self.affine:
            out = out * self.weight[:, None, None] + self.bias[:, None, None]
        return out.to(x.dtype)

    def _track(self, mean: Tensor, variance: Tensor) -> None:
        assert self.num_batches_tracked is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        self.num_batches_tracked += 1
        share = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)


def check(module: nn.Module) -> None:
    """Raise ValueError where a module has a normalisation over batches of a kind that is not synchronised.

    timm's BatchNormAct2d is one: torch's conversion would drop its activation.
    """
    kinds = {type(child) for child in module.modules() if isinstance(child, nn.modules.batchnorm._BatchNorm)}
    if unknown := sorted(kind.__name__ for kind in kinds - {nn.BatchNorm2d, SyncBatchNorm2d, nn.SyncBatchNorm}):
        raise ValueError(f"several processes train networks with BatchNorm2d, got {', '.join(unknown)} in the network")


def synchronise(module: nn.Module) -> None:
    """Replace every BatchNorm2d inside a module by SyncBatchNorm2d, with the same parameters and buffers."""
    for name, child in module.named_children():
        if type(child) is nn.BatchNorm2d:
            new = SyncBatchNorm2d(
                child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats
            )
            new.train(child.training)
            for key, parameter in child.named_parameters():
                setattr(new, key, parameter)
            for key, buffer in child.named_buffers():
                new.register_buffer(key, buffer)
            setattr(module, name, new)
        else:
            synchronise(child)
