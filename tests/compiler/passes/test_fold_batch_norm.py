"""Batch norm folded into layers, identities collapsed: each fires, stays quiet elsewhere, keeps the numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from compiler.errors import PassError
from compiler.ir.graph import INPUT, Block, Model
from compiler.passes.collapse_identities import CollapseIdentities
from compiler.passes.fold_batch_norm import FoldBatchNorm
from tests.compiler.passes.folded import BARE, Parts, compact, fired, ops_of, quiet

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
