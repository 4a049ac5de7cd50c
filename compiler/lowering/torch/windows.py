"""Convolutions and pools as torch modules, over images `(N, C, H, W)` and signals `(N, C, T)`.

A signal is computed as an image of one row, as torch itself does. Borders that torch's own functions do not take (of
two widths, wider than half of a pool's window, behind the last window of `ceil_mode`) are added before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compiler.ops import Shape
from compiler.ops.windows import Axis

Borders = list[int]  # as `F.pad` takes them: before and after each axis, the last axis first


def as_image(x: Tensor) -> Tensor:
    """A signal `(N, C, T)` as the image `(N, C, 1, T)`; an image as it is. Weights alike."""
    return x.unsqueeze(2) if x.dim() == 3 else x


def _like(y: Tensor, x: Tensor) -> Tensor:
    return y.squeeze(2) if x.dim() == 3 else y


def _rows_and_columns(axes: Sequence[Axis]) -> list[Axis]:
    return [Axis(1)] * (2 - len(axes)) + list(axes)


def borders(pairs: Sequence[tuple[int, int]]) -> Borders:
    """Widths before and after each axis, as `F.pad` takes them."""
    return [width for pair in reversed(pairs) for width in pair]


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A convolution of `x: (N, C, ...)` that moves by one pixel and pads nothing."""
    return F.conv2d(x, weight, bias) if x.dim() == 4 else F.conv1d(x, weight, bias)


def pixel_step(axis: Axis) -> int:
    """A convolution reads every so many-th pixel of an axis, from the first on; the others are left out first.

    Its window moves by strides and its taps lie dilations apart, so that a divisor of both, and of the border, is what
    all that it reads lies apart. A border that it does not divide is added before, where the window is one pixel.
    """
    if axis.kernel == 1:
        return axis.stride
    common = math.gcd(axis.stride, axis.dilation)
    return common if axis.before != axis.after or axis.before % common == 0 else 1


