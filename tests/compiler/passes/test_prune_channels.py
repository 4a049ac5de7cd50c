"""Closed channels: the network without them is the one with their gates at zero, by every road."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from compiler.errors import GraphspecError, PassError, SpecError
from compiler.ir.graph import Graph, Model
from compiler.ir.text import from_json, to_json
from compiler.ir.verify import verify
from compiler.lowering.torch.fx import load_gates, load_weights, lower
from compiler.passes.carry import take
from compiler.passes.pipeline import TO_COMPACT, TO_EXPORT, TO_INHERIT
from compiler.passes.prune_zero_edges import PruneZeroEdges, prune, pruned_tensors, surviving_edges
from tests.channel_graphs import loaded, spec_of
from tests.graphs import graph_of, random_graph, with_channel_gates
from tests.interpreter import evaluate, random_input, random_weights


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with TemporaryDirectory() as path:
        yield Path(path)


def network(seed: int, folder: Path) -> Graph:
    """A random network with gates on channels; examples that the compiler refuses are passed over."""
    rng = random.Random(seed)
    try:
        graph = loaded(folder, spec_of(seed, declared=rng.choice((0, 0.5, 1.0)), share=rng.choice(("none", "block"))))
    except SpecError:
        assume(False)
    assume(graph.channel_gates)
    return graph


def values_of(graph: Graph, seed: int, zeros: float = 0.35) -> dict[str, float]:
    """Random gates, some of them closed, that leave a path to the output."""
    rng = random.Random(seed)
    values = {gate: 0.0 if rng.random() < zeros else rng.uniform(0.2, 1.5) for gate in graph.gates()}
    try:
        prune(graph, closed(values))
    except PassError:
        assume(False)
    return values


def closed(values: dict[str, float]) -> set[str]:
    return {gate for gate, value in values.items() if value == 0}


def assert_equal(found: Any, expected: Any, tolerance: float = 1e-9) -> None:
    assert np.abs(found - expected).max() <= tolerance * (1 + np.abs(expected).max())


def gated(graph: Graph, weights: dict[str, Any], x: Any, values: dict[str, float]) -> Any:
    """What the whole network computes with some gates at zero."""
    return evaluate(graph, weights, x, values, edges=surviving_edges(graph, closed(values)))


def case(seed: int, folder: Path) -> tuple[Model, Any, Any]:
    """A random network with weights and some gates at zero, images for it, and what it computes of them."""
    graph = network(seed, folder)
    values, weights, x = values_of(graph, seed), random_weights(graph, seed), random_input(graph, seed)
    return Model(graph, values, weights), x, gated(graph, weights, x, values)


@pytest.mark.slow
@given(seed=st.integers(0, 100_000))
@settings(max_examples=300)
def test_the_pruned_network_is_the_gated_one(seed: int, folder: Path) -> None:
    model, x, expected = case(seed, folder)
    found = PruneZeroEdges().run(model)
    verify(found.graph)
    assert closed(dict(model.gates)).isdisjoint(found.graph.gates())
    assert_equal(evaluate(found.graph, found.weights, x, found.gates), expected)
    again = dict.fromkeys(found.graph.gates(), 1.0) | dict.fromkeys(found.graph.gates()[::3], 0.0)
    try:
        twice = prune(found.graph, closed(again))
    except PassError:
        return
    verify(twice)
    kept = {name: take(found.weights[name], cut) for name, cut in pruned_tensors(found.graph, twice).items()}
    assert_equal(evaluate(twice, kept, x, again), gated(found.graph, dict(found.weights), x, again))


@given(seed=st.integers(0, 100_000))
@settings(max_examples=30)
def test_gates_fold_into_weights(seed: int, folder: Path) -> None:
    model, x, expected = case(seed, folder)
    inherited = TO_INHERIT.run(model)
    assert not inherited.graph.gates()
    assert_equal(evaluate(inherited.graph, inherited.weights, x), expected)
    exported = TO_EXPORT.run(inherited)
    assert_equal(evaluate(exported.graph, exported.weights, x), expected)
    assert not TO_COMPACT.run(Model(model.graph, model.gates)).graph.gates()


@given(seed=st.integers(0, 100_000))
@settings(max_examples=20)
def test_torch_multiplies_channels_by_their_gates(seed: int, folder: Path) -> None:
    graph = network(seed, folder)
    rng = random.Random(seed)
    values = {gate: rng.uniform(-0.5, 1.5) for gate in graph.gates()}
    weights, x = random_weights(graph, seed), random_input(graph, seed)
    expected = evaluate(graph, weights, x, values)
    assert to_json(from_json(to_json(graph))) == to_json(graph)
    for kind in ({}, {"recompute": True}, {"apart": True}, {"lowering": "reference"}):
        module = lower(graph, **kind).double()  # type: ignore[arg-type]
        load_weights(module, weights)
        load_gates(module, graph, values)
        assert_equal(module.eval()(torch.tensor(x)).detach().numpy(), expected)


@given(seed=st.integers(0, 100_000))
@settings(max_examples=30)
def test_gates_of_edges_and_of_channels_go_together(seed: int) -> None:
    graph = with_channel_gates(random_graph(seed))
    assume(graph.channel_gates)
    values, weights, x = values_of(graph, seed, 0.25), random_weights(graph, seed), random_input(graph, seed)
    found = PruneZeroEdges().run(Model(graph, values, weights))
    verify(found.graph)
    assert_equal(evaluate(found.graph, found.weights, x, found.gates), gated(graph, weights, x, values))


def test_a_width_without_channels_takes_its_branch_along() -> None:
    graph = with_channel_gates(
        graph_of(
            {
                "stem": ("conv", {"kernel": 3}, ["input"]),
                "a": ("conv", {"kernel": 3}, ["stem"]),
                "b": ("conv", {"kernel": 3, "act": "none"}, ["a"]),
                "sum": ("add", {}, ["b", "stem"]),
                "pool": ("global_avg_pool", {}, ["sum"]),
                "logits": ("linear", {"channels": 3}, ["pool"]),
            }
        ),
        {"a"},
    )
    assert graph.channel_gates == {"a": ("v/a#0", "v/a#1", "v/a#2", "v/a#3")}
    found = prune(graph, graph.gates())
    assert [node.id for node in found.nodes()] == ["input", "stem", "sum", "pool", "logits", "output"]


@pytest.mark.parametrize("tied", [("add", {}), ("squeeze_excite", {}), ("multiply", {})])
def test_a_join_loses_an_input_together_with_what_its_channels_are_tied_to(tied: tuple[str, dict[str, Any]]) -> None:
    plain = graph_of(
        {
            "a": ("conv", {"kernel": 3, "channels": 2}, ["input"]),
            "b": ("conv", {"kernel": 3, "channels": 4}, ["input"]),
            "other": ("conv", {"kernel": 3, "channels": 6}, ["input"]),
            "join": ("concat", {}, ["a", "b"]),
            "tied": (*tied, ["join"] if tied[0] == "squeeze_excite" else ["join", "other"]),
            "pool": ("global_avg_pool", {}, ["tied"]),
            "logits": ("linear", {"channels": 3}, ["pool"]),
        }
    )
    graph = with_channel_gates(plain, {"a", "b"})
    values = {gate: 0.0 if gate.startswith("v/a") else 0.5 for gate in graph.gates()}
    weights, x = random_weights(graph, 1), random_input(graph, 1)
    found = PruneZeroEdges().run(Model(graph, values, weights))
    assert [node.id for node in found.graph.nodes() if "zero" in node.op] == []
    assert found.graph.node("tied").shape[0] == 4
    assert_equal(evaluate(found.graph, found.weights, x, found.gates), gated(graph, weights, x, values))


def test_a_network_without_channels_is_an_error() -> None:
    graph = with_channel_gates(graph_of({"a": ("conv", {"kernel": 3}, ["input"]), "b": ("conv", {"kernel": 1}, ["a"])}))
    with pytest.raises(PassError, match="no path from the input to the output survives"):
        prune(graph, graph.gates())


def test_gates_that_a_spec_cannot_have(tmp_path: Path) -> None:
    text = spec_of(1)
    lines = {
        "a: {op: conv, kernel: 3, gate: channels, from: in}\n      out: {op: add, from: [a, in]}": "tied to those of",
        "out: {op: conv, kernel: 3, gate: groups, from: in}": "has no groups; write gate: channels",
        "out: {op: conv, kernel: 3, gate: all, from: in}": "expected channels or groups",
    }
    start, end = text.index("    nodes:\n") + len("    nodes:\n"), text.index("  head:")
    for nodes, message in lines.items():
        with pytest.raises(GraphspecError, match=message):
            loaded(tmp_path, text[:start] + f"      {nodes}\n" + text[end:].replace("body: 2", "body: 1"))
