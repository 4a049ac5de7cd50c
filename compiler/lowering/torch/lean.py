"""Convolutions and pools that keep less for the backward pass than torch's: the rows of the fused lowering.

They compute what the rows of `compiler.lowering.torch.modules` do. Under `torch.compile` they are torch's own, since
the compiler decides by itself what to keep.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from compiler.lowering.torch.modules import TORCH, Builder, Conv

aten = torch.ops.aten


def _shape_only(grad: Tensor, shape: torch.Size) -> Tensor:
    """In the place of a pool's input, of which the backward pass reads shape and layout only."""
    return torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=torch.channels_last)


class _FrozenConv(Function):
    """A convolution whose weight is fixed, as in a gate step: keeps the weight and not the input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, window: tuple[Any, ...]) -> Tensor:
        ctx.window, ctx.shape = window, x.shape
        ctx.save_for_backward(weight)
        return F.conv2d(x, weight, bias, *window)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (weight,) = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.window
        like, weight = _shape_only(grad, ctx.shape), weight.to(grad.dtype)
        window = (stride, padding, dilation, False, (0, 0), groups)
        grads = aten.convolution_backward(grad, like, weight, None, *window, [True, False, False])
        return grads[0], None, None, None


class LeanConv(Conv):
    """A 2-d convolution."""

    def convolve(self, x: Tensor) -> Tensor:
        """The convolution of `x: (N, C, H, W)`."""
        trained = self.weight.requires_grad or (self.bias is not None and self.bias.requires_grad)
        if trained or not x.requires_grad or torch.compiler.is_compiling():
            return super().convolve(x)
        y: Tensor = _FrozenConv.apply(x, self.weight, self.bias, (*self.window, self.groups))
        return y


class _MaxPool(Function):
    """Keeps the positions of the maxima in the fewest bytes, and not the input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, window: tuple[int, int, int, int]) -> Tensor:
        y: Tensor
        y, positions = aten.max_pool2d_with_indices(x, *([size, size] for size in window))
        small = torch.int16 if x.shape[2] * x.shape[3] < 2**15 else torch.int32
        ctx.window, ctx.shape = window, x.shape
        ctx.save_for_backward(positions.to(small))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (positions,) = ctx.saved_tensors
        window = [[size, size] for size in ctx.window]
        like = _shape_only(grad, ctx.shape)
        return aten.max_pool2d_with_indices_backward(grad, like, *window, False, positions.long()), None


class MaxPool(nn.MaxPool2d):
    """Max pooling over `(N, C, H, W)`."""

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H', W')`."""
        window = (self.kernel_size, self.stride, self.padding, self.dilation)
        y: Tensor = super().forward(x) if torch.compiler.is_compiling() else _MaxPool.apply(x, window)
        return y


class _AvgPool(Function):
    """Keeps nothing: the gradient does not depend on the input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, window: tuple[int, int, int]) -> Tensor:
        ctx.window, ctx.shape = window, x.shape
        y: Tensor = aten.avg_pool2d(x, *([size, size] for size in window), False, False)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        like = _shape_only(grad, ctx.shape)
        return aten.avg_pool2d_backward(grad, like, *([size, size] for size in ctx.window), False, False, None), None


class AvgPool(nn.AvgPool2d):
    """Average pooling over `(N, C, H, W)`, padding not counted."""

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H', W')`."""
        window = (self.kernel_size, self.stride, self.padding)
        y: Tensor = super().forward(x) if torch.compiler.is_compiling() else _AvgPool.apply(x, window)
        return y


LEAN: dict[str, Builder] = {
    "conv": lambda a, ins, out: LeanConv(ins[0][0], out[0], a, a.groups, a.bias is not False),
    "depthwise_conv": lambda a, ins, out: LeanConv(ins[0][0], out[0], a, out[0], a.bias is not False),
    "max_pool": lambda a, ins, out: MaxPool(a.kernel, a.stride, a.pad, a.dilation),
    "avg_pool": lambda a, ins, out: (
        AvgPool(a.kernel, a.stride, a.pad, count_include_pad=False)
        if a.dilation == 1
        else TORCH["avg_pool"](a, ins, out)
    ),
}
"""Rows that go before those of `TORCH` in the fused lowering."""
