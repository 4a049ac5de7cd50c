"""What hangs on single edges: nodes that nothing reaches without them, or that reach nothing without them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import networkx as nx

from compiler.ir.graph import INPUT, Graph

Ways: TypeAlias = "nx.DiGraph[str | int]"  # nodes by id, and edges by number between them
END = -1  # of all ways through a network


def hanging(graph: Graph, costs: Mapping[str, float]) -> list[float]:
    """For each of `graph.edges()` what those nodes cost that it alone joins to the input, or to the outputs."""
    ways: Ways = nx.DiGraph()
    edges = graph.edges()
    for number, edge in enumerate(edges):
        ways.add_edges_from([(edge.src, number), (number, edge.dst)])
    ways.add_edges_from((node.id, END) for node in graph.outputs().values())
    behind, before = _dominated(ways, INPUT, costs), _dominated(ways.reverse(), END, costs)
    return [behind[number] + before[number] for number in range(len(edges))]


def _dominated(ways: Ways, start: str | int, costs: Mapping[str, float]) -> dict[str | int, float]:
    """What each point of the ways costs together with all that cannot be reached from the start but through it."""
    above = nx.immediate_dominators(ways, start)
    found = {point: costs[point] if isinstance(point, str) else 0.0 for point in ways}
    for point in [point for point in nx.topological_sort(ways) if point in above and point != start][::-1]:
        found[above[point]] += found[point]
    return found
