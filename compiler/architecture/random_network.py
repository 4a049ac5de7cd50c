"""The control experiment: a random network of the space at a given cost (the paper's random baseline)."""

from __future__ import annotations

import random
from bisect import bisect_left

from compiler.analysis.costs import total_cost
from compiler.analysis.guards import kept_by_strength
from compiler.errors import GraphspecError
from compiler.ir.graph import Graph
from compiler.passes.prune_zero_edges import prune


def random_closed(graph: Graph, params: int, seed: int) -> set[str]:
    """Gates to close, drawn at random one after another until the network has at most `params` parameters.

    A gate whose closing would cut the output off stays open. The number of gates closed is found by bisection over a
    fixed random order, which is exact because closing more gates never adds parameters. GraphspecError if even the
    smallest network along that order is larger.
    """
    order = graph.gates()
    random.Random(seed).shuffle(order)
    order = _closable(graph, order)
    if _params(graph, order) > params:
        raise GraphspecError(
            f"no random network of {params:,} parameters: closing every gate that may be closed leaves "
            f"{_params(graph, order):,}\n  try: a larger search.random_params"
        )
    return set(order[: bisect_left(range(len(order)), True, key=lambda n: _params(graph, order[:n]) <= params)])


def _closable(graph: Graph, order: list[str]) -> list[str]:
    """`order` without the gates that must stay open: those of the path that is cut last."""
    rank = {gate: float(i + 1) for i, gate in enumerate(order)}
    kept = set(kept_by_strength(graph, order, rank))
    return [gate for gate in order if gate not in kept]


def _params(graph: Graph, closed: list[str]) -> int:
    return total_cost(prune(graph, closed)).params
