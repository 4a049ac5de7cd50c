"""Calls of torch (ATen) in terms of our ops: one row per function, whether it works in place or not."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from compiler.importing.calls import Call, UnsupportedError, affine, per_axis
from compiler.importing.layers import CHANNELS_LAST, LAYERS, each
from compiler.importing.values import Arguments, Half, Row, TorchRecorder, Value, half, require

NUMBER = Tensor | int | float
GATED = {"sigmoid": "silu", "hard_sigmoid": "hard_swish"}  # f by x f(x)


def recorded(r: TorchRecorder, name: str, a: Arguments) -> Value:
    """The value of a call of this name; UnsupportedError if no op of ours gives it."""
    last = [value for value in a.given.values() if half(value, "last")]
    if last and name in (*CHANNELS_LAST, *ELEMENTWISE, *ARITHMETIC):
        given = {key: value.source if half(value, "last") else value for key, value in a.given.items()}
        if name in ARITHMETIC:
            given |= {key: _for_channels(a.given[key], len(r.size(last[0].source))) for key in ("self", "other")}
        row = CHANNELS_LAST.get(name) or ATEN[name]
        return Half("last", r.key(row(r, a.but(**given))))
    require(name in ATEN, "there is no such op")
    return ATEN[name](r, a)


def _for_channels(value: Value, rank: int) -> Value:
    """What is added to or multiplied with a value of this rank whose channels are last, as if they came first."""
    require(half(value, "last") or isinstance(value, NUMBER), "values with their channels first and last")
    if not isinstance(value, Tensor):
        return value.source if half(value, "last") else value
    require(value.numel() == 1 or value.shape[-1] == value.numel(), f"a constant of shape {list(value.shape)}")
    return value.reshape(-1, *[1] * (rank - 1))


def _sum(sign: int) -> Row:
    def row(r: TorchRecorder, a: Arguments) -> Value:
        factor = sign * (1 if a.alpha is None else a.alpha)
        left, right = (a.other, a.self) if isinstance(a.self, Tensor) and sign > 0 else (a.self, a.other)
        if isinstance(right, NUMBER):
            return _shifted(r, r.key(left), factor * _constant(r, left, right))
        keys = [r.key(left), r.key(right)]
        require(r.shapes[keys[0]] == r.shapes[keys[1]], "a sum of values of two shapes")
        return r.call("add", keys if factor == 1 else [keys[0], r.plain("scale", keys[1], factor=factor)])

    return row


def _shifted(r: TorchRecorder, source: str, shift: Tensor) -> Value:
    """A constant added to every channel: the bias of a layer that has none."""
    made = r.calls.get(source)
    if not shift.any():
        return source
    if made is None or made.attrs.get("bias") is not False:
        return affine(r, source, 1.0, shift)
    bias = shift.float().expand(made.shape[0])
    return _again(r, made, made.op, made.weights | {"bias": bias}, made.attrs | {"bias": True})


def _again(r: TorchRecorder, made: Call, kind: str, weights: dict[str, Any], attrs: dict[str, Any]) -> str:
    """Another call in the place of one, which is dropped if nothing else reads it."""
    key = r.call(kind, made.inputs, weights, **attrs)
    r.calls[key].path = made.path
    return key


def _constant(r: TorchRecorder, value: Value, constant: Any) -> Tensor:
    """One number for each channel of a value, or for all; UnsupportedError for other constants."""
    numbers = torch.as_tensor(constant, dtype=torch.float64)
    channels, *axes = r.size(value)
    of_channels = numbers.shape[-len(axes) - 1 :].numel() == channels == numbers.numel()
    of_channels &= numbers.shape[len(numbers.shape) - len(axes) :].numel() == 1
    fits = numbers.numel() == 1 or of_channels
    require(fits, f"a constant of shape {list(numbers.shape)} for values {[channels, *axes]}")
    return numbers.flatten()


def _mul(r: TorchRecorder, a: Arguments) -> Value:
    left, right = (a.other, a.self) if isinstance(a.self, Tensor) else (a.self, a.other)
    if isinstance(right, NUMBER):
        factor = _constant(r, left, right)
        one = factor.numel() == 1 and r.size(left)[0] != 1
        return r.plain("scale", left, factor=factor.item()) if one else affine(r, r.key(left), factor)
    spread = [half(value, "spread") for value in (left, right)]
    require(not all(spread), "a product of copies")
    keys = [value.source if copied else r.key(value) for value, copied in zip((left, right), spread, strict=True)]
    for source, key in (keys, keys[::-1]):
        made = r.calls.get(key)
        if made and made.op in GATED and made.inputs == [source]:
            return r.plain(GATED[made.op], source)
    return r.call("multiply", keys)


def _div(r: TorchRecorder, a: Arguments) -> Value:
    require(isinstance(a.other, NUMBER), "a quotient of two values")
    factor = 1 / _constant(r, a.self, a.other)
    by_six = factor.numel() == 1 and abs(6 * factor.item() - 1) < 1e-6
    return (by_six and _sixth(r, r.key(a.self))) or _mul(r, a.but(other=factor.reshape(-1, *[1] * len(a.shape[1:]))))


def _sixth(r: TorchRecorder, key: str) -> str | None:
    """x relu6(x + 3) / 6 and relu6(x + 3) / 6 as the ops that they are; None for other values."""
    made = r.calls.get(key)
    factors = made.inputs if made and made.op == "multiply" else [key]
    for bound in factors:
        clip = r.calls.get(bound)
        inner = r.calls.get(clip.inputs[0]) if clip and clip.op == "relu6" else None
        if inner and _adds_three(inner) and {bound, *inner.inputs}.issuperset(factors):
            return r.plain("hard_sigmoid" if len(factors) == 1 else "hard_swish", inner.inputs[0])
    return None


def _adds_three(call: Call) -> bool:
    plain = call.op == "depthwise_conv" and call.attrs["kernel"] == 1 and "bias" in call.weights
    return plain and bool((call.weights["weight"] == 1).all() and (call.weights["bias"] == 3).all())


def _along_channels(a: Arguments, rank: int) -> None:
    require((a.dim or 0) % (rank + 1) == 1, "another dimension than the channels")


def _concat(r: TorchRecorder, a: Arguments) -> Value:
    keys = [r.key(value) for value in a.tensors]
    _along_channels(a, len(r.shapes[keys[0]]))
    return r.call("concat", keys) if len(keys) > 1 else keys[0]


def _split(r: TorchRecorder, a: Arguments) -> Value:
    source = r.key(a.self)
    _along_channels(a, len(r.shapes[source]))
    stops = [sum(size[0] for size in a.sizes[: i + 1]) for i in range(len(a.sizes))]
    return [Half("part", source, (stop - size[0], stop)) for size, stop in zip(a.sizes, stops, strict=True)]


def _item(r: TorchRecorder, a: Arguments) -> Value:
    found = a.given["values"][a.given["index"]]
    if not half(found, "part"):
        return found
    key = r.key(found)
    r.calls[key].path = (*r.origin.path[:-1], f"part{a.given['index']}()")
    return key


def _slice(r: TorchRecorder, a: Arguments) -> Value:
    source = r.key(a.self)
    size, step = r.shapes[source], a.step or 1
    if a.shape == size:
        return source
    axis = (a.dim or 0) % (len(size) + 1) - 1
    start = (a.start or 0) % size[axis]
    if axis == 0:
        require(step == 1, "every so many channels")
        return r.plain("slice", source, start=start, stop=start + a.shape[0])
    every = -(-(size[axis] - start) // step) == a.shape[axis]  # up to the last one
    stop = size[axis] if every else start + step * (a.shape[axis] - 1) + 1
    return _skipped(r, _cut(r, source, axis, start, size[axis] - stop), axis, step)


def _cut(r: TorchRecorder, source: str, axis: int, before: int, after: int) -> str:
    """An image without so many pixels at both ends of an axis."""
    if not (before or after):
        return source
    made, cut = r.calls.get(source), [[0, 0] for _ in r.shapes[source][1:]]
    if made and made.op == "pad" and max(map(max, made.attrs["padding"])) <= 0:
        source, cut = made.inputs[0], [list(pair) for pair in made.attrs["padding"]]
    cut[axis - 1] = [cut[axis - 1][0] - before, cut[axis - 1][1] - after]
    return r.plain("pad", source, padding=cut)


def _skipped(r: TorchRecorder, source: str, axis: int, step: int) -> str:
    """Every so many pixels along an axis of an image: a pool over single pixels."""
    if step == 1:
        return source
    source, stride = _before_skipping(r, source)
    stride[axis - 1] *= step
    return r.plain("max_pool", source, kernel=1, stride=per_axis(stride), padding=0)


def _before_skipping(r: TorchRecorder, source: str) -> tuple[str, list[int]]:
    """What is read where pixels are skipped, and the steps along its axes; those of others are 1."""
    made, rank = r.calls.get(source), len(r.shapes[source]) - 1
    if made is None or (made.op, made.attrs.get("kernel")) != ("max_pool", 1):
        return source, [1] * rank
    return made.inputs[0], each(made.attrs["stride"], rank)


def _among_zeros(r: TorchRecorder, source: str, before: int, after: int) -> str:
    """An image with channels of zeros around its own: a convolution of one pixel that copies them."""
    channels, *axes = r.shapes[source]
    require(bool(axes), "zeros around the numbers of a vector")
    weight = torch.eye(before + channels + after, channels).roll(before, 0)
    source, stride = _before_skipping(r, source)
    own = {"kernel": 1, "stride": per_axis(stride), "channels": len(weight), "bias": False}
    return r.call("conv", [source], {"weight": weight.reshape(*weight.shape, *[1] * len(axes))}, **own)


def _reshaped(r: TorchRecorder, a: Arguments) -> Value:
    """What only changes shape: a flattening, half of a channel shuffle, a vector as an image of one pixel."""
    value, new = a.first, a.shape
    if half(value, "columns") and new == r.shapes[value.source]:
        return r.plain("channel_shuffle", value.source, groups=value.detail)
    if half(value, "rows", "pixels", "bands") and new == r.shapes[value.source]:
        return value.source
    source = r.key(value)
    old, made = r.shapes[source], r.calls.get(source)
    if new == old or (len(old) == 1 and new == (*old, *[1] * (len(new) - 1))):
        return source  # a vector counts for every pixel where it is multiplied
    if new == (math.prod(old),):
        pooled = made and made.op == "adaptive_avg_pool" and new == old[:1]
        return _again(r, made, "global_avg_pool", {}, {}) if made and pooled else r.plain("flatten", source)
    if len(old) == 3 and new == (old[0], old[1] * old[2]):
        return Half("pixels", source)
    if len(new) == len(old) + 1 and new[0] * new[1] == old[0] and new[2:] == old[1:]:
        return Half("rows", source, new[0])
    if len(new) == 2 < len(old) + 1 and math.prod(new) == math.prod(old) and old[0] % new[0] == 0:
        return Half("bands", source, new[0])
    raise UnsupportedError(f"a change of shape from {list(old)} to {list(new)}")


def _expanded(r: TorchRecorder, a: Arguments) -> Value:
    """Copies of one pixel, which a product with an image does without."""
    source = r.key(a.self)
    channels, *axes = r.shapes[source]
    require(a.shape[:1] == (channels,) and math.prod(axes) == 1, "copies of a value")
    return Half("spread", source) if a.shape != r.shapes[source] else source


def _transposed(r: TorchRecorder, a: Arguments) -> Value:
    value, order = a.self, list(range(len(a.shape) + 1))
    same, to_last, to_first = list(order), [0, *order[2:], 1], [0, *order[-1:], *order[1:-1]]
    if a.dims is not None:
        order = [d % len(order) for d in a.dims]
    else:
        order[a.dim0], order[a.dim1] = order[a.dim1], order[a.dim0]
    if half(value, "rows") and order == [0, 2, 1, *same[3:]]:
        return Half("columns", value.source, value.detail)
    if half(value, "last") and order == to_first:
        return value.source
    require(order in (same, to_last), "another order of the dimensions")
    return value if order == same else Half("last", r.key(value))


def _pad(mode: str = "") -> Row:
    def row(r: TorchRecorder, a: Arguments) -> Value:
        source, widths = r.key(a.self), list(a.pad if a.pad is not None else a.padding)
        rank, kind = len(r.shapes[source]), mode or a.mode or "constant"
        number = (a.value or 0.0) if max(widths) > 0 else 0.0  # what is cut off has none
        require(len(widths) <= 2 * rank, "a border that is no border of pixels")
        pairs = [list(pair) for pair in zip(widths[::2], widths[1::2], strict=True)][::-1]
        channels, *whole = [[0, 0]] * (rank - len(pairs)) + pairs
        if any(channels):
            fits = (kind, number) == ("constant", 0) and min(channels) >= 0
            require(fits, "channels added that are not 0, or taken off")
            source = _among_zeros(r, source, *channels)
        return Half("pad", source, (kind, number, whole)) if any(map(any, whole)) else source

    return row


def _resize(mode: str) -> Row:
    def row(r: TorchRecorder, a: Arguments) -> Value:
        require(not a.align_corners, "a resize that aligns corners")
        return r.plain("resize", a.first, size=per_axis(a.shape[1:]), mode=mode)

    return row


def _plain(name: str, unless: Callable[[Arguments], bool] = lambda a: False, why: str = "", **attrs: str) -> Row:
    """An op of one input; `attrs` maps our attributes to torch's arguments."""

    def row(r: TorchRecorder, a: Arguments) -> Value:
        require(not unless(a), why)
        return r.plain(name, a.first, **{ours: getattr(a, theirs) for ours, theirs in attrs.items()})

    return row


