"""`widen`: one global multiplier on all widths, and the multiplier that a budget asks for.

A width c becomes the multiple of its step s nearest to m * c, at least s:

    c' = s * max(1, floor(m * c / s + 1/2))

The step is `round_to`, or a multiple of it where a grouped convolution asks for one. Equal widths stay equal; image
channels and logits stay; `compiler.analysis.channels` says what else is bound.

Costs grow with m in steps, at m = (k - 1/2) * s / c for k = 2, 3, ... and every width c. `solve_width` finds the last
of these steps that the budget allows, exactly (in fractions), by bisection. Where that leaves more than `NEAR` of the
budget, single widths may be rounded the other way, if that comes nearer.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction

from compiler.analysis.channels import NAME, WidthPlan, plan_widths
from compiler.analysis.costs import total_cost
from compiler.errors import PassError
from compiler.ir.graph import Graph, Model
from compiler.language.config import BudgetConfig
from compiler.ops import Cost
from compiler.passes.base import Pass

NEAR = 0.02  # share of the budget that may stay unused
MAX_MULTIPLIER = 2**20
MAX_LISTED = 64  # multipliers of a bisected interval that are listed
MAX_TURNED = 6  # widths that may be rounded the other way: all 2**n combinations are tried

Widths = dict[int, int]


def widen(graph: Graph, multiplier: float, round_to: int) -> Graph:
    """The typed graph with every width multiplied and rounded; PassError where its widths cannot be scaled."""
    if not (multiplier > 0 and math.isfinite(multiplier)):
        raise PassError(NAME, graph.name, f"the multiplier is {multiplier}", "give a positive number")
    if round_to < 1:
        raise PassError(NAME, graph.name, f"round_to is {round_to}", "give a positive number of channels")
    plan = plan_widths(graph, round_to)
    return plan.apply(_nearest(plan, Fraction(multiplier)))


@dataclass(frozen=True)
class Widen(Pass):
    """Multiply all widths; channels are rounded to a multiple of `round_to`."""

    name = NAME
    multiplier: float = 1.0
    round_to: int = 8

    def run(self, model: Model) -> Model:
        """The wider or narrower model; PassError if it has weights, because they have the old widths."""
        if model.weights:
            raise PassError(
                self.name, model.graph.name, "the model has weights of the old widths", "widen before training"
            )
        return replace(model, graph=widen(model.graph, self.multiplier, self.round_to))


# -- budgets ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Width:
    """The network that a budget allows."""

    multiplier: float
    graph: Graph
    cost: Cost
    channels: Mapping[int, int]  # every width of the given graph that may change -> its new value
    unused: float | None = None  # share of the tightest budget that is left; None without a budget

    def describe(self) -> str:
        """One line for people: multiplier, costs and how near to the budget they are."""
        line = f"width x{self.multiplier:.4g}: {self.cost.params:,} params, {self.cost.flops:,} FLOPs"
        if self.unused is None:
            return line
        line += f", {self.unused:.1%} under the budget"
        return line + (" (no rounding of the widths comes nearer)" if self.unused > NEAR else "")


def solve_width(graph: Graph, budget: BudgetConfig) -> Width:
    """The widest network within the budget; the graph as it is where there is none.

    PassError with the reachable range if even the narrowest network costs more.
    """
    if budget.params is None and budget.flops is None:
        return Width(1.0, graph, total_cost(graph), {})
    return _Solver(plan_widths(graph, budget.round_to), budget).solve()


@dataclass(frozen=True)
class _Solver:
    plan: WidthPlan
    budget: BudgetConfig

    def used(self, widths: Widths) -> float:
        """Share of the tightest budget that the network of these widths takes; over 1 does not fit."""
        cost = self.plan.cost(widths)
        shares = [(cost.params, self.budget.params), (cost.flops, self.budget.flops)]
        return max(amount / limit for amount, limit in shares if limit is not None)

    def fits(self, multiplier: Fraction) -> bool:
        """Whether all widths at this multiplier are within the budget."""
        return self.used(_nearest(self.plan, multiplier)) <= 1

    def solve(self) -> Width:
        """The result; see `solve_width`."""
        if not self.fits(Fraction(0)):
            raise self._out_of_reach(Fraction(0), "costs more than", "raise the budget, or lower budget.round_to")
        if not self.plan.steps:
            return self._width(Fraction(1), {})
        low, high = self._last_step()
        multiplier = _short_decimal(low, high)
        widths = _nearest(self.plan, multiplier)
        if self.used(widths) >= 1 - NEAR:
            return self._width(multiplier, widths)
        turned = max([widths, *self._turned(multiplier)], key=self._rank)
        return self._width(multiplier if turned == widths else _multiplier_of(self.plan, turned), turned)

    def _width(self, multiplier: Fraction, widths: Widths) -> Width:
        graph = self.plan.apply(widths)
        return Width(float(multiplier), graph, total_cost(graph), widths, 1 - self.used(widths))

    def _out_of_reach(self, multiplier: Fraction, verdict: str, hint: str) -> PassError:
        cost = self.plan.cost(_nearest(self.plan, multiplier))
        asked = [f"{n:,} {name}" for name, n in (("params", self.budget.params), ("FLOPs", self.budget.flops)) if n]
        extreme = "narrowest" if multiplier == 0 else "widest"
        side = "upwards" if multiplier == 0 else "downwards"
        return PassError(
            NAME,
            self.plan.graph.name,
            f"the {extreme} network (channels a multiple of {self.budget.round_to}) has {cost.params:,} params and "
            f"{cost.flops:,} FLOPs, which {verdict} the budget of {' and '.join(asked)}; the reachable range goes from "
            f"there {side}",
            hint,
        )

    # -- the global multiplier ----------------------------------------------------------------------------------------

    def _last_step(self) -> tuple[Fraction, Fraction]:
        """Multipliers from the first to (without) the second give the widest network that fits."""
        low, high = Fraction(0), Fraction(1)
        while self.fits(high):
            low, high = high, 2 * high
            if high > MAX_MULTIPLIER:
                raise self._out_of_reach(low, "is still below", "lower the budget")
        while _count_steps(self.plan, low, high) > MAX_LISTED:
            middle = (low + high) / 2
            low, high = (middle, high) if self.fits(middle) else (low, middle)
        points = [low, *_steps_between(self.plan, low, high)]
        first, last = 0, len(points) - 1  # points[first] fits, points[last] does not
        while last - first > 1:
            middle_index = (first + last) // 2
            first, last = (middle_index, last) if self.fits(points[middle_index]) else (first, middle_index)
        return points[first], points[last]

    # -- rounding the other way ---------------------------------------------------------------------------------------

    def _turned(self, multiplier: Fraction) -> Iterator[Widths]:
        """All roundings up and down that fit, at the multipliers around where rounding down fits and up does not."""
        seen: set[tuple[int, ...]] = set()
        for point in self._straddling(multiplier):
            for widths in _roundings(self.plan, point):
                key = tuple(widths.values())
                if key not in seen:
                    seen.add(key)
                    if self.used(widths) <= 1:
                        yield widths

    def _straddling(self, multiplier: Fraction) -> Iterator[Fraction]:
        """One multiplier between every two at which a width needs no rounding, as far as the budget lies between."""
        point = multiplier
        while self.used(_rounded(self.plan, point, up=True)) > 1:
            yield point
            edge = max(Fraction(math.ceil(point * c / s) - 1) * s / c for c, s in self.plan.steps.items())
            if edge <= 0:
                break
            point = edge - _resolution(self.plan)
        point = multiplier
        while True:
            edge = min(Fraction(math.floor(point * c / s) + 1) * s / c for c, s in self.plan.steps.items())
            point = edge + _resolution(self.plan)
            if self.used(_rounded(self.plan, point, up=False)) > 1:
                break
            yield point

    def _rank(self, widths: Widths) -> tuple[float, tuple[int, ...]]:
        return self.used(widths), tuple(widths.values())


def _nearest(plan: WidthPlan, multiplier: Fraction) -> Widths:
    return {c: s * max(1, math.floor(multiplier * c / s + Fraction(1, 2))) for c, s in plan.steps.items()}


def _rounded(plan: WidthPlan, multiplier: Fraction, *, up: bool) -> Widths:
    rounding = math.ceil if up else math.floor
    return {c: s * max(1, rounding(multiplier * c / s)) for c, s in plan.steps.items()}


def _roundings(plan: WidthPlan, multiplier: Fraction) -> Iterator[Widths]:
    """Every combination of rounding up and down; all but the `MAX_TURNED` widest go to the nearest."""
    down, up = _rounded(plan, multiplier, up=False), _rounded(plan, multiplier, up=True)
    turned = sorted(plan.steps)[-MAX_TURNED:]
    fixed = _nearest(plan, multiplier)
    for choice in itertools.product(*({down[c], up[c]} for c in turned)):
        yield fixed | dict(zip(turned, choice, strict=True))


def _multiplier_of(plan: WidthPlan, widths: Widths) -> Fraction:
    """A multiplier from which no width is a whole step away, apart from those that are one step wide."""
    low = max((Fraction(widths[c] - s, c) for c, s in plan.steps.items() if widths[c] > s), default=Fraction(0))
    high = min(Fraction(widths[c] + s, c) for c, s in plan.steps.items())
    margin = (high - low) / 4
    return _short_decimal(low + margin, high - margin)


def _count_steps(plan: WidthPlan, low: Fraction, high: Fraction) -> int:
    half = Fraction(1, 2)
    return sum(math.floor(high * c / s + half) - math.floor(low * c / s + half) for c, s in plan.steps.items())


def _steps_between(plan: WidthPlan, low: Fraction, high: Fraction) -> list[Fraction]:
    """Multipliers over `low` and up to `high` at which a width grows by a step (or, at the bottom, would)."""
    half = Fraction(1, 2)
    found: set[Fraction] = set()
    for c, s in plan.steps.items():
        first, last = (math.floor(bound * c / s + half) for bound in (low, high))
        found.update((k - half) * s / c for k in range(first + 1, last + 1))
    return sorted(found)


def _resolution(plan: WidthPlan) -> Fraction:
    """Less than the distance between any two multipliers at which a width needs no rounding."""
    return Fraction(1, 2 * math.prod(sorted(plan.steps)[-2:]))


def _short_decimal(low: Fraction, high: Fraction) -> Fraction:
    """The decimal with the fewest places in [low, high), over zero, as the float nearest to it."""
    for places in itertools.count():
        unit = Fraction(1, 10**places)
        candidate = Fraction(float(max(math.ceil(low / unit), 1) * unit))
        if low <= candidate < high:
            return candidate
    raise AssertionError("unreachable")


__all__ = ["Widen", "Width", "solve_width", "widen"]
