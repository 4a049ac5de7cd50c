"""The catalogue row: what the op is. Imports neither torch nor onnx, so `graphspec compile` stays fast."""

from __future__ import annotations

import math

from compiler.ops import Op, OpAttrs, Shape


class ChannelScaleAttrs(OpAttrs):
    """Every channel times a trained number."""

    bias: bool = False
    """Also add a trained number."""


def _params(attrs: ChannelScaleAttrs, inputs: list[Shape], out: Shape) -> dict[str, Shape]:
    """Vectors start at 1; those whose name ends in `bias` start at 0."""
    return {"weight": (out[0],)} | ({"bias": (out[0],)} if attrs.bias else {})


CHANNEL_SCALE = Op(
    "channel_scale",
    "every channel times a trained number",
    ChannelScaleAttrs,
    infer=lambda attrs, inputs: inputs[0],
    params=_params,
    flops=lambda attrs, inputs, out: math.prod(out),
    torch="channel_scale.torch_row:build",
    onnx="channel_scale.onnx_row:emit",
)
