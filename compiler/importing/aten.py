"""Calls of torch (ATen) in terms of our ops: one row per function, with or without the `_` of its form in place."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from compiler.importing.calls import Call, Recorder, UnsupportedError, affine, per_axis
from compiler.ops import Shape

Value = Any  # the key of a call, a tensor that is constant, a list of values, or a `Half`


@dataclass
class Half:
    """A value on its way to an op of ours that several calls make: padding before a window, a channel shuffle, what is
    computed with the channels last."""

    kind: str  # pad, rows, columns, last, pixels
    source: str
    detail: Any = None  # of `pad`: mode, fill, pairs per axis; of rows and columns the groups


@dataclass
class Arguments:
    """The arguments of a call by name, values in the place of nodes; `shape` is what it gives, without the batch."""

    given: dict[str, Any]
    shape: Shape
    sizes: tuple[Shape, ...]  # of the members, where it gives several values

    def __getattr__(self, name: str) -> Any:
        return self.given.get(name)

    @property
    def first(self) -> Any:
        """The first argument."""
        return next(iter(self.given.values()))


class TorchRecorder(Recorder):
    """Takes the values of a torch graph."""

    def key(self, value: Value) -> str:
        """The key of a value; UnsupportedError if it is none of one image."""
        if isinstance(value, str):
            return value
        if isinstance(value, Half) and value.kind == "pad":
            mode, fill, pairs = value.detail
            if mode in PADS and (mode != "constant" or fill == 0):
                return self.call("pad", [value.source], padding=[list(pair) for pair in pairs], mode=PADS[mode])
        what = f"{value.kind} of {value.source}" if isinstance(value, Half) else "a constant"
        raise UnsupportedError(f"reads {what}, which no op of ours does")

    def size(self, value: Value) -> Shape:
        """The shape of a value without the batch."""
        return self.shapes[self.key(value)]


Row = Callable[[TorchRecorder, Arguments], Value]
PADS = {"constant": "zeros", "reflect": "reflect", "replicate": "edge"}


def _window(r: TorchRecorder, a: Arguments, kernel: Sequence[int], fill: float) -> tuple[str, dict[str, Any]]:
    """What a window slides over, and its attributes; padding before it becomes its own."""
    rank = len(kernel)
    pairs = [(0, 0)] * rank
    if a.padding == "same":
        reach = [d * (k - 1) for d, k in zip(_each(a.dilation, rank), kernel, strict=True)]
        pairs = [(n // 2, n - n // 2) for n in reach]
    elif a.padding != "valid":
        pairs = [(n, n) if isinstance(n, int) else n for n in _each(a.padding, rank)]
    value = a.first
    if isinstance(value, Half) and value.kind == "pad" and value.detail[:2] == ("constant", fill):
        added = zip(pairs, value.detail[2], strict=True)
        value, pairs = value.source, [(p[0] + q[0], p[1] + q[1]) for p, q in added]
    even = all(before == after for before, after in pairs)
    padding = per_axis([b for b, _ in pairs]) if even else [list(pair) for pair in pairs]
    stride = per_axis(_each(a.stride or kernel, rank))
    found = {"kernel": per_axis(kernel), "stride": stride, "padding": padding}
    found |= {"dilation": per_axis(_each(a.dilation, rank))} if a.dilation else {}
    return r.key(value), found


def _each(value: Any, rank: int) -> list[int]:
    found = [value] if isinstance(value, int) else list(value)
    return found * rank if len(found) == 1 else found


def _weights(a: Arguments) -> dict[str, Any]:
    return {"weight": a.weight} | ({} if a.bias is None else {"bias": a.bias})


def _conv(r: TorchRecorder, a: Arguments) -> Value:
    if not isinstance(a.weight, Tensor):
        raise UnsupportedError("a convolution whose weight is computed from the image")
    source, window = _window(r, a, a.weight.shape[2:], 0)
    depthwise = a.groups == len(a.weight) == r.shapes[source][0]
    own = {} if depthwise else {"channels": len(a.weight), "groups": a.groups}
    weights = _weights(a)
    return r.call("depthwise_conv" if depthwise else "conv", [source], weights, **window, **own, bias="bias" in weights)


def _conv_transpose(r: TorchRecorder, a: Arguments) -> Value:
    source, window = _window(r, a, a.weight.shape[2:], math.nan)
    grouped = a.weight.unflatten(0, (a.groups, -1)).transpose(1, 2).flatten(0, 1)
    weights = _weights(a) | {"weight": grouped}
    margin = per_axis(_each(a.output_padding, a.weight.dim() - 2))
    own = {"channels": len(grouped), "groups": a.groups, "output_padding": margin, "bias": "bias" in weights}
    return r.call("conv_transpose", [source], weights, **window, **own)


def _linear(r: TorchRecorder, a: Arguments) -> Value:
    return r.call("linear", [r.key(a.input)], _weights(a), channels=len(a.weight), bias=a.bias is not None)


def _batch_norm(r: TorchRecorder, a: Arguments) -> Value:
    if a.training or a.running_mean is None:
        raise UnsupportedError("batch norm by the statistics of the batch, at inference too")
    tensors = {"running_mean": a.running_mean, "running_var": a.running_var}
    ones = {"weight": torch.ones_like(a.running_mean), "bias": torch.zeros_like(a.running_mean)}
    given = {name: value for name, value in (("weight", a.weight), ("bias", a.bias)) if value is not None}
    return r.call("batch_norm", [r.key(a.input)], ones | given | tensors, eps=a.eps, momentum=a.momentum or 0.1)


def _group_norm(r: TorchRecorder, a: Arguments) -> Value:
    return r.call("group_norm", [r.key(a.input)], _weights(a), groups=a.num_groups, eps=a.eps)


def _layer_norm(r: TorchRecorder, a: Arguments) -> Value:
    return r.call("layer_norm", [r.key(a.input)], _weights(a), eps=a.eps)


def _max_pool(r: TorchRecorder, a: Arguments) -> Value:
    source, window = _window(r, a, _each(a.kernel_size, len(a.shape) - 1), -math.inf)
    return r.call("max_pool", [source], **window, ceil_mode=a.ceil_mode)


def _avg_pool(r: TorchRecorder, a: Arguments) -> Value:
    if a.divisor_override:
        raise UnsupportedError("an average pool with a divisor of its own")
    source, window = _window(r, a, _each(a.kernel_size, len(a.shape) - 1), math.nan)
    counts = bool(a.count_include_pad) and window["padding"] != 0
    return r.call("avg_pool", [source], **window, ceil_mode=a.ceil_mode, count_include_pad=counts)


def _adaptive_avg(r: TorchRecorder, a: Arguments) -> Value:
    source = r.key(a.first)
    same = a.shape == r.shapes[source]
    return source if same else r.call("adaptive_avg_pool", [source], size=per_axis(a.shape[1:]))


def _adaptive_max(r: TorchRecorder, a: Arguments) -> Value:
    if math.prod(a.shape[1:]) != 1:
        raise UnsupportedError("an adaptive maximum over several windows")
    source = r.key(a.first)
    return r.call("max_pool", [source], kernel=per_axis(r.shapes[source][1:]), padding=0)


def _mean(r: TorchRecorder, a: Arguments) -> Value:
    pixels = isinstance(a.first, Half) and a.first.kind == "pixels"  # all in one row
    source = r.key(a.first.source if pixels else a.first)
    rank = 2 if pixels else len(r.shapes[source])
    dims = sorted(d % (rank + 1) for d in a.dim or range(rank + 1))
    if 0 in dims:
        raise UnsupportedError("a mean over the images of a batch")
    if dims == list(range(2, rank + 1)):
        kept = a.keepdim and not pixels
        return r.call("adaptive_avg_pool", [source], size=1) if kept else r.call("global_avg_pool", [source])
    return r.call("mean", [r.key(a.first)], dims=dims, keep=bool(a.keepdim))


def _add(r: TorchRecorder, a: Arguments) -> Value:
    return _sum(r, a, 1.0)


def _sub(r: TorchRecorder, a: Arguments) -> Value:
    return _sum(r, a, -1.0)


def _sum(r: TorchRecorder, a: Arguments, sign: float) -> Value:
    factor = sign * (1 if a.alpha is None else a.alpha)
    left, right = (a.other, a.self) if isinstance(a.self, Tensor) and sign > 0 else (a.self, a.other)
    if isinstance(right, Tensor | int | float):
        return _shifted(r, r.key(left), factor * _constant(r, left, right))
    keys = [r.key(left), r.key(right)]
    if r.shapes[keys[0]] != r.shapes[keys[1]]:
        raise UnsupportedError("a sum of values of two shapes")
    return r.call("add", keys if factor == 1 else [keys[0], r.call("scale", [keys[1]], factor=factor)])


def _shifted(r: TorchRecorder, source: str, shift: Tensor) -> Value:
    """A constant added to every channel: the bias of a layer that has none."""
    made = r.calls.get(source)
    if not shift.any():
        return source
    if made is None or made.attrs.get("bias") is not False:
        return affine(r, source, 1.0, shift)
    bias = shift.float().expand(made.shape[0])
    key = r.call(made.op, made.inputs, made.weights | {"bias": bias}, **made.attrs | {"bias": True})
    r.calls[key].path = made.path
    return key


def _constant(r: TorchRecorder, value: Value, constant: Any) -> Tensor:
    """One number for each channel of a value; UnsupportedError for other constants."""
    numbers = torch.as_tensor(constant, dtype=torch.float64)
    channels, *axes = r.size(value)
    by_channel = numbers.numel() == channels and numbers.shape[-len(axes) - 1 :].numel() == channels
    if numbers.numel() != 1 and not (by_channel and numbers.shape[len(numbers.shape) - len(axes) :].numel() == 1):
        raise UnsupportedError(f"a constant of shape {list(numbers.shape)} for values {[channels, *axes]}")
    return numbers.flatten()


def _mul(r: TorchRecorder, a: Arguments) -> Value:
    left, right = (a.other, a.self) if isinstance(a.self, Tensor) else (a.self, a.other)
    if isinstance(right, Tensor | int | float):
        factor = _constant(r, left, right)
        one = factor.numel() == 1 and r.size(left)[0] != 1
        return r.call("scale", [r.key(left)], factor=factor.item()) if one else affine(r, r.key(left), factor)
    keys = [r.key(left), r.key(right)]
    for source, key in (keys, keys[::-1]):
        made = r.calls.get(key)
        if made and made.op in GATED and made.inputs == [source]:
            return r.call(GATED[made.op], [source])
    return r.call("multiply", keys)


GATED = {"sigmoid": "silu", "hard_sigmoid": "hard_swish"}
"""f by x f(x)."""


def _sixth(r: TorchRecorder, key: str) -> Value:
    """x relu6(x + 3) / 6 and relu6(x + 3) / 6 as the ops that they are; None for other values."""
    made = r.calls.get(key)
    factors = made.inputs if made and made.op == "multiply" else [key]
    for bound in factors:
        clip = r.calls.get(bound)
        inner = r.calls.get(clip.inputs[0]) if clip and clip.op == "relu6" else None
        if inner is None or inner.op != "depthwise_conv" or not _adds(inner, 3):
            continue
        if sorted(factors) == sorted({bound, *inner.inputs} if len(factors) > 1 else {bound}):
            return r.call("hard_sigmoid" if len(factors) == 1 else "hard_swish", inner.inputs)
    return None


def _adds(call: Call, number: float) -> bool:
    """Whether a depthwise convolution only adds a number."""
    return bool(
        (call.weights["weight"] == 1).all() and "bias" in call.weights and (call.weights["bias"] == number).all()
    )


def _div(r: TorchRecorder, a: Arguments) -> Value:
    if not isinstance(a.other, Tensor | int | float):
        raise UnsupportedError("a quotient of two values")
    factor = 1 / _constant(r, a.self, a.other)
    if factor.numel() == 1 and abs(6 * factor.item() - 1) < 1e-6 and (found := _sixth(r, r.key(a.self))):
        return found
    return affine(r, r.key(a.self), factor) if factor.numel() > 1 else _mul(r, _with(a, other=factor.item()))


def _with(a: Arguments, **changed: Any) -> Arguments:
    return Arguments({**a.given, **changed}, a.shape, a.sizes)


def _concat(r: TorchRecorder, a: Arguments) -> Value:
    keys = [r.key(value) for value in a.tensors]
    if (a.dim or 0) % (len(a.shape) + 1) != 1:
        raise UnsupportedError("a join along another dimension than the channels")
    return r.call("concat", keys) if len(keys) > 1 else keys[0]


def _split(r: TorchRecorder, a: Arguments) -> Value:
    source = r.key(a.self)
    if (a.dim or 0) % (len(r.shapes[source]) + 1) != 1:
        raise UnsupportedError("a split along another dimension than the channels")
    stops = [sum(size[0] for size in a.sizes[: i + 1]) for i in range(len(a.sizes))]
    return [("slice", source, stop - size[0], stop) for size, stop in zip(a.sizes, stops, strict=True)]


def _item(r: TorchRecorder, a: Arguments) -> Value:
    found = a.given["values"][a.given["index"]]
    if not isinstance(found, tuple):
        return found
    key = r.call("slice", [found[1]], start=found[2], stop=found[3])
    r.calls[key].path = (*r.origin.path[:-1], f"part{a.given['index']}()")
    return key


def _slice(r: TorchRecorder, a: Arguments) -> Value:
    source = r.key(a.self)
    if a.shape == r.shapes[source]:
        return source
    if (a.dim or 0) != 1 or (a.step or 1) != 1:
        raise UnsupportedError("a part of an image")
    start = (a.start or 0) % r.shapes[source][0]
    return r.call("slice", [source], start=start, stop=start + a.shape[0])


def _reshaped(r: TorchRecorder, a: Arguments) -> Value:
    """What only changes shape: a flattening, half of a channel shuffle, a vector as an image of one pixel."""
    value, new = a.first, a.shape
    if isinstance(value, Half) and value.kind == "columns" and new == r.shapes[value.source]:
        return r.call("channel_shuffle", [value.source], groups=value.detail)
    source = r.key(value)
    old = r.shapes[source]
    if new == old or (len(old) == 1 and new == (*old, *[1] * (len(new) - 1))):
        return source  # a vector counts for every pixel where it is multiplied
    if new == (math.prod(old),):
        made = r.calls.get(source)
        pooled = made and made.op == "adaptive_avg_pool" and math.prod(old[1:]) == 1
        if made and pooled:
            key = r.call("global_avg_pool", made.inputs)
            r.calls[key].path = made.path
            return key
        return r.call("flatten", [source])
    if len(old) == 3 and new == (old[0], old[1] * old[2]):
        return Half("pixels", source)
    if len(new) == len(old) + 1 and new[0] * new[1] == old[0] and new[2:] == old[1:]:
        return Half("rows", source, new[0])
    raise UnsupportedError(f"a change of shape from {list(old)} to {list(new)}")


def _transposed(r: TorchRecorder, a: Arguments) -> Value:
    value = a.self
    if isinstance(value, Half) and value.kind == "rows":
        order = list(range(len(a.shape) + 1))
        if a.dims is not None:
            order = [d % len(order) for d in a.dims]
        else:
            order[a.dim0], order[a.dim1] = order[a.dim1], order[a.dim0]
        if order == [0, 2, 1, *range(3, len(order))]:
            return Half("columns", value.source, value.detail)
    dims = [d % len(a.dims) for d in a.dims or ()]
    if dims and dims == [0, *range(2, len(dims)), 1]:
        return Half("last", r.key(value))
    if dims and dims == [0, len(dims) - 1, *range(1, len(dims) - 1)] and isinstance(value, Half):
        return r.key(value.source) if value.kind == "last" else r.key(value)
    if a.dims is not None and list(a.dims) == list(range(len(a.shape) + 1)):
        return value
    raise UnsupportedError("another order of the dimensions")


def _pad(r: TorchRecorder, a: Arguments) -> Value:
    source, widths = r.key(a.self), list(a.pad if a.pad is not None else a.padding)
    axes = len(r.shapes[source]) - 1
    if len(widths) > 2 * axes or min(widths) < 0:
        raise UnsupportedError("a border that is no border of pixels")
    pairs = list(zip(widths[::2], widths[1::2], strict=True))[::-1]
    return Half("pad", source, (a.mode or "constant", a.value or 0.0, [(0, 0)] * (axes - len(pairs)) + pairs))


def _padded(mode: str) -> Row:
    return lambda r, a: _pad(r, _with(a, mode=mode))


def _resize(mode: str) -> Row:
    def row(r: TorchRecorder, a: Arguments) -> Value:
        if a.align_corners:
            raise UnsupportedError("a resize that aligns corners")
        return r.call("resize", [r.key(a.first)], size=per_axis(a.shape[1:]), mode=mode)

    return row


def _plain(name: str, **attrs: str) -> Row:
    """An op of one input; `attrs` maps our attributes to torch's arguments."""
    return lambda r, a: r.call(name, [r.key(a.first)], **{ours: getattr(a, theirs) for ours, theirs in attrs.items()})


