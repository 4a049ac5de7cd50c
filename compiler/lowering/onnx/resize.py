"""Put the resize of images before an ONNX model that takes raw images: it then takes images of any size.

Two passes as the reference reader makes them, width first: each is a product with a matrix of weights, which the model
makes from the size of the image, of an antialiased bicubic filter; bytes are rounded after each. ONNX's own `Resize`
cannot begin between two pixels, as a crop in the middle does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from compiler.errors import GraphspecError

PREFIX = "resize."  # of the names of all nodes that are added
SHARP = -0.5  # the parameter of the bicubic filter, as in Pillow
DIGITS = np.float64  # of positions: in float32 those of large images are some thousandths of a pixel off


@dataclass(frozen=True)
class Resize:
    """How images become as large as the model's input; `runtime.data.pixels.fit` says what the rules mean."""

    rule: str  # `crop`, `squash` or `letterbox`
    margin: float  # of `crop`
    background: Sequence[float]  # of `letterbox`, a number for each channel
    white: float = 255.0  # the largest value


@dataclass(frozen=True)
class _Value:
    """A value in the graph that is being written, with Python's arithmetic."""

    name: str
    nodes: list[onnx.NodeProto]

    def to(self, op: str, *others: object, **attributes: Any) -> _Value:
        """What an ONNX op makes of this value and others, which may be numbers or arrays."""
        inputs = [self, *(self.constant(other) for other in others)]
        made = _Value(f"{PREFIX}{len(self.nodes)}", self.nodes)
        names = [each.name for each in inputs]
        self.nodes.append(helper.make_node(op, names, [made.name], name=made.name, **attributes))
        return made

    def constant(self, given: object) -> _Value:
        """A value that does not depend on the image."""
        if isinstance(given, _Value):
            return given
        array = np.asarray(given, DIGITS if isinstance(given, float) else None)
        made = _Value(f"{PREFIX}{len(self.nodes)}", self.nodes)
        value = numpy_helper.from_array(array, made.name)
        self.nodes.append(helper.make_node("Constant", [], [made.name], name=made.name, value=value))
        return made

    def cast(self, kind: int) -> _Value:
        """The same in another type."""
        return self.to("Cast", to=kind)

    def __add__(self, other: object) -> _Value:
        return self.to("Add", other)

    def __sub__(self, other: object) -> _Value:
        return self.to("Sub", other)

    def __mul__(self, other: object) -> _Value:
        return self.to("Mul", other)

    def __truediv__(self, other: object) -> _Value:
        return self.to("Div", other)


@dataclass(frozen=True)
class _Part:
    """Along one axis: where the part that is shown begins, its pixels for one of the result, and which each is."""

    begin: _Value | float
    scale: _Value
    places: _Value
    shown: _Value | None = None  # bool (S,): otherwise there is background; None: all

    def weights(self, length: _Value) -> _Value:
        """(S, length) float32: how much each pixel counts for one of the result."""
        wide = self.scale.to("Max", 1.0)
        centres = ((self.places + 0.5) * self.scale + self.begin).to("Unsqueeze", np.array([1]))
        pixels = length.constant(0.0).to("Range", length, 1.0)
        far = (pixels + 0.5 - centres).to("Abs") / wide
        inner = ((far * (SHARP + 2) - (SHARP + 3)) * far * far) + 1.0
        outer = (((far - 5.0) * far + 8.0) * far - 4.0) * SHARP
        found = far.to("Less", 1.0).to("Where", inner, far.to("Less", 2.0).to("Where", outer, 0.0))
        return (found / found.to("ReduceSum", np.array([1]))).cast(TensorProto.FLOAT)


def _parts(resize: Resize, lengths: list[_Value], sizes: list[int]) -> list[_Part]:
    ratios = [length / float(size) for length, size in zip(lengths, sizes, strict=True)]
    numbers = [length.constant(np.arange(size, dtype=DIGITS)) for length, size in zip(lengths, sizes, strict=True)]
    if resize.rule == "squash":
        return [_Part(0.0, ratio, number) for ratio, number in zip(ratios, numbers, strict=True)]
    made = _crop if resize.rule == "crop" else _letterbox
    if resize.rule == "letterbox":  # the other way round, so that halves are rounded to the same side
        ratios = [length.constant(float(size)) / length for length, size in zip(lengths, sizes, strict=True)]
    axes = zip(lengths, numbers, sizes, strict=True)
    return [made(ratios, resize.margin, length, number, float(size)) for length, number, size in axes]


