"""Emission of a graph into a torch.fx graph, node by node: the reference lowering.

Every gated edge becomes a multiplication and every further input an addition, as the formula is written. The fused
lowering (`compiler.lowering.torch.fused`) overrides `emit`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.checkpoint import checkpoint

from compiler.analysis.weights import GATES
from compiler.ir.graph import INPUT, OUTPUT, Block, Edge, Graph, Node, gate_scope
from compiler.lowering.groups import exits
from compiler.lowering.torch.batch_parts import frozen_statistics
from compiler.lowering.torch.modules import TORCH, Builder, Chain, torch_module
from compiler.ops import Reads, input_shapes, op

Vectors = Mapping[str, nn.Parameter]


class ChannelGates(nn.Module):
    """Multiplies each channel by a gate: `rows` are places in the joined vectors, behind which one more is 1."""

    rows: Tensor

    def __init__(self, rows: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("rows", torch.tensor(rows), persistent=False)

    def forward(self, value: Tensor, *vectors: Tensor) -> Tensor:
        """The value `(N, C, ...)` with each channel times its gate."""
        gates = torch.cat([*vectors, vectors[0].new_ones(1)])[self.rows]
        return value * gates.view(-1, *[1] * (value.dim() - 2))


SEAM = "\u00b7"  # a dot of an id that is none of a path; no name of a spec has one, and Python allows it in attributes


def tensor_name(path: str) -> str:
    """The name `<node id>.<param>` or `<scope>.gates` of a tensor by its key in the network's `state_dict`."""
    return path.replace(SEAM, ".")


def python_name(node_id: str) -> str:
    """The name of a value in the printed code, where `self` is the network."""
    return "self_" if node_id == "self" else node_id.replace(".", "_")


def recomputed(block: nn.Module, *values: Tensor) -> Tensor:
    """The block's value, of which only the inputs are kept for the backward pass."""
    # compiled code updates statistics outside of what it recomputes
    settings: dict[str, Any] = {} if torch.compiler.is_compiling() else {"context_fn": _pass_contexts}
    value: Tensor = checkpoint(block, *values, use_reentrant=False, **settings)
    return value


def _pass_contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), frozen_statistics()


