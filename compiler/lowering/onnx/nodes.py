"""Ops as ONNX nodes: one row per primitive op, and the writer that rows put their nodes into.

A row takes a node and the names of the values it reads (one, but for `add` and ops that read apart) and gives back the
name of its own value. Values are named by node ids, weights `<node id>.<param>`, so a file reads like the graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from compiler.ir.graph import Graph, Node
from compiler.ops import Shape
from compiler.passes.draft import free_id


class Writer:
    """Collects the nodes and initializers of one ONNX graph."""

    def __init__(self, graph: Graph, weights: Mapping[str, Any], opset: int) -> None:
        self.graph = graph
        self.weights = weights
        self.opset = opset
        self.taken = {node.id for node in graph.nodes()}
        self.own = ""  # id of the node that is being written
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}

    def emit(self, op_type: str, inputs: list[str], output: str, **attrs: Any) -> str:
        """Append an ONNX node called like its one output, under its node's id or a free name; returns that name."""
        output = output if output == self.own else free_id(self.taken, output)
        self.nodes.append(helper.make_node(op_type, inputs, [output], name=output, **attrs))
        return output

    def weight(self, node: Node, param: str) -> str:
        """The name of a node's parameter or buffer, taken into the file as float32."""
        return self.constant(f"{node.id}.{param}", self.array(node, param))

    def weight_and_bias(self, node: Node, a: Any) -> list[str]:
        """The names of a node's weight and, where it has one, its bias."""
        return [self.weight(node, name) for name in ("weight", *(["bias"] if a.bias is not False else []))]

    def array(self, node: Node, param: str) -> NDArray[np.float32]:
        """A node's parameter or buffer."""
        return np.asarray(self.weights[f"{node.id}.{param}"], np.float32)

    def constant(self, name: str, value: NDArray[Any]) -> str:
        """Take an array into the file under this name, if it is free; returns its name."""
        name = free_id(self.taken, name)
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def scalar(self, node: Node, name: str, value: float) -> str:
        """A float32 constant of a node."""
        return self.constant(f"{node.id}.{name}", np.array(value, np.float32))

    def input_shape(self, node: Node) -> Shape:
        """Shape of the first value the node reads, without the batch."""
        return self.graph.node(self.graph.inputs(node.id)[0].src).shape

    def mean(self, node: Node, value: str, output: str, axes: tuple[int, ...], *, keep: bool) -> str:
        """A mean over axes: an attribute before opset 18, an input since."""
        if self.opset < 18:
            return self.emit("ReduceMean", [value], output, axes=list(axes), keepdims=int(keep))
        constant = self.constant(f"{node.id}.axes", np.array(axes, np.int64))
        return self.emit("ReduceMean", [value, constant], output, keepdims=int(keep))


Builder = Callable[[Writer, Node, Any, list[str]], str]


# -- windows --------------------------------------------------------------------------------------------------------


def _window(a: Any) -> dict[str, Any]:
    """What differs from ONNX's defaults; the kernel always."""
    sizes = (("kernel_shape", a.kernel, 2, 0), ("strides", a.stride, 2, 1), ("pads", a.pad, 4, 0))
    found = (*sizes, ("dilations", a.dilation, 2, 1))
    return {name: [value] * count for name, value, count, default in found if value != default}


def _conv(w: Writer, node: Node, a: Any, ins: list[str]) -> str:
    groups = w.input_shape(node)[0] // w.array(node, "weight").shape[1]
    attrs = _window(a) | ({"group": groups} if groups != 1 else {})
    return w.emit("Conv", [*ins, *w.weight_and_bias(node, a)], node.id, **attrs)


def _avg_pool(w: Writer, node: Node, a: Any, ins: list[str]) -> str:
    """AveragePool leaves the padding out of the count by default; it has dilations since opset 19."""
    if a.dilation == 1 or w.opset >= 19:
        return w.emit("AveragePool", ins, node.id, **_window(a))
    channels, height, width = w.input_shape(node)
    taps = w.constant(f"{node.id}.taps", np.ones((channels, 1, a.kernel, a.kernel), np.float32))
    total = w.emit("Conv", [ins[0], taps], f"{node.id}.total", group=channels, **_window(a))
    rows, columns = _tap_counts(a, height), _tap_counts(a, width)
    share = w.constant(f"{node.id}.share", (1.0 / np.outer(rows, columns)).astype(np.float32))
    return w.emit("Mul", [total, share], node.id)


