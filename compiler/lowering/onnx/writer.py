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

    def wide_weight(self, node: Node, param: str) -> str:
        """The name of a vector with one number a channel, shaped to multiply the node's value."""
        return self.constant(f"{node.id}.{param}", self.array(node, param).reshape(-1, *[1] * (len(node.shape) - 1)))

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

    def factors(self, node: Node, values: float | tuple[float, ...]) -> str:
        """A number, or one per channel, to multiply the node's value by."""
        found = np.array(values, np.float32)
        return self.constant(
            f"{node.id}.factor", found.reshape(-1, *[1] * (len(node.shape) - 1)) if found.ndim else found
        )

    def input_shape(self, node: Node) -> Shape:
        """Shape of the first value the node reads, without the batch."""
        return self.graph.node(self.graph.inputs(node.id)[0].src).shape

    def shaped(self, value: str, output: str, shape: tuple[int, ...]) -> str:
        """A value with other sizes behind the batch."""
        name = self.constant(f"{output}.shape", np.array([0, *shape], np.int64))  # 0: as many as come in
        return self.emit("Reshape", [value, name], output)

    def unsqueezed(self, value: str, output: str, axes: tuple[int, ...]) -> str:
        """A value with further axes of size 1."""
        return self.emit("Unsqueeze", [value, self.constant(f"{output}.axes", np.array(axes, np.int64))], output)

    def sizes(self, node: Node, value: str, rest: tuple[int, ...]) -> str:
        """The sizes (N, ...rest), N being as many as the value has."""
        if self.opset >= 15:
            batch = self.emit("Shape", [value], f"{node.id}.batch", start=0, end=1)
        else:
            first = self.constant(f"{node.id}.first", np.array([0], np.int64))
            batch = self.emit(
                "Gather", [self.emit("Shape", [value], f"{node.id}.sizes"), first], f"{node.id}.batch", axis=0
            )
        given = self.constant(f"{node.id}.rest", np.array(rest, np.int64))
        return self.emit("Concat", [batch, given], f"{node.id}.shape", axis=0)

    def axes(self, node: Node) -> tuple[int, ...]:
        """The axes of the pixels of the first value the node reads."""
        return tuple(range(2, len(self.input_shape(node)) + 1))

    def reduce(self, op_type: str, node: Node, value: str, output: str, axes: tuple[int, ...], *, keep: bool) -> str:
        """A mean or maximum over axes: an attribute before opset 18, an input since."""
        if self.opset < 18:
            return self.emit(op_type, [value], output, axes=list(axes), keepdims=int(keep))
        constant = self.constant(f"{node.id}.axes", np.array(axes, np.int64))
        return self.emit(op_type, [value, constant], output, keepdims=int(keep))


Builder = Callable[[Writer, Node, Any, list[str]], str]