def _clamped(r: TorchRecorder, a: Arguments) -> Value:
    low, high = (a.min_val, a.max_val) if "min_val" in a.given else (a.min, a.max)
    high = None if high is not None and high >= torch.finfo(torch.float32).max else high
    require(low == 0 and (high is None or high > 0), f"values between {low} and {high}")
    if high in (None, 6):
        return r.plain("relu" if high is None else "relu6", a.first)
    return r.plain("scale", r.plain("relu6", r.plain("scale", a.first, factor=6 / high)), factor=high / 6)


def _prelu(r: TorchRecorder, a: Arguments) -> Value:
    return r.call("prelu", [r.key(a.self)], {"slope": a.weight.expand(r.size(a.self)[0])})


def _dropout(r: TorchRecorder, a: Arguments) -> Value:
    return r.plain("dropout", a.first, p=a.p) if 0 < a.p < 1 else a.first


def _dropout_of_channels(r: TorchRecorder, a: Arguments) -> Value:
    """Where each is a single number it is a plain one; elsewhere training alone would see it."""
    return _dropout(r, a) if math.prod(r.size(a.first)[1:]) == 1 else a.first


def _softmax(r: TorchRecorder, a: Arguments) -> Value:
    _along_channels(a, len(r.size(a.first)))
    return r.plain("softmax", a.first)


