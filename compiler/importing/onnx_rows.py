"""Nodes of ONNX files as the calls of torch that compute the same: one row per operator."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from compiler.importing.aten import recorded
from compiler.importing.calls import UnsupportedError
from compiler.importing.values import PADS, Arguments, Half, TorchRecorder, half, require
from compiler.ops import Shape


@dataclass
class OnnxNode:
    """A node with its attributes and the values that it reads."""

    op: str
    attrs: dict[str, Any]
    inputs: list[Any]
    recorder: TorchRecorder

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute, or its default."""
        return self.attrs.get(name, default)

    def at(self, index: int) -> Any:
        """An input; None if it is left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    def numbers(self, index: int, name: str) -> list[int] | None:
        """Numbers that are an input, or an attribute in files of older operator sets."""
        value = self.at(index)
        return self.attr(name) if value is None else [int(n) for n in torch.as_tensor(value).flatten()]

    @property
    def size(self) -> Shape:
        """The shape of the first input, without the batch."""
        value = self.inputs[0]
        return self.recorder.shapes[value if isinstance(value, str) else value.source]

    def row(self, name: str, shape: Shape = (), sizes: tuple[Shape, ...] = (), /, **given: Any) -> Any:
        """The value of a row of torch's table."""
        return recorded(self.recorder, name, Arguments(given, shape, sizes))


