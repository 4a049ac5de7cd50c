"""Random networks of a space within a budget: edges, channels, and what a search found on other places."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from compiler.analysis.limits import budget_share
from compiler.analysis.rounding import widths
from compiler.elaborate.builder import load
from compiler.ir.graph import Graph
from compiler.language.config import BudgetConfig
from compiler.passes.prune_zero_edges import prune
from runtime.strategies.random import closed_at_random, permuted_levels, random_levels

SPECS = Path(__file__).parents[3] / "specs"


@pytest.fixture(scope="module", params=["digits", "channels"])
def graph(request: pytest.FixtureRequest) -> Graph:
    return load(SPECS / f"{request.param}.yaml")[1]


def test_draws_fit_the_budget_and_differ(graph: Graph) -> None:
    budget = BudgetConfig(flops=round(0.3 * budget_share(graph, BudgetConfig(flops=1))), round_to=4)
    drawn = [closed_at_random(graph, budget, random_levels(graph, seed)) for seed in (0, 1, 2)]
    assert drawn[0] == closed_at_random(graph, budget, random_levels(graph, 0))
    assert len({frozenset(closed) for closed in drawn}) == 3
    for closed in drawn:
        assert 0.7 < budget_share(prune(graph, closed), budget) <= 1


def test_counts_of_channels_are_drawn_apart() -> None:
    graph = load(SPECS / "channels.yaml")[1]
    closed = closed_at_random(graph, BudgetConfig(flops=1_000_000, round_to=1), random_levels(graph, 0))
    kept = [1 - sum(gate in closed for gate in gates) / len(gates) for gates in widths(graph).values()]
    assert max(kept) > min(kept) + 0.3


@pytest.mark.parametrize("share", [0.001, 10.0])
def test_a_budget_out_of_reach_still_draws(graph: Graph, share: float) -> None:
    most = BudgetConfig(flops=1)
    budget = BudgetConfig(flops=max(1, round(share * budget_share(graph, most))), round_to=4)
    drawn = {frozenset(closed_at_random(graph, budget, random_levels(graph, seed))) for seed in (0, 1, 2)}
    assert len(drawn) == 3


def test_permuted_levels_are_those_of_the_search(graph: Graph) -> None:
    gates = {gate: float(n + 1) for n, gate in enumerate(graph.gates()) if n % 3}
    found = permuted_levels(graph, gates, 5)
    edges = graph.edge_gates()
    assert Counter(round(found[gate], 3) for gate in edges) == Counter(gates.get(gate, 0.0) for gate in edges)
    assert found != permuted_levels(graph, gates, 6)
