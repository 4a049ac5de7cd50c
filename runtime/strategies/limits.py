"""Limits met by the search: `search.gates.gamma: auto` closes the weakest gates as a plan to the budget asks.

The planned size falls from the whole network's to the budget's, by equal factors in equal times, from `BEGINS` to
`ARRIVES` of the search. Every look closes the weakest edges and steps of channels that bring the network down to the
plan, and no more: gates that reach zero together, before the others have taken over what they did, do not go together.
Weak is what costs much and does little: strength is what the loss owes to a gate over what closing it would save.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from compiler import ops
from compiler.analysis.costs import node_costs
from compiler.analysis.guards import kept_by_strength
from compiler.analysis.rounding import closing_order
from compiler.ir.dominators import hanging
from compiler.ir.graph import Edge, Graph
from compiler.language.config import GateConfig
from compiler.passes.prune_zero_edges import prune
from runtime.strategies.penalties import channel_prices

BEGINS = 0.15  # share of the search that the first gates are watched for
ARRIVES = 0.75  # share of the search after which the budget should be met
LEAST = 1e-9  # share of the network's cost that every gate counts for at least
RETRIES = 32  # closed steps that are tried again at the end


@dataclass(frozen=True)
class Pace:
    """The plan of a search that has to meet a budget."""

    gamma: float  # the sparsity weight that closes a gate of no use in half of the time until `ARRIVES`
    whole: float  # how many budgets the whole network takes

    @classmethod
    def start(cls, whole: float, gates: GateConfig, init: float, steps: int, *, trained: bool = False) -> Pace:
        """The pace of a search of so many gate steps, of a network that takes so many budgets.

        A `trained` network gets no penalty: all its gates would shrink alike, faster than its weights can follow.
        """
        gamma = 0.0 if trained else init * (1 - gates.momentum) / (gates.lr * max(1.0, ARRIVES / 2 * steps))
        return cls(gamma, whole)

    def planned(self, done: float) -> float:
        """How many budgets the network may take after this share of the search."""
        left = 1 - min(1.0, max(0.0, done - BEGINS) / (ARRIVES - BEGINS))
        return float(max(1.0, self.whole) ** left)

    def gamma_at(self, done: float) -> float:
        """The sparsity weight after this share of the search.

        None once the plan has arrived: it would only push gates that stay to zero. A third of them ended below 0.05.
        """
        return self.gamma if self.planned(done) > 1 else 0.0


def strengths(graph: Graph, use: Mapping[str, float], measure: str) -> dict[str, float]:
    """The strength of every gate: what the loss owes to it (`use`) over its share of the network's `measure`."""
    costs = {node_id: float(getattr(cost, measure)) for node_id, cost in node_costs(graph).items()}
    saved, whole = savings(graph, costs), sum(costs.values()) or 1.0
    return {gate: use[gate] / max(saved[gate] / whole, LEAST) for gate in graph.gates()}


def savings(graph: Graph, costs: Mapping[str, float]) -> dict[str, float]:
    """What closing each gate alone would save, of costs by node.

    Of edges that is what hangs on them alone; see `channel_prices` for channels.
    """
    saved = channel_prices(graph, costs, ())
    for edge, alone in zip(graph.edges(), hanging(graph, costs), strict=True):
        if edge.gate is not None:
            saved[edge.gate] = saved.get(edge.gate, 0.0) + alone + costs[edge.dst] * _share(graph, edge)
    return saved


def _share(graph: Graph, edge: Edge) -> float:
    """The share of an op that one of several inputs causes."""
    if ops.op(graph.node(edge.dst).op).reads is ops.Reads.SUM:
        return 0.0
    widths = {other.slot: graph.node(other.src).shape[0] for other in graph.inputs(edge.dst)}
    return widths[edge.slot] / sum(widths.values()) if len(widths) > 1 else 0.0


def within_budget(
    graph: Graph,
    closed: set[str],
    strength: Mapping[str, float],
    share: Callable[[Graph], float],
    round_to: int,
    retries: int = RETRIES,
) -> set[str]:
    """The gates to close so that the network is within its budget and no step that was tried again would be.

    Only the gates' strength decides, whether the search has closed too many or too few. `share` says how many budgets a
    network takes; so many `retries` of the closed steps are tried again, the strongest first.
    """
    units = closing_order(graph, closed, strength, round_to)
    needed = set(kept_by_strength(graph, [gate for unit in units for gate in unit], strength))

    def shut(some: Sequence[list[str]]) -> set[str]:
        return {gate for unit in some for gate in unit} - needed

    def is_within(some: Sequence[list[str]]) -> bool:
        return share(prune(graph, shut(some))) <= 1

    gone = units[: bisect_left(range(len(units)), True, key=lambda count: is_within(units[:count]))]
    for unit in gone[:-1][::-1][:retries]:
        without = [other for other in gone if other is not unit]
        gone = without if is_within(without) else gone
    return shut(gone)
