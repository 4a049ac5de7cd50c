"""What must stay: a path from the input to the output, whatever the gates say."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence

from compiler.analysis.costs import node_costs
from compiler.analysis.coupling import couple
from compiler.ir.graph import INPUT, OUTPUT, Edge, Graph
from compiler.ops import Reads, gives_zeros, op


def shortest_path(graph: Graph, length: Callable[[Edge], float]) -> list[Edge]:
    """The edges that lead from the input to the output, with the smallest sum of lengths (none below 0).

    Linear in the edges. A path through a node that gives zeros carries nothing and does not count; elaboration makes
    sure of another. A product needs a path to each of its inputs, whose lengths are added (twice where they overlap).
    """
    best: dict[str, float] = {INPUT: 0.0}
    via: dict[str, Sequence[Edge]] = {INPUT: ()}
    for node in graph.nodes():
        read = graph.inputs(node.id)
        if not read or gives_zeros(node.op, node.attrs):
            continue
        totals = [best.get(edge.src, math.inf) + length(edge) for edge in read]
        together = op(node.op).reads is Reads.TOGETHER
        best[node.id] = sum(totals) if together else min(totals)
        via[node.id] = read if together else [read[totals.index(best[node.id])]]
    found, wanted = set[Edge](), {OUTPUT}
    for node in reversed(graph.nodes()):
        if node.id in wanted:
            found.update(via[node.id])
            wanted.update(edge.src for edge in via[node.id])
    return [edge for edge in graph.edges() if edge in found]


def reopened(graph: Graph, closed: Collection[str], cost: Callable[[str], float]) -> list[str]:
    """Gates among `closed` to keep open so that the input still reaches the output; empty if it does already.

    They lie on the path whose closed edges, and nodes without open channels, have the smallest sum of `cost`; of the
    channels of such a node the cheapest one opens. What is open costs nothing.
    """
    shut, best = frozenset(closed), best_channels(graph, closed, cost)

    def needed(edge: Edge) -> list[str]:
        return [gate for gate in (edge.gate if edge.gate in shut else None, best.get(edge.src)) if gate is not None]

    path = shortest_path(graph, lambda edge: sum(map(cost, needed(edge))))
    return list(dict.fromkeys(gate for edge in path for gate in needed(edge)))


def best_channels(graph: Graph, closed: Collection[str], cost: Callable[[str], float]) -> dict[str, str]:
    """For every node all of whose channels are closed, the cheapest of the gates that would open one."""
    if not graph.channel_gates:
        return {}
    coupling = couple(graph)
    price = {found: min((cost(gate), gate) for gate in gates) for found, gates in coupling.gates.items()}
    return {i: min(price[found] for found in coupling.of(i))[1] for i in coupling.silent(closed)}


def kept_by_strength(graph: Graph, closed: Collection[str], strength: Mapping[str, float]) -> list[str]:
    """The gates to keep open where closing all of `closed` would cut the network: the strongest that mend it."""
    return reopened(graph, closed, lambda gate: 1.0 / (1e-12 + max(strength.get(gate, 0.0), 0.0)))


def smallest_closed(graph: Graph, measure: str = "flops") -> set[str]:
    """The gates to close for the cheapest network of the space in a cost; ties go to fewer bytes moved.

    Where a path without gates leads to the output, all gates: no network of the space is cheaper. Else all but those
    on the path whose nodes cost least, and one channel of each of these. That is the cheapest network if every edge
    has a gate of its own and every op sums its inputs; gates shared by blocks, and ungated edges beside the path, keep
    more alive, and another path may then be cheaper.
    """
    gates = set(graph.gates())
    if not reopened(graph, gates, lambda gate: 1.0):
        return gates
    costs = {node_id: getattr(cost, measure) + 1e-12 * cost.mac_bytes for node_id, cost in node_costs(graph).items()}
    path = shortest_path(graph, lambda edge: costs[edge.dst])
    closed = gates - {edge.gate for edge in path if edge.gate is not None}
    opens = best_channels(graph, closed, lambda gate: 1.0)
    return closed - {opens[edge.src] for edge in path if edge.src in opens}
