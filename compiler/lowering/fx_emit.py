"""Emission of a graph into a torch.fx graph, node by node: the reference lowering.

Every gated edge becomes a multiplication and every further input an addition, as the formula is written. The fused
lowering (`compiler.lowering.fx_fused`) overrides the hooks of `Emitter`.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping

import torch
from torch import fx, nn

from compiler.ir import INPUT, OUTPUT, Edge, Graph, Node, gate_scope
from compiler.lowering.torch_ops import torch_module
from compiler.ops import Reads, input_shapes, op


def python_name(node_id: str) -> str:
    """The name of a value in the printed code."""
    return node_id.replace(".", "_")


class Emitter:
    """One fx graph being written, with the modules and parameters it mentions by their dotted names.

    `parameters` holds the gate vectors by `<scope>.gates`; `positions` says where in its vector a gate stands.
    """

    def __init__(self, graph: Graph, gate_vectors: Mapping[str, nn.Parameter]) -> None:
        self.graph = graph
        self.gate_vectors = gate_vectors
        self.positions = {g: i for gates in graph.gate_scopes().values() for i, g in enumerate(gates)}
        self.code = fx.Graph()
        self.named: dict[str, nn.Module | nn.Parameter] = {}
        self.values: dict[str, fx.Node] = {}
        self._vectors: dict[str, fx.Node] = {}
        self._gates: dict[str, fx.Node] = {}

    # -- hooks ------------------------------------------------------------------------------------------------------

    def bring_in(self, node: Node) -> None:
        """Emit the network's input."""
        self.values[node.id] = self.code.placeholder(python_name(node.id))

    def emit(self, node: Node) -> None:
        """Emit one node that is neither input nor output; everything it reads has been emitted."""
        edges = self.graph.inputs(node.id)
        values = [self.gated(edge) for edge in edges]
        if op(node.op).reads is Reads.SUM:
            values = [self.total(node, values)]
        self.values[node.id] = self.apply(node, values)

    # -- pieces -----------------------------------------------------------------------------------------------------

    def emit_all(self) -> None:
        """Emit the whole graph, output included."""
        for node in self.graph.nodes():
            if node.op == INPUT:
                self.bring_in(node)
            elif node.op == OUTPUT:
                self.code.output(self.values[self.graph.inputs(node.id)[0].src])
            else:
                self.emit(node)

    def gated(self, edge: Edge) -> fx.Node:
        """The edge's value times its gate."""
        value = self.values[edge.src]
        if edge.gate is None:
            return value
        return self.call(torch.mul, (value, self.gate(edge.gate)), f"{python_name(edge.dst)}_in{edge.slot}")

    def total(self, node: Node, values: list[fx.Node]) -> fx.Node:
        """The values added one by one."""
        total = values[0]
        for slot, value in enumerate(values[1:], 1):
            total = self.call(torch.add, (total, value), f"{python_name(node.id)}_sum{slot}")
        return total

    def apply(self, node: Node, values: list[fx.Node]) -> fx.Node:
        """The node's module, called with its inputs."""
        self.named[node.id] = torch_module(node, input_shapes(self.graph, node))
        return self.code.create_node("call_module", node.id, tuple(values), name=python_name(node.id))

    def gate(self, gate: str) -> fx.Node:
        """One gate as a scalar: an item of its scope's vector, which is taken apart once."""
        scope = gate_scope(gate)
        if scope not in self._gates:
            self._gates[scope] = self.call(torch.unbind, (self.vector(scope),), f"{python_name(scope)}_gate")
        return self.call(operator.getitem, (self._gates[scope], self.positions[gate]), "gate")

    def vector(self, scope: str) -> fx.Node:
        """A scope's gate vector."""
        if scope not in self._vectors:
            self._vectors[scope] = self.attribute(f"{scope}.gates", self.gate_vectors[scope])
        return self._vectors[scope]

    def attribute(self, path: str, parameter: nn.Parameter) -> fx.Node:
        """A parameter that the code reads itself."""
        self.named[path] = parameter
        return self.code.create_node("get_attr", path, name=python_name(path))

    def call(self, function: object, args: tuple[object, ...], name: str) -> fx.Node:
        """A call of a function."""
        return self.code.create_node("call_function", function, args, name=name)  # type: ignore[arg-type]
