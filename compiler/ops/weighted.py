"""Ops with weights: convolutions, the fully connected layer, squeeze-excite. One row each, which is data."""

from __future__ import annotations

import math
from typing import Literal

from compiler.ir.graph import AttrValue
from compiler.ops.attributes import Activation, BatchNormSettings, Finish, Positive, alone_then_finish, finish, step
from compiler.ops.definition import Op, OpAttrs, Reads, Shape, Step, TypeMismatchError
from compiler.ops.traits import Affine, Channels, Numbers, Pixels, Traits, Values
from compiler.ops.windows import Axis, NotNegative, Window, each_axis, spatial, windowed


class NormAndRelu(BatchNormSettings):
    """What follows a convolution inside the same node."""

    norm: Literal["batch", "none"] = "batch"
    """`batch`: batch norm follows."""
    act: Activation = "relu"
    """Activation that comes last."""


class DepthwiseAttrs(NormAndRelu, Window):
    """Depthwise convolution (one filter a channel), by default followed by batch norm and ReLU."""

    bias: bool | None = None
    """Add a bias; default: only where no norm follows."""


class ConvAttrs(DepthwiseAttrs):
    """Convolution, by default followed by batch norm and ReLU."""

    channels: Positive | None = None
    """Output channels; default: what the block's type asks for, else as many as come in."""
    groups: Positive = 1
    """Groups of channels that do not mix."""


class ConvTransposeAttrs(ConvAttrs):
    """Transposed convolution, by default followed by batch norm and ReLU: of `size` pixels it makes
    `(size - 1) * stride - before - after + dilation * (kernel - 1) + 1 + output_padding`."""

    output_padding: NotNegative = 0
    """Pixels added at the end of each axis."""

    def margins(self, rank: int) -> tuple[int, ...]:
        """The pixels added at the end of each of `rank` axes."""
        return each_axis(self.output_padding, rank, "output_padding")


class SepConvAttrs(NormAndRelu, Window):
    """Depthwise, then pointwise convolution (nothing between), by default followed by batch norm and ReLU."""

    channels: Positive | None = None
    """Output channels; default: what the block's type asks for, else as many as come in."""


class ProjectAttrs(NormAndRelu):
    """1x1 convolution over the concatenation of all inputs, by default followed by batch norm and ReLU."""

    channels: Positive | None = None
    """Output channels; default: what the block's type asks for, else those of the first input."""


class LinearAttrs(Finish):
    """Fully connected layer over a vector (an image or a signal of one pixel is taken as one)."""

    channels: Positive | None = None
    """Outputs; default: what the block's type asks for."""
    bias: bool | None = None
    """Add a bias; default: only where no norm follows."""


