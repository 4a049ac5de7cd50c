"""The moving average of a network in training, which is often better than the network itself, and steadier."""

from __future__ import annotations

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

TensorList = tuple[Tensor, ...] | list[Tensor]


def averaged(module: nn.Module, decay: float) -> AveragedModel:
    """A copy of the module that `update_parameters` draws towards it: weights, and batch norm's running statistics
    with them, which fit them as far as both change slowly.

    After n steps the decay is at most (1 + n) / (10 + n), so that the first random weights are soon forgotten.
    """

    def follow(averages: TensorList, values: TensorList, steps: Tensor | int) -> None:
        now = min(decay, (1 + int(steps)) / (10 + int(steps)))
        get_ema_multi_avg_fn(now)(averages, values, steps)  # type: ignore[no-untyped-call]  # torch leaves it so

    return AveragedModel(module, multi_avg_fn=follow, use_buffers=True)