def _clamped(r: TorchRecorder, a: Arguments) -> Value:
    low, high = (a.min_val, a.max_val) if "min_val" in a.given else (a.min, a.max)
    name = {(0, 6): "relu6", (0, None): "relu"}.get((low, high))
    if name is None:
        raise UnsupportedError(f"values between {low} and {high}")
    return r.call(name, [r.key(a.first)])


def _gelu(r: TorchRecorder, a: Arguments) -> Value:
    if a.approximate != "none":
        raise UnsupportedError("an approximation of gelu")
    return r.call("gelu", [r.key(a.first)])


def _elu(r: TorchRecorder, a: Arguments) -> Value:
    if (a.scale, a.input_scale) != (1, 1):
        raise UnsupportedError("an elu with scales")
    return r.call("elu", [r.key(a.first)], alpha=float(a.alpha))


def _prelu(r: TorchRecorder, a: Arguments) -> Value:
    source = r.key(a.self)
    return r.call("prelu", [source], {"slope": a.weight.expand(r.shapes[source][0])})


def _softmax(r: TorchRecorder, a: Arguments) -> Value:
    if a.dim % (len(a.shape) + 1) != 1:
        raise UnsupportedError("softmax over another dimension than the channels")
    return r.call("softmax", [r.key(a.first)])


