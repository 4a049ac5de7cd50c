"""Activations: functions of single numbers, and softmax. One row each, which is data."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from pydantic import Field

from compiler.ops.attributes import same
from compiler.ops.definition import Op, OpAttrs
from compiler.ops.traits import Channels, Numbers, Pixels, Traits, Values


class LeakyReluAttrs(OpAttrs):
    """ReLU with a slope below zero."""

    slope: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """What negative values are multiplied by."""


class EluAttrs(OpAttrs):
    """Exponential linear unit."""

    alpha: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    """Minus the value far below zero."""


def _traits(homogeneous: Numbers, values: Values, unchanged: Numbers = Numbers.NONE) -> Traits:
    return Traits(
        homogeneous=homogeneous, values=values, unchanged=unchanged, channels=Channels.KEPT, pixels=Pixels.KEPT
    )


RECTIFIED = _traits(Numbers.NONNEGATIVE, Values.NONNEGATIVE, unchanged=Numbers.NONNEGATIVE)
LEAKY = replace(RECTIFIED, values=Values.SIGN_KEPT)
SMOOTH = _traits(Numbers.ZERO, Values.SIGN_KEPT)
SQUASHED = _traits(Numbers.NONE, Values.NONNEGATIVE)

ACTIVATIONS = (
    Op("relu", "max(x, 0)", infer=same, traits=RECTIFIED),
    Op("relu6", "x between 0 and 6", infer=same, traits=_traits(Numbers.ZERO, Values.NONNEGATIVE)),
    Op("hard_swish", "x hard_sigmoid(x)", infer=same, traits=SMOOTH),
    Op("silu", "x sigmoid(x)", infer=same, traits=SMOOTH),
    Op("gelu", "x times the normal distribution at x", infer=same, traits=SMOOTH),
    Op("sigmoid", "1 / (1 + exp(-x))", infer=same, traits=SQUASHED),
    Op("hard_sigmoid", "x / 6 + 1/2 between 0 and 1", infer=same, traits=SQUASHED),
    Op("tanh", "hyperbolic tangent", infer=same, traits=SMOOTH),
    Op("leaky_relu", "x, below zero slope x", LeakyReluAttrs, infer=same, traits=LEAKY),
    Op(
        "elu", "x, below zero alpha (exp(x) - 1)", EluAttrs, infer=same,
        traits=replace(SMOOTH, unchanged=Numbers.NONNEGATIVE),
    ),
    Op(
        "prelu", "x, below zero times a trained slope of its channel", infer=same,
        params=lambda a, ins, out: {"slope": out[:1]}, traits=LEAKY,
    ),
    Op(
        "softmax", "shares of the channels that add up to 1", infer=same,
        traits=Traits(values=Values.NONNEGATIVE, channels=Channels.MIXED, pixels=Pixels.KEPT),
    ),
)  # fmt: skip
