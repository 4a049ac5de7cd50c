"""Pools and means, over windows and over all pixels. One row each, which is data."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from pydantic import Field

from compiler.ops.attributes import Finish, alone_then_finish
from compiler.ops.definition import Op, OpAttrs, Shape, TypeMismatchError
from compiler.ops.traits import IDENTITY, Channels, Numbers, Pixels, Traits
from compiler.ops.windows import Axis, PerAxis, Window, each_axis, spatial, windowed


class PoolAttrs(Window, Finish):
    """Pooling window; padding is left out of the maximum."""

    ceil_mode: bool = False
    """Add a last window that reaches over the end, where one still starts before it."""

    def reaching(self, shape: Shape) -> tuple[Axis, ...]:
        """The axes over a value of this shape, with as much padding as the last windows reach."""
        axes = self.axes(len(shape) - 1)
        return tuple(axis.reaching(n, ceil=self.ceil_mode) for axis, n in zip(axes, shape[1:], strict=True))


class AvgPoolAttrs(PoolAttrs):
    """Pooling window; average pooling does not count the padding."""

    count_include_pad: bool = False
    """Count the padding as zeros."""

    @property
    def counts_padding(self) -> bool:
        """Whether zeros of the border reach the means."""
        return self.count_include_pad and self.pixels is Pixels.PADDED


class AdaptiveAttrs(OpAttrs):
    """Windows as large as the wanted size asks for."""

    size: PerAxis
    """Pixels along each axis of what comes out."""


class MeanAttrs(OpAttrs):
    """Mean over dimensions."""

    dims: tuple[Annotated[int, Field(ge=1, le=3)], ...]
    """Dimensions averaged over: 1 is the channels, 2 and 3 the axes of the pixels."""
    keep: bool = False
    """Keep the averaged dimensions with size 1."""


def _pool_shape(a: PoolAttrs, ins: list[Shape]) -> Shape:
    out = windowed("a pool", a, ins[0], ins[0][0], ceil=a.ceil_mode)
    for axis, size in zip(a.reaching(ins[0]), ins[0][1:], strict=True):
        if min(axis.taps_inside(size)) < 1:
            window = f"kernel {axis.kernel}, dilation {axis.dilation}, padding [{axis.before}, {axis.after}]"
            raise TypeMismatchError(f"a window of a pool would lie outside of {size} pixels, on padding only: {window}")
    return out


def _adaptive_shape(a: AdaptiveAttrs, ins: list[Shape]) -> Shape:
    return (ins[0][0], *each_axis(a.size, len(spatial("adaptive_avg_pool", ins[0])) - 1, "size"))


def _mean_shape(a: MeanAttrs, ins: list[Shape]) -> Shape:
    dims = {d - 1 for d in a.dims}
    if max(dims, default=0) >= len(ins[0]):
        raise TypeMismatchError(
            f"mean over dims {list(a.dims)} of a value with {len(ins[0])} dimensions besides the batch"
        )
    kept = [1 if i in dims else n for i, n in enumerate(ins[0]) if a.keep or i not in dims]
    return tuple(kept) or (1,)


AVERAGE = replace(IDENTITY, unchanged=Numbers.NONE, pixels=Pixels.WINDOW)
LARGEST = replace(AVERAGE, homogeneous=Numbers.NONNEGATIVE, averages=Numbers.NONNEGATIVE)


def _avg_pool_traits(a: AvgPoolAttrs) -> Traits:
    """homogeneous: all; averages: all unless padding counts; values: sign kept; channels: kept; pixels: window, padded
    where padding counts; a 1x1 window of stride 1 gives back its input"""
    if a.counts_padding:
        return replace(AVERAGE, averages=Numbers.NONE, pixels=Pixels.PADDED)
    return IDENTITY if a.is_point else AVERAGE


def _max_pool_traits(a: PoolAttrs) -> Traits:
    """homogeneous: nonnegative; averages: nonnegative; values: sign kept; channels: kept;
    pixels: window; a 1x1 window only leaves pixels out, and with stride 1 gives back its input"""
    if a.is_one_pixel:
        return IDENTITY if a.is_point else AVERAGE
    return LARGEST


def _mean_traits(a: MeanAttrs) -> Traits:
    """homogeneous: all; unchanged: all; values: sign kept; over rows and columns also
    averages: all; channels: kept; pixels: window; over the channels channels: averaged"""
    if 1 not in a.dims:
        return replace(IDENTITY, pixels=Pixels.WINDOW)
    return replace(IDENTITY, averages=Numbers.NONE, channels=Channels.AVERAGED, pixels=Pixels.UNKNOWN)


POOLS = (
    Op(
        "max_pool", "largest value of a window", PoolAttrs, infer=_pool_shape,
        parts=alone_then_finish("pool", "max_pool"), traits=_max_pool_traits,
    ),
    Op(
        "avg_pool", "mean of a window", AvgPoolAttrs, infer=_pool_shape,
        parts=alone_then_finish("pool", "avg_pool"), traits=_avg_pool_traits,
    ),
    Op(
        "adaptive_avg_pool", "means of as many windows as are wanted", AdaptiveAttrs, infer=_adaptive_shape,
        traits=AVERAGE,
    ),
    Op(
        "global_avg_pool", "mean over all pixels",
        infer=lambda a, ins: spatial("global_avg_pool", ins[0])[:1], traits=AVERAGE,
    ),
    Op(
        "global_max_pool", "largest value of all pixels",
        infer=lambda a, ins: spatial("global_max_pool", ins[0])[:1], traits=LARGEST,
    ),
    Op("mean", "mean over dimensions", MeanAttrs, infer=_mean_shape, traits=_mean_traits),
)  # fmt: skip