class Emitter:
    """One fx graph being written, for all nodes of a graph or for those of a block.

    `vectors` are the gate vectors by scope. `named` collects the modules and parameters that the code mentions, by
    their dotted paths; within a block these count from the block's id on.
    """

    table: Mapping[str, Builder] = TORCH

    def __init__(self, graph: Graph, vectors: Vectors, nodes: Sequence[Node], block: Block | None = None) -> None:
        self.graph = graph
        self.nodes = nodes
        self.code = fx.Graph()
        self.named: dict[str, nn.Module | Tensor] = {}
        self.values: dict[str, fx.Node] = {}
        self._vectors = vectors
        self._vector_nodes: dict[str, fx.Node] = {}
        self._gate_nodes: dict[str, fx.Node] = {}
        self._prefix = f"{block.id}." if block else ""

    @cached_property
    def positions(self) -> dict[str, int]:
        """Where each gate lies in the vector of its scope."""
        return {gate: place for gates in self.graph.gate_scopes().values() for place, gate in enumerate(gates)}

    def emit_network(self, recompute: Collection[str], apart: bool) -> None:
        """Emit input, all nodes and outputs; the blocks that end in a node of `recompute`, or all with `apart`, as
        modules of their own.
        """
        blocks = {exit_id: block for exit_id, block in exits(self.graph).items() if apart or exit_id in recompute}
        inside = {node.id for nodes, _ in blocks.values() for node in nodes} - blocks.keys()
        for node in self.nodes:
            if node.op == INPUT:
                self.bring_in(node)
            elif node.op == OUTPUT:
                continue  # all of them come last
            elif node.id in blocks:
                self.emit_block(node, *blocks[node.id], node.id in recompute)
            elif node.id not in inside:
                self.emit_gated(node)
        found = {name: self.values[self.graph.inputs(node.id)[0].src] for name, node in self.graph.outputs().items()}
        self.code.output(found if len(found) > 1 else found[OUTPUT])

    def bring_in(self, node: Node) -> None:
        """Emit the network's input."""
        self.values[node.id] = self.code.placeholder(python_name(node.id))

    def emit_block(self, exit_node: Node, nodes: list[Node], block: Block, recompute: bool) -> None:
        """Emit a block as a module of its own; with `recompute`, it is called through `recomputed`."""
        inner = type(self)(self.graph, self._vectors, nodes, block)
        inner.positions = self.positions
        edges = [edge for node in nodes for edge in self.graph.inputs(node.id)]
        own = dict.fromkeys(node.id for node in nodes)
        sources = list(dict.fromkeys(edge.src for edge in edges if edge.src not in own))
        gates = [edge.gate for edge in edges] + [gate for i in own for gate in self.graph.channel_gates.get(i, ())]
        scopes = list(dict.fromkeys(gate_scope(gate) for gate in gates if gate is not None))
        for source in sources:
            inner.values[source] = inner.code.placeholder(python_name(source))
        for scope in scopes:
            inner._vector_nodes[scope] = inner.code.placeholder(python_name(scope + GATES))
        for node in nodes:
            inner.emit_gated(node)
        inner.code.output(inner.values[exit_node.id])
        self.named[block.id] = fx.GraphModule(inner.named, inner.code, class_name="Block")
        arguments = (*(self.values[s] for s in sources), *(self.vector(s) for s in scopes))
        name = python_name(exit_node.id)
        if recompute:
            module = self.code.create_node("get_attr", block.id, name=python_name(block.id))
            value = self.call(recomputed, (module, *arguments), name)
        else:
            value = self.code.create_node("call_module", block.id, arguments, name=name)
        self.values[exit_node.id] = value

    def emit_gated(self, node: Node) -> None:
        """Emit one node and the gates behind its channels."""
        self.emit(node)
        ids = self.graph.channel_gates.get(node.id)
        if ids is not None:
            scopes = list(dict.fromkeys(gate_scope(gate) for gate in ids if gate is not None))
            starts, end = self.joined(scopes)
            rows = [end if i is None else starts[gate_scope(i)] + self.positions[i] for i in ids]
            values = [self.values[node.id], *map(self.vector, scopes)]
            self.values[node.id] = self.call_module(f"{node.id}{SEAM}gates", ChannelGates(rows), values)

    def joined(self, scopes: Sequence[str]) -> tuple[dict[str, int], int]:
        """Where each scope's gates start in their vectors laid end to end, and where the last ones end."""
        *starts, end = accumulate((len(self._vectors[scope]) for scope in scopes), initial=0)
        return dict(zip(scopes, starts, strict=True)), end

    def emit(self, node: Node) -> None:
        """Emit one node that is neither input nor output; everything it reads has been emitted."""
        values = [self.gated(edge) for edge in self.graph.inputs(node.id)]
        if op(node.op).reads is Reads.SUM:
            values = [self.total(node, values)]
        self.values[node.id] = self.apply(node, values)

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
        module = torch_module(node, input_shapes(self.graph, node), self.table)
        return self.call_module(self.path(node), module, values)

    def path(self, node: Node) -> str:
        """Where the node's module stands: under its id, or apart from a module above it that has parts or this name."""
        for end in (end for end, character in enumerate(node.id) if character == "." and node.id[:end] in self.graph):
            owner, below = self.graph.node(node.id[:end]), node.id[end + 1 :]
            module = torch_module(owner, input_shapes(self.graph, owner), self.table)
            if isinstance(module, Chain) or hasattr(module, below.partition(".")[0]):
                return owner.id + SEAM + below.replace(".", SEAM)
        return node.id

    def gate(self, gate: str) -> fx.Node:
        """One gate as a scalar: an item of its scope's vector, which is taken apart once."""
        scope = gate_scope(gate)
        if scope not in self._gate_nodes:
            self._gate_nodes[scope] = self.call(torch.unbind, (self.vector(scope),), f"{python_name(scope)}_gate")
        return self.item(self._gate_nodes[scope], self.positions[gate], "gate")

    def vector(self, scope: str) -> fx.Node:
        """A scope's gate vector."""
        if scope not in self._vector_nodes:
            self._vector_nodes[scope] = self.attribute(scope + GATES, self._vectors[scope])
        return self._vector_nodes[scope]

    def attribute(self, path: str, parameter: Tensor) -> fx.Node:
        """A parameter that the code reads itself."""
        path = path.removeprefix(self._prefix)
        self.named[path] = parameter
        return self.code.create_node("get_attr", path, name=python_name(path))

    def call_module(self, path: str, module: nn.Module, values: Sequence[fx.Node]) -> fx.Node:
        """A call of a module, which gets the dotted name `path`."""
        path = path.removeprefix(self._prefix)
        self.named[path] = module
        return self.code.create_node("call_module", path, tuple(values), name=python_name(path))

    def call(self, function: Callable[..., Any], args: tuple[Any, ...], name: str) -> fx.Node:
        """A call of a function."""
        return self.code.create_node("call_function", function, args, name=name)

    def item(self, values: fx.Node, index: int, name: str) -> fx.Node:
        """One item of a tuple."""
        return self.call(operator.getitem, (values, index), name)
