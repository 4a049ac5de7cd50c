"""Ops as torch modules: one row per primitive op, and the chain of parts for every other.

The tensors of a module are named as `compiler.ops.tensors` says, so that `state_dict` keys of a lowered network are
`<node id>.<param>`. Values are `x: (N, C, H, W)`, `(N, C, T)` or `(N, C)`, in any memory layout; every row works in
every floating type and under autocast.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial, reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compiler.ir.graph import Node
from compiler.lowering.custom import imported_row
from compiler.lowering.torch.batch_parts import BatchNorm, Dropout, DropPath
from compiler.lowering.torch.windows import Conv, ConvTranspose, MaxPool, SqueezeExcite, avg_pool, borders
from compiler.ops import Affine, Shape, traits_of, walk
from compiler.ops.windows import sides

Builder = Callable[[Any, tuple[Shape, ...], Shape], nn.Module]  # (attributes, input shapes, output shape) -> module


class Linear(nn.Linear):
    """A linear layer that takes `(N, C)`, and an image or a signal of one pixel as such a vector."""

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
    """Zeros `(N, channels, ...)` in the type of `x`, through which no gradient flows."""
    return x.new_zeros((x.shape[0], channels, *x.shape[2:]))


def _mean(x: Tensor, dims: tuple[int, ...], keep: bool) -> Tensor:
    """The mean over `dims`; over everything it is `(N, 1)`."""
    mean = x.mean(dims, keepdim=keep)
    return mean if mean.dim() > 1 else mean.unsqueeze(1)


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of each pixel."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """`x: (N, C, ...)`, normalised."""
        return F.layer_norm(x.movedim(1, -1), self.weight.shape, self.weight, self.bias, self.eps).movedim(-1, 1)


class PRelu(nn.Module):
    """ReLU with a trained slope below zero for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.full((channels,), 0.25))

    def forward(self, x: Tensor) -> Tensor:
        """`x: (N, C, ...)`, negative values times their channel's slope."""
        return F.prelu(x, self.slope)


def _product(*values: Tensor) -> Tensor:
    """The product of values `(N, C, ...)`; vectors `(N, C)` count for every pixel."""
    axes = max(value.dim() for value in values)
    wide = (value.view(*value.shape, *[1] * (axes - value.dim())) for value in values)
    return reduce(torch.mul, wide)


def _scaled(x: Tensor, factor: float | tuple[float, ...]) -> Tensor:
    """`x: (N, C, ...)` times a number, or one per channel."""
    return x * (x.new_tensor(factor).view(-1, *[1] * (x.dim() - 2)) if isinstance(factor, tuple) else factor)


def _shuffled(x: Tensor, groups: int) -> Tensor:
    return x.view(len(x), groups, -1, *x.shape[2:]).transpose(1, 2).flatten(1, 2)


class Chain(nn.Sequential):
    """The parts of an op one after the other; the first takes all inputs."""

    def forward(self, *values: Tensor) -> Tensor:
        """The value of the last part."""
        for part in self:
            values = (part(*values),)
        return values[0]


PAD_MODES = {"zeros": "constant", "reflect": "reflect", "edge": "replicate"}
POOLED: dict[int, Callable[..., nn.Module]] = {2: nn.AdaptiveAvgPool1d, 3: nn.AdaptiveAvgPool2d}


def conv_row(kind: type[Conv]) -> Builder:
    """The row of a convolution, depthwise where the op has no groups."""

    def row(a: Any, ins: tuple[Shape, ...], out: Shape) -> nn.Module:
        return kind(ins[0][0], out[0], a.axes(len(out) - 1), getattr(a, "groups", out[0]), a.bias is not False)

    return row


TORCH: dict[str, Builder] = {
    "conv": conv_row(Conv),
    "depthwise_conv": conv_row(Conv),
    "conv_transpose": lambda a, ins, out: ConvTranspose(
        ins[0][0], out, a.axes(len(out) - 1), a.margins(len(out) - 1), a.groups, a.bias is not False
    ),
    "max_pool": lambda a, ins, out: MaxPool(a, ins[0]),
    "avg_pool": lambda a, ins, out: avg_pool(a, ins[0]),
    "adaptive_avg_pool": lambda a, ins, out: POOLED[len(out)](out[1:]),
    "global_max_pool": lambda a, ins, out: Formula(torch.amax, dim=tuple(range(2, len(ins[0]) + 1))),
    "identity": lambda a, ins, out: nn.Identity(),
    "zero": lambda a, ins, out: Formula(_zeros, channels=out[0]),
    "scale": lambda a, ins, out: Formula(_scaled, factor=a.factor),
    "linear": lambda a, ins, out: Linear(math.prod(ins[0]), out[0], bias=a.bias is not False),
    "global_avg_pool": lambda a, ins, out: Formula(_mean, dims=tuple(range(2, len(ins[0]) + 1)), keep=False),
    "flatten": lambda a, ins, out: nn.Flatten(),
    "add": lambda a, ins, out: nn.Identity(),  # reading sums already
    "concat": lambda a, ins, out: Formula(_join),
    "batch_norm": lambda a, ins, out: BatchNorm(out[0], a.eps, a.momentum),
    "layer_norm": lambda a, ins, out: (
        ChannelNorm(out[0], a.eps) if a.over == "channels" else nn.GroupNorm(1, out[0], a.eps)
    ),
    "group_norm": lambda a, ins, out: nn.GroupNorm(a.groups, out[0], a.eps),
    "instance_norm": lambda a, ins, out: nn.GroupNorm(out[0], out[0], a.eps),
    "lrn": lambda a, ins, out: nn.LocalResponseNorm(a.size, a.alpha, a.beta, a.k),
    "multiply": lambda a, ins, out: Formula(_product),
    "channel_shuffle": lambda a, ins, out: Formula(_shuffled, groups=a.groups),
    "slice": lambda a, ins, out: Formula(torch.narrow, dim=1, start=a.start, length=out[0]),
    "pad": lambda a, ins, out: Formula(F.pad, pad=borders(sides(a.padding, len(out) - 1)), mode=PAD_MODES[a.mode]),
    "resize": lambda a, ins, out: nn.Upsample(
        out[1:], mode="linear" if a.mode == "bilinear" and len(out) == 2 else a.mode
    ),
    "relu": lambda a, ins, out: nn.ReLU(),
    "relu6": lambda a, ins, out: nn.ReLU6(),
    "hard_swish": lambda a, ins, out: nn.Hardswish(),
    "silu": lambda a, ins, out: nn.SiLU(),
    "gelu": lambda a, ins, out: nn.GELU(),
    "sigmoid": lambda a, ins, out: nn.Sigmoid(),
    "hard_sigmoid": lambda a, ins, out: nn.Hardsigmoid(),
    "tanh": lambda a, ins, out: nn.Tanh(),
    "leaky_relu": lambda a, ins, out: nn.LeakyReLU(a.slope),
    "elu": lambda a, ins, out: nn.ELU(a.alpha),
    "prelu": lambda a, ins, out: PRelu(out[0]),
    "softmax": lambda a, ins, out: nn.Softmax(1),
    "squeeze_excite": lambda a, ins, out: SqueezeExcite(out[0], a.inner_of(out[0]), len(out) - 1),
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
