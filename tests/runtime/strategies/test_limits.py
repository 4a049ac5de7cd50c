"""The plan of a search that meets its budget, and what gates are worth."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from benchmarks.common import shipped
from compiler.analysis.costs import node_costs, total_cost
from compiler.analysis.guards import kept_by_strength
from compiler.ir.graph import Graph
from compiler.language.config import GateConfig
from compiler.passes.prune_zero_edges import prune
from runtime.strategies.limits import ARRIVES, BEGINS, Pace, savings, strengths
from tests.graphs import random_graph

PACE = Pace.start(whole=8.0, gates=GateConfig(), init=1.0, steps=1000)


def test_the_plan_waits_and_falls_by_equal_factors_to_the_budget() -> None:
    middle = (BEGINS + ARRIVES) / 2
    assert [PACE.planned(done) for done in (0.0, BEGINS, middle, ARRIVES, 1.0)] == pytest.approx([8, 8, 8**0.5, 1, 1])
    assert PACE.planned(ARRIVES) == PACE.planned(1.0) == 1.0  # no rounding error may ask for more than the budget
    assert [PACE.gamma_at(done) for done in (0.0, middle, ARRIVES, 1.0)] == [PACE.gamma, PACE.gamma, 0.0, 0.0]


def test_a_trained_network_has_no_penalty() -> None:
    trained = Pace.start(whole=8.0, gates=GateConfig(), init=1.0, steps=1000, trained=True)
    assert {trained.gamma_at(done / 10) for done in range(11)} == {0.0}
    assert [trained.planned(done / 10) for done in range(11)] == [PACE.planned(done / 10) for done in range(11)]


def test_a_network_within_its_budget_has_nothing_to_lose() -> None:
    small = Pace.start(whole=0.7, gates=GateConfig(), init=1.0, steps=1000)
    assert {small.planned(done / 10) for done in range(11)} == {1.0}


@given(st.floats(0, 1), st.floats(0, 1))
def test_the_plan_never_grows(first: float, second: float) -> None:
    early, late = sorted((first, second))
    assert 1.0 <= PACE.planned(late) <= PACE.planned(early) <= 8.0


def alone(graph: Graph, gate: str) -> int:
    """The multiply-adds that a network loses with one gate."""
    return total_cost(graph).flops - total_cost(prune(graph, {gate})).flops


def flops(graph: Graph) -> dict[str, float]:
    return {node_id: float(cost.flops) for node_id, cost in node_costs(graph).items()}


@pytest.mark.parametrize("name", ["own_images", "channels", "digits"])
def test_savings_are_what_the_network_loses_with_the_gate(name: str) -> None:
    _, graph = shipped(name)
    saved = savings(graph, flops(graph))
    assert saved.keys() == set(graph.gates())
    for gate in graph.gates()[::5]:
        if not kept_by_strength(graph, [gate], {}):
            assert saved[gate] == pytest.approx(alone(graph, gate), rel=1e-6)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1))
def test_savings_of_single_edges_are_never_below_nothing_nor_above_the_network(seed: int) -> None:
    graph = random_graph(seed)
    assume(graph.gates())
    saved, whole = savings(graph, flops(graph)), total_cost(graph).flops
    shared = {gate: sum(edge.gate == gate for edge in graph.edges()) for gate in graph.edge_gates()}
    for gate, edges in shared.items():
        assert 0 <= saved[gate] <= 2 * edges * max(1, whole)


def test_strength_is_use_over_the_share_of_the_cost() -> None:
    _, graph = shipped("channels")
    gates = graph.gates()
    strength = strengths(graph, dict.fromkeys(gates, 2.0), "flops")
    whole = total_cost(graph).flops
    for gate in gates[::7]:
        if not kept_by_strength(graph, [gate], {}):
            assert strength[gate] == pytest.approx(2.0 * whole / alone(graph, gate), rel=1e-6)
