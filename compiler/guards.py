"""What must stay: a path from the input to the output, whatever the gates say."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping

from compiler.ir import INPUT, OUTPUT, Edge, Graph
from compiler.ops import node_cost


def reopened(graph: Graph, closed: Collection[str], cost: Callable[[Edge], float]) -> list[str]:
    """Gates among `closed` to keep open so that the input still reaches the output; empty if it does already.

    They lie on the path whose closed edges have the smallest sum of `cost`; open edges cost nothing. Linear in the
    edges of the graph.
    """
    shut = set(closed)
    best: dict[str, float] = {INPUT: 0.0}
    via: dict[str, Edge] = {}
    for node in graph.nodes():
        for edge in graph.inputs(node.id):
            length = best.get(edge.src, math.inf) + (cost(edge) if edge.gate in shut else 0.0)
            if length < best.get(node.id, math.inf):
                best[node.id], via[node.id] = length, edge
    gates: list[str] = []
    node_id = OUTPUT
    while node_id != INPUT:
        edge = via[node_id]
        if edge.gate is not None and edge.gate in shut and edge.gate not in gates:
            gates.append(edge.gate)
        node_id = edge.src
    return gates[::-1]


def kept_by_strength(graph: Graph, closed: Collection[str], strength: Mapping[str, float]) -> list[str]:
    """The gates to keep open where closing all of `closed` would cut the network: the strongest that mend it."""
    return reopened(graph, closed, lambda edge: 1.0 / (1e-12 + max(strength.get(edge.gate or "", 0.0), 0.0)))


def smallest_closed(graph: Graph) -> set[str]:
    """The gates to close for the cheapest network of the space: all but those on the path of fewest multiply-adds."""
    gates = set(graph.gates())

    def flops(edge: Edge) -> float:
        cost = node_cost(graph, graph.node(edge.dst))
        return cost.flops + 1e-6 * cost.params + 1e-9

    return gates - set(reopened(graph, gates, flops))
