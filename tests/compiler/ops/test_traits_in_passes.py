"""Passes, lowerings, penalties, drawings and widths take every op by what it states of itself, custom ones too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from compiler.analysis.channels import plan_widths
from compiler.drawing.formats import draw
from compiler.drawing.scene import family, figures, view_of
from compiler.ir.graph import INPUT, Graph, Model, attrs_of
from compiler.language.config import GateConfig
from compiler.lowering.torch.fx import Lowering, load_gates, load_weights, lower
from compiler.ops import (
    Channels,
    Scale,
    Values,
    is_projection,
    only_merges,
    scale_after,
    traits_of,
)
from compiler.passes.carry import can_lose_channels
from compiler.passes.pipeline import TO_EXPORT, TO_INHERIT
from compiler.passes.prune_zero_edges import surviving_edges
from compiler.passes.widen import widen
from runtime.strategies.penalties import Penalty
from tests.compiler.ops.cases import BARE, IN_NETWORKS, network
from tests.graphs import graph_of
from tests.interpreter import evaluate, random_input, random_weights

pytestmark = pytest.mark.usefixtures("with_custom_ops")
LOWERINGS: tuple[Lowering, ...] = ("fused", "reference")
every_network = pytest.mark.parametrize(("name", "attrs"), IN_NETWORKS, ids=str)


def model_of(graph: Graph, closed: set[str], seed: int = 0) -> Model:
    rng = np.random.default_rng(seed)
    gates = {gate: 0.0 if gate in closed else float(rng.uniform(0.3, 1.5)) for gate in graph.gates()}
    return Model(graph, gates, random_weights(graph, seed))


@every_network
def test_passes_keep_the_numbers_of_every_op(name: str, attrs: dict[str, Any]) -> None:
    graph = network(name, attrs)
    for gates in ((), ("g/joined<0",), ("g/it<j", "g/joined<2"), ("g/it<b",)):
        assert_passes_keep_the_numbers(graph, {gate for gate in gates if gate in graph.gates()})


def assert_passes_keep_the_numbers(graph: Graph, closed: set[str]) -> None:
    it, model = graph.node("it"), model_of(graph, closed)
    x = random_input(graph, 1)
    shut = {gate for gate, gate_value in model.gates.items() if gate_value == 0.0}
    edges = surviving_edges(graph, shut)
    if not edges:
        assert it.op == "zero" or traits_of(it.op, it.attrs).values is Values.ZERO or "g/it<b" in shut
        return
    wanted = evaluate(graph, model.weights, x, model.gates, edges)
    compact = TO_INHERIT.run(model)
    np.testing.assert_allclose(evaluate(compact.graph, compact.weights, x), wanted, rtol=1e-9, atol=1e-9)
    bare = TO_EXPORT.run(compact)
    np.testing.assert_allclose(evaluate(bare.graph, bare.weights, x), wanted, rtol=1e-9, atol=1e-9)


@every_network
def test_lowerings_penalties_drawings_and_widths_take_every_op(name: str, attrs: dict[str, Any]) -> None:
    graph = network(name, attrs)
    model = model_of(graph, set())
    x = random_input(graph, 2)
    wanted = evaluate(graph, model.weights, x, model.gates)
    for lowering in LOWERINGS:
        module = lower(graph, lowering=lowering).double().eval()
        load_weights(module, model.weights)
        load_gates(module, graph, model.gates)
        np.testing.assert_allclose(module(torch.from_numpy(x)).detach().numpy(), wanted, rtol=1e-5, atol=1e-6)
    penalty = Penalty(graph, graph, GateConfig(adaptive="mac"))
    if "g/it<b" in graph.gates():
        lone = penalty.gammas({"g/it<j"})["g/it<b"] == 0
        scale = Scale.KEPT
        for node in (graph.node(i) for i in ("it", "after", "flat", "pool") if i in graph):  # each alone reads the last
            scale = scale_after(node.op, node.attrs, scale)
        assert lone == (scale is Scale.GONE) or not surviving_edges(graph, {"g/it<j"})
    cards = {card.id: card for figure in figures(view_of(graph, None, None), None) for card in figure.cards}
    assert cards["it"].family in ("weights", "pool", "merge", "plain")
    assert ">it<" in draw(graph)
    assert plan_widths(graph, 2).steps
    wide = widen(graph, 2.0, 2)
    stays = traits_of(name, attrs_of(attrs)).channels is Channels.SLICED
    assert wide.node("stem0").shape[0] == (1 if stays else 2) * graph.node("stem0").shape[0]
    assert evaluate(wide, random_weights(wide, 0), random_input(wide, 0)).shape == (3, 3)


TWINS = {
    "pass_on": ("identity", {}),
    "absolute": ("relu", {}),
    "gain": ("depthwise_conv", {"kernel": 1, "bias": False, **BARE}),
    "blend": ("conv", {"kernel": 1, "bias": False, **BARE}),
    "gather": ("project", {"channels": 4, "norm": "none"}),
}


@pytest.mark.parametrize("name", TWINS)
def test_a_custom_op_is_treated_as_well_as_a_built_in_one(name: str) -> None:
    twin, attrs = TWINS[name]
    own = {"channels": 4} if name == "gather" else {}
    kept, wanted = nodes_left(name, own), nodes_left(twin, attrs)
    assert len(kept) == len(wanted)
    assert kept.count("scale") == wanted.count("scale")
    assert kept.count("batch_norm") == wanted.count("batch_norm")
    graph, other = network(name, own), network(twin, attrs)
    assert family(view_of(graph, None, None), graph.node("it")) == family(view_of(other, None, None), other.node("it"))
    assert plan_widths(graph, 2).steps == plan_widths(other, 2).steps
    assert only_merges(name, attrs_of(own)) == only_merges(twin, attrs_of(attrs))
    assert is_projection(name, attrs_of(own)) == is_projection(twin, attrs_of(attrs))


def nodes_left(name: str, attrs: dict[str, Any]) -> list[str]:
    bare = TO_EXPORT.run(TO_INHERIT.run(model_of(network(name, attrs), set())))
    return [node.op for node in bare.graph.nodes()]


@pytest.mark.parametrize(("name", "takes"), [("absolute", True), ("gain", True), ("silent", False), ("relu6", False)])
def test_a_gate_passes_an_op_that_says_so(name: str, takes: bool) -> None:
    nodes: dict[str, Any] = {
        "it": ("conv_then", {"then": name}, [INPUT]),
        "end": ("sigmoid", {}, [("it", "g/end<it")]),
        "pool": ("global_avg_pool", {}, ["end"]),
        "logits": ("linear", {"channels": 3}, ["pool"]),
    }
    compact = TO_INHERIT.run(model_of(graph_of(nodes), set()))
    assert ("scale" not in [node.op for node in compact.graph.nodes()]) == takes


@pytest.mark.parametrize(("name", "loses"), [("gain", True), ("blend", True), ("absolute", True), ("silent", False)])
def test_channels_of_zeros_vanish_through_an_op_that_states_what_it_does_with_them(name: str, loses: bool) -> None:
    nodes: dict[str, Any] = {
        "a": ("conv", {"kernel": 3, "channels": 2}, [INPUT]),
        "b": ("conv", {"kernel": 3, "channels": 4}, [INPUT]),
        "joined": ("concat", {}, [("a", "g/joined<a"), ("b", "g/joined<b")]),
        "it": (name, {}, ["joined"]),
        "pool": ("global_avg_pool", {}, ["it"]),
        "logits": ("linear", {"channels": 3}, ["pool"]),
    }
    model = model_of(graph_of(nodes), {"g/joined<a"})
    compact = TO_INHERIT.run(model)
    assert can_lose_channels(model.graph)["it"] == loses
    assert ("joined_zero0" in compact.graph) != loses
    assert compact.graph.node("joined").shape[0] == (4 if loses else 6)
    x = random_input(model.graph, 1)
    wanted = evaluate(model.graph, model.weights, x, model.gates)
    np.testing.assert_allclose(evaluate(compact.graph, compact.weights, x), wanted, rtol=1e-9, atol=1e-9)
