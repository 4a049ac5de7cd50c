"""Convolutions and pools as ONNX nodes, over images `(N, C, H, W)` and signals `(N, C, T)`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.ir.graph import Node
from compiler.lowering.onnx.writer import Writer
from compiler.ops.windows import Axis


def _window(axes: Sequence[Axis]) -> dict[str, Any]:
    """What differs from ONNX's defaults; the kernel always."""
    found = {
        "kernel_shape": ([axis.kernel for axis in axes], 0),
        "strides": ([axis.stride for axis in axes], 1),
        "pads": ([*(axis.before for axis in axes), *(axis.after for axis in axes)], 0),
        "dilations": ([axis.dilation for axis in axes], 1),
    }
    return {name: values for name, (values, default) in found.items() if set(values) != {default}}


def conv(w: Writer, node: Node, a: Any, ins: list[str]) -> str:
    """A convolution, depthwise ones too."""
    groups = w.input_shape(node)[0] // w.array(node, "weight").shape[1]
    attrs = _window(a.axes(len(node.shape) - 1)) | ({"group": groups} if groups != 1 else {})
    return w.emit("Conv", [*ins, *w.weight_and_bias(node, a)], node.id, **attrs)


def conv_transpose(w: Writer, node: Node, a: Any, ins: list[str]) -> str:
    """A transposed convolution; ONNX has the weight as (inputs, outputs / groups, ...)."""
    axes = a.axes(len(node.shape) - 1)
    weight = w.array(node, "weight")
    grouped = weight.reshape(a.groups, -1, *weight.shape[1:]).swapaxes(1, 2)
    names = [w.constant(f"{node.id}.weight", grouped.reshape(-1, *grouped.shape[2:]))]
    names += [w.weight(node, "bias")] if a.bias is not False else []
    attrs = _window(axes) | {"group": a.groups, "output_padding": list(a.margins(len(axes)))}
    return w.emit("ConvTranspose", [*ins, *names], node.id, **attrs)


def max_pool(w: Writer, node: Node, a: Any, ins: list[str]) -> str:
    """The border is part of the node where it is narrower than the window, as onnxruntime asks, else a node before."""
    axes, value = a.reaching(w.input_shape(node)), ins[0]
    attrs = _window(axes)
    if not _is_narrow(axes):
        attrs.pop("pads")
        lowest = w.scalar(node, "lowest", -np.inf)
        widths = np.array([0, 0, *(x.before for x in axes), 0, 0, *(x.after for x in axes)], np.int64)
        value = w.emit("Pad", [value, w.constant(f"{node.id}.pads", widths), lowest], f"{node.id}.padded")
    return w.emit("MaxPool", [value], node.id, **attrs)


def _is_narrow(axes: Sequence[Axis]) -> bool:
    return all(max(axis.before, axis.after) < axis.kernel for axis in axes)


def avg_pool(w: Writer, node: Node, a: Any, ins: list[str]) -> str:
    """One node where the means are what AveragePool gives: it has dilations since opset 19, and what lies behind the
    last window's padding counts there if padding does. Else sums by a convolution with ones, over the counts of taps.
    """
    shape = w.input_shape(node)
    axes, said = a.reaching(shape), a.axes(len(shape) - 1)
    plain = all(axis.dilation == 1 for axis in axes) or w.opset >= 19
    if plain and _is_narrow(axes) and (axes == said or not a.counts_padding):
        return w.emit(
            "AveragePool", ins, node.id, **_window(axes), **({"count_include_pad": 1} if a.counts_padding else {})
        )
    taps = w.constant(f"{node.id}.taps", np.ones((shape[0], 1, *a.kernels(shape)), np.float32))
    total = w.emit("Conv", [ins[0], taps], f"{node.id}.total", group=shape[0], **_window(axes))
    counted = [(axis.before, axis.after) if a.counts_padding else (0, 0) for axis in said]
    each = zip(axes, shape[1:], counted, strict=True)
    counts = [np.array(axis.taps_inside(n, before=low, after=high), np.float64) for axis, n, (low, high) in each]
    share: NDArray[Any] = 1.0 / reduce(np.multiply.outer, counts)
    return w.emit("Mul", [total, w.constant(f"{node.id}.share", share.astype(np.float32))], node.id)


def adaptive_avg_pool(w: Writer, node: Node, a: Any, ins: list[str]) -> str:
    """Equal windows where the sizes divide; else a product with a matrix of shares along each axis."""
    sizes, wanted, value = w.input_shape(node)[1:], node.shape[1:], ins[0]
    if all(size % n == 0 for size, n in zip(sizes, wanted, strict=True)):
        steps = [size // n for size, n in zip(sizes, wanted, strict=True)]
        return w.emit("AveragePool", [value], node.id, kernel_shape=steps, strides=steps)
    columns = w.constant(f"{node.id}.columns", _shares(sizes[-1], wanted[-1]).T)
    if len(sizes) == 1:
        return w.emit("MatMul", [value, columns], node.id)
    value = w.emit("MatMul", [value, columns], f"{node.id}.narrowed")
    return w.emit("MatMul", [w.constant(f"{node.id}.rows", _shares(sizes[0], wanted[0])), value], node.id)


def _shares(size: int, wanted: int) -> NDArray[Any]:
    """`(wanted, size)`: the share of each pixel in the mean of window i, from floor(i s / n) to ceil((i + 1) s / n)."""
    shares = np.zeros((wanted, size), np.float32)
    for i in range(wanted):
        first, end = i * size // wanted, -(-(i + 1) * size // wanted)
        shares[i, first:end] = 1.0 / (end - first)
    return shares