def _tap_counts(a: Any, size: int) -> NDArray[Any]:
    """For every window along one side of this size: how many taps lie on the image, not on the padding."""
    count = (size + 2 * a.pad - a.dilation * (a.kernel - 1) - 1) // a.stride + 1
    taps = np.arange(count)[:, None] * a.stride - a.pad + np.arange(a.kernel) * a.dilation
    counts: NDArray[Any] = ((taps >= 0) & (taps < size)).sum(1)
    return counts


# -- sums, joins, shapes --------------------------------------------------------------------------------------------


def _same_value(w: Writer, node: Node, a: Any, ins: list[str]) -> str:
    return ins[0]


def _add(w: Writer, node: Node, a: Any, ins: list[str]) -> str:
    if len(ins) == 1:
        return ins[0]
    return w.emit("Add" if len(ins) == 2 else "Sum", ins, node.id)


def _concat(w: Writer, node: Node, a: Any, ins: list[str]) -> str:
    return ins[0] if len(ins) == 1 else w.emit("Concat", ins, node.id, axis=1)


def _flatten(w: Writer, node: Node, a: Any, ins: list[str]) -> str:
    return ins[0] if len(w.input_shape(node)) == 1 else w.emit("Flatten", ins, node.id, axis=1)


def _zero(w: Writer, node: Node, a: Any, ins: list[str]) -> str:
    """Zeros for as many images as come in: ConstantOfShape fills with float32 zero by default."""
    if w.input_shape(node) == node.shape:
        return w.emit("ConstantOfShape", [w.emit("Shape", ins, f"{node.id}.shape")], node.id)
    if w.opset >= 15:
        batch = w.emit("Shape", ins, f"{node.id}.batch", start=0, end=1)
    else:
        first = w.constant(f"{node.id}.first", np.array([0], np.int64))
        batch = w.emit("Gather", [w.emit("Shape", ins, f"{node.id}.sizes"), first], f"{node.id}.batch", axis=0)
    rest = w.constant(f"{node.id}.rest", np.array(node.shape, np.int64))
    return w.emit("ConstantOfShape", [w.emit("Concat", [batch, rest], f"{node.id}.shape", axis=0)], node.id)


def _linear(w: Writer, node: Node, a: Any, ins: list[str]) -> str:
    value = ins[0] if len(w.input_shape(node)) == 1 else w.emit("Flatten", ins, f"{node.id}.flat", axis=1)
    return w.emit("Gemm", [value, *w.weight_and_bias(node, a)], node.id, transB=1)


def _mean(w: Writer, node: Node, a: Any, ins: list[str]) -> str:
    """A mean over everything gives `(N, 1)`, so there the dimensions are kept, then flattened."""
    if a.keep or len(set(a.dims)) < len(w.input_shape(node)):
        return w.mean(node, ins[0], node.id, a.dims, keep=a.keep)
    kept = w.mean(node, ins[0], f"{node.id}.kept", a.dims, keep=True)
    return w.emit("Flatten", [kept], node.id, axis=1)


# -- norms ----------------------------------------------------------------------------------------------------------


def _batch_norm(w: Writer, node: Node, a: Any, ins: list[str]) -> str:
    tensors = [w.weight(node, name) for name in ("weight", "bias", "running_mean", "running_var")]
    return w.emit("BatchNormalization", [ins[0], *tensors], node.id, epsilon=a.eps)


