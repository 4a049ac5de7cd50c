"""Convolutions and pools that keep less for the backward pass than torch's: the rows of the fused lowering.

They compute what the rows of `compiler.lowering.torch.modules` do. Under `torch.compile` they are torch's own, since
the compiler decides by itself what to keep.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from compiler.lowering.torch.modules import Builder, conv_row
from compiler.lowering.torch.windows import AvgPool, Conv, MaxPool, as_image, avg_pool

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
    """A convolution."""

    def convolve(self, x: Tensor) -> Tensor:
        """The convolution of `x: (N, C, H, W)`."""
        trained = self.weight.requires_grad or (self.bias is not None and self.bias.requires_grad)
        if trained or not x.requires_grad or torch.compiler.is_compiling():
            return super().convolve(x)
        y: Tensor = _FrozenConv.apply(x, as_image(self.weight), self.bias, (*self.window, self.groups))
        return y


class _MaxPool(Function):
    """Keeps the positions of the maxima in the fewest bytes, and not the input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, window: tuple[Any, ...]) -> Tensor:
        y: Tensor
        y, positions = aten.max_pool2d_with_indices(x, *window)
        small = torch.int16 if x.shape[2] * x.shape[3] < 2**15 else torch.int32
        ctx.window, ctx.shape = window, x.shape
        ctx.save_for_backward(positions.to(small))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (positions,) = ctx.saved_tensors
        like = _shape_only(grad, ctx.shape)
        return aten.max_pool2d_with_indices_backward(grad, like, *ctx.window, False, positions.long()), None


class LeanMaxPool(MaxPool):
    """Max pooling."""

    def pool(self, x: Tensor) -> Tensor:
        """The pool of `x: (N, C, H, W)`."""
        y: Tensor = super().pool(x) if torch.compiler.is_compiling() else _MaxPool.apply(x, self.window)
        return y


class _AvgPool(Function):
    """Keeps nothing: the gradient does not depend on the input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, window: tuple[Any, ...]) -> Tensor:
        ctx.window, ctx.shape = window, x.shape
        y: Tensor = aten.avg_pool2d(x, *window)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        like = _shape_only(grad, ctx.shape)
        return aten.avg_pool2d_backward(grad, like, *ctx.window, None), None


class LeanAvgPool(AvgPool):
    """Average pooling."""

    def pool(self, x: Tensor) -> Tensor:
        """The pool of `x: (N, C, H, W)`."""
        window = (*self.window, False, self.counts_padding)
        y: Tensor = super().pool(x) if torch.compiler.is_compiling() else _AvgPool.apply(x, window)
        return y


LEAN: dict[str, Builder] = {
    "conv": conv_row(LeanConv),
    "depthwise_conv": conv_row(LeanConv),
    "max_pool": lambda a, ins, out: LeanMaxPool(a, ins[0]),
    "avg_pool": lambda a, ins, out: avg_pool(a, ins[0], LeanAvgPool),
}
"""Rows that go before those of `TORCH` in the fused lowering."""
