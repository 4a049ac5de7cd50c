"""Limits met by the search: `search.gates.gamma: auto` finds the sparsity weight that leads to the budget.

The planned size falls from the whole network's to the budget's, by equal factors in equal times, until `ARRIVES` of the
search. After every look gamma doubles where the network is larger than planned and halves where it is smaller. At the
end the weakest steps of channels and edges close until the network is within its budget, or the strongest that were
closed come back while it has room: the last one taken back would be too much.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from compiler.analysis.guards import kept_by_strength
from compiler.analysis.limits import budget_share
from compiler.analysis.rounding import closing_order
from compiler.ir.graph import Graph
from compiler.language.config import BudgetConfig, GateConfig
from compiler.passes.prune_zero_edges import prune

ARRIVES = 0.75  # share of the search after which the budget should be met
CHANGE = 2.0  # factor of gamma at a look
FURTHEST = 64.0  # gamma stays within this factor of where it began


@dataclass
class Pace:
    """The sparsity weight of a search that has to meet a budget."""

    budget: BudgetConfig
    first: float  # the weight that closes a gate of no use in half of the time until `ARRIVES`
    whole: float  # how many budgets the whole network takes
    gamma: float

    @classmethod
    def start(cls, graph: Graph, budget: BudgetConfig, gates: GateConfig, init: float, steps: int) -> Pace:
        """The pace of a search of so many gate steps over this graph."""
        first = init * (1 - gates.momentum) / (gates.lr * max(1.0, ARRIVES / 2 * steps))
        return cls(budget, first, budget_share(graph, budget), first)

    def look(self, done: float, graph: Graph, closed: Collection[str]) -> str:
        """Set gamma after this share of the search; one line for people."""
        share = budget_share(prune(graph, closed), self.budget)
        planned = max(1.0, self.whole) ** (1 - min(1.0, done / ARRIVES))
        factor = CHANGE if share > planned else 1 / CHANGE
        self.gamma = min(max(self.gamma * factor, self.first / FURTHEST), self.first * FURTHEST)
        return f"{share:.2f} times the budget (planned {planned:.2f}): gamma is {self.gamma:.3g} now"


def within_budget(graph: Graph, closed: set[str], strength: Mapping[str, float], budget: BudgetConfig) -> set[str]:
    """The gates to close so that the network is within its budget and the next step would be over it.

    Only the gates' strength decides, whether the search has closed too many or too few.
    """
    units = closing_order(graph, closed, strength, budget.round_to)
    needed = set(kept_by_strength(graph, [gate for unit in units for gate in unit], strength))

    def shut(count: int) -> set[str]:
        return {gate for unit in units[:count] for gate in unit} - needed

    def is_within(count: int) -> bool:
        return budget_share(prune(graph, shut(count)), budget) <= 1

    return shut(bisect_left(range(len(units)), True, key=is_within))