def _crop(ratios: list[_Value], margin: float, length: _Value, number: _Value, size: float) -> _Part:
    box = (ratios[0].to("Min", ratios[1]) / margin) * size
    left = (length - box) / 2.0
    edges = (left.to("Max", 0.0), (left + box).to("Min", length))
    begin, end = (edge.cast(TensorProto.FLOAT).cast(TensorProto.DOUBLE) for edge in edges)  # as Pillow takes them
    return _Part(begin, (end - begin) / size, number)


def _letterbox(ratios: list[_Value], _: float, length: _Value, number: _Value, size: float) -> _Part:
    fitted = (length * ratios[0].to("Min", ratios[1])).to("Round").to("Max", 1.0)
    place = number - ((fitted * -1.0 + size) / 2.0).to("Floor")
    inside = place.to("Clip", 0.0, fitted - 1.0)
    return _Part(0.0, length / fitted, inside, place.to("Equal", inside))


def any_size(proto: onnx.ModelProto, resize: Resize, layout: str) -> onnx.ModelProto:
    """A model of raw images in `layout`, `nchw` or `nhwc`, with the resize before it; what are no bytes reach it as
    float32.

    The images of a batch have one size. GraphspecError if the model reads signals.
    """
    whole = onnx.ModelProto()
    whole.CopyFrom(proto)
    image = whole.graph.input[0]
    name, dims = image.name, image.type.tensor_type.shape.dim
    bytes_only = image.type.tensor_type.elem_type == TensorProto.UINT8
    if len(dims) != 4:
        raise GraphspecError("export.any_size: the network reads signals, which have no size to change")
    sizes, given = [dim.dim_value for dim in dims[1:]], _Value(name, [])
    if layout == "nchw":
        fitted = _fitted(given, resize, sizes[1:], bytes_only)
    else:
        planes = given.to("Transpose", perm=[0, 3, 1, 2])
        fitted = _fitted(planes, resize, sizes[:2], bytes_only).to("Transpose", perm=[0, 2, 3, 1])
    read = fitted.to("Reshape", np.array([0, *sizes]))  # says the sizes to those who infer them
    for node in whole.graph.node:
        node.input[:] = [read.name if one == name else one for one in node.input]
    inner = list(whole.graph.node)
    del whole.graph.node[:]
    whole.graph.node.extend([*given.nodes, *inner])
    rows = 2 if layout == "nchw" else 1
    dims[rows].dim_param, dims[rows + 1].dim_param = "height", "width"
    return whole


def _fitted(planes: _Value, resize: Resize, sizes: list[int], bytes_only: bool) -> _Value:
    """Images (N, C, h, w) -> (N, C, *sizes), uint8 or float32."""
    shape = planes.to("Shape").cast(TensorProto.DOUBLE)
    lengths = [shape.to("Gather", np.array(axis)) for axis in (2, 3)]
    down, across = _parts(resize, lengths, sizes)
    turned = across.weights(lengths[1]).to("Transpose", perm=[1, 0])
    lines = planes.cast(TensorProto.FLOAT).to("MatMul", turned)
    value = down.weights(lengths[0]).to("MatMul", _bytes(lines) if bytes_only else lines)
    value = _bytes(value) if bytes_only else value.to("Clip", np.float32(0), np.float32(resize.white))
    if down.shown and across.shown:
        shown = down.shown.to("Unsqueeze", np.array([1])).to("And", across.shown)
        value = shown.to("Where", value, np.array(resize.background, np.float32).reshape(-1, 1, 1))
    return value.cast(TensorProto.UINT8) if bytes_only else value


def _bytes(value: _Value) -> _Value:
    """Rounded as whole-number arithmetic rounds, to 0..255, still as float32."""
    return (value + np.float32(0.5)).to("Floor").to("Clip", np.float32(0), np.float32(255))
