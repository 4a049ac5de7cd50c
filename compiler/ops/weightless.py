"""Ops without weights: pools and means, sums and joins, activations, constants. One row each, which is data."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated

from pydantic import Field

from compiler.ir.graph import TensorType
from compiler.ops.attributes import Finish, Positive, Window, alone_then_finish, image, same, windowed
from compiler.ops.definition import Op, OpAttrs, Reads, Shape, TypeMismatchError
from compiler.ops.traits import IDENTITY, Channels, Numbers, Pixels, Traits, Values

# -- attributes -----------------------------------------------------------------------------------------------------


class OutputAttrs(OpAttrs):
    """A result of the network; the main one has the default name and weight."""

    name: str = "output"
    """What it is called in results and in an exported model."""
    weight: Annotated[float, Field(ge=0)] = 1.0
    """How much its loss counts in training."""


class PoolAttrs(Window, Finish):
    """Pooling window; average pooling does not count the padding."""


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


# -- shapes and parts -----------------------------------------------------------------------------------------------


def _pool_shape(a: PoolAttrs, ins: list[Shape]) -> Shape:
    if 2 * a.pad > a.kernel:
        raise TypeMismatchError(f"a pool's padding may be at most half of its kernel; found {a.pad} and {a.kernel}")
    return windowed("a pool", a, ins[0], ins[0][0])


def _concat_shape(a: OpAttrs, ins: list[Shape]) -> Shape:
    for other in ins[1:]:
        if other[1:] != ins[0][1:]:
            found = f"{TensorType(ins[0])} and {TensorType(other)}"
            raise TypeMismatchError(f"concat joins channels, so all other sizes must agree; found {found}")
    return (sum(s[0] for s in ins), *ins[0][1:])


def _mean_shape(a: MeanAttrs, ins: list[Shape]) -> Shape:
    dims = {d - 1 for d in a.dims}
    if max(dims, default=0) >= len(ins[0]):
        raise TypeMismatchError(
            f"mean over dims {list(a.dims)} of a value with {len(ins[0])} dimensions besides the batch"
        )
    kept = [1 if i in dims else n for i, n in enumerate(ins[0]) if a.keep or i not in dims]
    return tuple(kept) or (1,)


# -- traits ---------------------------------------------------------------------------------------------------------

AVERAGE = replace(IDENTITY, unchanged=Numbers.NONE, pixels=Pixels.WINDOW)


def _avg_pool_traits(a: PoolAttrs) -> Traits:
    """homogeneous: all; averages: all; values: sign kept; channels: kept; pixels: window;
    a 1x1 window of stride 1 gives back its input"""
    return IDENTITY if a.kernel == a.stride == 1 else AVERAGE


def _max_pool_traits(a: PoolAttrs) -> Traits:
    """homogeneous: nonnegative; averages: nonnegative; values: sign kept; channels: kept;
    pixels: window; a 1x1 window only leaves pixels out, and with stride 1 gives back its input"""
    if a.kernel == 1:
        return _avg_pool_traits(a)
    return replace(AVERAGE, homogeneous=Numbers.NONNEGATIVE, averages=Numbers.NONNEGATIVE)


def _mean_traits(a: MeanAttrs) -> Traits:
    """homogeneous: all; unchanged: all; values: sign kept; over rows and columns also
    averages: all; channels: kept; pixels: window; over the channels channels: averaged"""
    if 1 not in a.dims:
        return replace(IDENTITY, pixels=Pixels.WINDOW)
    return replace(IDENTITY, averages=Numbers.NONE, channels=Channels.AVERAGED, pixels=Pixels.UNKNOWN)


def _zero_traits(a: ZeroAttrs) -> Traits:
    """homogeneous: all; values: zero; channels: kept, where their number is not given; pixels: kept"""
    channels = Channels.KEPT if a.channels is None else Channels.UNKNOWN
    return Traits(homogeneous=Numbers.ALL, values=Values.ZERO, channels=channels, pixels=Pixels.KEPT)


def _scale_traits(a: ScaleAttrs) -> Traits:
    """homogeneous: all; channels: kept; pixels: kept; values: sign kept by a factor of at least 0; by 1 it gives back
    its input"""
    if a.factor == 1:
        return IDENTITY
    values = Values.ZERO if a.factor == 0 else Values.SIGN_KEPT if a.factor > 0 else Values.ANY
    return replace(IDENTITY, averages=Numbers.NONE, unchanged=Numbers.NONE, values=values)


def _activation(homogeneous: Numbers, values: Values, unchanged: Numbers = Numbers.NONE) -> Traits:
    return Traits(
        homogeneous=homogeneous, values=values, unchanged=unchanged, channels=Channels.KEPT, pixels=Pixels.KEPT
    )


ACTIVATIONS = {
    "relu": _activation(Numbers.NONNEGATIVE, Values.NONNEGATIVE, unchanged=Numbers.NONNEGATIVE),
    "relu6": _activation(Numbers.ZERO, Values.NONNEGATIVE),
    "hard_swish": _activation(Numbers.ZERO, Values.SIGN_KEPT),
    "silu": _activation(Numbers.ZERO, Values.SIGN_KEPT),
    "gelu": _activation(Numbers.ZERO, Values.SIGN_KEPT),
    "sigmoid": _activation(Numbers.NONE, Values.NONNEGATIVE),
}

PLAIN = (
    Op("input", "the image", infer=same, traits=IDENTITY),
    Op("output", "the logits", OutputAttrs, infer=same, traits=IDENTITY),
    Op(
        "max_pool", "largest value of a window", PoolAttrs, infer=_pool_shape,
        parts=alone_then_finish("pool", "max_pool"), traits=_max_pool_traits,
    ),
    Op(
        "avg_pool", "mean of a window, padding not counted", PoolAttrs, infer=_pool_shape,
        parts=alone_then_finish("pool", "avg_pool"), traits=_avg_pool_traits,
    ),
    Op(
        "global_avg_pool", "mean over rows and columns",
        infer=lambda a, ins: (image("global_avg_pool", ins[0])[0],), traits=AVERAGE,
    ),
    Op("mean", "mean over dimensions", MeanAttrs, infer=_mean_shape, traits=_mean_traits),
    Op(
        "flatten", "all values as one vector", infer=lambda a, ins: (math.prod(ins[0]),),
        traits=replace(IDENTITY, averages=Numbers.NONE, channels=Channels.FLATTENED, pixels=Pixels.UNKNOWN),
    ),
    Op("identity", "its input", infer=same, traits=IDENTITY),
    Op("add", "sum of its inputs", Finish, infer=same, parts=alone_then_finish("sum", "add"), traits=IDENTITY),
    Op(
        "concat", "inputs joined along the channels", Finish, reads=Reads.APART, infer=_concat_shape,
        parts=alone_then_finish("concat", "concat"), traits=replace(IDENTITY, channels=Channels.JOINED),
    ),
    *(Op(name, f"activation {name}", infer=same, traits=traits) for name, traits in ACTIVATIONS.items()),
    Op("scale", "its input times a constant", ScaleAttrs, infer=same, traits=_scale_traits),
    Op(
        "zero", "zeros of its input's size", ZeroAttrs,
        infer=lambda a, ins: (a.channels or ins[0][0], *ins[0][1:]), traits=_zero_traits,
    ),
    Op(
        "dropout", "dropout, in training only", DropoutAttrs, infer=same,
        traits=replace(IDENTITY, training_only=True),
    ),
    Op(
        "drop_path", "dropout of a value as a whole, image by image, in training only", DropPathAttrs, infer=same,
        traits=replace(IDENTITY, training_only=True),
    ),
)  # fmt: skip
