"""What a network can be limited in: the rows of `MEASURES`, each a key of the section `budget`.

Whoever sets widths, checks a network against its budget or writes figures for people reads this table. A further limit
(memory, the size of a file) is a row here and a key in `compiler.language.config.BudgetConfig`. A latency is no formula
of the graph: the search measures it (`runtime.strategies.latency`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from compiler.analysis.costs import total_cost
from compiler.ir.graph import Graph
from compiler.language.config import BudgetConfig


@dataclass(frozen=True)
class Measure:
    """A number that says how large a network is."""

    name: str  # its key in `budget`, in results and in records
    unit: str  # what stands behind a number
    title: str  # of a chart
    of: Callable[[Graph], float]  # of a typed graph

    def text(self, value: float) -> str:
        """A value as people read it: `3,000,000 params`."""
        return f"{value:,.0f} {self.unit}"


MEASURES = (
    Measure("params", "params", "Parameters", lambda graph: total_cost(graph).params),
    Measure("flops", "FLOPs", "FLOPs per image", lambda graph: total_cost(graph).flops),
)


@dataclass(frozen=True)
class Limit:
    """The largest value that a measure may have."""

    measure: Measure
    most: float

    def share(self, graph: Graph) -> float:
        """How much of the limit a network takes: 1 is just allowed, more is not."""
        return self.measure.of(graph) / self.most


def limits_of(budget: BudgetConfig) -> tuple[Limit, ...]:
    """The limits that a budget sets."""
    given = {measure: getattr(budget, measure.name) for measure in MEASURES}
    return tuple(Limit(measure, most) for measure, most in given.items() if most is not None)


def budget_share(graph: Graph, budget: BudgetConfig) -> float:
    """How much of its tightest limit a network takes; 0 without limits."""
    return max((limit.share(graph) for limit in limits_of(budget)), default=0.0)


def measured(graph: Graph) -> dict[str, float]:
    """Every measure of a network, by name."""
    return {measure.name: measure.of(graph) for measure in MEASURES}


def listed(values: Mapping[str, float], between: str = ", ") -> str:
    """The measures among these values, for people: `3,000,000 params, 40,000,000 FLOPs`."""
    return between.join(measure.text(values[measure.name]) for measure in MEASURES if measure.name in values)


def compared(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    """The measures of two networks side by side, for people: `params 40 -> 10 (25.0%), FLOPs ...`."""
    pairs = ((measure.unit, before[measure.name], after[measure.name]) for measure in MEASURES)
    return ", ".join(f"{unit} {old:,.0f} -> {new:,.0f} ({new / max(old, 1):.1%})" for unit, old, new in pairs)
