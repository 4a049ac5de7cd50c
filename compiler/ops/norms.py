"""Normalisations. One row each, which is data."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from compiler.ops.attributes import Activation, BatchNormSettings, Epsilon, Positive, alone_then_finish, same
from compiler.ops.definition import Op, OpAttrs, Shape, TypeMismatchError
from compiler.ops.traits import Affine, Channels, Numbers, Pixels, Traits, Values
from compiler.ops.windows import spatial


class BatchNormAttrs(BatchNormSettings):
    """Batch normalisation over every channel."""

    act: Activation = "none"
    """Activation that comes last."""


class InstanceNormAttrs(OpAttrs):
    """Normalisation of each channel of each image, scale and shift per channel."""

    eps: Epsilon = 1e-5
    """Added to the variance."""


class GroupNormAttrs(InstanceNormAttrs):
    """Normalisation over groups of channels of each image, scale and shift per channel."""

    groups: Positive
    """How many groups the channels make."""


class LayerNormAttrs(InstanceNormAttrs):
    """Layer normalisation, scale and shift per channel."""

    over: Literal["all", "channels"] = "all"
    """`all`: over channels and pixels together; `channels`: over the channels of each pixel."""


class LocalResponseNormAttrs(OpAttrs):
    """Division by the mean square of neighbouring channels: `x / (k + alpha * mean of squares) ** beta`."""

    size: Positive = 5
    """Channels in the mean, an odd number with the channel itself in the middle; those beyond the ends are zeros."""
    alpha: Annotated[float, Field(gt=0, le=1e6)] = 1e-4
    """Factor of the mean."""
    beta: Annotated[float, Field(gt=0, le=100)] = 0.75
    """Power of the divisor."""
    k: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    """Added to the mean."""


def _several(op: str, shape: Shape, groups: int) -> Shape:
    """The shape, where each group holds several numbers; TypeMismatchError if not."""
    if shape[0] % groups:
        raise TypeMismatchError(f"{op} with groups {groups} needs channels divisible by it, found {shape[0]}")
    if math.prod(shape) == groups:
        raise TypeMismatchError(f"{op} of single numbers gives its shift alone; put it where there are more of them")
    return shape


def _layer_norm_shape(a: LayerNormAttrs, ins: list[Shape]) -> Shape:
    _several("layer_norm", ins[0] if a.over == "all" else ins[0][:1], 1)
    return ins[0]


def _lrn_shape(a: LocalResponseNormAttrs, ins: list[Shape]) -> Shape:
    if a.size % 2 == 0:
        raise TypeMismatchError(f"lrn takes an odd size, found {a.size}")
    return spatial("lrn", ins[0])


def _norm_params(a: OpAttrs, ins: list[Shape], out: Shape) -> dict[str, Shape]:
    return {"weight": (out[0],), "bias": (out[0],)}


def _layer_norm_traits(a: LayerNormAttrs) -> Traits:
    """channels: mixed; normalises; over the channels alone pixels: kept"""
    found = Traits(channels=Channels.MIXED, normalises=True)
    return replace(found, pixels=Pixels.KEPT) if a.over == "channels" else found


NORMS = (
    Op(
        "batch_norm", "batch normalisation", BatchNormAttrs, infer=same, params=_norm_params,
        buffers=lambda a, ins, out: {"running_mean": (out[0],), "running_var": (out[0],)},
        parts=alone_then_finish("norm", "batch_norm"),
        traits=Traits(affine=Affine.STATISTICS, channels=Channels.KEPT, pixels=Pixels.KEPT, normalises=True),
    ),
    Op(
        "layer_norm", "normalisation over each image, or each of its pixels", LayerNormAttrs,
        infer=_layer_norm_shape,
        params=_norm_params, traits=_layer_norm_traits,
    ),
    Op(
        "group_norm", "normalisation over groups of channels of each image", GroupNormAttrs,
        infer=lambda a, ins: _several("group_norm", ins[0], a.groups), params=_norm_params,
        traits=Traits(channels=Channels.GROUPED, normalises=True),
    ),
    Op(
        "instance_norm", "normalisation over each channel of each image", InstanceNormAttrs,
        infer=lambda a, ins: _several("instance_norm", spatial("instance_norm", ins[0]), ins[0][0]),
        params=_norm_params, traits=Traits(channels=Channels.KEPT, normalises=True),
    ),
    Op(
        "lrn", "division by the size of neighbouring channels", LocalResponseNormAttrs, infer=_lrn_shape,
        traits=Traits(homogeneous=Numbers.ZERO, values=Values.SIGN_KEPT, pixels=Pixels.KEPT),
    ),
)  # fmt: skip
