"""Layers with windows, weights or statistics, as torch (ATen) calls them, in terms of our ops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from compiler.importing.calls import per_axis
from compiler.importing.values import Arguments, Row, TorchRecorder, Value, half, require


def each(value: Any, rank: int) -> list[Any]:
    """One number per axis."""
    found = [value] if isinstance(value, int) else list(value)
    return found * rank if len(found) == 1 else found


def _window(r: TorchRecorder, a: Arguments, kernel: Sequence[int], fill: float) -> tuple[str, dict[str, Any]]:
    """What a window slides over, and its attributes; a border of `fill` before it becomes its padding."""
    rank, value = len(kernel), a.first
    padding = {"valid": 0}.get(a.padding, a.padding) if isinstance(a.padding, str) else a.padding
    pairs = [(n, n) if isinstance(n, int) else n for n in each(0 if padding == "same" else padding, rank)]
    if padding == "same":
        reach = [d * (k - 1) for d, k in zip(each(a.dilation, rank), kernel, strict=True)]
        pairs = [(n // 2, n - n // 2) for n in reach]
    if half(value, "pad") and value.detail[:2] == ("constant", fill) and min(map(min, value.detail[2])) >= 0:
        pairs = [(p[0] + q[0], p[1] + q[1]) for p, q in zip(pairs, value.detail[2], strict=True)]
        value = value.source
    even = all(before == after for before, after in pairs)
    found = {
        "kernel": per_axis(kernel),
        "stride": per_axis(each(a.stride or kernel, rank)),
        "padding": per_axis([b for b, _ in pairs]) if even else [list(pair) for pair in pairs],
    }
    return r.key(value), found | ({"dilation": per_axis(each(a.dilation, rank))} if a.dilation else {})


def _weights(a: Arguments) -> dict[str, Any]:
    return {"weight": a.weight} | ({} if a.bias is None else {"bias": a.bias})


def _conv(r: TorchRecorder, a: Arguments) -> Value:
    require(isinstance(a.weight, Tensor), "a convolution whose weight is computed from the image")
    source, window = _window(r, a, a.weight.shape[2:], 0)
    depthwise = a.groups == len(a.weight) == r.shapes[source][0]
    own = {} if depthwise else {"channels": len(a.weight), "groups": a.groups}
    kind = "depthwise_conv" if depthwise else "conv"
    return r.call(kind, [source], _weights(a), **window, **own, bias=a.bias is not None)


def _conv_transpose(r: TorchRecorder, a: Arguments) -> Value:
    source, window = _window(r, a, a.weight.shape[2:], math.nan)
    grouped = a.weight.unflatten(0, (a.groups, -1)).transpose(1, 2).flatten(0, 1)
    margin = per_axis(each(a.output_padding, a.weight.dim() - 2))
    own = {"channels": len(grouped), "groups": a.groups, "output_padding": margin, "bias": a.bias is not None}
    return r.call("conv_transpose", [source], _weights(a) | {"weight": grouped}, **window, **own)


def _linear(r: TorchRecorder, a: Arguments) -> Value:
    return r.call("linear", [r.key(a.input)], _weights(a), channels=len(a.weight), bias=a.bias is not None)


def _pointwise(r: TorchRecorder, a: Arguments) -> Value:
    """A linear layer on each pixel."""
    weight = a.weight.reshape(*a.weight.shape, *[1] * (len(r.size(a.input)) - 1))
    own = {"kernel": 1, "channels": len(weight), "bias": a.bias is not None}
    return r.call("conv", [r.key(a.input)], _weights(a) | {"weight": weight}, **own)


def _scales(r: TorchRecorder, a: Arguments, *statistics: str) -> dict[str, Any]:
    """The weight and bias of a norm, 1 and 0 where it has none, and its statistics."""
    channels = r.size(a.input)[0]
    plain = {"weight": torch.ones(channels), "bias": torch.zeros(channels)}
    return plain | {name: a.given[name] for name in (*plain, *statistics) if a.given.get(name) is not None}


def _batch_norm(r: TorchRecorder, a: Arguments) -> Value:
    own = not a.training and a.running_mean is not None
    require(own, "batch norm by the statistics of the batch, at inference too")
    given = _scales(r, a, "running_mean", "running_var")
    return r.call("batch_norm", [r.key(a.input)], given, eps=a.eps, momentum=round(a.momentum or 0.1, 7))


def _instance_norm(r: TorchRecorder, a: Arguments) -> Value:
    """By the statistics of an image; where it kept those of training, it is a batch norm at inference."""
    return _norm("instance_norm")(r, a) if a.use_input_stats else _batch_norm(r, a)


def _norm(kind: str, over: str = "") -> Row:
    def row(r: TorchRecorder, a: Arguments) -> Value:
        own = {"groups": a.num_groups} if kind == "group_norm" else {"over": over} if over else {}
        if kind == "layer_norm":
            size = r.size(a.input)
            whole = tuple(a.normalized_shape) == (size[:1] if over == "channels" else size)
            require(whole, f"a layer norm over {list(a.normalized_shape)} of {list(size)}")
        return r.call(kind, [r.key(a.input)], _scales(r, a), eps=a.eps, **own)

    return row


def _max_pool(r: TorchRecorder, a: Arguments) -> Value:
    source, window = _window(r, a, each(a.kernel_size, len(a.shape) - 1), -math.inf)
    return r.call("max_pool", [source], **window, ceil_mode=a.ceil_mode)


def _avg_pool(r: TorchRecorder, a: Arguments) -> Value:
    require(not a.divisor_override, "an average pool with a divisor of its own")
    source, window = _window(r, a, each(a.kernel_size, len(a.shape) - 1), math.nan)
    counts = bool(a.count_include_pad) and window["padding"] != 0
    return r.call("avg_pool", [source], **window, ceil_mode=a.ceil_mode, count_include_pad=counts)


def _adaptive_avg(r: TorchRecorder, a: Arguments) -> Value:
    return a.first if a.shape == r.size(a.first) else r.plain("adaptive_avg_pool", a.first, size=per_axis(a.shape[1:]))


def _adaptive_max(r: TorchRecorder, a: Arguments) -> Value:
    require(math.prod(a.shape[1:]) == 1, "an adaptive maximum over several windows")
    return [r.plain("max_pool", a.first, kernel=per_axis(r.size(a.first)[1:]), padding=0), None]  # and its place


def _mean(r: TorchRecorder, a: Arguments) -> Value:
    source = a.first.source if half(a.first, "pixels") else r.key(a.first)
    rank = 2 if half(a.first, "pixels") else len(r.shapes[source])
    dims = sorted(d % (rank + 1) for d in a.dim or range(rank + 1))
    require(0 not in dims, "a mean over the images of a batch")
    if dims != list(range(2, rank + 1)):
        return r.plain("mean", a.first, dims=dims, keep=bool(a.keepdim))
    kept = a.keepdim and not half(a.first, "pixels")
    return r.plain("adaptive_avg_pool", source, size=1) if kept else r.plain("global_avg_pool", source)


LAYERS: dict[str, Row] = {
    **dict.fromkeys(("conv1d", "conv2d"), _conv), "linear": _linear, "batch_norm": _batch_norm,
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d"), _conv_transpose),
    "group_norm": _norm("group_norm"), "layer_norm": _norm("layer_norm"), "instance_norm": _instance_norm,
    **dict.fromkeys(("max_pool1d", "max_pool2d"), _max_pool), **dict.fromkeys(("avg_pool1d", "avg_pool2d"), _avg_pool),
    **dict.fromkeys(("adaptive_avg_pool1d", "adaptive_avg_pool2d"), _adaptive_avg), "mean": _mean,
    "adaptive_max_pool2d": _adaptive_max,
}  # fmt: skip
CHANNELS_LAST: dict[str, Row] = {"linear": _pointwise, "layer_norm": _norm("layer_norm", over="channels")}
"""Rows for values whose channels come last, given as if they came first."""
