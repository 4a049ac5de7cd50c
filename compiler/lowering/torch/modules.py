"""Ops as torch modules: one row per primitive op, and the chain of parts for every other.

The tensors of a module are named as `compiler.ops.tensors` says, so that `state_dict` keys of a lowered network are
`<node id>.<param>`. Values are `x: (N, C, H, W)` or `(N, C)`, in any memory layout; every row works in every floating
type and under autocast.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compiler.ir.graph import Node
from compiler.lowering.custom import imported_row
from compiler.lowering.torch.batch_parts import BatchNorm, Dropout, DropPath
from compiler.ops import Affine, Shape, traits_of, walk

Builder = Callable[[Any, tuple[Shape, ...], Shape], nn.Module]


# -- modules that torch does not have in this form --------------------------------------------------------------------


def pixel_step(window: Any) -> int:
    """A convolution reads every so many-th row and column of pixels, from the first on; the others are left out first.

    Its window moves by strides and its taps lie dilations apart, so that a divisor of both, and of the border, is what
    all that it reads lies apart. A border that it does not divide is added before, where the window is one pixel.
    """
    if window.kernel == 1:
        return int(window.stride)
    common = math.gcd(window.stride, window.dilation)
    return common if window.pad % common == 0 else 1


class Conv(nn.Conv2d):
    """A 2-d convolution that leaves out the pixels that it does not read (`pixel_step`) before it multiplies.

    Windows with a stride and a dilation of 2 become plain ones over a quarter of the pixels: oneDNN takes many times
    as long for the others' gradient. With a 1x1 kernel it leaves out pixels by itself, but up to at least 3.13 its
    gradient of the weight writes past the end of its memory where the images are channels last and have fewer than 16
    channels.
    """

    def __init__(self, inputs: int, outputs: int, window: Any, groups: int, bias: bool) -> None:
        super().__init__(
            inputs, outputs, window.kernel, window.stride, window.pad, window.dilation, groups=groups, bias=bias
        )
        step = self.step = pixel_step(window)
        self.border = window.pad if window.pad % step else 0  # added before
        stride, padding, dilation = window.stride // step, (window.pad - self.border) // step, window.dilation // step
        self.window = (stride, stride), (padding, padding), (max(1, dilation),) * 2

    def forward(self, x: Tensor) -> Tensor:
        """`(N, channels, H', W')`."""
        x = F.pad(x, [self.border] * 4) if self.border else x
        return self.convolve(x[:, :, :: self.step, :: self.step] if self.step > 1 else x)

    def convolve(self, x: Tensor) -> Tensor:
        """The convolution of the pixels that are read, `x: (N, C, H, W)`, as torch computes it."""
        return F.conv2d(x, self.weight, self.bias, *self.window, self.groups)


class Linear(nn.Linear):
    """A linear layer that takes an image of 1x1 as a vector: `(N, C)` or `(N, C, 1, 1)`."""

    def forward(self, x: Tensor) -> Tensor:
        """`(N, outputs)`."""
        return super().forward(x.flatten(1))


class Formula(nn.Module):
    """A function of its values that has no tensors."""

    def __init__(self, function: Callable[..., Tensor], **settings: Any) -> None:
        super().__init__()
        self.function = partial(function, **settings)

    def forward(self, *values: Tensor) -> Tensor:
        """The function's value."""
        return self.function(*values)


def _join(*values: Tensor) -> Tensor:
    return torch.cat(values, 1)


def _zeros(x: Tensor, channels: int) -> Tensor:
    """Zeros `(N, channels, H, W)` in the type of `x`, through which no gradient flows."""
    return x.new_zeros((x.shape[0], channels, *x.shape[2:]))


def _mean(x: Tensor, dims: tuple[int, ...], keep: bool) -> Tensor:
    """The mean over `dims`; over everything it is `(N, 1)`."""
    mean = x.mean(dims, keepdim=keep)
    return mean if mean.dim() > 1 else mean.unsqueeze(1)


def _dilated_avg_pool(x: Tensor, kernel: int, window: tuple[int, int, int]) -> Tensor:
    """Average over a window with gaps, padding not counted: a depthwise convolution with ones over that of ones."""
    taps = x.new_ones(1, 1, kernel, kernel)
    sums = F.conv2d(x, taps.expand(x.shape[1], -1, -1, -1), None, *window, groups=x.shape[1])
    return sums / F.conv2d(x.new_ones(1, 1, *x.shape[2:]), taps, None, *window)


