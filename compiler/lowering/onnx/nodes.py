"""Ops as ONNX nodes: one row per primitive op.

A row takes a node and the names of the values it reads (one, but for `add` and ops that read apart) and gives back the
name of its own value.
"""

from __future__ import annotations

import math
from math import prod
from typing import Any

from compiler.ir.graph import Graph, Node
from compiler.lowering.onnx import norms, reshapes, windows
from compiler.lowering.onnx.writer import Builder, Writer
from compiler.ops import Affine, traits_alone
from compiler.passes.split_projections import LARGE


def _same_value(w: Writer, node: Node, a: Any, ins: list[str]) -> str:
    return ins[0]


def _add(w: Writer, node: Node, a: Any, ins: list[str]) -> str:
    """One node, or a chain: onnxruntime adds a value where a convolution makes the other one, if the node has two
    inputs and nobody else reads it, and takes memory for each step of a large sum of many inputs.
    """
    if len(ins) == 1:
        return ins[0]
    late = [_can_add(w.graph, edge.src) for edge in w.graph.inputs(node.id)]
    order = [name for wanted in (False, True) for name, is_late in zip(ins, late, strict=True) if is_late is wanted]
    first = 2 if prod(node.shape) >= LARGE else max(2, len(ins) - sum(late))
    steps = [order[:first], *([name] for name in order[first:])]
    value: list[str] = []
    for number, step in enumerate(steps, start=1):
        names = [*step, *value]
        output = node.id if number == len(steps) else f"{node.id}.sum{number}"
        value = [w.emit("Add" if len(names) == 2 else "Sum", names, output)]
    return value[0]


def _can_add(graph: Graph, node_id: str) -> bool:
    """Whether the node is a convolution, or is run as one, whose value one node alone reads."""
    node = graph.node(node_id)
    affine = traits_alone(node.op, node.attrs).affine is not Affine.NO
    return affine and len(node.shape) > 1 and len(graph.users(node_id)) == 1


def _concat(w: Writer, node: Node, a: Any, ins: list[str]) -> str:
    return ins[0] if len(ins) == 1 else w.emit("Concat", ins, node.id, axis=1)


def _multiply(w: Writer, node: Node, a: Any, ins: list[str]) -> str:
    """One by one; of a vector among larger values the channels stand first, as ONNX broadcasts from the end."""
    value, axes = "", len(node.shape)
    for slot, (name, edge) in enumerate(zip(ins, w.graph.inputs(node.id), strict=True)):
        rank = len(w.graph.node(edge.src).shape)
        if rank < axes:
            name = w.unsqueezed(name, f"{node.id}.wide{slot}", tuple(range(rank + 1, axes + 1)))
        last = slot == len(ins) - 1
        value = w.emit("Mul", [value, name], node.id if last else f"{node.id}.product{slot}") if value else name
    return value


def _linear(w: Writer, node: Node, a: Any, ins: list[str]) -> str:
    value = ins[0] if len(w.input_shape(node)) == 1 else w.emit("Flatten", ins, f"{node.id}.flat", axis=1)
    return w.emit("Gemm", [value, *w.weight_and_bias(node, a)], node.id, transB=1)


def _mean(w: Writer, node: Node, a: Any, ins: list[str]) -> str:
    """A mean over everything gives `(N, 1)`, so there the dimensions are kept, then flattened."""
    if a.keep or len(set(a.dims)) < len(w.input_shape(node)):
        return w.reduce("ReduceMean", node, ins[0], node.id, a.dims, keep=a.keep)
    kept = w.reduce("ReduceMean", node, ins[0], f"{node.id}.kept", a.dims, keep=True)
    return w.emit("Flatten", [kept], node.id, axis=1)


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
    "conv": windows.conv,
    "depthwise_conv": windows.conv,
    "conv_transpose": windows.conv_transpose,
    "max_pool": windows.max_pool,
    "avg_pool": windows.avg_pool,
    "adaptive_avg_pool": windows.adaptive_avg_pool,
    "global_max_pool": lambda w, node, a, ins: w.reduce("ReduceMax", node, ins[0], node.id, w.axes(node), keep=False),
    "identity": _same_value,
    "dropout": _same_value,
    "drop_path": _same_value,
    "zero": reshapes.zero,
    "scale": lambda w, node, a, ins: w.emit("Mul", [ins[0], w.factors(node, a.factor)], node.id),
    "linear": _linear,
    "global_avg_pool": lambda w, node, a, ins: w.reduce("ReduceMean", node, ins[0], node.id, w.axes(node), keep=False),
    "flatten": reshapes.flatten,
    "channel_shuffle": reshapes.channel_shuffle,
    "slice": reshapes.slice_channels,
    "pad": reshapes.pad,
    "resize": reshapes.resize,
    "multiply": _multiply,
    "add": _add,
    "concat": _concat,
    "batch_norm": norms.batch_norm,
    "layer_norm": norms.layer_norm,
    "group_norm": norms.group_norm,
    "instance_norm": norms.instance_norm,
    "lrn": norms.lrn,
    "relu": _plain("Relu"),
    "relu6": _relu6,
    "hard_swish": _hard_swish,
    "silu": lambda w, node, a, ins: w.emit("Mul", [ins[0], w.emit("Sigmoid", ins, f"{node.id}.gate")], node.id),
    "gelu": _gelu,
    "sigmoid": _plain("Sigmoid"),
    "hard_sigmoid": lambda w, node, a, ins: w.emit("HardSigmoid", ins, node.id, alpha=1 / 6, beta=0.5),
    "tanh": _plain("Tanh"),
    "leaky_relu": lambda w, node, a, ins: w.emit("LeakyRelu", ins, node.id, alpha=a.slope),
    "elu": lambda w, node, a, ins: w.emit("Elu", ins, node.id, alpha=a.alpha),
    "prelu": lambda w, node, a, ins: w.emit("PRelu", [*ins, w.wide_weight(node, "slope")], node.id),
    "softmax": lambda w, node, a, ins: w.emit("Softmax", ins, node.id, axis=1),
    "squeeze_excite": _squeeze_excite,
    "mean": _mean,
}