class Conv(nn.Conv2d):
    """A convolution that leaves out the pixels that it does not read (`pixel_step`) before it multiplies.

    Windows with a stride and a dilation of 2 become plain ones over a quarter of the pixels: oneDNN takes many times
    as long for the others' gradient. With a 1x1 kernel it leaves out pixels by itself, but up to at least 3.13 its
    gradient of the weight writes past the end of its memory where the images are channels last and have fewer than 16
    channels.
    """

    def __init__(self, inputs: int, outputs: int, axes: Sequence[Axis], groups: int, bias: bool) -> None:
        pair = _rows_and_columns(axes)
        kernels, strides, _, dilations = _arguments(pair, padded=False)
        both = tuple(axis.before if axis.before == axis.after else 0 for axis in pair)
        super().__init__(inputs, outputs, kernels, strides, both, dilations, groups=groups, bias=bias)  # type: ignore[arg-type]
        if len(axes) == 1:
            self.weight = nn.Parameter(self.weight[:, :, 0].clone())
        steps = self.steps = tuple(map(pixel_step, pair))
        outside = [axis.before != axis.after or axis.before % step != 0 for axis, step in zip(pair, steps, strict=True)]
        pairs = [(axis.before, axis.after) if out else (0, 0) for axis, out in zip(pair, outside, strict=True)]
        self.border = borders(pairs) if any(outside) else None
        each = list(zip(pair, steps, outside, strict=True))
        self.window = (
            tuple(axis.stride // step for axis, step, _ in each),
            tuple(0 if out else axis.before // step for axis, step, out in each),
            tuple(max(1, axis.dilation // step) for axis, step, _ in each),
        )

    def forward(self, x: Tensor) -> Tensor:
        """`(N, channels, H', W')` or `(N, channels, T')`."""
        image = as_image(x)
        image = F.pad(image, self.border) if self.border else image
        rows, columns = self.steps
        return _like(self.convolve(image[:, :, ::rows, ::columns] if rows > 1 or columns > 1 else image), x)

    def convolve(self, x: Tensor) -> Tensor:
        """The convolution of the pixels that are read, `x: (N, C, H, W)`, as torch computes it."""
        return F.conv2d(x, as_image(self.weight), self.bias, *self.window, self.groups)


class ConvTranspose(nn.Module):
    """A transposed convolution; its weight is `(outputs, inputs / groups, ...)`, as that of a convolution.

    Of paddings of two widths, the narrower is torch's and the rest is cut off afterwards.
    """

    def __init__(self, inputs: int, out: Shape, axes: Sequence[Axis], margins: Sequence[int], groups: int, bias: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(out[0], inputs // groups, *(axis.kernel for axis in axes)))
        self.register_parameter("bias", nn.Parameter(torch.zeros(out[0])) if bias else None)
        self.groups = groups
        self.function: Any = F.conv_transpose2d if len(axes) == 2 else F.conv_transpose1d
        both = [min(axis.before, axis.after) for axis in axes]
        self.window = [axis.stride for axis in axes], both, list(margins), groups, [axis.dilation for axis in axes]
        self.cut: Any = tuple(
            slice(a.before - p, a.before - p + n) for a, p, n in zip(axes, both, out[1:], strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        """`(N, channels, ...)`."""
        grouped = self.weight.view(self.groups, -1, *self.weight.shape[1:])
        y: Tensor = self.function(x, grouped.transpose(1, 2).flatten(0, 1), self.bias, *self.window)
        return y[(..., *self.cut)]


def _is_native(axes: Sequence[Axis]) -> bool:
    return all(axis.before == axis.after <= axis.kernel // 2 for axis in axes)


def _arguments(axes: Sequence[Axis], *, padded: bool) -> tuple[tuple[int, ...], ...]:
    """Kernels, strides, paddings, dilations."""
    pads = tuple(axis.before if padded else 0 for axis in axes)
    return tuple(a.kernel for a in axes), tuple(a.stride for a in axes), pads, tuple(a.dilation for a in axes)


class MaxPool(nn.Module):
    """The largest value of each window, padding left out."""

    def __init__(self, a: Any, shape: Shape) -> None:
        super().__init__()
        axes = _rows_and_columns(a.reaching(shape))
        self.border = None if _is_native(axes) else borders([(axis.before, axis.after) for axis in axes])
        self.window = _arguments(axes, padded=self.border is None)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H', W')` or `(N, C, T')`."""
        image = as_image(x)
        return _like(self.pool(F.pad(image, self.border, value=-math.inf) if self.border else image), x)

    def pool(self, x: Tensor) -> Tensor:
        """The pool of `x: (N, C, H, W)`, as torch computes it."""
        kernel, stride, padding, dilation = self.window
        return F.max_pool2d(x, kernel, stride, padding, dilation)


class AvgPool(nn.Module):
    """The mean of each window, padding counted as zeros or not at all."""

    def __init__(self, a: Any, shape: Shape) -> None:
        super().__init__()
        self.window = _arguments(_rows_and_columns(a.axes(len(shape) - 1)), padded=True)[:3]
        self.counts_padding = a.counts_padding

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H', W')` or `(N, C, T')`."""
        return _like(self.pool(as_image(x)), x)

    def pool(self, x: Tensor) -> Tensor:
        """The pool of `x: (N, C, H, W)`, as torch computes it."""
        kernel, stride, padding = self.window
        return F.avg_pool2d(x, kernel, stride, padding, False, self.counts_padding)


class CountedPool(nn.Module):
    """The mean of each window with any border and gaps: a depthwise convolution with ones over that of ones."""

    def __init__(self, a: Any, shape: Shape) -> None:
        super().__init__()
        said, reaching = (_rows_and_columns(axes) for axes in (a.axes(len(shape) - 1), a.reaching(shape)))
        self.counted = float(a.counts_padding)
        self.border = borders([(axis.before, axis.after) for axis in said])
        self.beyond = borders([(0, far.after - axis.after) for axis, far in zip(said, reaching, strict=True)])
        kernel, self.stride, _, self.dilation = _arguments(said, padded=True)
        self.taps = (1, 1, *kernel)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H', W')` or `(N, C, T')`."""
        image = as_image(x)
        counts = self.sums(image.new_ones(1, 1, *image.shape[2:]), self.counted)
        return _like(self.sums(image, 0.0) / counts, x)

    def sums(self, x: Tensor, border: float) -> Tensor:
        """The sum over each window of `x: (N, C, H, W)`; the border has this value, what lies behind it is 0."""
        x = F.pad(F.pad(x, self.border, value=border), self.beyond)
        taps = x.new_ones(self.taps).expand(x.shape[1], -1, -1, -1)
        return F.conv2d(x, taps, None, self.stride, 0, self.dilation, x.shape[1])


def avg_pool(a: Any, shape: Shape, native: type[AvgPool] = AvgPool) -> nn.Module:
    """The average pool of attributes `a` over a value of this shape, torch's own where it has one."""
    axes = a.reaching(shape)
    plain = axes == a.axes(len(shape) - 1) and all(axis.dilation == 1 for axis in axes)
    return native(a, shape) if plain and _is_native(axes) else CountedPool(a, shape)


class SqueezeExcite(nn.Module):
    """`x * sigmoid(expand(relu(reduce(mean of x))))`, with both layers as convolutions of one pixel."""

    def __init__(self, channels: int, inner: int, rank: int) -> None:
        super().__init__()
        point = [1] * rank
        self.reduce_weight = nn.Parameter(torch.zeros(inner, channels, *point))
        self.reduce_bias = nn.Parameter(torch.zeros(inner))
        self.expand_weight = nn.Parameter(torch.zeros(channels, inner, *point))
        self.expand_bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """`x` with every channel scaled."""
        means = x.mean(tuple(range(2, x.dim())), keepdim=True)
        inner = F.relu(convolve(means, self.reduce_weight, self.reduce_bias))
        return x * torch.sigmoid(convolve(inner, self.expand_weight, self.expand_bias))