def _layer_norm(w: Writer, node: Node, a: Any, ins: list[str]) -> str:
    """One operation since opset 17, its formula before."""
    wide = (-1, *[1] * (len(node.shape) - 1))
    weight, bias = (w.constant(f"{node.id}.{name}", w.array(node, name).reshape(wide)) for name in ("weight", "bias"))
    if w.opset >= 17:
        return w.emit("LayerNormalization", [ins[0], weight, bias], node.id, axis=1, epsilon=a.eps)
    axes = tuple(range(1, len(node.shape) + 1))
    centred = w.emit("Sub", [ins[0], w.mean(node, ins[0], f"{node.id}.mean", axes, keep=True)], f"{node.id}.centred")
    squared = w.emit("Mul", [centred, centred], f"{node.id}.squared")
    variance = w.mean(node, squared, f"{node.id}.variance", axes, keep=True)
    shifted = w.emit("Add", [variance, w.scalar(node, "eps", a.eps)], f"{node.id}.shifted")
    normed = w.emit("Div", [centred, w.emit("Sqrt", [shifted], f"{node.id}.deviation")], f"{node.id}.normed")
    return w.emit("Add", [w.emit("Mul", [normed, weight], f"{node.id}.scaled"), bias], node.id)


# -- activations ----------------------------------------------------------------------------------------------------


def _plain(op_type: str) -> Builder:
    return lambda w, node, a, ins: w.emit(op_type, ins, node.id)


def _relu6(w: Writer, node: Node, a: Any, ins: list[str]) -> str:
    return w.emit("Clip", [ins[0], w.scalar(node, "low", 0.0), w.scalar(node, "high", 6.0)], node.id)


def _hard_swish(w: Writer, node: Node, a: Any, ins: list[str]) -> str:
    if w.opset >= 14:
        return w.emit("HardSwish", ins, node.id)
    gate = w.emit("HardSigmoid", ins, f"{node.id}.gate", alpha=1 / 6, beta=0.5)
    return w.emit("Mul", [ins[0], gate], node.id)


def _gelu(w: Writer, node: Node, a: Any, ins: list[str]) -> str:
    """One operation since opset 20; before, x / 2 (1 + erf(x / sqrt 2))."""
    if w.opset >= 20:
        return w.emit("Gelu", ins, node.id)
    inner = w.emit("Div", [ins[0], w.scalar(node, "root", math.sqrt(2.0))], f"{node.id}.inner")
    erf = w.emit("Erf", [inner], f"{node.id}.erf")
    gate = w.emit("Add", [erf, w.scalar(node, "one", 1.0)], f"{node.id}.gate")
    gated = w.emit("Mul", [ins[0], gate], f"{node.id}.gated")
    return w.emit("Mul", [gated, w.scalar(node, "half", 0.5)], node.id)


def _squeeze_excite(w: Writer, node: Node, a: Any, ins: list[str]) -> str:
    means = w.emit("GlobalAveragePool", ins, f"{node.id}.means")
    reduced = w.emit(
        "Conv", [means, w.weight(node, "reduce_weight"), w.weight(node, "reduce_bias")], f"{node.id}.reduced"
    )
    inner = w.emit("Relu", [reduced], f"{node.id}.inner")
    expanded = w.emit(
        "Conv", [inner, w.weight(node, "expand_weight"), w.weight(node, "expand_bias")], f"{node.id}.expanded"
    )
    return w.emit("Mul", [ins[0], w.emit("Sigmoid", [expanded], f"{node.id}.gate")], node.id)


ONNX: dict[str, Builder] = {
    "conv": _conv,
    "depthwise_conv": _conv,
    "max_pool": lambda w, node, a, ins: w.emit("MaxPool", ins, node.id, **_window(a)),
    "avg_pool": _avg_pool,
    "identity": _same_value,
    "dropout": _same_value,
    "drop_path": _same_value,
    "zero": _zero,
    "scale": lambda w, node, a, ins: w.emit("Mul", [ins[0], w.scalar(node, "factor", a.factor)], node.id),
    "linear": _linear,
    "global_avg_pool": lambda w, node, a, ins: w.mean(node, ins[0], node.id, (2, 3), keep=False),
    "flatten": _flatten,
    "add": _add,
    "concat": _concat,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "relu": _plain("Relu"),
    "relu6": _relu6,
    "hard_swish": _hard_swish,
    "silu": lambda w, node, a, ins: w.emit("Mul", [ins[0], w.emit("Sigmoid", ins, f"{node.id}.gate")], node.id),
    "gelu": _gelu,
    "sigmoid": _plain("Sigmoid"),
    "squeeze_excite": _squeeze_excite,
    "mean": _mean,
}
