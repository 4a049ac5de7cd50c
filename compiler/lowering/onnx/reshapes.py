"""Ops that move numbers about, as ONNX nodes."""

from __future__ import annotations

from typing import Any

import numpy as np

from compiler.ir.graph import Node
from compiler.lowering.onnx.writer import Writer
from compiler.ops.windows import sides


def flatten(w: Writer, node: Node, a: Any, ins: list[str]) -> str:
    """A vector as it is."""
    return ins[0] if len(w.input_shape(node)) == 1 else w.emit("Flatten", ins, node.id, axis=1)


def zero(w: Writer, node: Node, a: Any, ins: list[str]) -> str:
    """Zeros for as many images as come in: ConstantOfShape fills with float32 zero by default."""
    if w.input_shape(node) == node.shape:
        return w.emit("ConstantOfShape", [w.emit("Shape", ins, f"{node.id}.shape")], node.id)
    return w.emit("ConstantOfShape", [w.sizes(node, ins[0], node.shape)], node.id)


def channel_shuffle(w: Writer, node: Node, a: Any, ins: list[str]) -> str:
    """Rows of channels, transposed."""
    channels, *sizes = node.shape
    rows = w.shaped(ins[0], f"{node.id}.rows", (a.groups, channels // a.groups, *sizes))
    order = [0, 2, 1, *range(3, len(sizes) + 3)]
    return w.shaped(w.emit("Transpose", [rows], f"{node.id}.columns", perm=order), node.id, node.shape)


def slice_channels(w: Writer, node: Node, a: Any, ins: list[str]) -> str:
    """A slice along axis 1."""
    numbers = {"starts": a.start, "ends": a.stop, "axis": 1}
    names = [w.constant(f"{node.id}.{name}", np.array([value], np.int64)) for name, value in numbers.items()]
    return w.emit("Slice", [*ins, *names], node.id)


def pad(w: Writer, node: Node, a: Any, ins: list[str]) -> str:
    """Widths before all axes, then behind them."""
    before, after = zip(*sides(a.padding, len(node.shape) - 1), strict=True)
    widths = w.constant(f"{node.id}.pads", np.array([0, 0, *before, 0, 0, *after], np.int64))
    return w.emit("Pad", [*ins, widths], node.id, mode="constant" if a.mode == "zeros" else a.mode)


def resize(w: Writer, node: Node, a: Any, ins: list[str]) -> str:
    """By sizes, since factors would be rounded; the empty names are a region and factors, which are not given."""
    nearest = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    settings = nearest if a.mode == "nearest" else {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
    return w.emit("Resize", [*ins, "", "", w.sizes(node, ins[0], node.shape)], node.id, **settings)
