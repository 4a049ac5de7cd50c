"""The built-in ops: one row each. `graphspec ops` prints this table.

Shapes are without the batch: images `(C, H, W)`, vectors `(C,)`. Sizes of windowed ops follow torch:
`floor((size + 2 * padding - dilation * (kernel - 1) - 1) / stride) + 1`.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field

from compiler.ir.graph import AttrValue, attrs_of
from compiler.ops import Op, OpAttrs, Reads, Shape, Step, TypeMismatchError, register

Positive = Annotated[int, Field(gt=0)]
Activation = Literal["none", "relu", "relu6", "hard_swish", "silu", "gelu", "sigmoid"]
ACTIVATIONS = ("relu", "relu6", "hard_swish", "silu", "gelu", "sigmoid")


# -- attributes -----------------------------------------------------------------------------------------------------


class Finish(OpAttrs):
    """What may follow the op itself inside the same node."""

    norm: Literal["batch", "none"] = "none"
    """`batch`: batch norm follows."""
    act: Activation = "none"
    """Activation that comes last."""


class Window(OpAttrs):
    """A sliding window."""

    kernel: Positive
    """Side of the window in pixels."""
    stride: Positive = 1
    """Step of the window in pixels."""
    dilation: Positive = 1
    """Distance between neighbouring taps."""
    padding: Annotated[int, Field(ge=0)] | None = None
    """Zeros added on each side; default `dilation * (kernel - 1) // 2`, which keeps odd kernels' size at stride 1."""

    @property
    def pad(self) -> int:
        """Padding on each side in pixels."""
        return self.dilation * (self.kernel - 1) // 2 if self.padding is None else self.padding


class ConvAttrs(Window):
    """Convolution, by default followed by batch norm and ReLU."""

    channels: Positive | None = None
    """Output channels; default: what the block's type asks for, else as many as come in."""
    groups: Positive = 1
    """Groups of channels that do not mix."""
    bias: bool | None = None
    """Add a bias; default: only where no norm follows."""
    norm: Literal["batch", "none"] = "batch"
    """`batch`: batch norm follows."""
    act: Activation = "relu"
    """Activation that comes last."""


class DepthwiseAttrs(Window):
    """Depthwise convolution (one filter a channel), by default followed by batch norm and ReLU."""

    bias: bool | None = None
    """Add a bias; default: only where no norm follows."""
    norm: Literal["batch", "none"] = "batch"
    """`batch`: batch norm follows."""
    act: Activation = "relu"
    """Activation that comes last."""


class SepConvAttrs(Window):
    """Depthwise, then pointwise convolution (nothing between), by default followed by batch norm and ReLU."""

    channels: Positive | None = None
    """Output channels; default: what the block's type asks for, else as many as come in."""
    norm: Literal["batch", "none"] = "batch"
    """`batch`: batch norm follows."""
    act: Activation = "relu"
    """Activation that comes last."""


class ProjectAttrs(OpAttrs):
    """1x1 convolution over the concatenation of all inputs, by default followed by batch norm and ReLU."""

    channels: Positive | None = None
    """Output channels; default: what the block's type asks for, else those of the first input."""
    norm: Literal["batch", "none"] = "batch"
    """`batch`: batch norm follows."""
    act: Activation = "relu"
    """Activation that comes last."""


class PoolAttrs(Window, Finish):
    """Pooling window; average pooling does not count the padding."""


class LinearAttrs(Finish):
    """Fully connected layer over a vector (an image of 1x1 is taken as one)."""

    channels: Positive | None = None
    """Outputs; default: what the block's type asks for."""
    bias: bool | None = None
    """Add a bias; default: only where no norm follows."""


class OutputAttrs(OpAttrs):
    """A result of the network; the main one has the default name and weight."""

    name: str = "output"
    """What it is called in results and in an exported model."""
    weight: Annotated[float, Field(ge=0)] = 1.0
    """How much its loss counts in training."""


class BatchNormAttrs(OpAttrs):
    """Batch normalisation over every channel."""

    eps: Annotated[float, Field(gt=0)] = 2e-5
    """Added to the variance."""
    momentum: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of the newest batch in the running statistics."""
    act: Activation = "none"
    """Activation that comes last."""


class LayerNormAttrs(OpAttrs):
    """Layer normalisation over all dimensions but the batch, scale and shift per channel."""

    eps: Annotated[float, Field(gt=0)] = 1e-5
    """Added to the variance."""


class DropoutAttrs(OpAttrs):
    """Dropout: active in training only."""

    p: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Probability of zeroing a value."""


