"""Folding passes, each: fires, stays quiet where its algebra does not hold, keeps the numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from compiler.errors import GraphspecError, PassError
from compiler.ir.graph import INPUT, Block, Model, Phase
from compiler.ir.text import text
from compiler.ir.verify import verify
from compiler.ops import parts
from compiler.passes.base import Pass
from compiler.passes.collapse_identities import CollapseIdentities
from compiler.passes.drop_gates import DropGates
from compiler.passes.expand_parts import ExpandParts
from compiler.passes.fold_batch_norm import FoldBatchNorm
from compiler.passes.fold_gates import FoldGates
from compiler.passes.normalise_input import normalise_input
from compiler.passes.pipeline import TO_EXPORT, TO_INHERIT
from compiler.passes.prune_zero_edges import PruneZeroEdges, surviving_edges
from compiler.passes.split_sums import SplitSums
from tests.graphs import graph_of, model_of, random_gates, random_graph
from tests.interpreter import evaluate, random_input, random_weights

Parts = dict[str, tuple[str, dict[str, Any], list[str | tuple[str, str]]]]
BARE = {"norm": "none", "act": "none"}


def compact(nodes: Parts, **options: Any) -> Model:
    graph = graph_of(nodes, phase=Phase.COMPACT, **options)
    return Model(graph, {}, random_weights(graph, 0))


def gated(nodes: Parts, gates: dict[str, float]) -> Model:
    graph = graph_of(nodes)
    return Model(graph, gates, random_weights(graph, 0))


def assert_same(before: Model, after: Model) -> None:
    verify(after.graph)
    x = random_input(before.graph, 5)
    expected = evaluate(before.graph, before.weights, x, before.gates)
    found = evaluate(after.graph, after.weights, x, after.gates)
    assert np.abs(found - expected).max() <= 1e-9 * np.abs(expected).max()


def fired(step: Pass, model: Model) -> Model:
    """The model after the pass, which must have changed it and kept its numbers."""
    after = step.run(model)
    assert text(after.graph) != text(model.graph)
    assert_same(model, after)
    return after


def quiet(step: Pass, model: Model) -> None:
    assert text(step.run(model).graph) == text(model.graph)


def ops_of(model: Model) -> list[str]:
    return [node.op for node in model.graph.nodes() if node.op not in ("input", "output")]


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


# -- fold-batch-norm ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "attrs"),
    [
        ("conv", {"kernel": 3, "bias": False}),
        ("conv", {"kernel": 3, "bias": True, "groups": 2, "stride": 2}),
        ("depthwise_conv", {"kernel": 3, "bias": False}),
        ("batch_norm", {}),
    ],
)
def test_batch_norm_goes_into_what_makes_its_input(op: str, attrs: dict[str, Any]) -> None:
    bare = {} if op == "batch_norm" else BARE
    model = compact({"c": (op, attrs | bare, ["input"]), "n": ("batch_norm", {}, ["c"]), "out": ("relu", {}, ["n"])})
    after = fired(FoldBatchNorm(), model)
    assert ops_of(after) == [op, "relu"]
    assert not any(name.startswith("n.") for name in after.weights)


def test_batch_norm_goes_into_linear() -> None:
    nodes: Parts = {
        "pool": ("global_avg_pool", {}, ["input"]),
        "l": ("linear", {"channels": 3, "bias": False}, ["pool"]),
        "n": ("batch_norm", {}, ["l"]),
    }
    assert ops_of(fired(FoldBatchNorm(), compact(nodes))) == ["global_avg_pool", "linear"]


@pytest.mark.parametrize("pool", ["avg_pool", "max_pool"])
def test_batch_norm_passes_a_pool(pool: str) -> None:
    model = compact(
        {
            "c": ("conv", {"kernel": 3, **BARE}, ["input"]),
            "p": (pool, {"kernel": 3, "stride": 2}, ["c"]),
            "n": ("batch_norm", {}, ["p"]),
        }
    )
    positive = Model(model.graph, {}, dict(model.weights) | {"n.weight": np.abs(model.weights["n.weight"])})
    assert ops_of(fired(FoldBatchNorm(), positive)) == ["conv", pool]


def test_a_negative_batch_norm_does_not_pass_a_max_pool() -> None:
    model = compact(
        {
            "c": ("conv", {"kernel": 3, **BARE}, ["input"]),
            "p": ("max_pool", {"kernel": 3}, ["c"]),
            "n": ("batch_norm", {}, ["p"]),
        }
    )
    assert (model.weights["n.weight"] < 0).any()
    quiet(FoldBatchNorm(), model)


@pytest.mark.parametrize(
    "reader",
    [
        ("conv", {"kernel": 1, **BARE}),
        ("conv", {"kernel": 3, "padding": 0, "bias": False, **BARE}),
        ("depthwise_conv", {"kernel": 3, "padding": 0, **BARE}),
    ],
)
def test_batch_norm_goes_into_a_reader_without_padding(reader: tuple[str, dict[str, Any]]) -> None:
    nodes: Parts = {
        "r": ("relu", {}, ["input"]),
        "n": ("batch_norm", {}, ["r"]),
        "p": ("avg_pool", {"kernel": 3}, ["n"]),
        "c": (*reader, ["p"]),
    }
    assert ops_of(fired(FoldBatchNorm(), compact(nodes))) == ["relu", "avg_pool", reader[0]]


def test_a_final_batch_norm_goes_into_the_classifier() -> None:
    nodes: Parts = {
        "r": ("relu", {}, ["input"]),
        "n": ("batch_norm", {}, ["r"]),
        "pool": ("global_avg_pool", {}, ["n"]),
        "l": ("linear", {"channels": 3}, ["pool"]),
    }
    assert ops_of(fired(FoldBatchNorm(), compact(nodes))) == ["relu", "global_avg_pool", "linear"]


@pytest.mark.parametrize(
    "nodes",
    [
        {  # the convolution's value has another reader
            "c": ("conv", {"kernel": 1, **BARE}, ["input"]),
            "n": ("batch_norm", {}, ["c"]),
            "out": ("add", {}, ["c", "n"]),
        },
        {  # an activation stands between, and the reader pads
            "r": ("relu", {}, ["input"]),
            "n": ("batch_norm", {}, ["r"]),
            "c": ("conv", {"kernel": 3, **BARE}, ["n"]),
        },
        {  # a sum is normalised
            "c": ("conv", {"kernel": 3, **BARE}, ["input"]),
            "n": ("batch_norm", {}, ["c", "input"]),
            "out": ("relu", {}, ["n"]),
        },
        {  # the reader has groups
            "r": ("relu", {}, ["input"]),
            "n": ("batch_norm", {}, ["r"]),
            "c": ("conv", {"kernel": 1, "groups": 2, **BARE}, ["n"]),
        },
        {  # the reader adds something else
            "r": ("relu", {}, ["input"]),
            "n": ("batch_norm", {}, ["r"]),
            "c": ("conv", {"kernel": 1, **BARE}, ["n", "input"]),
        },
    ],
)
def test_batch_norm_stays(nodes: Parts) -> None:
    quiet(FoldBatchNorm(), compact(nodes))


def test_fold_batch_norm_needs_weights() -> None:
    model = compact({"n": ("batch_norm", {}, ["input"])})
    with pytest.raises(PassError, match="no weights"):
        FoldBatchNorm().run(Model(model.graph))


@pytest.mark.parametrize("merge", ["add", "concat"])
def test_batch_norm_goes_past_sums_and_joins_of_layers(merge: str) -> None:
    nodes: Parts = {
        "a": ("conv", {"kernel": 3, **BARE}, ["input"]),
        "b": ("depthwise_conv", {"kernel": 3, **BARE, "bias": False}, ["input"]),
        "pool": ("avg_pool", {"kernel": 3}, ["b"]),
        "c": ("conv", {"kernel": 1, **BARE}, ["input"]),
        "inner": ("concat" if merge == "add" else "add", {}, ["a"] if merge == "add" else ["a", "pool"]),
        "m": (merge, {}, ["inner", "pool", "c"] if merge == "add" else ["inner", "c"]),
        "n": ("batch_norm", {}, ["m"]),
    }
    after = fired(FoldBatchNorm(), compact(nodes))
    assert "batch_norm" not in ops_of(after)


@pytest.mark.parametrize("merge", ["add", "concat", "multiply"])
def test_batch_norm_stays_behind_what_is_not_all_made_by_layers(merge: str) -> None:
    nodes: Parts = {
        "a": ("conv", {"kernel": 3, **BARE}, ["input"]),
        "b": ("conv", {"kernel": 3, "norm": "none"}, ["input"])
        if merge != "multiply"
        else ("conv", {"kernel": 1, **BARE}, ["input"]),
        "m": (merge, {}, ["a", "b"]),
        "n": ("batch_norm", {}, ["m"]),
    }
    quiet(FoldBatchNorm(), compact(nodes))


# -- collapse-identities --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "node",
    [
        ("identity", {}),
        ("dropout", {"p": 0.3}),
        ("add", {}),
        ("concat", {}),
        ("scale", {"factor": 1.0}),
        ("max_pool", {"kernel": 1}),
        ("avg_pool", {"kernel": 1}),
    ],
)
def test_what_gives_back_its_input_goes(node: tuple[str, dict[str, Any]]) -> None:
    nodes: Parts = {"a": ("sigmoid", {}, ["input"]), "i": (*node, ["a"]), "out": ("silu", {}, ["i"])}
    assert ops_of(fired(CollapseIdentities(), compact(nodes))) == ["sigmoid", "silu"]


def test_flatten_and_mean_of_nothing_go() -> None:
    nodes: Parts = {
        "m": ("mean", {"dims": [2, 3], "keep": True}, ["input"]),
        "again": ("mean", {"dims": [3], "keep": True}, ["m"]),
        "f": ("flatten", {}, ["again"]),
        "g": ("flatten", {}, ["f"]),
        "l": ("linear", {"channels": 2}, ["g"]),
    }
    assert ops_of(fired(CollapseIdentities(), compact(nodes))) == ["mean", "flatten", "linear"]


def test_relu_of_what_is_never_negative_goes() -> None:
    nodes: Parts = {
        "a": ("relu", {}, ["input"]),
        "b": ("sigmoid", {}, ["input"]),
        "s": ("add", {}, ["a", "b"]),
        "p": ("max_pool", {"kernel": 3}, ["s"]),
        "r": ("relu", {}, ["p"]),
    }
    assert ops_of(fired(CollapseIdentities(), compact(nodes))) == ["relu", "sigmoid", "add", "max_pool"]


@pytest.mark.parametrize(
    "nodes",
    [
        {"a": ("silu", {}, ["input"]), "r": ("relu", {}, ["a"])},
        {"a": ("relu", {}, ["input"]), "r": ("relu", {}, ["a", "input"])},
        {"a": ("max_pool", {"kernel": 1, "stride": 2}, ["input"])},
        {"a": ("scale", {"factor": 2.0}, ["input"])},
        {"i": ("identity", {}, ["input"]), "s": ("add", {}, ["i", "input"])},  # would read the input twice
    ],
)
def test_what_computes_something_stays(nodes: Parts) -> None:
    quiet(CollapseIdentities(), compact(nodes))


def test_blocks_follow_their_collapsed_outputs() -> None:
    nodes: Parts = {
        "one.out": ("relu", {}, ["input"]),
        "two.out": ("add", {}, ["one.out"]),
        "three.out": ("silu", {}, ["two.out"]),
    }
    blocks = tuple(
        Block(name, "k", name, (source,), f"{name}.out")
        for name, source in (("one", INPUT), ("two", "one.out"), ("three", "two.out"))
    )
    after = fired(CollapseIdentities(), compact(nodes, blocks=blocks))
    assert [(b.id, b.inputs, b.output) for b in after.graph.blocks] == [
        ("one", (INPUT,), "one.out"),
        ("three", ("one.out",), "three.out"),
    ]


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
