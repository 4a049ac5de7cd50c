"""`widen`: one global multiplier on all widths, and the multiplier that a budget asks for.

A width c becomes the multiple of its step s nearest to m * c, at least s:

    c' = s * max(1, floor(m * c / s + 1/2))

The step is `round_to`, or a multiple of it where a grouped convolution asks for one. Equal widths stay equal; image
channels and logits stay; `compiler.analysis.channels` says what else is bound.

Costs never fall when m grows, so `solve_width` finds the largest multiplier of four decimals that the budget allows by
bisection.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, replace

from compiler.analysis.channels import NAME, WidthPlan, plan_widths
from compiler.analysis.limits import budget_share, limits_of, listed, measured
from compiler.errors import PassError
from compiler.ir.graph import Graph, Model
from compiler.language.config import BudgetConfig
from compiler.passes.base import Pass

PER_UNIT = 10_000  # multipliers that are tried between 0 and 1
DOUBLINGS = 20  # of the multiplier 1, until a network is too large for the budget


def widen(graph: Graph, multiplier: float, round_to: int) -> Graph:
    """The typed graph with every width multiplied and rounded; PassError where its widths cannot be scaled."""
    if not (multiplier > 0 and math.isfinite(multiplier)):
        raise PassError(NAME, graph.name, f"the multiplier is {multiplier}", "give a positive number")
    if round_to < 1:
        raise PassError(NAME, graph.name, f"round_to is {round_to}", "give a positive number of channels")
    return _multiplied(plan_widths(graph, round_to), multiplier)


def _multiplied(plan: WidthPlan, multiplier: float) -> Graph:
    return plan.apply({c: s * max(1, math.floor(multiplier * c / s + 0.5)) for c, s in plan.steps.items()})


@dataclass(frozen=True)
class Widen(Pass):
    """Multiply all widths; channels are rounded to a multiple of `round_to`."""

    multiplier: float = 1.0
    round_to: int = 8

    def run(self, model: Model) -> Model:
        """The wider or narrower model; PassError if it has weights, because they have the old widths."""
        if model.weights:
            raise PassError(
                self.name, model.graph.name, "the model has weights of the old widths", "widen before training"
            )
        return replace(model, graph=widen(model.graph, self.multiplier, self.round_to))


def solve_width(graph: Graph, budget: BudgetConfig) -> float:
    """The largest multiplier within the budget, in steps of 1 / PER_UNIT; 1 where there is none, or no width is free.

    PassError with the reachable range if even the narrowest network costs more, or the widest one less.
    """
    if not limits_of(budget):
        return 1.0
    plan = plan_widths(graph, budget.round_to)

    def share(multiplier: float) -> float:
        return budget_share(_multiplied(plan, multiplier), budget)

    require_reachable(graph, budget)
    if not plan.steps:
        return 1.0
    too_wide = next((2**n for n in range(DOUBLINGS + 1) if share(2**n) > 1), None)
    if too_wide is None:
        raise _out_of_reach(_multiplied(plan, 2**DOUBLINGS), budget, is_narrowest=False)
    tried = range(1, too_wide * PER_UNIT)
    return bisect_right(tried, 1.0, key=lambda number: share(number / PER_UNIT)) / PER_UNIT


def require_reachable(graph: Graph, budget: BudgetConfig) -> None:
    """PassError if even the narrowest network is over the budget."""
    narrowest = _multiplied(plan_widths(graph, budget.round_to), 1 / PER_UNIT)
    if budget_share(narrowest, budget) > 1:
        raise _out_of_reach(narrowest, budget, is_narrowest=True)


def describe_width(graph: Graph, multiplier: float, budget: BudgetConfig) -> str:
    """One line for people: multiplier, costs, and how much of the budget is left."""
    left = f", {1 - budget_share(graph, budget):.1%} of the budget left" if limits_of(budget) else ""
    return f"width x{multiplier:g}: {listed(measured(graph))}{left}"


def _out_of_reach(extreme: Graph, budget: BudgetConfig, *, is_narrowest: bool) -> PassError:
    name, verdict, side, hint = (
        ("narrowest", "costs more than", "upwards", "raise the budget, or lower budget.round_to")
        if is_narrowest
        else ("widest", "is still below", "downwards", "lower the budget")
    )
    asked = listed({limit.measure.name: limit.most for limit in limits_of(budget)}, " and ")
    return PassError(
        NAME,
        extreme.name,
        f"the {name} network (channels a multiple of {budget.round_to}) has {listed(measured(extreme), ' and ')}, "
        f"which {verdict} the budget of {asked}; the reachable range goes from there {side}",
        hint,
    )
