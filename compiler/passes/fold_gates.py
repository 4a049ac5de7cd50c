"""`fold-gates`: multiply gate values into weights, so that the graph computes the same without gates.

For a gate g != 0 on an edge x -> node, in this order:

1. A join that feeds a weight (`project`) takes every gate:  W [g1 x1; g2 x2] = [g1 W1, g2 W2] [x1; x2].
2. A node all of whose inputs have one gate takes it in its first affine step, past steps that commute with it:
       conv, linear, ...:   W (g x) + b = (g W) x + b
       batch norm:          (g x - m) / sqrt(v + e) = sign(g) (x - m/g) / sqrt(v/g^2 + e/g^2)
   In batch norm the statistics and e change, not the scale, so that training goes on from the same function.
3. A node all of whose users have one gate gives it from its last affine step:
       g relu(W x + b) = relu(g W x + g b)   for g > 0,   and likewise batch norm's scale and shift.
4. What is left becomes a `scale` node, one for each value and factor.
5. Gates behind the channels of a node go into its last affine step in the same way, a factor for each row; where the
   activation does not let them through, into the columns of all weights that read the node and nothing else.

Steps commute with a factor where f(g x) = g f(x), which is a trait of the op: identity, sums, averages and joins for
every g, relu and max pooling for g > 0. Other activations (relu6, silu, ...) do not. A gate so small that e/g^2 is no
`eps` that an op takes becomes a `scale` node.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from compiler.errors import PassError
from compiler.ir.graph import Attrs, Graph, Model, Node, Phase, attrs_of
from compiler.ops import (
    Affine,
    Channels,
    Reads,
    Step,
    joins_into_weight,
    node_tensors,
    op,
    read_attrs,
    steps,
    traits_of,
)
from compiler.passes.base import Pass
from compiler.passes.draft import Draft, Source, Weights, free_id, taken_paths
from compiler.passes.infer_types import infer_types

LARGEST_EPS = 1.0  # that an op takes

ByChannel = np.ndarray[Any, np.dtype[Any]]  # a factor for each channel
Factors = dict[tuple[str, str], float]  # (source, destination) -> what is still to be multiplied


@dataclass(frozen=True)
class FoldGates(Pass):
    """Multiply the gates into weights; what cannot be folded exactly becomes a multiplication by a constant."""

    def run(self, model: Model) -> Model:
        """The compact model that computes what the gated one does; PassError without weights or with a zero gate."""
        graph, weights = model.graph, dict(model.weights)
        factors = {(e.src, e.dst): 1.0 if e.gate is None else model.gates[e.gate] for e in graph.edges()}
        weightless = not weights and any(node_tensors(graph, node).params for node in graph.nodes())
        if weightless and any(f != 1.0 for f in factors.values()):
            raise PassError(self.name, graph.name, "there are no weights to fold the gates into", "use drop-gates")
        if 0.0 in (*factors.values(), *(model.gates[gate] for gate in graph.gates())):
            raise PassError(self.name, graph.name, "a gate is zero", "run prune-zero-edges first")
        nodes = [_fold_forward(graph, node, factors, weights) for node in graph.nodes()]
        for node in nodes:
            _fold_backward(graph, node, factors, weights)
        behind = {
            node_id: np.array([1.0 if gate is None else model.gates[gate] for gate in ids])
            for node_id, ids in graph.channel_gates.items()
        }
        left = {i: by_channel for i, by_channel in behind.items() if not _fold_channels(graph, i, by_channel, weights)}
        return Model(infer_types(_with_scales(graph, nodes, factors, left), Phase.COMPACT), {}, weights)


def _fold_forward(graph: Graph, node: Node, factors: Factors, weights: Weights) -> Node:
    """Into the node that reads the gated values (1 and 2); the node as it is then."""
    edges = [(e.src, e.dst) for e in graph.inputs(node.id)]
    values = [factors[e] for e in edges]
    if all(v == 1.0 for v in values):
        return node
    if joins_into_weight(node.op, node.attrs):
        name = f"{node.id}.{steps(node.op, node.attrs)[1].name}.weight"
        channels = [graph.node(src).shape[0] for src, _ in edges]
        weight = weights[name]
        factor = np.repeat(values, channels).astype(weight.dtype)
        weights[name] = weight * factor.reshape(1, -1, *[1] * (weight.ndim - 2))
    elif len(set(values)) == 1 and (folded := _scale_first_affine(node, values[0], weights)) is not None:
        node = folded
    else:
        return node
    factors.update(dict.fromkeys(edges, 1.0))
    return node


def _scale_first_affine(node: Node, factor: float, weights: Weights) -> Node | None:
    for step in steps(node.op, node.attrs):
        prefix = _prefix(node, step)
        traits = traits_of(step.op, step.attrs)
        if traits.affine is Affine.WEIGHT:
            weights[f"{prefix}weight"] = weights[f"{prefix}weight"] * factor
            return node
        if traits.affine is Affine.STATISTICS:
            return _scale_input_of_batch_norm(node, step, factor, weights)
        if not traits.homogeneous.has(factor):
            return None
    return None


def _scale_input_of_batch_norm(node: Node, step: Step, factor: float, weights: Weights) -> Node | None:
    prefix, eps = _prefix(node, step), read_attrs(step.op, step.attrs).eps / factor**2
    if eps > LARGEST_EPS or "eps" not in op(node.op).attrs.model_fields:
        return None
    weights[f"{prefix}weight"] = weights[f"{prefix}weight"] * float(np.sign(factor))
    weights[f"{prefix}running_mean"] = weights[f"{prefix}running_mean"] / factor
    weights[f"{prefix}running_var"] = weights[f"{prefix}running_var"] / factor**2
    return replace(node, attrs=attrs_of({**dict(node.attrs), "eps": eps}))


def _fold_backward(graph: Graph, node: Node, factors: Factors, weights: Weights) -> None:
    """Into the node that makes the gated value (3)."""
    edges = [(e.src, e.dst) for e in graph.users(node.id)]
    values = {factors[e] for e in edges}
    if len(values) == 1 and values != {1.0} and _scale_last_affine(node, values.pop(), weights):
        factors.update(dict.fromkeys(edges, 1.0))


def _scale_last_affine(node: Node, factor: float, weights: Weights) -> bool:
    for step in reversed(steps(node.op, node.attrs)):
        prefix = _prefix(node, step)
        traits = traits_of(step.op, step.attrs)
        if traits.affine is not Affine.NO:
            for name in (f"{prefix}weight", f"{prefix}bias"):
                if name in weights:
                    weights[name] = weights[name] * factor
            return True
        if not traits.homogeneous.has(factor):
            return False
    return False


def _fold_channels(graph: Graph, node_id: str, by_channel: ByChannel, weights: Weights) -> bool:
    """The gates behind a node's channels, into its own weights or into those of all that read it (5)."""
    node = graph.node(node_id)
    for step in reversed(steps(node.op, node.attrs)):
        traits = traits_of(step.op, step.attrs)
        if traits.affine is not Affine.NO:
            for name in (f"{_prefix(node, step)}weight", f"{_prefix(node, step)}bias"):
                if name in weights:
                    weights[name] = weights[name] * _along(0, by_channel, weights[name])
            return True
        if traits.channels is not Channels.KEPT or not all(map(traits.homogeneous.has, by_channel)):
            break
    readers = [graph.node(edge.dst) for edge in graph.users(node_id)]
    if not readers or not all(_takes_channels(graph, reader) for reader in readers):
        return False
    for reader in readers:
        name = f"{_prefix(reader, steps(reader.op, reader.attrs)[0])}weight"
        kept = traits_of(*_first(reader)).channels is Channels.KEPT
        weights[name] = weights[name] * _along(0 if kept else 1, by_channel, weights[name])
    return True


