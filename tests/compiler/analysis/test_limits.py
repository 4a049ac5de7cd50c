"""limits: one table of measures, which budgets, messages and records read."""

from __future__ import annotations

from compiler.analysis.costs import total_cost
from compiler.analysis.limits import MEASURES, budget_share, compared, limits_of, listed, measured
from compiler.language.config import BudgetConfig
from tests.graphs import random_graph


def test_every_measure_is_a_key_of_the_budget() -> None:
    timed = {"latency"}  # which no formula gives
    assert {measure.name for measure in MEASURES} == set(BudgetConfig.model_fields) - {"round_to"} - timed
    assert limits_of(BudgetConfig()) == ()


def test_the_tightest_limit_decides() -> None:
    graph = random_graph(3)
    cost = total_cost(graph)
    assert measured(graph) == {"params": cost.params, "flops": cost.flops}
    exact = BudgetConfig(params=cost.params, flops=4 * cost.flops)
    assert [(limit.measure.name, limit.most) for limit in limits_of(exact)] == list(
        {"params": cost.params, "flops": 4 * cost.flops}.items()
    )
    assert budget_share(graph, exact) == 1
    assert budget_share(graph, BudgetConfig(params=cost.params - 1, flops=4 * cost.flops)) > 1
    assert budget_share(graph, BudgetConfig(params=2 * cost.params, flops=2 * cost.flops)) == 0.5
    assert budget_share(graph, BudgetConfig()) == 0


def test_figures_are_written_for_people() -> None:
    before, after = {"params": 4000, "flops": 20_000, "mac_bytes": 7}, {"params": 1000, "flops": 20_000}
    assert listed(before) == "4,000 params, 20,000 FLOPs"
    assert listed({"flops": 3e6}, " and ") == "3,000,000 FLOPs"
    assert compared(before, after) == "params 4,000 -> 1,000 (25.0%), FLOPs 20,000 -> 20,000 (100.0%)"