def _dropout(r: TorchRecorder, a: Arguments) -> Value:
    return r.call("dropout", [r.key(a.first)], p=float(a.p)) if 0 < a.p < 1 else a.first


def _alias(r: TorchRecorder, a: Arguments) -> Value:
    return a.first


def _pointwise(r: TorchRecorder, a: Arguments) -> Value:
    """A linear layer on each pixel."""
    weight = a.weight.reshape(*a.weight.shape, *[1] * (len(r.size(a.input)) - 1))
    own = {"kernel": 1, "channels": len(weight), "bias": a.bias is not None}
    return r.call("conv", [r.key(a.input)], _weights(a) | {"weight": weight}, **own)


def _channel_norm(r: TorchRecorder, a: Arguments) -> Value:
    return r.call("layer_norm", [r.key(a.input)], _weights(a), eps=a.eps, over="channels")


def recorded(r: TorchRecorder, name: str, a: Arguments) -> Value:
    """The value of a call of this name; UnsupportedError if no op of ours gives it."""
    first = a.first
    if isinstance(first, Half) and first.kind == "last" and name in CHANNELS_LAST:
        of_images = _with(a, **{next(iter(a.given)): first.source})
        return Half("last", r.key(CHANNELS_LAST[name](r, of_images)))
    if name not in ATEN:
        raise UnsupportedError("there is no such op")
    return ATEN[name](r, a)