class SqueezeExcite(nn.Module):
    """`x * sigmoid(expand(relu(reduce(mean of x))))`, with both layers as 1x1 convolutions."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.reduce_weight = nn.Parameter(torch.zeros(inner, channels, 1, 1))
        self.reduce_bias = nn.Parameter(torch.zeros(inner))
        self.expand_weight = nn.Parameter(torch.zeros(channels, inner, 1, 1))
        self.expand_bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """`x` with every channel scaled."""
        inner = F.relu(F.conv2d(x.mean((2, 3), keepdim=True), self.reduce_weight, self.reduce_bias))
        return x * torch.sigmoid(F.conv2d(inner, self.expand_weight, self.expand_bias))


class Chain(nn.Sequential):
    """The parts of an op one after the other; the first takes all inputs."""

    def forward(self, *values: Tensor) -> Tensor:
        """The value of the last part."""
        for part in self:
            values = (part(*values),)
        return values[0]


# -- the rows: (attributes, input shapes, output shape) -> module -----------------------------------------------------


def _avg_pool(a: Any, ins: tuple[Shape, ...], out: Shape) -> nn.Module:
    if a.dilation > 1:
        return Formula(_dilated_avg_pool, kernel=a.kernel, window=(a.stride, a.pad, a.dilation))
    return nn.AvgPool2d(a.kernel, a.stride, a.pad, count_include_pad=False)


TORCH: dict[str, Builder] = {
    "conv": lambda a, ins, out: Conv(ins[0][0], out[0], a, a.groups, a.bias is not False),
    "depthwise_conv": lambda a, ins, out: Conv(ins[0][0], out[0], a, out[0], a.bias is not False),
    "max_pool": lambda a, ins, out: nn.MaxPool2d(a.kernel, a.stride, a.pad, a.dilation),
    "avg_pool": _avg_pool,
    "identity": lambda a, ins, out: nn.Identity(),
    "zero": lambda a, ins, out: Formula(_zeros, channels=out[0]),
    "scale": lambda a, ins, out: Formula(torch.mul, other=a.factor),
    "linear": lambda a, ins, out: Linear(math.prod(ins[0]), out[0], bias=a.bias is not False),
    "global_avg_pool": lambda a, ins, out: Formula(_mean, dims=(2, 3), keep=False),
    "flatten": lambda a, ins, out: nn.Flatten(),
    "add": lambda a, ins, out: nn.Identity(),  # reading sums already
    "concat": lambda a, ins, out: Formula(_join),
    "batch_norm": lambda a, ins, out: BatchNorm(out[0], a.eps, a.momentum),
    "layer_norm": lambda a, ins, out: nn.GroupNorm(1, out[0], a.eps),
    "relu": lambda a, ins, out: nn.ReLU(),
    "relu6": lambda a, ins, out: nn.ReLU6(),
    "hard_swish": lambda a, ins, out: nn.Hardswish(),
    "silu": lambda a, ins, out: nn.SiLU(),
    "gelu": lambda a, ins, out: nn.GELU(),
    "sigmoid": lambda a, ins, out: nn.Sigmoid(),
    "squeeze_excite": lambda a, ins, out: SqueezeExcite(out[0], max(1, out[0] // a.reduction)),
    "dropout": lambda a, ins, out: Dropout(a.p),
    "drop_path": lambda a, ins, out: DropPath(a.p),
    "mean": lambda a, ins, out: Formula(_mean, dims=a.dims, keep=a.keep),
}


def torch_steps(node: Node, inputs: tuple[Shape, ...], table: Mapping[str, Builder] = TORCH) -> dict[str, nn.Module]:
    """A module for every step of a node, by step name (the empty name where the node is primitive).

    `inputs` are the shapes its first step reads (`compiler.ops.input_shapes`), without the batch. Rows of `table` go
    before those of `TORCH`. A ReLU after an affine step works in place: that step's gradient does not read its value.
    GraphspecError if a custom op has no row or it cannot be imported.
    """
    modules: dict[str, nn.Module] = {}
    before = Affine.NO
    for step, _, attrs, shapes, out in walk(node.op, node.attrs, inputs):
        builder = table.get(step.op) or TORCH.get(step.op) or imported_row(step.op, "torch")
        in_place = step.op == "relu" and before is not Affine.NO
        modules[step.name] = nn.ReLU(inplace=True) if in_place else builder(attrs, tuple(shapes), out)
        before = traits_of(step.op, step.attrs).affine
    return modules


def torch_module(node: Node, inputs: tuple[Shape, ...], table: Mapping[str, Builder] = TORCH) -> nn.Module:
    """The module of a node: `forward` takes one value per entry of `inputs`, gated (and summed, for ops that sum).

    Its tensors are named `<step>.<param>`, or `<param>` where the node is primitive. Arguments as in `torch_steps`.
    """
    modules = torch_steps(node, inputs, table)
    return modules[""] if "" in modules else Chain(OrderedDict(modules))
