"""Folding passes, each: fires, stays quiet where its algebra does not hold, keeps the numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from compiler.errors import GraphspecError, PassError
from compiler.ir.graph import INPUT, Block, Model, Phase
from compiler.ir.text import text
from compiler.ops import parts
from compiler.passes.drop_gates import DropGates
from compiler.passes.expand_parts import ExpandParts
from compiler.passes.fold_gates import FoldGates
from compiler.passes.normalise_input import normalise_input
from compiler.passes.pipeline import TO_EXPORT, TO_INHERIT
from compiler.passes.prune_zero_edges import PruneZeroEdges, surviving_edges
from compiler.passes.split_sums import SplitSums
from tests.compiler.passes.folded import BARE, Parts, assert_same, compact, fired, gated, ops_of, quiet
from tests.graphs import graph_of, model_of, random_gates, random_graph
from tests.interpreter import evaluate, random_input, random_weights

# -- drop-gates -----------------------------------------------------------------------------------------------------


def test_drop_gates_leaves_a_compact_graph_with_the_same_edges() -> None:
    model = gated({"a": ("relu", {}, [("input", "b/a<in")])}, {"b/a<in": 0.5})
    dropped = DropGates().run(model)
    assert dropped.graph.phase is Phase.COMPACT
    assert dropped.gates == {}
    assert [(e.src, e.dst, e.gate) for e in dropped.graph.edges()] == [("input", "a", None), ("a", "output", None)]
    assert dropped.weights.keys() == model.weights.keys()


def test_drop_gates_refuses_to_revive_a_closed_edge() -> None:
    with pytest.raises(PassError, match="prune-zero-edges first"):
        DropGates().run(gated({"a": ("relu", {}, [("input", "b/a<in")])}, {"b/a<in": 0.0}))


# -- fold-gates -----------------------------------------------------------------------------------------------------


def folded(nodes: Parts, **gates: float) -> Model:
    """After fold-gates, numbers kept; gates are written `dst_src=value`."""
    named = {f"b/{key}": value for key, value in gates.items()}
    model = gated(nodes, named)
    after = FoldGates().run(model)
    assert after.graph.phase is Phase.COMPACT
    assert_same(model, after)
    return after


def test_gates_go_into_the_slices_of_project() -> None:
    nodes: Parts = {
        "a": ("relu", {}, ["input"]),
        "mix": ("project", {}, [("a", "b/mix_a"), ("input", "b/mix_in")]),
    }
    assert ops_of(folded(nodes, mix_a=0.3, mix_in=-2.0)) == ["relu", "project"]


@pytest.mark.parametrize(
    ("op", "attrs"),
    [
        ("conv", {"kernel": 3}),
        ("sep_conv", {"kernel": 3}),
        ("depthwise_conv", {"kernel": 3, **BARE}),
        ("batch_norm", {"act": "relu"}),
        ("avg_pool", {"kernel": 3, "norm": "batch"}),
    ],
)
@pytest.mark.parametrize("gate", [0.7, -0.7])
def test_one_gate_goes_into_the_node_that_reads_it(op: str, attrs: dict[str, Any], gate: float) -> None:
    nodes: Parts = {
        "a": ("sigmoid", {}, ["input"]),
        "c": (op, attrs, [("input", "b/c_in"), ("a", "b/c_a")]),
    }
    assert ops_of(folded(nodes, c_in=gate, c_a=gate)) == ["sigmoid", op]


def test_a_gate_goes_into_the_node_that_makes_the_value() -> None:
    nodes: Parts = {
        "a": ("conv", {"kernel": 3}, ["input"]),
        "p": ("max_pool", {"kernel": 3, "norm": "batch", "act": "relu"}, ["input"]),
        "sum": ("add", {}, [("a", "b/sum_a"), ("p", "b/sum_p"), "input"]),
    }
    assert ops_of(folded(nodes, sum_a=0.3, sum_p=2.0)) == ["conv", "max_pool", "add"]


@pytest.mark.parametrize(
    ("op", "attrs", "gate"),
    [
        ("conv", {"kernel": 3, "act": "silu"}, 0.5),  # silu(g x) is not g silu(x)
        ("conv", {"kernel": 3, "act": "relu6"}, 0.5),
        ("conv", {"kernel": 3}, -0.5),  # relu(-x) is not -relu(x)
        ("relu", {}, 0.5),  # nothing to fold into
    ],
)
def test_a_gate_that_commutes_with_nothing_becomes_a_scale(op: str, attrs: dict[str, Any], gate: float) -> None:
    nodes: Parts = {"a": (op, attrs, ["input"]), "sum": ("add", {}, [("a", "b/sum_a"), "input"])}
    assert ops_of(folded(nodes, sum_a=gate)) == [op, "scale", "add"]


def test_a_value_with_two_users_is_not_scaled_for_one_of_them() -> None:
    nodes: Parts = {
        "a": ("conv", {"kernel": 3}, ["input"]),
        "s": ("add", {}, [("a", "b/s_a"), "input"]),
        "t": ("add", {}, ["a", "s"]),
    }
    assert ops_of(folded(nodes, s_a=0.3)) == ["conv", "scale", "add", "add"]


def test_one_scale_serves_all_readers_with_the_same_gate_value() -> None:
    nodes: Parts = {
        "a": ("sigmoid", {}, ["input"]),
        "s": ("relu", {}, [("a", "b/s_a"), "input"]),
        "t": ("relu6", {}, [("a", "b/t_a"), "s"]),
        "u": ("relu6", {}, ["a", "t"]),
    }
    assert ops_of(folded(nodes, s_a=0.3, t_a=0.3)).count("scale") == 1


def test_a_gate_too_small_for_batch_norm_becomes_a_scale() -> None:
    assert ops_of(folded({"n": ("batch_norm", {}, [("input", "b/n_in")])}, n_in=1e-6)) == ["scale", "batch_norm"]


def test_fold_gates_needs_pruning_and_weights() -> None:
    nodes: Parts = {"a": ("conv", {"kernel": 3}, [("input", "b/a")])}
    with pytest.raises(PassError, match="prune-zero-edges first"):
        FoldGates().run(gated(nodes, {"b/a": 0.0}))
    with pytest.raises(PassError, match="use drop-gates"):
        FoldGates().run(Model(graph_of(nodes), {"b/a": 0.5}))


def test_gates_of_one_need_no_weights() -> None:
    after = FoldGates().run(model_of(random_graph(0)))
    assert after.graph.gates() == []


# -- expand-parts, split-sums, share-equal-nodes --------------------------------------------------------------------


def test_expand_parts_keeps_weight_names_and_block_outputs() -> None:
    nodes: Parts = {
        "one.out": ("sep_conv", {"kernel": 3}, ["input"]),
        "two.out": ("project", {}, ["one.out", "input"]),
    }
    blocks = (
        Block("one", "k", "one", (INPUT,), "one.out"),
        Block("two", "k", "two", ("one.out", INPUT), "two.out"),
    )
    model = compact(nodes, blocks=blocks)
    after = fired(ExpandParts(), model)
    assert not any(parts(n.op, n.attrs) for n in after.graph.nodes())
    assert after.weights.keys() == model.weights.keys()
    assert [(b.inputs, b.output) for b in after.graph.blocks] == [
        ((INPUT,), "one.out.act"),
        (("one.out.act", INPUT), "two.out.act"),
    ]
    quiet(ExpandParts(), after)


def test_split_sums_gives_sums_their_own_node() -> None:
    after = fired(
        SplitSums(), compact({"a": ("relu", {}, ["input"]), "c": ("conv", {"kernel": 3, **BARE}, ["a", "input"])})
    )
    assert ops_of(after) == ["relu", "add", "conv"]
    quiet(SplitSums(), after)


def test_split_sums_leaves_add_and_joins_alone() -> None:
    nodes: Parts = {
        "a": ("relu", {}, ["input"]),
        "s": ("add", {}, ["a", "input"]),
        "j": ("concat", {}, ["a", "s"]),
    }
    quiet(SplitSums(), compact(nodes))
    with pytest.raises(PassError, match="still has gates"):
        SplitSums().run(gated({"a": ("relu", {}, [("input", "b/a")])}, {"b/a": 1.0}))


# -- normalisation and everything together --------------------------------------------------------------------------


@pytest.mark.parametrize(("padding", "left"), [(0, []), (1, ["batch_norm"])])
def test_normalisation_goes_into_a_convolution_that_does_not_pad(padding: int, left: list[str]) -> None:
    model = compact({"c": ("conv", {"kernel": 3, "padding": padding, **BARE}, ["input"])})
    mean, std = (0.1, 0.2, 0.3, 0.4), (0.5, 0.6, 0.7, 0.8)
    raw = TO_EXPORT.run(normalise_input(model, mean, std))
    x = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 6)).astype(np.float64)
    normal = (x / 255 - np.reshape(mean, (1, 4, 1, 1))) / np.reshape(std, (1, 4, 1, 1))
    assert ops_of(raw) == [*left, "conv"]
    expected = evaluate(model.graph, model.weights, normal)
    np.testing.assert_allclose(evaluate(raw.graph, raw.weights, x), expected, rtol=1e-5, atol=1e-6)


def test_normalisation_must_fit_the_channels() -> None:
    with pytest.raises(GraphspecError, match="3 means"):
        normalise_input(compact({"r": ("relu", {}, ["input"])}), (0.1, 0.2, 0.3), (1.0,))


def closed_supernet(seed: int) -> tuple[Model, Callable[[Any], Any]] | None:
    graph = random_graph(seed)
    gates = random_gates(graph, seed, zeros=0.1 * (seed % 5))
    edges = surviving_edges(graph, {gate for gate, value in gates.items() if value == 0.0})
    if not edges:
        return None
    model = Model(graph, gates, random_weights(graph, seed))
    return model, lambda x: evaluate(graph, model.weights, x, gates, edges)


@pytest.mark.slow
def test_pruned_and_folded_graphs_equal_the_closed_supernet() -> None:
    cases = [case for seed in range(120) if (case := closed_supernet(seed)) is not None]
    assert len(cases) >= 90
    for model, supernet in cases:
        after = TO_EXPORT.run(TO_INHERIT.run(model))
        x = random_input(model.graph, 1, batch=2)
        expected = supernet(x)
        assert np.abs(evaluate(after.graph, after.weights, x) - expected).max() <= 1e-9 * np.abs(expected).max()
        assert after.weights.keys() == random_weights(after.graph, 0).keys()


def test_an_exported_graph_folds_no_further() -> None:
    case = closed_supernet(0)
    assert case is not None
    once = TO_EXPORT.run(TO_INHERIT.run(case[0]))
    assert text(TO_EXPORT.run(once).graph) == text(once.graph)


def test_passes_leave_the_given_model_as_it_is() -> None:
    case = closed_supernet(1)
    assert case is not None
    model = case[0]
    before, weights = text(model.graph), {name: value.copy() for name, value in model.weights.items()}
    TO_EXPORT.run(FoldGates().run(PruneZeroEdges().run(model)))
    assert text(model.graph) == before
    for name, value in weights.items():
        np.testing.assert_array_equal(model.weights[name], value)
