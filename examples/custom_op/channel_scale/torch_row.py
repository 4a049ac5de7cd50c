"""The torch row: a module whose parameters are named as the catalogue row names them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from channel_scale.op import ChannelScaleAttrs
from compiler.ops import Shape


class ChannelScale(nn.Module):
    """`x: (N, C, ...)` times `weight: (C,)`, plus `bias: (C,)` where there is one."""

    def __init__(self, channels: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.register_parameter("bias", nn.Parameter(torch.zeros(channels)) if bias else None)

    def forward(self, x: Tensor) -> Tensor:
        """The scaled value, same shape."""
        shape = (-1, *[1] * (x.ndim - 2))
        scaled = x * self.weight.view(shape)
        return scaled if self.bias is None else scaled + self.bias.view(shape)


def build(attrs: ChannelScaleAttrs, inputs: tuple[Shape, ...], out: Shape) -> nn.Module:
    """The module for these attributes and shapes (without the batch)."""
    return ChannelScale(out[0], attrs.bias)