ATEN: dict[str, Row] = {
    **dict.fromkeys(("conv1d", "conv2d"), _conv),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d"), _conv_transpose),
    "linear": _linear, "batch_norm": _batch_norm, "group_norm": _group_norm, "layer_norm": _layer_norm,
    **dict.fromkeys(("max_pool1d", "max_pool2d"), _max_pool), **dict.fromkeys(("avg_pool1d", "avg_pool2d"), _avg_pool),
    **dict.fromkeys(("adaptive_avg_pool1d", "adaptive_avg_pool2d"), _adaptive_avg),
    "adaptive_max_pool2d": lambda r, a: [_adaptive_max(r, a), None], "mean": _mean,
    "add": _add, "sub": _sub, "mul": _mul, "div": _div, "cat": _concat,
    **dict.fromkeys(("chunk", "split", "split_with_sizes", "tensor_split"), _split), "getitem": _item, "slice": _slice,
    **dict.fromkeys(("view", "reshape", "flatten", "squeeze", "unsqueeze", "_unsafe_view", "unflatten"), _reshaped),
    **dict.fromkeys(("transpose", "permute"), _transposed),
    **dict.fromkeys(("constant_pad_nd", "pad"), _pad),
    "reflection_pad2d": _padded("reflect"), "replication_pad2d": _padded("replicate"),
    **dict.fromkeys(("upsample_nearest1d", "upsample_nearest2d"), _resize("nearest")),
    **dict.fromkeys(("upsample_linear1d", "upsample_bilinear2d"), _resize("bilinear")),
    **{name: _plain(name) for name in ("relu", "relu6", "silu", "sigmoid", "tanh")},
    "hardswish": _plain("hard_swish"), "hardsigmoid": _plain("hard_sigmoid"),
    **dict.fromkeys(("hardtanh", "clamp"), _clamped), "gelu": _gelu, "elu": _elu, "prelu": _prelu,
    "leaky_relu": _plain("leaky_relu", slope="negative_slope"), "softmax": _softmax, "dropout": _dropout,
    **dict.fromkeys(("contiguous", "clone", "detach", "alias", "to", "lift_fresh_copy", "identity"), _alias),
}  # fmt: skip
CHANNELS_LAST: dict[str, Row] = {
    **{name: ATEN[name] for name in ("relu", "silu", "sigmoid", "tanh", "gelu", "hardswish", "dropout", "mul")},
    "linear": _pointwise,
    "layer_norm": _channel_norm,
}
"""Rows for values whose channels come last, given as if they came first."""