def _takes_channels(graph: Graph, reader: Node) -> bool:
    """Whether the node reads one value alone, and multiplies each of its channels by numbers of its own."""
    traits = traits_of(*_first(reader))
    alone = len(graph.inputs(reader.id)) == 1 and op(reader.op).reads is not Reads.APART
    return alone and traits.affine is Affine.WEIGHT and traits.channels in (Channels.KEPT, Channels.MIXED)


def _first(node: Node) -> tuple[str, Attrs]:
    step = steps(node.op, node.attrs)[0]
    return step.op, step.attrs


def _along(dim: int, by_channel: ByChannel, weight: Any) -> ByChannel:
    """Factors of channels as factors of a weight that has the channels along this dimension."""
    return by_channel.astype(weight.dtype).reshape([-1 if i == dim else 1 for i in range(weight.ndim)])


def _prefix(node: Node, step: Step) -> str:
    return f"{node.id}.{step.name}." if step.name else f"{node.id}."


def _with_scales(graph: Graph, nodes: Iterable[Node], factors: Factors, behind: Mapping[str, ByChannel]) -> Graph:
    """These nodes without gates, a `scale` node for each (value, factor) that is left (4), and `behind` nodes.

    It stands beside the node that reads it, not below: what is below a node are its parts.
    """
    draft, taken = Draft(graph, empty=True), taken_paths(node.id for node in graph.nodes())
    made: dict[tuple[str, float], str] = {}
    scaled: dict[str, str] = {}
    for node in nodes:
        sources: list[Source] = []
        for edge in graph.inputs(node.id):
            source, factor = scaled.get(edge.src, edge.src), factors[edge.src, edge.dst]
            if factor != 1.0 and (source, factor) not in made:
                made[source, factor] = free_id(taken, f"{node.id}_gate{edge.slot}")
                draft.add(Node(made[source, factor], "scale", attrs_of({"factor": factor})), [(source, None)])
            sources.append((made.get((source, factor), source), None))
        draft.add(node, sources)
        if node.id in behind:
            scaled[node.id] = free_id(taken, f"{node.id}_gates")
            attrs = attrs_of({"factor": tuple(map(float, behind[node.id]))})
            draft.add(Node(scaled[node.id], "scale", attrs), [(node.id, None)])
            draft.renamed[node.id] = scaled[node.id]
    found = draft.graph(Phase.COMPACT)
    found.channel_gates = {}
    return found
