"""The writer of an ONNX graph, which the rows of ops put their nodes into.

Values are named by node ids, weights `<node id>.<param>`, so a file reads like the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from compiler.ir.graph import Graph, Node
from compiler.ops import Shape


class Writer:
    """Collects the nodes and initializers of one ONNX graph."""

    def __init__(self, graph: Graph, weights: Mapping[str, Any], opset: int) -> None:
        self.graph = graph
        self.weights = weights
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}

    def emit(self, op_type: str, inputs: list[str], output: str, **attrs: Any) -> str:
        """Append an ONNX node called like its one output; returns that name."""
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
        """Take an array into the file under this name."""
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def scalar(self, node: Node, name: str, value: float) -> str:
        """A float32 constant of a node."""
        return self.constant(f"{node.id}.{name}", np.array(value, np.float32))

    def input_shape(self, node: Node) -> Shape:
        """Shape of the first value the node reads, without the batch."""
        return self.graph.node(self.graph.inputs(node.id)[0].src).shape

    def axes(self, node: Node) -> tuple[int, ...]:
        """The axes of the pixels of the first value the node reads."""
        return tuple(range(2, len(self.input_shape(node)) + 1))

    def mean(self, node: Node, value: str, output: str, axes: tuple[int, ...], *, keep: bool) -> str:
        """A mean over axes."""
        return self.reduce("ReduceMean", node, value, output, axes, keep=keep)

    def reduce(self, op_type: str, node: Node, value: str, output: str, axes: tuple[int, ...], *, keep: bool) -> str:
        """A mean or maximum over axes: an attribute before opset 18, an input since."""
        if self.opset < 18:
            return self.emit(op_type, [value], output, axes=list(axes), keepdims=int(keep))
        constant = self.constant(f"{node.id}.axes", np.array(axes, np.int64))
        return self.emit(op_type, [value, constant], output, keepdims=int(keep))


Builder = Callable[[Writer, Node, Any, list[str]], str]
