"""Ops that move numbers about: vectors out of images, channels, borders, sizes. One row each, which is data."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from compiler.ops.attributes import Positive
from compiler.ops.definition import Op, OpAttrs, Shape, TypeMismatchError
from compiler.ops.traits import IDENTITY, Channels, Numbers, Pixels, Traits
from compiler.ops.windows import Border, PerAxis, each_axis, numbers, sides, spatial


class ShuffleAttrs(OpAttrs):
    """Channels in `groups` rows, read column by column."""

    groups: Positive
    """How many rows the channels make."""


class SliceAttrs(OpAttrs):
    """Some of the channels."""

    start: Annotated[int, Field(ge=0, le=10**9)] = 0
    """The first channel, counted from 0."""
    stop: Positive
    """The channel behind the last one."""


class PadAttrs(OpAttrs):
    """A border around the pixels, added or cut off."""

    padding: Border
    """Pixels added on each side: one number, one per axis, or [before, after] in the place of an axis's number. Numbers
    below 0 cut pixels off."""
    mode: Literal["zeros", "reflect", "edge"] = "zeros"
    """What the border holds: zeros, the pixels mirrored at the last one, or the last pixel."""

    @property
    def cuts(self) -> bool:
        """Whether pixels are cut off."""
        return any(number < 0 for number in numbers(self.padding))

    @model_validator(mode="after")
    def _zeros_where_it_cuts(self) -> Self:
        if self.cuts and self.mode != "zeros":
            raise PydanticCustomError("pad", "cuts pixels off with `mode: zeros` alone")
        return self


class ResizeAttrs(OpAttrs):
    """Other numbers of pixels; either `size` or `scale`."""

    size: PerAxis | None = None
    """Pixels along each axis of what comes out: one number, or one per axis."""
    scale: PerAxis | None = None
    """How many times as many pixels come out along each axis: one whole number, or one per axis."""
    mode: Literal["nearest", "bilinear"] = "nearest"
    """`nearest`: pixel floor(i * in / out); `bilinear`: between the neighbours of (i + 1/2) * in / out - 1/2."""

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.size is None) == (self.scale is None):
            raise PydanticCustomError("resize", "takes either `size` or `scale`")
        return self


def _shuffle_shape(a: ShuffleAttrs, ins: list[Shape]) -> Shape:
    if ins[0][0] % a.groups:
        raise TypeMismatchError(
            f"channel_shuffle with groups {a.groups} needs channels divisible by it, found {ins[0][0]}"
        )
    return ins[0]


def _slice_shape(a: SliceAttrs, ins: list[Shape]) -> Shape:
    if not a.start < a.stop <= ins[0][0]:
        raise TypeMismatchError(f"slice from {a.start} to {a.stop} takes no channels of {ins[0][0]}")
    return (a.stop - a.start, *ins[0][1:])


def _pad_shape(a: PadAttrs, ins: list[Shape]) -> Shape:
    sizes = spatial("pad", ins[0])[1:]
    borders = sides(a.padding, len(sizes))
    for border, size in zip(borders, sizes, strict=True):
        if a.mode == "reflect" and max(border) >= size:
            raise TypeMismatchError(f"pad mirrors at most {size - 1} of {size} pixels, found {max(border)}")
        if size + sum(min(0, side) for side in border) < 1:
            raise TypeMismatchError(f"pad {list(border)} cuts off all of {size} pixels")
    return (ins[0][0], *(sum(border) + size for border, size in zip(borders, sizes, strict=True)))


def _resize_shape(a: ResizeAttrs, ins: list[Shape]) -> Shape:
    sizes = spatial("resize", ins[0])[1:]
    if a.size is not None:
        return (ins[0][0], *each_axis(a.size, len(sizes), "size"))
    scales = each_axis(a.scale, len(sizes), "scale")
    return (ins[0][0], *(n * size for n, size in zip(scales, sizes, strict=True)))


def _pad_traits(a: PadAttrs) -> Traits:
    """homogeneous: all; unchanged: all, none where pixels are cut off; values: sign kept; channels: kept; pixels:
    padded; where no zeros are added averages: all; pixels: window"""
    found = replace(IDENTITY, pixels=Pixels.WINDOW, unchanged=Numbers.NONE if a.cuts else Numbers.ALL)
    adds_zeros = a.mode == "zeros" and max(numbers(a.padding)) > 0
    return replace(found, averages=Numbers.NONE, pixels=Pixels.PADDED) if adds_zeros else found


MOVED = replace(IDENTITY, averages=Numbers.NONE, unchanged=Numbers.NONE, pixels=Pixels.KEPT)

RESHAPES = (
    Op(
        "flatten", "all values as one vector", infer=lambda a, ins: (math.prod(ins[0]),),
        traits=replace(IDENTITY, averages=Numbers.NONE, channels=Channels.FLATTENED, pixels=Pixels.UNKNOWN),
    ),
    Op(
        "channel_shuffle", "channels of several groups in turn", ShuffleAttrs, infer=_shuffle_shape,
        traits=replace(MOVED, channels=Channels.SHUFFLED),
    ),
    Op(
        "slice", "some of the channels", SliceAttrs, infer=_slice_shape,
        traits=replace(MOVED, channels=Channels.SLICED),
    ),
    Op("pad", "a border around the pixels, added or cut off", PadAttrs, infer=_pad_shape, traits=_pad_traits),
    Op(
        "resize", "other numbers of pixels", ResizeAttrs, infer=_resize_shape,
        traits=replace(IDENTITY, pixels=Pixels.WINDOW),
    ),
)  # fmt: skip
