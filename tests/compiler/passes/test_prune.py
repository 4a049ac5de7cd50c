"""prune-zero-edges: what survives, what the weights lose, and that not one logit changes."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.errors import PassError
from compiler.ir.graph import INPUT, OUTPUT, Block, Edge, Graph, Model
from compiler.ir.text import text
from compiler.ir.verify import verify
from compiler.lowering.torch.fx import lower
from compiler.passes.carry import take
from compiler.passes.prune_zero_edges import PruneZeroEdges, prune, pruned_tensors, surviving_edges
from tests.graphs import graph_of, model_of, random_gates, random_graph, with_choices, with_output
from tests.interpreter import evaluate, random_input, random_weights

Parts = dict[str, tuple[str, dict[str, Any], list[str | tuple[str, str]]]]


def close_by_hand(graph: Graph, closed: set[str]) -> set[Edge]:
    """The fixed point by its definition: drop what is closed, dead or starved, one round after the other."""
    edges = {e for e in graph.edges() if e.gate not in closed and graph.node(e.src).op != "zero"}
    while True:
        sources, fed = {e.src for e in edges} | {OUTPUT}, {e.dst for e in edges} | {INPUT}
        left = {e for e in edges if e.dst in sources and e.src in fed}
        if left == edges:
            return edges
        edges = left


def zero_gates(gates: dict[str, float]) -> set[str]:
    return {gate for gate, value in gates.items() if value == 0.0}


@settings(max_examples=60)
@given(st.integers(0, 10_000))
def test_choices_lose_what_is_pruned(seed: int) -> None:
    graph = with_choices(random_graph(seed), seed)
    closed = zero_gates(random_gates(graph, seed))
    if not surviving_edges(graph, closed):
        return
    pruned = prune(graph, closed)
    verify(pruned)
    alive = set(pruned.gates())
    for choice in graph.choices:
        left = [c.gates for c in pruned.choices if c.id == choice.id]
        kept = tuple(gate for gate in choice.gates if gate in alive)
        assert left == ([kept] if kept else [])
    assert alive.isdisjoint(closed)


def test_what_any_output_needs_is_kept_and_each_needs_a_path() -> None:
    parts: Parts = {
        "left": ("relu", {}, [("input", "b/left<input")]),
        "right": ("silu", {}, [("input", "b/right<input")]),
        "pool": ("global_avg_pool", {}, ["left"]),
    }
    graph = with_output(graph_of(parts), "right")
    assert [node.id for node in prune(graph, set()).nodes()] == ["input", "left", "right", "pool", "output", "second"]
    for closed in ("b/left<input", "b/right<input"):
        with pytest.raises(PassError, match="no path"):
            prune(graph, {closed})


def diamond(left: float = 1.0, right: float = 1.0) -> Model:
    parts: Parts = {
        "left": ("conv", {"kernel": 3}, [("input", "b/left<input")]),
        "right": ("sep_conv", {"kernel": 3}, [("input", "b/right<input")]),
        "sum": ("add", {}, ["left", "right"]),
    }
    graph = graph_of(parts)
    return Model(graph, {"b/left<input": left, "b/right<input": right}, random_weights(graph, 0))


def ids(model: Model) -> list[str]:
    return [node.id for node in model.graph.nodes()]


# -- what survives --------------------------------------------------------------------------------------------------


def test_surviving_edges_agree_with_the_definition_on_2000_graphs() -> None:
    for seed in range(2000):
        graph = random_graph(seed, nodes=6)
        gates = random_gates(graph, seed, zeros=(seed % 10) / 10)
        assert surviving_edges(graph, zero_gates(gates)) == close_by_hand(graph, zero_gates(gates)), seed


def test_a_zero_gate_takes_the_branch_behind_it() -> None:
    pruned = PruneZeroEdges().run(diamond(left=0.0))
    assert ids(pruned) == ["input", "right", "sum", "output"]
    assert set(pruned.gates) == {"b/right<input"}
    assert all(name.startswith("right.") for name in pruned.weights)


def test_a_tiny_gate_is_not_zero() -> None:
    model = diamond(left=1e-12)
    pruned = PruneZeroEdges().run(model)
    assert text(pruned.graph) == text(model.graph)
    assert pruned.weights.keys() == model.weights.keys()


def test_a_negative_zero_is_zero() -> None:
    assert "left" not in ids(PruneZeroEdges().run(diamond(left=-0.0)))


def test_a_starved_node_closes_what_it_feeds() -> None:
    parts: Parts = {
        "a": ("conv", {"kernel": 3}, [("input", "b/a<input")]),
        "c": ("conv", {"kernel": 3}, ["a"]),
        "sum": ("add", {}, ["c", "input"]),
    }
    pruned = PruneZeroEdges().run(Model(graph_of(parts), {"b/a<input": 0.0}))
    assert [(e.src, e.dst) for e in pruned.graph.edges()] == [("input", "sum"), ("sum", "output")]


def test_a_zero_node_carries_nothing() -> None:
    parts: Parts = {"none": ("zero", {}, ["input"]), "sum": ("add", {}, ["none", "input"])}
    assert ids(PruneZeroEdges().run(model_of(graph_of(parts)))) == ["input", "sum", "output"]


def test_an_all_pruned_block_is_the_identity() -> None:
    parts: Parts = {
        "blk.a": ("sep_conv", {"kernel": 3}, ["input"]),
        "blk.mix": ("project", {}, [("blk.a", "blk/mix<a")]),
        "blk.out": ("add", {}, ["blk.mix", "input"]),
    }
    graph = graph_of(parts, blocks=(Block("blk", "normal", "blk", (INPUT,), "blk.out"),))
    model = Model(graph, {"blk/mix<a": 0.0}, random_weights(graph, 0))
    pruned = PruneZeroEdges().run(model)
    x = random_input(graph, 0)
    assert ids(pruned) == ["input", "blk.out", "output"]
    assert pruned.graph.blocks == graph.blocks
    np.testing.assert_array_equal(evaluate(pruned.graph, pruned.weights, x), x)


def test_a_block_that_nothing_needs_leaves_the_list() -> None:
    parts: Parts = {
        "one.out": ("conv", {"kernel": 3}, [("input", "one/out<in")]),
        "two.out": ("add", {}, ["one.out", "input"]),
    }
    blocks = (Block("one", "k", "one", (INPUT,), "one.out"), Block("two", "k", "two", ("one.out", INPUT), "two.out"))
    pruned = PruneZeroEdges().run(Model(graph_of(parts, blocks=blocks), {"one/out<in": 0.0}))
    assert pruned.graph.blocks == (replace(blocks[1], inputs=(INPUT,)),)


def test_an_output_that_nothing_reaches_names_the_block_and_the_penalty() -> None:
    parts: Parts = {
        "stem": ("conv", {"kernel": 3}, ["input"]),
        "blk.out": ("conv", {"kernel": 3}, [("stem", "blk/out<stem")]),
        "last": ("conv", {"kernel": 3}, ["blk.out"]),
    }
    graph = graph_of(parts, blocks=(Block("blk", "k", "blk", ("stem",), "blk.out"),))
    with pytest.raises(PassError, match=r"search\.gates\.gamma") as caught:
        PruneZeroEdges().run(Model(graph, {"blk/out<stem": 0.0}))
    assert (caught.value.name, caught.value.where) == ("prune-zero-edges", "blk")


def test_pruning_twice_changes_nothing_more() -> None:
    for seed in range(50):
        model = living_model(random_joins, seed)
        if model is not None:
            once = PruneZeroEdges().run(model)
            assert text(PruneZeroEdges().run(once).graph) == text(once.graph), seed


# -- what the weights lose ------------------------------------------------------------------------------------------


def joined(tail: Parts, zero: str = "b/join<b") -> tuple[Model, Model]:
    """`join` concatenates a (4 channels), b (3) and c (2), then `tail`; before and after closing one gate."""
    parts: Parts = {
        "a": ("conv", {"kernel": 1, "channels": 4}, ["input"]),
        "b": ("conv", {"kernel": 1, "channels": 3}, ["input"]),
        "c": ("conv", {"kernel": 1, "channels": 2}, ["input"]),
        "join": ("concat", {}, [("a", "b/join<a"), ("b", "b/join<b"), ("c", "b/join<c")]),
    }
    graph = graph_of(parts | tail)
    gates = dict.fromkeys(graph.gates(), 0.5) | {zero: 0.0}
    model = Model(graph, gates, random_weights(graph, 1))
    return model, PruneZeroEdges().run(model)


def test_project_loses_the_slice_of_the_lost_input() -> None:
    parts: Parts = {
        "a": ("conv", {"kernel": 1, "channels": 2}, ["input"]),
        "b": ("conv", {"kernel": 1, "channels": 3}, ["input"]),
        "mix": ("project", {"channels": 5}, [("a", "b/mix<a"), ("b", "b/mix<b")]),
    }
    graph = graph_of(parts)
    model = Model(graph, {"b/mix<a": 0.0, "b/mix<b": 1.0}, random_weights(graph, 0))
    pruned = PruneZeroEdges().run(model)
    np.testing.assert_array_equal(pruned.weights["mix.conv.weight"], model.weights["mix.conv.weight"][:, 2:])


def test_a_loss_passes_channelwise_ops_and_ends_at_the_weights() -> None:
    model, pruned = joined(
        {
            "act": ("relu", {}, ["join"]),
            "dw": ("depthwise_conv", {"kernel": 3, "bias": False, "norm": "none", "act": "none"}, ["act"]),
            "pool": ("max_pool", {"kernel": 2, "stride": 2}, ["dw"]),
            "flat": ("flatten", {}, ["pool"]),
            "logits": ("linear", {"channels": 3}, ["flat"]),
        }
    )
    plan = pruned_tensors(model.graph, pruned.graph)
    assert plan["dw.weight"] == ((0, (0, 1, 2, 3, 7, 8)),)
    assert plan["logits.weight"] == ((1, tuple(range(4 * 9)) + tuple(range(7 * 9, 9 * 9))),)
    assert plan["logits.bias"] == ()
    assert pruned.graph.node("pool").shape[0] == 6


@pytest.mark.parametrize(
    ("op", "attrs"),
    [
        ("batch_norm", {}),
        ("sigmoid", {}),
        ("layer_norm", {}),
        ("squeeze_excite", {}),
        ("depthwise_conv", {"kernel": 3}),
        ("conv", {"kernel": 1, "groups": 3, "channels": 3}),
        ("mean", {"dims": [1], "keep": True}),
    ],
)
def test_zeros_stand_in_where_a_loss_would_change_the_logits(op: str, attrs: dict[str, Any]) -> None:
    model, pruned = joined({"tail": (op, attrs, ["join"])})
    assert [e.src for e in pruned.graph.inputs("join")] == ["a", "join_zero1", "c"]
    assert pruned.graph.node("join") == model.graph.node("join")
    assert_same(model, pruned)


def test_zeros_go_when_a_weight_can_take_the_loss_later() -> None:
    _, pruned = joined(
        {
            "keeps": ("batch_norm", {}, [("join", "b/keeps<join")]),
            "gives": ("conv", {"kernel": 1}, ["join"]),
            "sum": ("add", {}, ["keeps", "gives"]),
        }
    )
    assert "join_zero1" in pruned.graph
    closed = replace(pruned, gates=dict(pruned.gates) | {"b/keeps<join": 0.0})
    last = PruneZeroEdges().run(closed)
    assert [e.src for e in last.graph.inputs("join")] == ["a", "c"]
    assert last.weights["gives.conv.weight"].shape[1] == 6
    assert_same(closed, last)


def test_output_channels_that_follow_the_input_are_written_down() -> None:
    model, pruned = joined({"tail": ("conv", {"kernel": 3}, ["join"])})
    assert pruned.graph.node("tail").shape == model.graph.node("tail").shape
    assert dict(pruned.graph.node("tail").attrs)["channels"] == 9


def test_slices_fit_torch_tensors_too() -> None:
    weight = torch.arange(24.0).reshape(2, 3, 4)
    assert torch.equal(take(weight, ((1, (0, 2)),)), weight[:, [0, 2]])
    assert torch.equal(take(weight, ((1, (0, 2)), (0, (1,)))), weight[1:2, [0, 2]])
    assert take(weight, ()) is weight


# -- not one logit changes ------------------------------------------------------------------------------------------


def random_joins(seed: int) -> Graph:
    """A random chain of joins and sums, with everything that passes, ends or refuses a loss of channels between."""
    rng = random.Random(seed)
    parts: Parts = {}
    same: list[str] = ["input"]  # values of one size, any number of channels

    def wire(dst: str, sources: list[str]) -> list[str | tuple[str, str]]:
        return [(s, f"j/{dst}<{s}") if rng.random() < 0.6 else s for s in sources]

    ops = (
        ("relu", {}), ("sigmoid", {}), ("silu", {}), ("max_pool", {"kernel": 3}), ("avg_pool", {"kernel": 3}),
        ("batch_norm", {}), ("conv", {"kernel": 3, "channels": 4}), ("conv", {"kernel": 1}),
        ("sep_conv", {"kernel": 3}),
        ("depthwise_conv", {"kernel": 3, "bias": False, "norm": "none", "act": "none"}), ("squeeze_excite", {}),
        ("project", {"channels": 3}), ("identity", {}), ("mean", {"dims": [2], "keep": False}), ("layer_norm", {}),
    )  # fmt: skip
    for index in range(6):
        join = f"join{index}"
        parts[join] = ("concat", {}, wire(join, rng.sample(same, min(len(same), rng.randint(1, 3)))))
        same.append(join)
        for number in range(rng.randint(1, 2)):
            op, attrs = rng.choice([o for o in ops if o[0] != "mean"])
            user = f"use{index}_{number}"
            parts[user] = (op, attrs, wire(user, [join]))
            same.append(user)
    read = {s if isinstance(s, str) else s[0] for _, _, sources in parts.values() for s in sources}
    parts["last"] = ("concat", {}, wire("last", [i for i in parts if i not in read]))
    tail = rng.choice(("global_avg_pool", "flatten"))
    parts["tail"] = (tail, {}, ["last"])
    parts["logits"] = ("linear", {"channels": 3}, ["tail"])
    return graph_of(parts, shape=(2, 4, 4), name=f"joins{seed}")


def living_model(make: Any, seed: int) -> Model | None:
    """A random graph with random zero gates; None if nothing survives."""
    graph = make(seed)
    gates = random_gates(graph, seed, zeros=0.1 + 0.1 * (seed % 6))
    alive = close_by_hand(graph, zero_gates(gates))
    return Model(graph, gates, random_weights(graph, seed)) if alive else None


def assert_same(model: Model, pruned: Model) -> None:
    """The compact graph's logits are those of the larger one with the same edges closed."""
    verify(pruned.graph)
    x = random_input(model.graph, 7, batch=2)
    edges = close_by_hand(model.graph, zero_gates(dict(model.gates)))
    expected = evaluate(model.graph, model.weights, x, model.gates, edges)
    found = evaluate(pruned.graph, pruned.weights, x, pruned.gates)
    assert np.abs(found - expected).max() <= 1e-9 * np.abs(expected).max()


