"""The smallest network of a space, and what is kept so that a network stays whole, against all gate patterns."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from compiler.analysis.costs import total_cost
from compiler.analysis.guards import kept_by_strength, reopened, shortest_path, smallest_closed
from compiler.ir.graph import INPUT, OUTPUT, Graph
from compiler.passes.prune_zero_edges import prune, surviving_edges
from tests.graphs import graph_of, random_graph

OPS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("conv", {"kernel": 1}),
    ("conv", {"kernel": 3}),
    ("sep_conv", {"kernel": 3}),
    ("max_pool", {"kernel": 3}),
    ("identity", {}),
    ("zero", {}),
    ("squeeze_excite", {}),
)


def patterns(graph: Graph) -> list[frozenset[str]]:
    """Every set of closed gates that leaves a network."""
    gates = graph.gates()
    sets = (frozenset(c) for n in range(len(gates) + 1) for c in itertools.combinations(gates, n))
    return [closed for closed in sets if surviving_edges(graph, closed)]


def cheapest(graph: Graph) -> int:
    return min(total_cost(prune(graph, closed)).flops for closed in patterns(graph))


def fully_gated(seed: int, nodes: int) -> Graph:
    """A random graph of ops that sum, every edge with a gate of its own; at most 2 * nodes + 2 gates."""
    rng = random.Random(seed)
    ids, parts = [INPUT], {}
    for index in range(nodes):
        sources = rng.sample(ids, min(len(ids), rng.randint(1, 2)))
        parts[f"n{index}"] = (*rng.choice(OPS), [(s, f"s/n{index}<{s}") for s in sources])
        ids.append(f"n{index}")
    read = {s for _, _, sources in parts.values() for s, _ in sources}
    loose = [i for i in parts if i not in read]
    parts["out"] = ("add", {}, [(s, f"s/out<{s}") for s in loose])
    return graph_of(parts, shape=(4, 5, 5))


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.integers(2, 3))
def test_smallest_is_exact_where_every_edge_has_a_gate(seed: int, nodes: int) -> None:
    graph = fully_gated(seed, nodes)
    assume(len(graph.gates()) <= 7 and surviving_edges(graph, ()))
    assert total_cost(prune(graph, smallest_closed(graph))).flops == cheapest(graph)


@settings(max_examples=40)
@given(st.integers(0, 10_000))
def test_smallest_is_exact_where_an_ungated_path_leads_through(seed: int) -> None:
    graph = random_graph(seed, nodes=4, gated=0.5)
    gates = graph.gates()
    assume(len(gates) <= 7 and surviving_edges(graph, gates))
    assert smallest_closed(graph) == set(gates)
    assert total_cost(prune(graph, gates)).flops == cheapest(graph)


@settings(max_examples=30)
@given(st.integers(0, 10_000))
def test_smallest_is_always_a_network_of_the_space(seed: int) -> None:
    graph = random_graph(seed, nodes=3, gated=0.8)
    assume(len(graph.gates()) <= 7)
    small = total_cost(prune(graph, smallest_closed(graph)))
    assert cheapest(graph) <= small.flops <= total_cost(graph).flops


def test_smallest_prefers_fewer_bytes_among_equal_multiply_adds() -> None:
    parts: dict[str, Any] = {
        "a": ("max_pool", {"kernel": 3, "stride": 2}, [(INPUT, "s/a<in")]),
        "b": ("max_pool", {"kernel": 3}, [(INPUT, "s/b<in")]),
        "c": ("max_pool", {"kernel": 3, "stride": 2}, [("b", "s/c<b")]),
        "out": ("add", {}, [("c", "s/out<c"), ("a", "s/out<a")]),
    }
    assert smallest_closed(graph_of(parts)) == {"s/b<in", "s/c<b", "s/out<c"}


def test_smallest_with_shared_gates_opens_them_everywhere() -> None:
    parts: dict[str, Any] = {}
    source = INPUT
    for block in ("b0", "b1"):
        parts[f"{block}.cheap"] = ("conv", {"kernel": 1}, [(source, "s/cheap<in")])
        parts[f"{block}.dear"] = ("conv", {"kernel": 3}, [(source, "s/dear<in")])
        parts[f"{block}.out"] = ("add", {}, [f"{block}.cheap", f"{block}.dear"])
        source = f"{block}.out"
    graph = graph_of(parts)
    assert smallest_closed(graph) == {"s/dear<in"}
    assert total_cost(prune(graph, {"s/dear<in"})).flops == cheapest(graph)


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.data())
def test_reopened_mends_what_is_cut_and_nothing_else(seed: int, data: st.DataObject) -> None:
    graph = random_graph(seed, nodes=6, gated=0.9)
    closed = data.draw(st.sets(st.sampled_from(graph.gates())) if graph.gates() else st.just(set()))
    kept = reopened(graph, closed, lambda edge: 1.0)
    assert set(kept) <= closed
    assert surviving_edges(graph, closed - set(kept))
    assert bool(kept) == (not surviving_edges(graph, closed))


def test_the_strongest_gate_is_kept() -> None:
    parts: dict[str, Any] = {
        "a": ("identity", {}, [(INPUT, "s/a<in")]),
        "b": ("identity", {}, [(INPUT, "s/b<in")]),
        "out": ("add", {}, [("a", "s/out<a"), ("b", "s/out<b")]),
    }
    graph = graph_of(parts)
    strength = {"s/a<in": 0.1, "s/out<a": 0.4, "s/b<in": 0.3, "s/out<b": 0.3}
    assert kept_by_strength(graph, graph.gates(), strength) == ["s/b<in", "s/out<b"]
    assert kept_by_strength(graph, {"s/a<in", "s/b<in"}, strength) == ["s/b<in"]
    assert kept_by_strength(graph, {"s/a<in"}, strength) == []
    assert kept_by_strength(graph, graph.gates(), {"s/a<in": 0.2}) == ["s/a<in", "s/out<a"]


def test_shortest_path_runs_from_input_to_output() -> None:
    parts: dict[str, Any] = {"a": ("identity", {}, [INPUT]), "out": ("add", {}, ["a", INPUT])}
    graph = graph_of(parts)
    assert [(e.src, e.dst) for e in shortest_path(graph, lambda edge: 1.0)] == [(INPUT, "out"), ("out", OUTPUT)]
    far = shortest_path(graph, lambda edge: 9.0 if edge.src == INPUT and edge.dst == "out" else 1.0)
    assert [e.src for e in far] == [INPUT, "a", "out"]


@pytest.mark.parametrize("share", ["none", "block"])
def test_smallest_of_a_space_without_shortcut(share: str) -> None:
    scope = {"none": ("b0", "b1"), "block": ("s", "s")}[share]
    parts: dict[str, Any] = {}
    source = INPUT
    for block, name in zip(("b0", "b1"), scope, strict=True):
        parts[f"{block}.x"] = ("sep_conv", {"kernel": 3}, [(source, f"{name}/x<in")])
        parts[f"{block}.y"] = ("avg_pool", {"kernel": 3}, [(source, f"{name}/y<in")])
        parts[f"{block}.out"] = (
            "project",
            {},
            [(f"{block}.x", f"{name}/out<x"), (f"{block}.y", f"{name}/out<y")],
        )
        source = f"{block}.out"
    graph = graph_of(parts)
    assert total_cost(prune(graph, smallest_closed(graph))).flops == cheapest(graph)
