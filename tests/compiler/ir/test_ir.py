"""The graph: its order, its edits and that what it remembers is never out of date."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.ir.graph import (
    INPUT,
    OUTPUT,
    Block,
    Choice,
    Decision,
    Edge,
    Graph,
    Node,
    Phase,
    Subject,
    TensorType,
    attrs_of,
    gate_scope,
)
from tests.graphs import graph_of, random_graph, with_choices


def chain(*ids: str) -> Graph:
    graph = Graph("chain")
    for node_id in ids:
        graph.add(Node(node_id, "identity"))
    for src, dst in itertools.pairwise(ids):
        graph.connect(src, dst)
    return graph


def ids(graph: Graph) -> list[str]:
    return [node.id for node in graph.nodes()]


def test_order_is_topological_with_ties_as_added() -> None:
    graph = Graph("order")
    for node_id in ("d", "b", "a", "c"):
        graph.add(Node(node_id, "identity"))
    graph.connect("a", "d")
    assert ids(graph) == ["b", "a", "d", "c"]  # d waits for a, then comes first again


@settings(max_examples=50)
@given(st.integers(0, 2**31), st.integers(2, 20))
def test_order_has_every_node_after_what_it_reads(seed: int, count: int) -> None:
    rng = random.Random(seed)
    names = [f"n{i}" for i in range(count)]
    graph = Graph("random")
    for name in rng.sample(names, count):
        graph.add(Node(name, "identity"))
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :] if rng.random() < 0.3]
    for src, dst in rng.sample(pairs, len(pairs)):
        graph.connect(src, dst)
    position = {name: i for i, name in enumerate(ids(graph))}
    assert sorted(position) == sorted(names)
    assert all(position[e.src] < position[e.dst] for e in graph.edges())
    assert {(e.src, e.dst) for e in graph.edges()} == set(pairs)
    for name in names:
        assert [e.slot for e in graph.inputs(name)] == list(range(len(graph.inputs(name))))
        assert {e.dst for e in graph.users(name)} == {b for a, b in pairs if a == name}
        assert graph.descendants(name) == {m for m in names if name in graph.ancestors(m)}


def test_reads_are_never_out_of_date() -> None:
    graph = chain("a", "b")
    assert (len(graph.inputs("b")), len(graph.edges()), ids(graph)) == (1, 1, ["a", "b"])
    graph.add(Node("c", "identity"))
    assert ids(graph) == ["a", "b", "c"]
    graph.connect("c", "b", "s/b<c")
    assert ids(graph) == ["a", "c", "b"]
    assert graph.edges() == graph.inputs("b") == (Edge("a", "b", 0), Edge("c", "b", 1, "s/b<c"))
    graph.replace(Node("c", "relu", type=TensorType((3,))))
    assert [node.op for node in graph.nodes()] == ["identity", "relu", "identity"]
    assert graph.node("c").shape == (3,)


def test_a_copy_is_independent() -> None:
    graph = chain("a", "b", "c")
    graph.edges()
    twin = graph.copy(Phase.SEARCH)
    twin.connect("a", "c")
    twin.replace(Node("a", "relu"))
    assert (twin.phase, graph.phase) == (Phase.SEARCH, Phase.RAW)
    assert len(twin.inputs("c")) == 2
    assert len(graph.inputs("c")) == 1
    assert graph.node("a").op == "identity"


def test_edits_that_make_no_sense_are_refused() -> None:
    graph = chain("a", "b")
    with pytest.raises(ValueError, match="node 'a' exists already"):
        graph.add(Node("a", "relu"))
    with pytest.raises(ValueError, match="'b' reads 'a' already"):
        graph.connect("a", "b", "s/b<a")
    with pytest.raises(ValueError, match="no node 'z'"):
        graph.connect("z", "b")
    for lookup in (graph.node, graph.inputs, graph.users):
        with pytest.raises(KeyError):
            lookup("z")
    with pytest.raises(KeyError):
        graph.replace(Node("z", "relu"))
    assert "z" not in graph
    assert len(graph.edges()) == graph.edge_count() == 1


def test_a_cycle_is_found_and_named() -> None:
    graph = chain("a", "b", "c", "d")
    assert graph.find_cycle() == []
    graph.connect("d", "b")
    assert graph.find_cycle() == ["b", "c", "d", "b"]
    with pytest.raises(ValueError, match="the graph has a cycle: b -> c -> d -> b"):
        graph.nodes()


def test_restriction_renumbers_slots_and_drops_what_nothing_touches() -> None:
    graph = graph_of(
        {
            "blk.a": ("identity", {}, [INPUT]),
            "blk.b": ("relu", {}, [INPUT]),
            "blk.out": ("add", {}, [("blk.a", "s/out<a"), ("blk.b", "s/out<b")]),
        }
    )
    kept = graph.restricted_to(e for e in graph.edges() if "blk.a" not in (e.src, e.dst))
    assert ids(kept) == [INPUT, "blk.b", "blk.out", OUTPUT]
    assert kept.inputs("blk.out") == (Edge("blk.b", "blk.out", 0, "s/out<b"),)
    assert len(graph.edges()) == 5


def test_gates_come_once_in_order_and_by_scope() -> None:
    graph = graph_of(
        {
            "b0.x": ("identity", {}, [(INPUT, "s/x<in")]),
            "b1.x": ("identity", {}, [("b0.x", "s/x<in"), (INPUT, "b1/x<skip")]),
        }
    )
    assert graph.gates() == ["s/x<in", "b1/x<skip"]
    assert graph.gate_scopes() == {"s": ["s/x<in"], "b1": ["b1/x<skip"]}
    assert gate_scope("stage0.block1/out<in") == "stage0.block1"


def two_vectors() -> Graph:
    graph = graph_of(
        {
            "a": ("conv", {"kernel": 3}, [(INPUT, "s/a<in")]),
            "b": ("relu", {}, [("a", "s/b<a"), (INPUT, "s/b<in")]),
        }
    )
    graph.channel_gates = {"a": ("s/a#0", None, "s/a#1", None), "b": (None, "s/b#0", None, None)}
    graph.choices = (Choice("s/pick", ("s/b<in", "s/a<in"), 1), Choice("s/any", ("s/a#0",)))
    return graph


def test_decisions_are_the_choices_and_then_every_other_gate() -> None:
    assert two_vectors().decisions() == (
        Decision("s/pick", ("s/b<in", "s/a<in"), 1, Subject.EDGE),
        Decision("s/any", ("s/a#0",), None, Subject.CHANNELS),
        Decision("s/b<a", ("s/b<a",), None, Subject.EDGE),
        Decision("s/a#1", ("s/a#1",), None, Subject.CHANNELS),
        Decision("s/b#0", ("s/b#0",), None, Subject.CHANNELS),
    )


def test_gates_of_edges_come_before_those_of_channels() -> None:
    graph = two_vectors()
    assert graph.gates() == ["s/a<in", "s/b<a", "s/b<in", "s/a#0", "s/a#1", "s/b#0"]
    assert graph.gate_scopes() == {"s": graph.gates()}
    graph.connect(INPUT, OUTPUT, "s/new")
    assert graph.edge_gates() == ["s/a<in", "s/b<a", "s/b<in", "s/new"]


@settings(max_examples=30)
@given(st.integers(0, 10_000))
def test_every_gate_is_in_one_decision(seed: int) -> None:
    graph = with_choices(random_graph(seed), seed)
    decided = [gate for decision in graph.decisions() for gate in decision.alternatives]
    assert sorted(decided) == sorted(graph.gates())
    edges = set(graph.edge_gates())
    assert all((d.subject is Subject.EDGE) == (g in edges) for d in graph.decisions() for g in d.alternatives)
    twin = graph.copy()
    twin.choices = ()
    assert (len(twin.decisions()), graph.copy().decisions()) == (len(decided), graph.decisions())


def test_restriction_drops_gates_without_a_place_and_choices_without_a_gate() -> None:
    graph = two_vectors()
    kept = graph.restricted_to([e for e in graph.edges() if "a" not in (e.src, e.dst)])
    assert kept.channel_gates == {"b": (None, "s/b#0", None, None)}
    assert kept.choices == (Choice("s/pick", ("s/b<in",), 1),)
    straight = graph_of({"c": ("relu", {}, [INPUT])})
    straight.take_gates_of(graph)
    assert (straight.channel_gates, straight.choices) == ({}, ())


def test_small_values() -> None:
    assert str(TensorType((3, 4, 5))) == "3x4x5"
    assert TensorType((3, 4, 5)).numel == 60
    assert attrs_of({"b": [1, 2], "a": None}) == (("a", None), ("b", (1, 2)))
    block = Block("stage0.block1", "normal", "stage0", (INPUT,), "stage0.block1.out")
    assert block.holds("stage0.block1.out")
    assert not block.holds("stage0.block10.out")
    with pytest.raises(AssertionError, match="has no type yet"):
        _ = Node("a", "relu").shape


@settings(max_examples=20)
@given(st.integers(0, 10_000))
def test_restricting_to_all_edges_changes_nothing(seed: int) -> None:
    graph = random_graph(seed)
    same = graph.restricted_to(graph.edges())
    assert same.nodes() == graph.nodes()
    assert same.edges() == graph.edges()
