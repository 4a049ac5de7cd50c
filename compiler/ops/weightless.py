"""Ops without weights: sums, joins and products, constants, dropout. One row each, which is data."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated

from pydantic import Field

from compiler.ir.graph import TensorType
from compiler.ops.attributes import Finish, Positive, alone_then_finish, same
from compiler.ops.definition import Op, OpAttrs, Reads, Shape, TypeMismatchError
from compiler.ops.traits import IDENTITY, Channels, Numbers, Pixels, Traits, Values


class OutputAttrs(OpAttrs):
    """A result of the network; the main one has the default name and weight."""

    name: str = "output"
    """What it is called in results and in an exported model."""
    weight: Annotated[float, Field(ge=0, le=1e6)] = 1.0
    """How much its loss counts in training."""


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


Factor = Annotated[float, Field(ge=-1e6, le=1e6)]


class ScaleAttrs(OpAttrs):
    """Multiplication by a constant."""

    factor: Factor | tuple[Factor, ...]
    """What every value is multiplied by: one number, or one per channel."""


def _concat_shape(a: OpAttrs, ins: list[Shape]) -> Shape:
    for other in ins[1:]:
        if other[1:] != ins[0][1:]:
            found = f"{TensorType(ins[0])} and {TensorType(other)}"
            raise TypeMismatchError(f"concat joins channels, so all other sizes must agree; found {found}")
    return (sum(s[0] for s in ins), *ins[0][1:])


def _product_shape(a: OpAttrs, ins: list[Shape]) -> Shape:
    """That of the largest input; the others are alike, vectors of its channels, or of one pixel."""
    out = max(ins, key=lambda shape: (len(shape), math.prod(shape)))
    for other in ins:
        if other != out and (other[0] != out[0] or (math.prod(other[1:]) != 1 or len(other) not in (1, len(out)))):
            message = "multiply takes values of one type, or of one pixel or none with as many channels"
            raise TypeMismatchError(f"{message}; found {TensorType(out)} and {TensorType(other)}")
    return out


def _scale_shape(a: ScaleAttrs, ins: list[Shape]) -> Shape:
    if isinstance(a.factor, tuple) and len(a.factor) != ins[0][0]:
        raise TypeMismatchError(f"scale has {len(a.factor)} factors for {ins[0][0]} channels")
    return ins[0]


def _zero_traits(a: ZeroAttrs) -> Traits:
    """homogeneous: all; values: zero; channels: kept, where their number is not given; pixels: kept"""
    channels = Channels.KEPT if a.channels is None else Channels.UNKNOWN
    return Traits(homogeneous=Numbers.ALL, values=Values.ZERO, channels=channels, pixels=Pixels.KEPT)


def _scale_traits(a: ScaleAttrs) -> Traits:
    """homogeneous: all; channels: kept; pixels: kept; values: sign kept by factors of at least 0; by 1 it gives back
    its input"""
    factors = a.factor if isinstance(a.factor, tuple) else (a.factor,)
    if set(factors) == {1.0}:
        return IDENTITY
    values = Values.ZERO if not any(factors) else Values.SIGN_KEPT if min(factors) >= 0 else Values.ANY
    return replace(IDENTITY, averages=Numbers.NONE, unchanged=Numbers.NONE, values=values)


PLAIN = (
    Op("input", "the image", infer=same, traits=IDENTITY),
    Op("output", "the logits", OutputAttrs, infer=same, traits=IDENTITY),
    Op("identity", "its input", infer=same, traits=IDENTITY),
    Op("add", "sum of its inputs", Finish, infer=same, parts=alone_then_finish("sum", "add"), traits=IDENTITY),
    Op(
        "concat", "inputs joined along the channels", Finish, reads=Reads.APART, infer=_concat_shape,
        parts=alone_then_finish("concat", "concat"), traits=replace(IDENTITY, channels=Channels.JOINED),
    ),
    Op(
        "multiply", "product of its inputs; vectors and single pixels count for every pixel", reads=Reads.TOGETHER,
        infer=_product_shape, traits=Traits(homogeneous=Numbers.ZERO, values=Values.SIGN_KEPT, channels=Channels.KEPT),
    ),
    Op("scale", "its input times constants", ScaleAttrs, infer=_scale_shape, traits=_scale_traits),
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
