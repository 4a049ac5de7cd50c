"""The random control: sizes are met, the path stays, and bisection finds what trying every length would."""

from __future__ import annotations

import random
from collections.abc import Collection

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.analysis.costs import total_cost
from compiler.analysis.guards import kept_by_strength
from compiler.architecture.random_network import random_closed
from compiler.elaborate.builder import load
from compiler.errors import GraphspecError
from compiler.ir.graph import Graph
from compiler.passes.prune_zero_edges import prune
from tests.graphs import random_graph


def params(graph: Graph, closed: Collection[str] = ()) -> int:
    return total_cost(prune(graph, closed)).params


def shuffled_gates(graph: Graph, seed: int) -> list[str]:
    """The order that is drawn, without the gates of the path that is cut last."""
    order = graph.gates()
    random.Random(seed).shuffle(order)
    kept = kept_by_strength(graph, order, {gate: float(i + 1) for i, gate in enumerate(order)})
    return [gate for gate in order if gate not in kept]


@settings(max_examples=40)
@given(graph_seed=st.integers(0, 400), seed=st.integers(0, 5))
def test_closing_one_more_gate_never_adds_parameters(graph_seed: int, seed: int) -> None:
    graph = random_graph(graph_seed)
    order = shuffled_gates(graph, seed)
    sizes = [params(graph, order[:count]) for count in range(len(order) + 1)]
    assert sizes == sorted(sizes, reverse=True)


@settings(max_examples=40)
@given(graph_seed=st.integers(0, 400), seed=st.integers(0, 5), share=st.floats(0, 1))
def test_bisection_closes_as_few_gates_as_the_size_asks_for(graph_seed: int, seed: int, share: float) -> None:
    graph = random_graph(graph_seed)
    order = shuffled_gates(graph, seed)
    smallest, largest = params(graph, order), params(graph)
    wanted = round(smallest + share * (largest - smallest))
    first = next(n for n in range(len(order) + 1) if params(graph, order[:n]) <= wanted)
    assert random_closed(graph, wanted, seed) == set(order[:first])


@pytest.mark.parametrize("spec", ["digits", "hand_wired", "darts_cell"])
def test_shipped_spaces_are_drawn_near_the_size(spec: str) -> None:
    graph = load(f"specs/{spec}.yaml")[1]
    full, order = params(graph), shuffled_gates(graph, 3)
    wanted = (full + params(graph, order)) // 2
    drawn = random_closed(graph, wanted, 3)
    assert params(graph, drawn) <= wanted
    last = max(drawn, key=order.index)
    assert params(graph, drawn - {last}) > wanted  # no gate was closed that need not be


def test_seeds_draw_different_networks_and_one_seed_the_same() -> None:
    graph = load("specs/digits.yaml")[1]
    draws = [frozenset(random_closed(graph, params(graph) * 2 // 3, seed)) for seed in (0, 1, 2, 0)]
    assert len(set(draws)) == 3
    assert draws[0] == draws[3]


def test_the_full_size_closes_nothing() -> None:
    graph = load("specs/digits.yaml")[1]
    assert random_closed(graph, params(graph), 0) == set()


def test_a_size_below_the_smallest_says_how_small_it_gets() -> None:
    graph = load("specs/digits.yaml")[1]
    smallest = params(graph, shuffled_gates(graph, 0))
    assert params(graph, random_closed(graph, smallest, 0)) == smallest
    with pytest.raises(GraphspecError, match=f"leaves {smallest:,}\n.*search.random_params"):
        random_closed(graph, smallest - 1, 0)
