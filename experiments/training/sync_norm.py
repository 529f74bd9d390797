"""BatchNorm over the images of all processes, for processors: torch's own SyncBatchNorm takes GPU tensors only.

One exchange between processes forward and one backward: small messages cost their latency, not their size.

Shapes: B images of one process, C channels, H W grid, P processes.
"""

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class _Normalise(torch.autograd.Function):
    """(B, C, H, W) by the mean and variance of all processes, which it gives back with their count, wide, for tracking.

    Gradients of x hold what every process's loss owes to it; those of weight and bias are this process's own, as for
    any other parameter.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wide = torch.promote_types(x.dtype, torch.float32)
        # What BatchNorm2d itself uses; biased variance, in less than a third of var_mean's time.
        mean, variance = torch.ops.aten.batch_norm_update_stats(x.to(wide), None, None, 0.0)
        own = torch.cat([mean, variance, mean.new_tensor([x.numel() // x.shape[1]])])
        parts = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, own)
        means, variances, counts = torch.stack(parts).split([len(mean), len(mean), 1], dim=1)
        count = counts.sum()
        share = counts / count  # (P, 1)
        mean = (share * means).sum(0)
        variance = (share * (variances + (means - mean).square())).sum(0)
        ctx.eps = eps
        ctx.save_for_backward(x, weight, mean, variance, count)
        ctx.mark_non_differentiable(mean, variance, count)
        return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps), mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        x, weight, mean, variance, count = ctx.saved_tensors
        # For fixed statistics: the sums over (B, H, W) of gradient · normalised x, and of gradient.
        _, scaled, plain = torch.ops.aten.native_batch_norm_backward(
            gradient, x, None, mean, variance, None, None, False, ctx.eps, [False, True, True]
        )
        total = torch.cat([scaled, plain])
        distributed.all_reduce(total)
        factor = (variance + ctx.eps).rsqrt()
        if weight is not None:
            factor = factor * weight
        along, level = (-factor * part / count for part in total.chunk(2))
        through = F.batch_norm(x, mean, variance, along, level, training=False, eps=ctx.eps)
        own = torch.addcmul(through, gradient, factor[:, None, None].to(gradient.dtype))
        return own, scaled if ctx.needs_input_grad[1] else None, plain if ctx.needs_input_grad[2] else None, None


class SyncBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d whose training statistics are those of all processes together (Peng et al. 2017, MegDet).

    Parameters, buffers and evaluation are BatchNorm2d's. Statistics are float32 or wider, joined by the parallel
    formula of Chan et al. (1979).
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if not (self.training and distributed.is_initialized() and distributed.get_world_size() > 1):
            return super().forward(x)
        out, mean, variance, count = _Normalise.apply(x, self.weight, self.bias, self.eps)
        if self.track_running_stats:
            self._track(mean, variance * count / (count - 1))
        return out

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
