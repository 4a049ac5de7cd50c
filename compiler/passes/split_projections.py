"""`split-projections`: a convolution of a large join becomes a sum of convolutions of what is joined.

    W [x1; x2; ...] + b   ->   (W1 x1 + b) + W2 x2 + ...      with  W = [W1, W2, ...]

The join is a copy of everything it reads, while onnxruntime adds a sum in the convolution that makes its last part. A
node has a cost too, so the values must have `LARGE` numbers each, and nobody else may read the join.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

from compiler.ir.graph import Graph, Model, Node, attrs_of
from compiler.ops import Channels, op, traits_alone
from compiler.passes.base import Pass
from compiler.passes.draft import Draft, Weights, free_id, sources_of, taken_paths

LARGE = 9000  # numbers in a value that take longer to copy than a node to start: values of 8,192 lost time in parts


@dataclass(frozen=True)
class SplitProjections(Pass):
    """Turn a convolution of a large join into a sum of convolutions of what is joined."""

    def run(self, model: Model) -> Model:
        """The model without such joins."""
        draft, weights = Draft(model.graph, empty=True), dict(model.weights)
        taken = taken_paths(node.id for node in model.graph.nodes())
        for node in model.graph.nodes():
            sources = sources_of(model.graph, node.id)
            if (join := _large_join(model.graph, node)) is not None:
                parts = _parts(model.graph, node, join, weights, taken)
                for part, edge in zip(parts, model.graph.inputs(join.id), strict=True):
                    draft.add(part, [(edge.src, None)])
                node, sources = Node(node.id, "add", type=node.type), [(part.id, None) for part in parts]
            draft.add(node, sources)
        return replace(model, graph=draft.graph(), weights=weights)


def _large_join(graph: Graph, node: Node) -> Node | None:
    """The join that the node multiplies by a weight, if it is better multiplied in parts."""
    if not traits_alone(node.op, node.attrs).mixes_by_weight or not takes_channels(node) or len(node.shape) < 2:
        return None
    join = graph.node(graph.inputs(node.id)[0].src)
    edges = graph.inputs(join.id)
    joins = traits_alone(join.op, join.attrs).channels is Channels.JOINED and len(graph.users(join.id)) == 1
    large = sum(prod(graph.node(edge.src).shape) for edge in edges) >= LARGE * len(edges)
    return join if joins and len(edges) > 1 and large else None


def takes_channels(node: Node) -> bool:
    """Whether the op's attributes say how many channels it gives and whether it has a bias."""
    return {"channels", "bias"} <= op(node.op).attrs.model_fields.keys()


def _parts(graph: Graph, node: Node, join: Node, weights: Weights, taken: set[str]) -> list[Node]:
    """A convolution for each value, of which the first has the bias; takes the weights apart."""
    parts, begin = [], 0
    weight, bias = weights.pop(f"{node.id}.weight", None), weights.pop(f"{node.id}.bias", None)
    for slot, edge in enumerate(graph.inputs(join.id)):
        own = {"channels": node.shape[0]} | ({"bias": False} if slot else {})
        part = replace(node, id=free_id(taken, f"{node.id}_part{slot}"), attrs=attrs_of(dict(node.attrs) | own))
        taken.add(part.id)
        end = begin + graph.node(edge.src).shape[0]
        if weight is not None:
            weights[f"{part.id}.weight"] = weight[:, begin:end]
        parts.append(part)
        begin = end
    if bias is not None:
        weights[f"{parts[0].id}.bias"] = bias
    return parts
