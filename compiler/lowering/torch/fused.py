"""The fused lowering: gated sums that share sources become one product over a stack, output gates go into weights.

Within a block, all gated sums and gated projections that share sources, directly or through others, read them from one
stack (`compiler.lowering.torch.kernels`), as long as there are edges enough for products to pay. Any other sum is one
call; a projection scales its weight, which is small, instead of its inputs. What is left (a gated concatenation, sums
without gates) is lowered as in the reference. Values are kept channels last.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, fx

from compiler.ir.graph import Block, Edge, Graph, Node, gate_scope
from compiler.lowering.groups import Stack, kept_apart, leaves_relu, regions, stacks
from compiler.lowering.torch.emit import Emitter, Vectors, python_name
from compiler.lowering.torch.kernels import (
    ABSENT,
    OPEN,
    Rows,
    coefficients,
    gated_sum,
    gated_sums,
    joint_projection,
    projection,
    push,
    scaled,
)  # fmt: skip
from compiler.lowering.torch.lean import LEAN
from compiler.lowering.torch.modules import Chain, torch_steps
from compiler.ops import Reads, input_shapes, is_projection, op


def channels_last(image: Tensor) -> Tensor:
    """The images `(N, C, H, W)` or signals `(N, C, T)` with the channels of a pixel next to each other in memory."""
    if image.dim() == 3:
        return image.mT.contiguous().mT
    return image.contiguous(memory_format=torch.channels_last)


class FusedEmitter(Emitter):
    """Emits gated sums and projections through stacks."""

    table = LEAN

    def __init__(self, graph: Graph, vectors: Vectors, nodes: Sequence[Node], block: Block | None = None) -> None:
        super().__init__(graph, vectors, nodes, block)
        groups = [stack for region in regions(graph, nodes) for stack in stacks(graph, region)]
        self.stack_of = {node.id: stack for stack in groups for node in stack.readers}
        self.filled: dict[str, fx.Node] = {}  # by name of the stack, the fx value that is it by now
        self.sums: dict[str, fx.Node] = {}  # inputs of readers, computed ahead with those of others
        self.before_relu: dict[str, fx.Node] = {}  # values whose ReLU is left to the stack

    def bring_in(self, node: Node) -> None:
        """Emit the network's input, brought into the layout that all values have."""
        super().bring_in(node)
        if len(node.shape) > 1:
            self.values[node.id] = self.call(channels_last, (self.values[node.id],), "image")

    def emit(self, node: Node) -> None:
        """Emit one node in the best way that its gates allow."""
        gated = any(edge.gate for edge in self.graph.inputs(node.id))
        if gated and is_projection(node.op, node.attrs):
            self.values[node.id] = self.projected(node)
        elif gated and op(node.op).reads is Reads.SUM:
            self.values[node.id] = self.apply(node, [self.gated_total(node)])
        else:
            super().emit(node)

    def apply(self, node: Node, values: list[fx.Node]) -> fx.Node:
        """The node's module; where only a stack reads the value, a final ReLU is left to the stack."""
        if not leaves_relu(self.graph, node, self.stack_of):
            return super().apply(node, values)
        modules = list(torch_steps(node, input_shapes(self.graph, node), self.table).items())[:-1]
        value = self.call_module(self.path(node), Chain(OrderedDict(modules)), values)
        self.before_relu[node.id] = value
        return value

    def gated_total(self, node: Node) -> fx.Node:
        """The gated sum that a node reads."""
        if node.id not in self.stack_of:
            values = [self.values[edge.src] for edge in self.graph.inputs(node.id)]
            return self.call(gated_sum, (self.own_gates(node), *values), f"{python_name(node.id)}_sum")
        if node.id not in self.sums:
            self.sum_all_ready(self.stack_of[node.id])
        return self.sums[node.id]

    def sum_all_ready(self, stack: Stack) -> None:
        """Emit the inputs of all readers whose sources have been computed."""
        self.fill(stack)
        ready = stack.ready(self.graph, self.sums)
        stack_name, name = _name(stack), f"{_name(stack)}_{len(stack.slots)}"
        rows, coefs = self.coefficients(name, [self.graph.inputs(node.id) for node in ready], stack.slots)
        apart = kept_apart(self.graph, ready)
        results = self.call(gated_sums, (self.filled[stack_name], coefs, rows, apart), f"{name}_sums")
        self.filled[stack_name] = self.item(results, 0, stack_name)
        for index, node in enumerate(ready, 1):
            self.sums[node.id] = self.item(results, index, f"{python_name(node.id)}_sum")

    def fill(self, stack: Stack) -> None:
        """Push what has been computed and is not in the stack yet."""
        new = stack.fill(self.values)
        if not new:
            return
        values = [self.values[i] for i in new]
        relu = tuple(i in self.before_relu for i in new)
        below = self.filled.get(_name(stack), len(stack.sources))
        self.filled[_name(stack)] = self.call(push, (below, relu, *values), _name(stack))

    def coefficients(self, name: str, reads: Sequence[Sequence[Edge]], slots: dict[str, int]) -> tuple[Rows, fx.Node]:
        """The matrix of gates: a row for every list of edges, a column for every slot."""
        gates = [edge.gate for edges in reads for edge in edges if edge.gate is not None]
        scopes = list(dict.fromkeys(map(gate_scope, gates)))
        starts, _ = self.joined(scopes)

        def entry(edge: Edge) -> int:
            return OPEN if edge.gate is None else starts[gate_scope(edge.gate)] + self.positions[edge.gate]

        columns = [{slots[edge.src]: entry(edge) for edge in edges} for edges in reads]
        rows = tuple(tuple(row.get(k, ABSENT) for k in range(len(slots))) for row in columns)
        vectors = (self.vector(scope) for scope in scopes)
        return rows, self.call(coefficients, (rows, *vectors), f"{name}_coefs")

    def own_gates(self, node: Node) -> fx.Node:
        """The matrix of one row: the gates of a node's inputs."""
        edges = self.graph.inputs(node.id)
        return self.coefficients(python_name(node.id), [edges], {edge.src: k for k, edge in enumerate(edges)})[1]

    def projected(self, node: Node) -> fx.Node:
        """A gated projection: the gates scale the columns of its weight."""
        name, edges = python_name(node.id), self.graph.inputs(node.id)
        modules = torch_steps(node, input_shapes(self.graph, node), self.table)
        _, step, *others = modules
        coefs = self.own_gates(node)
        channels = tuple(self.graph.node(edge.src).shape[0] for edge in edges)
        path, parameters = self.path(node), dict(modules[step].named_parameters())
        weight = self.attribute(f"{path}.{step}.weight", parameters["weight"])
        weight = self.call(scaled, (weight, coefs, channels), f"{name}_weight")
        bias = self.attribute(f"{path}.{step}.bias", parameters["bias"]) if "bias" in parameters else None
        value = self._convolved(node, edges, weight, bias)
        for other in others:
            value = self.call_module(f"{path}.{other}", modules[other], [value])
        return value

    def _convolved(self, node: Node, edges: Sequence[Edge], weight: fx.Node, bias: fx.Node | None) -> fx.Node:
        name, stack = python_name(node.id), self.stack_of.get(node.id)
        if stack is None:
            values = (self.values[edge.src] for edge in edges)
            return self.call(joint_projection, (weight, bias, *values), f"{name}_conv")
        self.fill(stack)
        positions = tuple(stack.slots[edge.src] for edge in edges)
        results = self.call(projection, (self.filled[_name(stack)], weight, bias, positions), f"{name}_results")
        self.filled[_name(stack)] = self.item(results, 0, _name(stack))
        return self.item(results, 1, f"{name}_conv")


def _name(stack: Stack) -> str:
    return f"{python_name(stack.readers[0].id)}_stack"