class SqueezeExciteAttrs(OpAttrs):
    """Scale each channel by a gate computed from the mean of all channels."""

    reduction: Positive = 4
    """Where `inner` is left out, the inner layer has `max(1, channels // reduction)` outputs."""
    inner: Positive | None = None
    """Outputs of the inner layer."""

    def inner_of(self, channels: int) -> int:
        """Outputs of the inner layer over so many channels."""
        return self.inner or max(1, channels // self.reduction)


def _channels(op: str, a: ConvAttrs, shape: Shape) -> int:
    channels_in = spatial(op, shape)[0]
    channels = a.channels or channels_in
    for what, n in (("input", channels_in), ("output", channels)):
        if n % a.groups:
            raise TypeMismatchError(f"{op} with groups {a.groups} needs {what} channels divisible by it, found {n}")
    return channels


def _conv_shape(a: ConvAttrs, ins: list[Shape]) -> Shape:
    return windowed("conv", a, ins[0], _channels("conv", a, ins[0]))


def _conv_weight(a: ConvAttrs, ins: list[Shape], out: Shape) -> Shape:
    return (out[0], ins[0][0] // a.groups, *a.kernels(out))


def _transpose_shape(a: ConvTransposeAttrs, ins: list[Shape]) -> Shape:
    channels, axes = _channels("conv_transpose", a, ins[0]), a.axes(len(ins[0]) - 1)

    def side(axis: Axis, size: int, margin: int) -> int:
        if margin >= axis.stride:  # such sizes follow from a longer input
            raise TypeMismatchError(f"conv_transpose takes an output_padding of less than its stride, found {margin}")
        return (size - 1) * axis.stride - axis.before - axis.after + axis.reach + margin

    return (channels, *(side(*each) for each in zip(axes, ins[0][1:], a.margins(len(axes)), strict=True)))


def _linear_shape(a: LinearAttrs, ins: list[Shape]) -> Shape:
    if math.prod(ins[0][1:]) != 1:
        found = f"found {list(ins[0])}; put global_avg_pool or flatten before it"
        raise TypeMismatchError(f"linear takes a vector [C], {found}")
    return (a.channels or ins[0][0],)


def _weight_and_bias(weight: Shape, a: DepthwiseAttrs | LinearAttrs) -> dict[str, Shape]:
    return {"weight": weight} | ({"bias": weight[:1]} if a.bias is not False else {})


def _se_params(a: SqueezeExciteAttrs, ins: list[Shape], out: Shape) -> dict[str, Shape]:
    channels, inner, point = out[0], a.inner_of(out[0]), [1] * (len(out) - 1)
    return {
        "reduce_weight": (inner, channels, *point),
        "reduce_bias": (inner,),
        "expand_weight": (channels, inner, *point),
        "expand_bias": (channels,),
    }


ALONE: dict[str, AttrValue] = {"norm": "none", "act": "none"}  # turns the defaults of a convolution off


def _sep_conv_parts(a: SepConvAttrs) -> tuple[Step, ...]:
    window: dict[str, AttrValue] = {key: getattr(a, key) for key in Window.model_fields} | {"padding": a.pad}
    return step("depthwise", "depthwise_conv", bias=False, **window, **ALONE), *_pointwise("pointwise", a)


def _project_parts(a: ProjectAttrs) -> tuple[Step, ...]:
    return step("concat", "concat"), *_pointwise("conv", a)


def _pointwise(name: str, a: SepConvAttrs | ProjectAttrs) -> tuple[Step, ...]:
    own = step(name, "conv", channels=a.channels, kernel=1, bias=a.norm == "none", **ALONE)
    return own, *finish(a)


def _linear_map(bias: bool | None, channels: Channels, pixels: Pixels) -> Traits:
    homogeneous = Numbers.ALL if bias is False else Numbers.NONE
    return Traits(affine=Affine.WEIGHT, homogeneous=homogeneous, channels=channels, pixels=pixels)


def _conv_traits(a: ConvAttrs) -> Traits:
    """affine: weight; homogeneous: all without a bias; channels: mixed, grouped where there are groups; pixels: window,
    padded where there is padding, kept by a 1x1 window of stride 1"""
    return _linear_map(a.bias, Channels.MIXED if a.groups == 1 else Channels.GROUPED, a.pixels)


def _depthwise_traits(a: DepthwiseAttrs) -> Traits:
    """affine: weight; homogeneous: all without a bias; channels: kept; pixels: window, padded where there is padding,
    kept by a 1x1 window of stride 1"""
    return _linear_map(a.bias, Channels.KEPT, a.pixels)


def _transpose_traits(a: ConvTransposeAttrs) -> Traits:
    """affine: weight; homogeneous: all without a bias; channels: mixed, grouped where there are groups"""
    return _linear_map(a.bias, Channels.MIXED if a.groups == 1 else Channels.GROUPED, Pixels.UNKNOWN)


def _linear_traits(a: LinearAttrs) -> Traits:
    """affine: weight; homogeneous: all without a bias; channels: mixed; pixels: window"""
    return _linear_map(a.bias, Channels.MIXED, Pixels.WINDOW)


LAYERS = (
    Op(
        "conv", "convolution", ConvAttrs, infer=_conv_shape,
        params=lambda a, ins, out: _weight_and_bias(_conv_weight(a, ins, out), a),
        flops=lambda a, ins, out: math.prod(_conv_weight(a, ins, out)) * math.prod(out[1:]),
        parts=alone_then_finish("conv", "conv", **ALONE), traits=_conv_traits, sets_channels=True,
    ),
    Op(
        "depthwise_conv", "convolution with one filter a channel", DepthwiseAttrs,
        infer=lambda a, ins: windowed("depthwise_conv", a, ins[0], ins[0][0]),
        params=lambda a, ins, out: _weight_and_bias((out[0], 1, *a.kernels(out)), a),
        flops=lambda a, ins, out: math.prod(out) * math.prod(a.kernels(out)),
        parts=alone_then_finish("depthwise", "depthwise_conv", **ALONE), traits=_depthwise_traits,
    ),
    Op(
        "conv_transpose", "transposed convolution", ConvTransposeAttrs, infer=_transpose_shape,
        params=lambda a, ins, out: _weight_and_bias(_conv_weight(a, ins, out), a),
        flops=lambda a, ins, out: math.prod(_conv_weight(a, ins, out)) * math.prod(ins[0][1:]),
        parts=alone_then_finish("conv", "conv_transpose", **ALONE), traits=_transpose_traits, sets_channels=True,
    ),
    Op("sep_conv", "depthwise, then pointwise convolution", SepConvAttrs, parts=_sep_conv_parts, sets_channels=True),
    Op(
        "project", "1x1 convolution over the joined inputs", ProjectAttrs, reads=Reads.APART, parts=_project_parts,
        sets_channels=True,
    ),
    Op(
        "linear", "fully connected layer", LinearAttrs, infer=_linear_shape,
        params=lambda a, ins, out: _weight_and_bias((out[0], math.prod(ins[0])), a),
        flops=lambda a, ins, out: out[0] * math.prod(ins[0]), parts=alone_then_finish("linear", "linear"),
        traits=_linear_traits, sets_channels=True,
    ),
    Op(
        "squeeze_excite", "channels scaled by a gate from their means", SqueezeExciteAttrs,
        infer=lambda a, ins: spatial("squeeze_excite", ins[0]), params=_se_params,
        flops=lambda a, ins, out: 2 * out[0] * a.inner_of(out[0]),
        traits=Traits(homogeneous=Numbers.ZERO, values=Values.SIGN_KEPT, channels=Channels.SCALED),
    ),
)  # fmt: skip
