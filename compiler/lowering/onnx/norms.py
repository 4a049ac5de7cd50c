"""Normalisations as ONNX nodes."""

from __future__ import annotations

from typing import Any

import numpy as np

from compiler.ir.graph import Node
from compiler.lowering.onnx.writer import Writer


def batch_norm(w: Writer, node: Node, a: Any, ins: list[str]) -> str:
    """By the running statistics."""
    tensors = [w.weight(node, name) for name in ("weight", "bias", "running_mean", "running_var")]
    return w.emit("BatchNormalization", [ins[0], *tensors], node.id, epsilon=a.eps)


def layer_norm(w: Writer, node: Node, a: Any, ins: list[str]) -> str:
    """Of a vector one operation since opset 17; over all of an image a group norm with one group, which runtimes are
    faster at; else its formula.
    """
    if a.over == "all" and len(node.shape) > 1:
        return _group_norm(w, node, ins, 1, a.eps)
    weight, bias = (w.wide_weight(node, name) for name in ("weight", "bias"))
    if len(node.shape) == 1 and w.opset >= 17:
        return w.emit("LayerNormalization", [ins[0], weight, bias], node.id, axis=1, epsilon=a.eps)
    mean = w.reduce("ReduceMean", node, ins[0], f"{node.id}.mean", (1,), keep=True)
    centred = w.emit("Sub", [ins[0], mean], f"{node.id}.centred")
    squared = w.emit("Mul", [centred, centred], f"{node.id}.squared")
    variance = w.reduce("ReduceMean", node, squared, f"{node.id}.variance", (1,), keep=True)
    shifted = w.emit("Add", [variance, w.scalar(node, "eps", a.eps)], f"{node.id}.shifted")
    normed = w.emit("Div", [centred, w.emit("Sqrt", [shifted], f"{node.id}.deviation")], f"{node.id}.normed")
    return _scaled(w, node, normed, weight, bias)


def group_norm(w: Writer, node: Node, a: Any, ins: list[str]) -> str:
    """Each group as one channel of an instance norm: runtimes know that one at every opset."""
    return _group_norm(w, node, ins, a.groups, a.eps)


def _group_norm(w: Writer, node: Node, ins: list[str], groups: int, eps: float) -> str:
    rows = w.shaped(ins[0], f"{node.id}.rows", (groups, -1))
    plain = (("ones", 1.0), ("zeros", 0.0))
    names = [w.constant(f"{node.id}.{name}", np.full(groups, value, np.float32)) for name, value in plain]
    normed = w.emit("InstanceNormalization", [rows, *names], f"{node.id}.normed", epsilon=eps)
    value = w.shaped(normed, f"{node.id}.back", node.shape)
    return _scaled(w, node, value, *(w.wide_weight(node, name) for name in ("weight", "bias")))


def instance_norm(w: Writer, node: Node, a: Any, ins: list[str]) -> str:
    """One operation."""
    weight, bias = (w.weight(node, name) for name in ("weight", "bias"))
    return w.emit("InstanceNormalization", [ins[0], weight, bias], node.id, epsilon=a.eps)


def lrn(w: Writer, node: Node, a: Any, ins: list[str]) -> str:
    """Of images; a signal is taken as one of a single row."""
    settings = {"size": a.size, "alpha": a.alpha, "beta": a.beta, "bias": a.k}
    if len(node.shape) == 3:
        return w.emit("LRN", ins, node.id, **settings)
    image = w.unsqueezed(ins[0], f"{node.id}.image", (2,))
    return w.shaped(w.emit("LRN", [image], f"{node.id}.normed", **settings), node.id, node.shape)


def _scaled(w: Writer, node: Node, value: str, weight: str, bias: str) -> str:
    return w.emit("Add", [w.emit("Mul", [value, weight], f"{node.id}.scaled"), bias], node.id)
