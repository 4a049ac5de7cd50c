"""Modules whose value for an image depends on the batch around it: by its statistics, or by random draws.

Several processes may share a batch, each with an equal slice of it in the order of their ranks (`share_batches`). These
modules then compute what one process would compute on the whole batch: statistics run over all slices, and every
process draws the numbers of the whole batch and takes its own.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.modules._functions import SyncBatchNorm


class _OfBatch(nn.Module):
    """One of `ranks` modules that see a slice each."""

    rank, ranks = 0, 1

    def own(self, x: Tensor) -> slice:
        """Where the images of this process's slice `x` stand in the batch."""
        return slice(self.rank * len(x), (self.rank + 1) * len(x))


def share_batches(module: nn.Module, rank: int, ranks: int, *, statistics: bool = True) -> None:
    """Let this network be the `rank`-th of `ranks` that share each batch; without `statistics`, norms use their slice.

    The default process group of torch.distributed connects them.
    """
    for part in module.modules():
        if isinstance(part, _OfBatch) and (statistics or not isinstance(part, BatchNorm)):
            part.rank, part.ranks = rank, ranks


class _StatisticsLock(threading.local):
    held = False


_statistics = _StatisticsLock()


@contextmanager
def frozen_statistics() -> Iterator[None]:
    """Within, batch norms of this thread leave their running statistics alone (a recomputed step counts once)."""
    before, _statistics.held = _statistics.held, True
    try:
        yield
    finally:
        _statistics.held = before


class BatchNorm(_OfBatch):
    """Batch normalisation over every channel of `(N, C)` or `(N, C, H, W)`.

    Unlike torch's module it keeps no counter of batches, so its tensors are exactly those of the op. `momentum` is
    the share of the newest batch in the running statistics.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float, momentum: float) -> None:
        super().__init__()
        self.eps = eps
        self.momentum = momentum
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise by the batch's statistics in training and by the running ones otherwise."""
        mean, var = self.running_mean, self.running_var
        if self.training and _statistics.held:
            mean, var = mean.clone(), var.clone()
        if self.training and self.ranks > 1:
            y: Tensor = self._together(x, mean, var)
        else:
            y = F.batch_norm(x, mean, var, self.weight, self.bias, self.training, self.momentum, self.eps)
        return y

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # torch leaves it unannotated
    def _together(self, x: Tensor, running_mean: Tensor, running_var: Tensor) -> Tensor:
        """Normalise by the statistics of all slices, which are equally large; torch does so on CUDA only."""
        y: Tensor
        if x.is_cuda:
            statistics = (running_mean, running_var, self.eps, self.momentum)
            y = SyncBatchNorm.apply(x, self.weight, self.bias, *statistics, dist.group.WORLD, self.ranks)
            return y
        y, mean, var = _NormTogether.apply(x, self.weight, self.bias, self.eps)
        count = self.ranks * x.numel() / x.shape[1]
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), self.momentum)
            running_var.lerp_((var * count / (count - 1)).to(running_var.dtype), self.momentum)
        return y

    def extra_repr(self) -> str:
        """Settings shown by `print`."""
        return f"{self.weight.numel()}, eps={self.eps}, momentum={self.momentum}"


class _NormTogether(Function):
    """`(x, weight, bias, eps) -> y, mean, var`, with the biased statistics over the equal slices of all processes.

    With g the gradient of y, h = (x - mean) / sqrt(var + eps) and means over the whole batch:

        grad x = weight / sqrt(var + eps) * (g - mean(g) - h * mean(g * h))

    torch's kernels for fixed statistics find the sums of g and g * h and the part with h, in one pass over memory each.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        own = torch.stack(torch.ops.aten.batch_norm_update_stats(wide, None, None, 0.0))  # faster than var_mean
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, own)
        means, variances = torch.stack(parts, 1)
        mean = means.mean(0)
        var = (variances + (means - mean) ** 2).mean(0)  # keeps the digits that sums of squares lose
        ctx.eps, ctx.count = eps, len(parts) * x.numel() / x.shape[1]
        ctx.save_for_backward(x, weight, mean, var)
        ctx.mark_non_differentiable(mean, var)
        return F.batch_norm(x, mean, var, weight, bias, eps=eps), mean, var

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, mean, var = ctx.saved_tensors
        scale = torch.rsqrt(var + ctx.eps)
        _, *own = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, mean, var, mean, scale, False, ctx.eps, [False, True, True]
        )
        sums = torch.stack(own)  # of g * h and of g
        dist.all_reduce(sums)
        slope = weight * scale
        factors, offsets = -slope * sums / ctx.count
        rest = F.batch_norm(x, mean, var, factors, offsets, eps=ctx.eps)
        return rest.addcmul_(grad, slope.view(1, -1, *[1] * (x.dim() - 2))), *own, None


class Dropout(_OfBatch, nn.Dropout):
    """In training, zero every value with probability `p` and scale the others up."""

    def forward(self, x: Tensor) -> Tensor:
        """`x` times a mask of its shape."""
        if not self.training or self.ranks == 1:
            return super().forward(x)
        whole = x.new_ones((self.ranks * len(x), *x.shape[1:]))
        return x * F.dropout(whole, self.p)[self.own(x)]


class DropPath(_OfBatch):
    """In training, zero the value of an image as a whole with probability `p * progress`, and scale the others up.

    `progress` in 0..1 is set as training goes on; it is a tensor inside, so that compiled code does not depend on it.
    """

    _progress: Tensor

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.register_buffer("_progress", torch.ones(()), persistent=False)

    @property
    def progress(self) -> float:
        """Share of training that is done."""
        return float(self._progress)

    @progress.setter
    def progress(self, share: float) -> None:
        self._progress.fill_(share)

    def forward(self, x: Tensor) -> Tensor:
        """`x` times a mask `(N, 1, ...)` of 0 and 1 / (1 - p * progress)."""
        if not self.training:
            return x
        keep = 1 - self.p * self._progress.float()
        whole = torch.rand((self.ranks * len(x), *[1] * (x.dim() - 1)), device=x.device)
        mask = whole[self.own(x)] < keep
        return x * (mask / keep).to(x.dtype)