def _pairs(n: OnnxNode, kernel: list[int]) -> list[tuple[int, int]]:
    """Padding before and after each axis."""
    auto, rank = n.attr("auto_pad", b"NOTSET").decode(), len(kernel)
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        steps, gaps = n.attr("strides", [1] * rank), n.attr("dilations", [1] * rank)
        reaches = [gap * (k - 1) + 1 for k, gap in zip(kernel, gaps, strict=True)]
        sizes = zip(n.size[1:], steps, reaches, strict=True)
        total = [max(0, (-(-size // step) - 1) * step + reach - size) for size, step, reach in sizes]
        halves = [(t // 2, t - t // 2) for t in total]
        return halves if auto == "SAME_UPPER" else [(b, a) for a, b in halves]
    pads = n.attr("pads", [0] * 2 * rank) if auto == "NOTSET" else [0] * 2 * rank
    return list(zip(pads[:rank], pads[rank:], strict=True))


def _conv(n: OnnxNode, row: str = "conv2d") -> Any:
    weight = n.at(1)
    require(isinstance(weight, Tensor), "a convolution whose weight is computed from the image")
    rank = weight.dim() - 2
    window = {"stride": n.attr("strides", [1] * rank), "padding": _pairs(n, list(weight.shape[2:]))}
    more = {"dilation": n.attr("dilations", [1] * rank), "groups": n.attr("group", 1)}
    margin = n.attr("output_padding", [0] * rank)
    return n.row(row, input=n.at(0), weight=weight, bias=n.at(2), output_padding=margin, **window, **more)


def _pool(row: str) -> Callable[[OnnxNode], Any]:
    def pool(n: OnnxNode) -> Any:
        kernel = n.attr("kernel_shape")
        rank = len(kernel)
        window = {"kernel_size": kernel, "stride": n.attr("strides", [1] * rank), "padding": _pairs(n, kernel)}
        dilation = {"dilation": n.attr("dilations")} if n.attr("dilations") else {}
        how = {"ceil_mode": bool(n.attr("ceil_mode", 0)), "count_include_pad": bool(n.attr("count_include_pad", 0))}
        return n.row(row, n.size, self=n.at(0), **window, **dilation, **how)

    return pool


def _batch_norm(n: OnnxNode) -> Any:
    names = ("input", "weight", "bias", "running_mean", "running_var")
    share = 1 - n.attr("momentum", 0.9)
    return n.row("batch_norm", **dict(zip(names, n.inputs, strict=False)), eps=n.attr("epsilon", 1e-5), momentum=share)


def _instance_norm(n: OnnxNode) -> Any:
    """Of groups of channels, where each was made one channel."""
    value, names = n.at(0), ("weight", "bias")
    affine = {"eps": n.attr("epsilon", 1e-5), **dict(zip(names, n.inputs[1:], strict=True))}
    if not half(value, "rows", "pixels", "bands"):
        return n.row("instance_norm", input=value, use_input_stats=True, **affine)
    return Half("bands", _group_norm(n, value.source, len(affine["weight"]), affine))


def _group_norm(n: OnnxNode, source: Any, groups: int, affine: dict[str, Any]) -> Any:
    """Scales and shifts may be those of groups."""
    count = n.size[0] // groups if len(affine["weight"]) == groups else 1
    spread = {name: affine[name].repeat_interleave(count) for name in ("weight", "bias")}
    return n.row("group_norm", input=source, num_groups=groups, **affine | spread)


def _layer_norm(n: OnnxNode) -> Any:
    size = (*n.size[1:], n.size[0]) if half(n.at(0), "last") else n.size
    kept = size[n.attr("axis", -1) % (len(size) + 1) - 1 :]
    names = zip(("input", "weight", "bias"), n.inputs, strict=False)
    return n.row("layer_norm", normalized_shape=kept, eps=n.attr("epsilon", 1e-5), **dict(names))


def _gemm(n: OnnxNode) -> Any:
    weight, bias = n.at(1), n.at(2)
    require(isinstance(weight, Tensor) and not n.attr("transA", 0), "a product of two values")
    weight = (weight if n.op == "Gemm" and n.attr("transB", 0) else weight.T) * n.attr("alpha", 1.0)
    bias = bias if bias is None else (bias * n.attr("beta", 1.0)).expand(len(weight))
    return n.row("linear", input=n.at(0), weight=weight, bias=bias)


def _reshape(n: OnnxNode) -> Any:
    sizes = [1, *n.size]
    flat = [1, -1] if n.attr("axis", 1) == 1 else [-1]
    target = flat if n.op == "Flatten" else n.numbers(1, "shape") or []
    target = [sizes[i] if size == 0 else size for i, size in enumerate(target)]
    known = math.prod(size for size in target if size != -1)
    target = [math.prod(sizes) // known if size == -1 else size for size in target]
    require(target[:1] == [1], f"a change of shape to {target}")
    return n.row("view", tuple(target[1:]), self=n.at(0))


def _squeeze(n: OnnxNode) -> Any:
    axes, sizes = n.numbers(1, "axes"), [1, *n.size]
    kept = [size for i, size in enumerate(sizes) if i == 0 or (i not in axes if axes else size != 1)]
    return n.row("view", tuple(kept[1:]), self=n.at(0))


def _transpose(n: OnnxNode) -> Any:
    order = n.attr("perm")
    return n.row("permute", tuple(0 for _ in order[1:]), self=n.at(0), dims=order)


def _mean(n: OnnxNode) -> Any:
    dims = n.numbers(1, "axes") or list(range(2, len(n.size) + 1))
    return n.row("mean", self=n.at(0), dim=dims, keepdim=bool(n.attr("keepdims", 1)))


def _global_pool(row: str) -> Callable[[OnnxNode], Any]:
    def pool(n: OnnxNode) -> Any:
        found = n.row(row, (n.size[0], *[1] * (len(n.size) - 1)), self=n.at(0))
        return found[0] if isinstance(found, list) else found

    return pool


def _split(n: OnnxNode) -> Any:
    channels, axis = n.size[0], n.attr("axis", 0)
    parts = n.numbers(1, "split") or [channels // n.attr("num_outputs", 2)] * n.attr("num_outputs", 2)
    sizes = tuple((size, *n.size[1:]) for size in parts)
    found = n.row("split", (), sizes, self=n.at(0), dim=axis)
    return [n.row("getitem", values=found, index=i) for i in range(len(parts))]


def _slice(n: OnnxNode) -> Any:
    starts, ends = n.numbers(1, "starts") or [0], n.numbers(2, "ends") or [0]
    axes = n.numbers(3, "axes") or list(range(len(starts)))
    steps = n.numbers(4, "steps") or [1] * len(axes)
    value, size = n.at(0), n.size
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        dim = axis % (len(size) + 1)
        require(dim > 0, "some images of a batch")
        require(step > 0, "an order from the end")  # 0, too, which no range has
        kept = range(*slice(start, end, step).indices(size[dim - 1]))
        size = (*size[: dim - 1], len(kept), *size[dim:])
        value = n.row("slice", size, self=value, dim=dim, start=kept.start, step=step)
    return value


def _clip(n: OnnxNode) -> Any:
    low, high = (n.at(i) if n.at(i) is not None else n.attr(name) for i, name in ((1, "min"), (2, "max")))
    bounds = {name: None if bound is None else float(bound) for name, bound in (("min", low), ("max", high))}
    return n.row("clamp", self=n.at(0), **bounds)


def _hard_sigmoid(n: OnnxNode) -> Any:
    """max(0, min(1, alpha x + beta)), ours has an alpha of 1/6."""
    require(n.attr("beta", 0.5) == 0.5, "another beta than 1/2")
    factor = round(6 * n.attr("alpha", 0.2), 6)
    source = n.at(0) if factor == 1 else n.row("mul", self=n.at(0), other=factor)
    return n.row("hardsigmoid", self=source)


def _resize(n: OnnxNode) -> Any:
    scales, sizes = n.at(1 if n.op == "Upsample" else 2), n.at(3)
    wanted = sizes if sizes is not None else scales
    if wanted is None:
        wanted = torch.tensor(n.attr("scales"))
    rank = len(n.size) - 1
    given = [float(x) for x in wanted.flatten()[-rank:]]
    size = given if sizes is not None else [math.floor(x * s) for x, s in zip(given, n.size[1:], strict=True)]
    mode, how = n.attr("mode", b"nearest").decode(), n.attr("coordinate_transformation_mode", b"half_pixel").decode()
    whole = all(int(new) % old == 0 for new, old in zip(size, n.size[1:], strict=True))
    plain = how == "asymmetric" or n.op == "Upsample" or (whole and how in ("half_pixel", "pytorch_half_pixel"))
    if mode == "nearest" and plain and n.attr("nearest_mode", b"floor").decode() in ("floor", "round_prefer_floor"):
        return n.row("upsample_nearest2d", (0, *map(int, size)), self=n.at(0))
    if mode == "linear" and how in ("half_pixel", "pytorch_half_pixel") and n.op == "Resize":
        return n.row("upsample_bilinear2d", (0, *map(int, size)), self=n.at(0))
    raise UnsupportedError(f"a resize of mode {mode} with coordinates {how}")


def _pad(n: OnnxNode) -> Any:
    widths, rank = n.numbers(1, "pads") or [], len(n.size) + 1
    pairs = [(widths[i], widths[i + rank]) for i in range(rank)]
    mode = n.attr("mode", b"constant").decode().replace("edge", "replicate")
    require(not any(pairs[0]) and mode in PADS, "a border that is no border of pixels")
    flat = [width for pair in reversed(pairs[1:]) for width in pair]
    fill = float(n.at(2)) if n.at(2) is not None else n.attr("value", 0.0)
    return n.row("pad", self=n.at(0), pad=flat, mode=mode, value=fill)


def _lrn(n: OnnxNode) -> Any:
    settings = {"size": n.attr("size"), "alpha": n.attr("alpha", 1e-4), "beta": n.attr("beta", 0.75)}
    return n.recorder.plain("lrn", n.at(0), **settings, k=n.attr("bias", 1.0))


def _sum(n: OnnxNode) -> Any:
    total = n.at(0)
    for other in n.inputs[1:]:
        total = n.row("add", self=total, other=other)
    return total


def _binary(row: str) -> Callable[[OnnxNode], Any]:
    return lambda n: n.row(row, self=n.at(0), other=n.at(1))


def _unary(row: str, **attrs: tuple[str, Any]) -> Callable[[OnnxNode], Any]:
    """A row of one input; `attrs` are torch's arguments by ONNX's attribute and its default."""
    return lambda n: n.row(row, n.size, self=n.at(0), **{k: n.attr(*how) for k, how in attrs.items()})


def _dropout(n: OnnxNode) -> Any:
    ratio = n.attr("ratio", 0.5) if n.at(1) is None else float(n.at(1))
    return n.row("dropout", input=n.at(0), p=ratio)


def _expand(n: OnnxNode) -> Any:
    return n.row("expand", tuple((n.numbers(1, "shape") or [])[1:]), self=n.at(0))


def _shape(n: OnnxNode) -> Any:
    return torch.tensor([1, *n.size])[n.attr("start", 0) : n.attr("end")]


ONNX: dict[str, Callable[[OnnxNode], Any]] = {
    "Conv": _conv, "ConvTranspose": lambda n: _conv(n, "conv_transpose2d"),
    "BatchNormalization": _batch_norm, "InstanceNormalization": _instance_norm, "LayerNormalization": _layer_norm,
    "GroupNormalization": lambda n: _group_norm(
        n, n.at(0), n.attr("num_groups"), {"weight": n.at(1), "bias": n.at(2), "eps": n.attr("epsilon", 1e-5)}
    ),
    "Gemm": _gemm, "MatMul": _gemm, "LRN": _lrn,
    "MaxPool": _pool("max_pool2d"), "AveragePool": _pool("avg_pool2d"), "ReduceMean": _mean,
    "GlobalAveragePool": _global_pool("adaptive_avg_pool2d"), "GlobalMaxPool": _global_pool("adaptive_max_pool2d"),
    "Reshape": _reshape, "Flatten": _reshape, "Squeeze": _squeeze, "Transpose": _transpose, "Shape": _shape,
    "Expand": _expand,
    "Concat": lambda n: n.row("cat", n.size, tensors=n.inputs, dim=n.attr("axis")),
    "Split": _split, "Slice": _slice, "Pad": _pad, "Resize": _resize, "Upsample": _resize,
    "Add": _sum, "Sum": _sum, "Sub": _binary("sub"), "Mul": _binary("mul"), "Div": _binary("div"),
    "Relu": _unary("relu"), "Sigmoid": _unary("sigmoid"), "Tanh": _unary("tanh"), "HardSwish": _unary("hardswish"),
    "Clip": _clip, "HardSigmoid": _hard_sigmoid, "LeakyRelu": _unary("leaky_relu", negative_slope=("alpha", 0.01)),
    "Elu": _unary("elu", alpha=("alpha", 1.0), scale=("", 1), input_scale=("", 1)),
    "PRelu": lambda n: n.row("prelu", self=n.at(0), weight=n.at(1).flatten()),
    "Gelu": lambda n: n.row("gelu", self=n.at(0), approximate=n.attr("approximate", b"none").decode()),
    "Softmax": _unary("softmax", dim=("axis", 1)), "Identity": _unary("alias"), "Dropout": _dropout,
    "Cast": _unary("alias"),
}  # fmt: skip
