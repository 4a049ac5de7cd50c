"""Limits met by the search: `search.gates.gamma: auto` closes the weakest gates as a plan that leads to the budget asks.

The planned size falls from the whole network's to the budget's, by equal factors in equal times, until `ARRIVES` of the
search. Every look closes the weakest edges and steps of channels that bring the network down to the plan, and no more:
gates that reach zero together, before the others have taken over what they did, do not go together.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from compiler.analysis.guards import kept_by_strength
from compiler.analysis.rounding import closing_order
from compiler.ir.graph import Graph
from compiler.language.config import GateConfig
from compiler.passes.prune_zero_edges import prune

ARRIVES = 0.75  # share of the search after which the budget should be met
RETRIES = 32  # closed steps that are tried again at the end


@dataclass(frozen=True)
class Pace:
    """The plan of a search that has to meet a budget."""

    gamma: float  # the sparsity weight that closes a gate of no use in half of the time until `ARRIVES`
    whole: float  # how many budgets the whole network takes

    @classmethod
    def start(cls, whole: float, gates: GateConfig, init: float, steps: int) -> Pace:
        """The pace of a search of so many gate steps, of a network that takes so many budgets."""
        return cls(init * (1 - gates.momentum) / (gates.lr * max(1.0, ARRIVES / 2 * steps)), whole)

    def planned(self, done: float) -> float:
        """How many budgets the network may take after this share of the search."""
        return max(1.0, self.whole) ** (1 - min(1.0, done / ARRIVES))


def within_budget(
    graph: Graph, closed: set[str], strength: Mapping[str, float], share: Callable[[Graph], float], round_to: int
) -> set[str]:
    """The gates to close so that the network is within its budget and no step that was tried again would be.

    Only the gates' strength decides, whether the search has closed too many or too few. `share` says how many budgets a
    network takes.
    """
    units = closing_order(graph, closed, strength, round_to)
    needed = set(kept_by_strength(graph, [gate for unit in units for gate in unit], strength))

    def shut(some: Sequence[list[str]]) -> set[str]:
        return {gate for unit in some for gate in unit} - needed

    def is_within(some: Sequence[list[str]]) -> bool:
        return share(prune(graph, shut(some))) <= 1

    gone = units[: bisect_left(range(len(units)), True, key=lambda count: is_within(units[:count]))]
    for unit in gone[:-1][-RETRIES:][::-1]:
        without = [other for other in gone if other is not unit]
        gone = without if is_within(without) else gone
    return shut(gone)