@pytest.mark.parametrize("make", [random_graph, random_joins])
def test_the_compact_graph_equals_the_closed_supernet(make: Any) -> None:
    models = [m for seed in range(250) if (m := living_model(make, seed)) is not None]
    assert len(models) >= 180
    for model in models:
        assert_same(model, PruneZeroEdges().run(model))


def test_structure_can_be_pruned_without_weights() -> None:
    graph = random_graph(3)
    gates = random_gates(graph, 3, zeros=0.2)
    assert text(PruneZeroEdges().run(Model(graph, gates)).graph) == text(prune(graph, zero_gates(gates)))


def test_zeros_beside_a_join_of_several_steps_run_in_torch() -> None:
    parts: Parts = {
        "stem": ("conv", {"kernel": 1, "channels": 4}, [INPUT]),
        "a": ("conv", {"kernel": 1, "channels": 4}, ["stem"]),
        "join": ("concat", {"norm": "batch", "act": "relu"}, ["stem", ("a", "b/join<a")]),
        "pool": ("global_avg_pool", {}, ["join"]),
        "logits": ("linear", {"channels": 3}, ["pool"]),
    }
    pruned = prune(graph_of(parts), {"b/join<a"})
    assert "join_zero1" in pruned
    assert lower(pruned).eval()(torch.zeros(2, 4, 6, 6)).shape == (2, 3)