ELEMENTWISE: dict[str, Row] = {
    **{name: _plain(name) for name in ("relu", "relu6", "silu", "sigmoid", "tanh")},
    "hardswish": _plain("hard_swish"), "hardsigmoid": _plain("hard_sigmoid"),
    "leaky_relu": _plain("leaky_relu", slope="negative_slope"),
    **dict.fromkeys(("hardtanh", "clamp"), _clamped),
    "gelu": _plain("gelu", lambda a: a.approximate != "none", "an approximation of gelu"),
    "elu": _plain("elu", lambda a: (a.scale, a.input_scale) != (1, 1), "an elu with scales", alpha="alpha"),
    "dropout": _dropout, "feature_dropout": _dropout_of_channels,
}  # fmt: skip
ARITHMETIC: dict[str, Row] = {"add": _sum(1), "sub": _sum(-1), "mul": _mul, "div": _div}
ATEN: dict[str, Row] = {
    **LAYERS, **ELEMENTWISE, **ARITHMETIC, "cat": _concat,
    **dict.fromkeys(("chunk", "split", "split_with_sizes", "tensor_split"), _split), "getitem": _item, "slice": _slice,
    **dict.fromkeys(("view", "reshape", "flatten", "squeeze", "unsqueeze", "_unsafe_view", "unflatten"), _reshaped),
    **dict.fromkeys(("expand", "expand_as"), _expanded),
    **dict.fromkeys(("transpose", "permute"), _transposed), **dict.fromkeys(("constant_pad_nd", "pad"), _pad()),
    "reflection_pad2d": _pad("reflect"), "replication_pad2d": _pad("replicate"),
    **dict.fromkeys(("upsample_nearest1d", "upsample_nearest2d"), _resize("nearest")),
    **dict.fromkeys(("upsample_linear1d", "upsample_bilinear2d"), _resize("bilinear")),
    "prelu": _prelu, "softmax": _softmax,
    **dict.fromkeys(("contiguous", "clone", "detach", "alias", "to", "lift_fresh_copy"), lambda r, a: a.first),
}  # fmt: skip
