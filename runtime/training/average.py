"""The moving average of a network in training, which is often better than the network itself, and steadier."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel


class Average(AveragedModel):
    """A copy of the module that `update_parameters` draws towards it: weights, and batch norm's running statistics
    with them, which fit them as far as both change slowly.

    After n steps the decay is at most (1 + n) / (10 + n), so that the first random weights are soon forgotten. It is a
    tensor, which torch's own averages read on the CPU in every step.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        super().__init__(module, device=next(module.parameters()).device, use_buffers=True)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Another step; after the first one it is a copy."""
        steps = self.n_averaged.double()
        share = (1 - ((1 + steps) / (10 + steps)).clamp(max=self.decay)).masked_fill(steps == 0, 1.0)
        own, given = ([*each.parameters(), *each.buffers()] for each in (self.module, model))
        for average, value in zip(own, given, strict=True):
            if average.is_floating_point():
                average.lerp_(value, share.to(average.dtype))
            else:
                average.copy_(value)
        self.n_averaged += 1
