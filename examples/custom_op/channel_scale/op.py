"""The catalogue row: what the op is. Imports neither torch nor onnx, so `graphspec compile` stays fast."""

from __future__ import annotations

import math

from compiler.ops import Affine, Channels, Numbers, Op, OpAttrs, Pixels, Shape, Traits


class ChannelScaleAttrs(OpAttrs):
    """Every channel times a trained number."""

    bias: bool = False
    """Also add a trained number."""


def _params(attrs: ChannelScaleAttrs, inputs: list[Shape], out: Shape) -> dict[str, Shape]:
    """Vectors start at 1; those whose name ends in `bias` start at 0."""
    return {"weight": (out[0],)} | ({"bias": (out[0],)} if attrs.bias else {})


def _traits(attrs: ChannelScaleAttrs) -> Traits:
    """affine: weight; homogeneous: all without a bias; channels: kept; pixels: kept"""
    return Traits(
        affine=Affine.WEIGHT,
        homogeneous=Numbers.NONE if attrs.bias else Numbers.ALL,
        channels=Channels.KEPT,
        pixels=Pixels.KEPT,
    )


CHANNEL_SCALE = Op(
    "channel_scale",
    "every channel times a trained number",
    ChannelScaleAttrs,
    infer=lambda attrs, inputs: inputs[0],
    params=_params,
    traits=_traits,
    flops=lambda attrs, inputs, out: math.prod(out),
    torch="channel_scale.torch_row:build",
    onnx="channel_scale.onnx_row:emit",
)
