"""What follows from an op's row for given inputs: the type of its value, its tensors, its cost."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from typing import Any

from compiler.ir.graph import Attrs, Graph, Node, TensorType
from compiler.ops.definition import Op, Reads, Shape, Step, TypeMismatchError
from compiler.ops.registry import op, read_attrs, steps, traits_of

BYTES = 4  # float32


def infer(name: str, attrs: Attrs, inputs: list[TensorType]) -> TensorType:
    """The type a node gives for the types it reads; TypeMismatchError with what was found and expected."""
    if op(name).reads is Reads.SUM:
        for other in inputs[1:]:
            if other is not inputs[0] and other != inputs[0]:
                found = f"found {inputs[0]} and {other}"
                raise TypeMismatchError(f"{name} adds its inputs, which must have one type; {found}")
        inputs = inputs[:1]
    return _infer_chain(name, attrs, tuple(inputs))


@functools.lru_cache(maxsize=65536)
def _infer_chain(name: str, attrs: Attrs, inputs: tuple[TensorType, ...]) -> TensorType:
    return TensorType(walk(name, attrs, tuple(t.shape for t in inputs))[-1][-1])


@dataclass(frozen=True)
class Cost:
    """What one node costs per image. Costs add up."""

    params: int = 0  # trainable numbers
    flops: int = 0  # multiply-adds of convolutions and linear layers (torch.utils.flop_counter counts 2 for each)
    mac_bytes: int = 0  # memory access cost: inputs read + output written + weights read
    activation_bytes: int = 0  # outputs of its steps, a norm with its activation once: kept for the backward pass

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.params + other.params,
            self.flops + other.flops,
            self.mac_bytes + other.mac_bytes,
            self.activation_bytes + other.activation_bytes,
        )


@dataclass(frozen=True)
class NodeTensors:
    """Names and shapes of what a node keeps: `<step>.<param>` (or `<param>` where the node is primitive)."""

    params: dict[str, Shape] = field(default_factory=dict)
    buffers: dict[str, Shape] = field(default_factory=dict)


def walk(name: str, attrs: Attrs, inputs: tuple[Shape, ...]) -> list[tuple[Step, Op, Any, list[Shape], Shape]]:
    """Every step of a node with its row, attributes, input shapes and output shape.

    TypeMismatchError where a step does not fit what it reads.
    """
    rows = []
    shapes = list(inputs)
    for step in steps(name, attrs):
        row, model = op(step.op), read_attrs(step.op, step.attrs)
        assert row.infer is not None
        out = row.infer(model, shapes)
        if min(out, default=1) < 1:
            found, given = TensorType(out), TensorType(inputs[0])
            raise TypeMismatchError(f"{name} would give {found} from {given}: every size must be at least 1")
        rows.append((step, row, model, shapes, out))
        shapes = [out]
    return rows


def input_shapes(graph: Graph, node: Node) -> tuple[Shape, ...]:
    """Shapes a node's first step reads: one for ops that sum, one per edge for ops that read apart."""
    edges = graph.inputs(node.id)
    if op(node.op).reads is Reads.SUM:
        edges = edges[:1]
    return tuple(graph.node(e.src).shape for e in edges)


@functools.lru_cache(maxsize=65536)
def tensors(name: str, attrs: Attrs, inputs: tuple[Shape, ...]) -> NodeTensors:
    """Parameters and buffers of a node for the shapes its first step reads."""
    found = NodeTensors()
    for step, row, model, shapes, out in walk(name, attrs, inputs):
        prefix = f"{step.name}." if step.name else ""
        found.params.update({prefix + k: v for k, v in row.params(model, shapes, out).items()})
        found.buffers.update({prefix + k: v for k, v in row.buffers(model, shapes, out).items()})
    return found


@functools.lru_cache(maxsize=65536)
def cost(name: str, attrs: Attrs, inputs: tuple[Shape, ...], reads: int) -> Cost:
    """Cost of a node; `reads` is the number of values it reads (a sum of k inputs reads all k).

    Norms and activations inside a node run in the registers of the step before, so they add no memory access: the
    convention behind the paper's published MAC ratios (0.986 : 1.0 : 0.447 for sep 3x3, sep 5x5, pool at 16x16x96).
    """
    total = Cost()
    for index, (step, row, model, shapes, out) in enumerate(walk(name, attrs, inputs)):
        weights = sum(math.prod(s) for s in row.params(model, shapes, out).values())
        read = sum(math.prod(s) for s in shapes)
        if index == 0 and op(name).reads is Reads.SUM:
            read *= reads
        fused = index > 0 and traits_of(step.op, step.attrs).is_elementwise
        moved = 0 if fused else (read + math.prod(out) + weights) * BYTES
        kept = 0 if fused and not weights else math.prod(out) * BYTES  # an activation is counted with what it reads
        total += Cost(weights, row.flops(model, shapes, out), moved, kept)
    return total


def node_cost(graph: Graph, node: Node) -> Cost:
    """Cost of a node where it stands."""
    if node.op in ("input", "output"):
        return Cost()
    return cost(node.op, node.attrs, input_shapes(graph, node), len(graph.inputs(node.id)))


def node_tensors(graph: Graph, node: Node) -> NodeTensors:
    """Parameters and buffers of a node where it stands."""
    if node.op == "input":
        return NodeTensors()
    return tensors(node.op, node.attrs, input_shapes(graph, node))
