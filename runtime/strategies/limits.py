"""Limits met by the search: `search.gates.gamma: auto` finds the sparsity weight that leads to the budget.

The planned size falls from the whole network's to the budget's, by equal factors in equal times, until `ARRIVES` of the
search. After every look gamma is multiplied by the square of what the network is larger than planned, at most by 2 and
at least by 1/2. At the end the weakest steps of channels and edges are closed, as many as the budget asks for, and of
the closed ones the strongest come back that still fit.
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
CHANGE = 2.0  # most that gamma is multiplied or divided by at a look
RETRIES = 32  # closed steps that are tried again at the end
FURTHEST = 64.0  # gamma stays within this factor of where it began


@dataclass
class Pace:
    """The sparsity weight of a search that has to meet a budget."""

    first: float  # the weight that closes a gate of no use in half of the time until `ARRIVES`
    whole: float  # how many budgets the whole network takes
    gamma: float

    @classmethod
    def start(cls, whole: float, gates: GateConfig, init: float, steps: int) -> Pace:
        """The pace of a search of so many gate steps, of a network that takes so many budgets."""
        first = init * (1 - gates.momentum) / (gates.lr * max(1.0, ARRIVES / 2 * steps))
        return cls(first, whole, first)

    def look(self, done: float, share: float) -> str:
        """Set gamma after this share of the search, of a network that takes so many budgets; one line for people."""
        planned = max(1.0, self.whole) ** (1 - min(1.0, done / ARRIVES))
        factor = min(max((share / planned) ** 2, 1 / CHANGE), CHANGE)
        self.gamma = min(max(self.gamma * factor, self.first / FURTHEST), self.first * FURTHEST)
        return f"{share:.2f} times the budget (planned {planned:.2f}): gamma is {self.gamma:.3g} now"


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
