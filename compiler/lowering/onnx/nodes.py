"""Ops as ONNX nodes: one row per primitive op.

A row takes a node and the names of the values it reads (one, but for `add` and ops that read apart) and gives back the
name of its own value.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from compiler.ir.graph import Node
from compiler.lowering.onnx import windows
from compiler.lowering.onnx.writer import Builder, Writer

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
    "zero": _zero,
    "scale": lambda w, node, a, ins: w.emit("Mul", [ins[0], w.scalar(node, "factor", a.factor)], node.id),
    "linear": _linear,
    "global_avg_pool": lambda w, node, a, ins: w.mean(node, ins[0], node.id, w.axes(node), keep=False),
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
