"""Every rule fires on a small bad graph, and only where it should."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.errors import RuleError
from compiler.ir.graph import INPUT, OUTPUT, Choice, Graph, Node, Phase, TensorType
from compiler.ir.verify import RULES, verify, violations
from graphspec.cli.listings import rule_listing
from tests.graphs import graph_of, random_graph, with_output

ALL_RULES = {rule.__name__: rule for rules in RULES.values() for rule in rules}
IMAGE = TensorType((4, 6, 6))


def good(phase: Phase = Phase.SEARCH) -> Graph:
    return graph_of({"a": ("conv", {"kernel": 3}, [INPUT]), "b": ("relu", {}, ["a"])}, phase=phase)


def with_cycle() -> Graph:
    graph = good()
    graph.add(Node("c", "relu", type=IMAGE))
    graph.connect("b", "c")
    graph.connect("c", "a")
    return graph


def with_two_inputs() -> Graph:
    graph = good()
    graph.add(Node("again", INPUT, type=IMAGE))
    return graph


def with_a_keyword() -> Graph:
    graph = good()
    graph.add(Node("stage.in", "relu", type=IMAGE))
    return graph


def with_an_unknown_op() -> Graph:
    graph = good()
    graph.replace(replace(graph.node("b"), op="rleu"))
    return graph


def with_a_node_that_reads_nothing() -> Graph:
    graph = good()
    graph.add(Node("c", "relu", type=IMAGE))
    return graph


def with_a_gated_output() -> Graph:
    graph = Graph("gated", Phase.SEARCH)
    graph.add(Node(INPUT, INPUT, type=IMAGE))
    graph.add(Node(OUTPUT, OUTPUT, type=IMAGE))
    graph.connect(INPUT, OUTPUT, "s/output<input")
    return graph


def with_a_gated_product() -> Graph:
    graph = good()
    graph.replace(replace(graph.node("b"), op="multiply", attrs=()))
    graph.connect(INPUT, "b", "s/b<input")
    return graph


def with_a_gate_without_scope() -> Graph:
    graph = good()
    graph.connect(INPUT, "b", "gate")
    return graph


def with_a_dead_node() -> Graph:
    graph = good()
    graph.add(Node("c", "relu", type=IMAGE))
    graph.connect("a", "c")
    return graph


def with_an_untyped_node() -> Graph:
    graph = good()
    graph.replace(replace(graph.node("b"), type=None))
    return graph


def with_a_wrong_type() -> Graph:
    graph = good()
    graph.replace(replace(graph.node("b"), type=TensorType((5, 6, 6))))
    return graph


def with_a_gate_when_compact() -> Graph:
    graph = good(Phase.COMPACT)
    graph.connect(INPUT, "b", "s/b<input")
    return graph


def with_gates(node_id: str, *gates: str | None) -> Graph:
    graph = good()
    graph.connect(INPUT, "b", "s/b<input")
    graph.channel_gates = {node_id: gates}
    return graph


def with_a_choice(*choices: Choice) -> Graph:
    graph = graph_of(
        {"a": ("conv", {"kernel": 3}, [(INPUT, "s/b<input")]), "b": ("conv", {"kernel": 3, "channels": 2}, ["a"])}
    )
    graph.channel_gates = {"a": ("s/a", None, None, None)}
    graph.choices = choices
    return graph


BAD: dict[str, Callable[[], Graph]] = {
    "graph_is_acyclic": with_cycle,
    "one_input_and_a_main_output": with_two_inputs,
    "outputs_have_names": lambda: with_output(good(), "a", "output_2", name="output"),
    "ids_are_module_paths": with_a_keyword,
    "ops_are_known": with_an_unknown_op,
    "every_op_has_inputs": with_a_node_that_reads_nothing,
    "output_edge_has_no_gate": with_a_gated_output,
    "products_have_no_gates": with_a_gated_product,
    "gates_are_scoped": with_a_gate_without_scope,
    "gates_have_one_subject": lambda: with_gates("a", "s/b<input", None, None, None),
    "channel_gates_fit_their_nodes": lambda: with_gates("a", "s/a#0"),
    "choices_are_between_gates": lambda: with_a_choice(Choice("s/c", ("s/other",))),
    "every_node_on_a_path": with_a_dead_node,
    "every_type_known": with_an_untyped_node,
    "types_follow_the_ops": with_a_wrong_type,
    "closed_channels_are_zeros": lambda: with_gates("a", "s/a#0", None, None, None),
    "no_gates_left": with_a_gate_when_compact,
}


def test_every_rule_has_a_bad_graph() -> None:
    assert set(BAD) == set(ALL_RULES)


@pytest.mark.parametrize("name", ALL_RULES)
def test_the_rule_fires(name: str) -> None:
    graph = BAD[name]()
    found = violations(graph)
    assert {error.rule for error in found} == {name}
    assert all(error.where and error.hint for error in found)
    with pytest.raises(RuleError, match=name) as raised:
        verify(graph)
    assert str(raised.value) == str(found[0])


@pytest.mark.parametrize("phase", Phase)
def test_a_good_graph_breaks_no_rule(phase: Phase) -> None:
    assert violations(good(phase)) == []


@settings(max_examples=40)
@given(st.integers(0, 10_000))
def test_random_graphs_break_no_rule_but_that_gates_must_be_gone(seed: int) -> None:
    graph = random_graph(seed)
    assert violations(graph) == []
    left = violations(graph, Phase.COMPACT)
    assert [(error.rule, error.where) for error in left] == [("no_gates_left", gate) for gate in graph.gates()]


def test_rules_of_later_phases_are_not_asked_of_raw_graphs() -> None:
    raw = with_an_untyped_node().copy(Phase.RAW)
    assert violations(raw) == []
    assert violations(with_a_dead_node(), Phase.RAW) == []


def test_all_violations_of_the_first_broken_rule_are_found() -> None:
    graph = good()
    for name in ("Upper", "1st", "del", "a-b", "ok.fine_1"):
        graph.add(Node(name, "relu", type=IMAGE))
    found = [str(error) for error in violations(graph)]
    assert len(found) == 4
    assert all(word in line for word, line in zip(("Upper", "1st", "del", "a-b"), found, strict=True))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda g: g.connect(OUTPUT, "b2"), "the output is read by a node"),
        (lambda g: g.connect("second", "b2"), "the output is read by a node"),
        (lambda g: g.replace(replace(g.node("second"), attrs=())), "second: the output is called 'output'"),
        (lambda g: g.replace(replace(g.node(OUTPUT), attrs=(("name", "main"),))), "the output is called 'main'"),
        (lambda g: g.connect("a", "second"), "the output reads 2 values"),
        (lambda g: g.connect("a", OUTPUT), "the output reads 2 values"),
    ],
)
def test_the_output_is_the_end(edit: Callable[[Graph], None], message: str) -> None:
    graph = with_output(good(), "b")
    graph.add(Node("b2", "relu", type=IMAGE))
    graph.connect("a", "b2")
    edit(graph)
    with pytest.raises(RuleError, match=message):
        verify(graph)


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (with_gates("z", "s/a#0"), "z: has gates on channels and is no op's node"),
        (with_gates(INPUT, *["s/a#0"] * 4), "input: has gates on channels and is no op's node"),
        (with_gates("a", "s/a#0", "s/a#1"), "a: has 4 channels and 2 gates on them"),
    ],
)
def test_gates_of_channels_must_fit_their_node(graph: Graph, message: str) -> None:
    with pytest.raises(RuleError, match=message) as raised:
        verify(graph)
    assert raised.value.rule == "channel_gates_fit_their_nodes"


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ([Choice("c", ())], "has no gates"),
        ([Choice("c", ("s/z",))], "has no gate 's/z'"),
        ([Choice("c", ("s/a", "s/b<input"))], "several subjects"),
        ([Choice("c", ("s/a",)), Choice("d", ("s/a",))], "a second time"),
        ([Choice("c", ("s/a", "s/a"))], "a second time"),
        ([Choice("c", ("s/a",), 0)], "lets 0 alternatives stay"),
    ],
)
def test_a_choice_must_be_between_gates(choices: list[Choice], message: str) -> None:
    with pytest.raises(RuleError, match=message):
        verify(with_a_choice(*choices))


def test_gates_and_choices_that_fit_break_no_rule_until_the_graph_is_compact() -> None:
    graph = with_a_choice(Choice("c", ("s/b<input",), 1), Choice("d", ("s/a",)))
    assert violations(graph) == []
    left = [(error.rule, error.where) for error in violations(graph, Phase.COMPACT)]
    assert left == [("no_gates_left", "s/b<input"), ("no_gates_left", "s/a")]


def test_a_node_may_serve_another_output_than_the_main_one() -> None:
    graph = good()
    graph.add(Node("c", "relu", type=IMAGE))
    graph.connect("a", "c")
    assert [error.rule for error in violations(graph)] == ["every_node_on_a_path"]
    assert violations(with_output(graph, "c", weight=0.0), Phase.COMPACT) == []


def test_missing_ends_are_named() -> None:
    with pytest.raises(RuleError, match="no input node"):
        verify(Graph("empty"))


def test_types_that_do_not_fit_are_explained() -> None:
    graph = good()
    graph.replace(replace(graph.node("a"), attrs=(("channels", 6), ("kernel", 3)), type=TensorType((6, 6, 6))))
    graph.connect(INPUT, "b")
    with pytest.raises(RuleError, match="relu adds its inputs, which must have one type; found 6x6x6 and 4x6x6"):
        verify(graph)


def test_every_rule_is_listed_with_its_explanation() -> None:
    listing = rule_listing()
    for name, rule in ALL_RULES.items():
        assert f"{name}  (" in listing
        assert " ".join((rule.__doc__ or "missing docstring").split()) in listing