class DropPathAttrs(OpAttrs):
    """Drop path: active in training only."""

    p: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Probability of zeroing a whole value of one image, at the end of training."""


class ZeroAttrs(OpAttrs):
    """Zeros."""

    channels: Positive | None = None
    """Channels; default: as many as come in."""


class ScaleAttrs(OpAttrs):
    """Multiplication by a constant."""

    factor: float
    """What every value is multiplied by."""


class MeanAttrs(OpAttrs):
    """Mean over dimensions."""

    dims: tuple[Annotated[int, Field(ge=1)], ...]
    """Dimensions averaged over: 1 is the channels, 2 the rows, 3 the columns."""
    keep: bool = False
    """Keep the averaged dimensions with size 1."""


class SqueezeExciteAttrs(OpAttrs):
    """Scale each channel by a gate computed from the mean of all channels."""

    reduction: Positive = 4
    """The inner layer has `max(1, channels // reduction)` outputs."""


# -- shape rules ----------------------------------------------------------------------------------------------------


def _image(op: str, shape: Shape) -> Shape:
    if len(shape) != 3:
        raise TypeMismatchError(f"{op} takes an image [C, H, W], found [{', '.join(map(str, shape))}]")
    return shape


def _same(attrs: OpAttrs, ins: list[Shape]) -> Shape:
    return ins[0]


def _slid(size: int, a: Window) -> int:
    return (size + 2 * a.pad - a.dilation * (a.kernel - 1) - 1) // a.stride + 1


def _windowed(op: str, a: Window, shape: Shape, channels: int) -> Shape:
    _, height, width = _image(op, shape)
    out = (channels, _slid(height, a), _slid(width, a))
    if min(out) < 1:
        raise TypeMismatchError(f"{op} with kernel {a.kernel} does not fit into {height}x{width} with padding {a.pad}")
    return out


def _conv_shape(a: ConvAttrs, ins: list[Shape]) -> Shape:
    channels_in = _image("conv", ins[0])[0]
    channels = a.channels or channels_in
    for what, n in (("input", channels_in), ("output", channels)):
        if n % a.groups:
            raise TypeMismatchError(f"conv with groups {a.groups} needs {what} channels divisible by it, found {n}")
    return _windowed("conv", a, ins[0], channels)


def _pool_shape(a: PoolAttrs, ins: list[Shape]) -> Shape:
    if 2 * a.pad > a.kernel:
        raise TypeMismatchError(f"a pool's padding may be at most half of its kernel; found {a.pad} and {a.kernel}")
    return _windowed("a pool", a, ins[0], ins[0][0])


def _linear_shape(a: LinearAttrs, ins: list[Shape]) -> Shape:
    if len(ins[0]) != 1 and ins[0][1:] != (1, 1):
        raise TypeMismatchError(
            f"linear takes a vector [C], found [{', '.join(map(str, ins[0]))}]; "
            f"put global_avg_pool or flatten before it"
        )
    return (a.channels or ins[0][0],)


def _concat_shape(a: OpAttrs, ins: list[Shape]) -> Shape:
    for other in ins[1:]:
        if other[1:] != ins[0][1:]:
            raise TypeMismatchError(
                "concat joins channels, so all other sizes must agree; found "
                + " and ".join("x".join(map(str, s)) for s in (ins[0], other))
            )
    return (sum(s[0] for s in ins), *ins[0][1:])


def _mean_shape(a: MeanAttrs, ins: list[Shape]) -> Shape:
    dims = {d - 1 for d in a.dims}
    if max(dims, default=0) >= len(ins[0]):
        raise TypeMismatchError(
            f"mean over dims {list(a.dims)} of a value with {len(ins[0])} dimensions besides the batch"
        )
    kept = [1 if i in dims else n for i, n in enumerate(ins[0]) if a.keep or i not in dims]
    return tuple(kept) or (1,)


# -- parameters and multiply-adds -----------------------------------------------------------------------------------


def _conv_params(a: ConvAttrs, ins: list[Shape], out: Shape) -> dict[str, Shape]:
    weight = {"weight": (out[0], ins[0][0] // a.groups, a.kernel, a.kernel)}
    return weight | ({"bias": (out[0],)} if a.bias is not False else {})


def _conv_flops(a: ConvAttrs, ins: list[Shape], out: Shape) -> int:
    return math.prod(out) * (ins[0][0] // a.groups) * a.kernel**2


def _linear_params(a: LinearAttrs, ins: list[Shape], out: Shape) -> dict[str, Shape]:
    weight = {"weight": (out[0], math.prod(ins[0]))}
    return weight | ({"bias": (out[0],)} if a.bias is not False else {})


def _norm_params(a: OpAttrs, ins: list[Shape], out: Shape) -> dict[str, Shape]:
    return {"weight": (out[0],), "bias": (out[0],)}


def _norm_buffers(a: OpAttrs, ins: list[Shape], out: Shape) -> dict[str, Shape]:
    return {"running_mean": (out[0],), "running_var": (out[0],)}


def _se_inner(a: SqueezeExciteAttrs, channels: int) -> int:
    return max(1, channels // a.reduction)


def _se_params(a: SqueezeExciteAttrs, ins: list[Shape], out: Shape) -> dict[str, Shape]:
    channels, inner = out[0], _se_inner(a, out[0])
    return {
        "reduce_weight": (inner, channels, 1, 1),
        "reduce_bias": (inner,),
        "expand_weight": (channels, inner, 1, 1),
        "expand_bias": (channels,),
    }


# -- parts ----------------------------------------------------------------------------------------------------------


def _finish(norm: str, act: str) -> list[Step]:
    steps = [Step("norm", "batch_norm")] if norm == "batch" else []
    return steps + ([Step("act", act)] if act != "none" else [])


def _step(name: str, op: str, **attrs: AttrValue) -> Step:
    return Step(name, op, attrs_of(attrs))


def _window(a: Window) -> dict[str, AttrValue]:
    return {"kernel": a.kernel, "stride": a.stride, "dilation": a.dilation, "padding": a.pad}


def _conv_parts(a: ConvAttrs) -> tuple[Step, ...]:
    if a.norm == "none" and a.act == "none":
        return ()
    bias = a.norm == "none" if a.bias is None else a.bias
    conv = _step("conv", "conv", channels=a.channels, groups=a.groups, bias=bias, norm="none", act="none", **_window(a))
    return (conv, *_finish(a.norm, a.act))


def _depthwise_shape(a: DepthwiseAttrs, ins: list[Shape]) -> Shape:
    return _windowed("depthwise_conv", a, ins[0], _image("depthwise_conv", ins[0])[0])


def _depthwise_params(a: DepthwiseAttrs, ins: list[Shape], out: Shape) -> dict[str, Shape]:
    weight = {"weight": (out[0], 1, a.kernel, a.kernel)}
    return weight | ({"bias": (out[0],)} if a.bias is not False else {})


def _depthwise_parts(a: DepthwiseAttrs) -> tuple[Step, ...]:
    if a.norm == "none" and a.act == "none":
        return ()
    bias = a.norm == "none" if a.bias is None else a.bias
    return (
        _step("depthwise", "depthwise_conv", bias=bias, norm="none", act="none", **_window(a)),
        *_finish(a.norm, a.act),
    )


def _sep_conv_parts(a: SepConvAttrs) -> tuple[Step, ...]:
    return (
        _step("depthwise", "depthwise_conv", bias=False, norm="none", act="none", **_window(a)),
        _step("pointwise", "conv", channels=a.channels, kernel=1, bias=a.norm == "none", norm="none", act="none"),
        *_finish(a.norm, a.act),
    )


def _project_parts(a: ProjectAttrs) -> tuple[Step, ...]:
    return (
        _step("concat", "concat"),
        _step("conv", "conv", channels=a.channels, kernel=1, bias=a.norm == "none", norm="none", act="none"),
        *_finish(a.norm, a.act),
    )


def _pool_parts(op: str) -> Any:
    def rule(a: PoolAttrs) -> tuple[Step, ...]:
        finish = _finish(a.norm, a.act)
        return (_step("pool", op, **_window(a)), *finish) if finish else ()

    return rule


def _finished_parts(op: str, name: str) -> Any:
    def rule(a: Finish) -> tuple[Step, ...]:
        finish = _finish(a.norm, a.act)
        return (Step(name, op), *finish) if finish else ()

    return rule


def _linear_parts(a: LinearAttrs) -> tuple[Step, ...]:
    finish = _finish(a.norm, a.act)
    bias = a.norm == "none" if a.bias is None else a.bias
    return (_step("linear", "linear", channels=a.channels, bias=bias), *finish) if finish else ()


def _batch_norm_parts(a: BatchNormAttrs) -> tuple[Step, ...]:
    if a.act == "none":
        return ()
    return (_step("norm", "batch_norm", eps=a.eps, momentum=a.momentum), Step("act", a.act))


# -- the rows -------------------------------------------------------------------------------------------------------

register(
    Op("input", "the image", infer=_same),
    Op("output", "the logits", OutputAttrs, infer=_same),
    Op(
        "conv", "convolution", ConvAttrs, infer=_conv_shape, params=_conv_params, flops=_conv_flops,
        parts=_conv_parts, sets_channels=True,
    ),
    Op(
        "depthwise_conv", "convolution with one filter a channel", DepthwiseAttrs, infer=_depthwise_shape,
        params=_depthwise_params, flops=lambda a, ins, out: math.prod(out) * a.kernel**2, parts=_depthwise_parts,
    ),
    Op("sep_conv", "depthwise, then pointwise convolution", SepConvAttrs, parts=_sep_conv_parts, sets_channels=True),
    Op("max_pool", "largest value of a window", PoolAttrs, infer=_pool_shape, parts=_pool_parts("max_pool")),
    Op(
        "avg_pool", "mean of a window, padding not counted", PoolAttrs, infer=_pool_shape,
        parts=_pool_parts("avg_pool"),
    ),
    Op("identity", "its input", infer=_same),
    Op(
        "zero", "zeros of its input's size", ZeroAttrs,
        infer=lambda a, ins: (a.channels or ins[0][0], *ins[0][1:]),
    ),
    Op("scale", "its input times a constant", ScaleAttrs, infer=_same),
    Op(
        "linear", "fully connected layer", LinearAttrs, infer=_linear_shape, params=_linear_params,
        flops=lambda a, ins, out: out[0] * math.prod(ins[0]), parts=_linear_parts, sets_channels=True,
    ),
    Op(
        "global_avg_pool", "mean over rows and columns",
        infer=lambda a, ins: (_image("global_avg_pool", ins[0])[0],),
    ),
    Op("flatten", "all values as one vector", infer=lambda a, ins: (math.prod(ins[0]),)),
    Op("add", "sum of its inputs", Finish, infer=_same, parts=_finished_parts("add", "sum")),
    Op(
        "concat", "inputs joined along the channels", Finish, reads=Reads.APART, infer=_concat_shape,
        parts=_finished_parts("concat", "concat"),
    ),
    Op(
        "project", "1x1 convolution over the joined inputs", ProjectAttrs, reads=Reads.APART, parts=_project_parts,
        sets_channels=True,
    ),
    Op(
        "batch_norm", "batch normalisation", BatchNormAttrs, infer=_same, params=_norm_params, buffers=_norm_buffers,
        parts=_batch_norm_parts,
    ),
    Op("layer_norm", "normalisation over each image", LayerNormAttrs, infer=_same, params=_norm_params),
    *(Op(name, f"activation {name}", infer=_same) for name in ACTIVATIONS),
    Op(
        "squeeze_excite", "channels scaled by a gate from their means", SqueezeExciteAttrs,
        infer=lambda a, ins: _image("squeeze_excite", ins[0]), params=_se_params,
        flops=lambda a, ins, out: 2 * out[0] * _se_inner(a, out[0]),
    ),
    Op("dropout", "dropout, in training only", DropoutAttrs, infer=_same, training_only=True),
    Op(
        "drop_path", "dropout of a value as a whole, image by image, in training only", DropPathAttrs, infer=_same,
        training_only=True,
    ),
    Op("mean", "mean over dimensions", MeanAttrs, infer=_mean_shape),
)  # fmt: skip
