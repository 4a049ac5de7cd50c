"""Passes that make exported networks faster, each: fires, stays quiet, keeps the numbers."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.analysis.costs import total_cost
from compiler.ir.graph import Model, Phase
from compiler.ops import read_attrs
from compiler.passes.collapse_identities import CollapseIdentities
from compiler.passes.expand_parts import ExpandParts
from compiler.passes.fold_batch_norm import FoldBatchNorm
from compiler.passes.merge_branches import MergeBranches
from compiler.passes.pad_channels import PadChannels
from compiler.passes.pipeline import TO_EXPORT, Pipeline
from compiler.passes.split_projections import SplitProjections
from compiler.passes.split_sums import SplitSums
from compiler.passes.stack_chains import StackChains
from compiler.passes.ungroup import Ungroup
from tests.compiler.passes.test_fold import BARE, Parts, assert_same, compact, fired, ops_of, quiet
from tests.graphs import random_graph
from tests.interpreter import random_weights

PREPARED = Pipeline((ExpandParts(), SplitSums(), FoldBatchNorm(), CollapseIdentities()))


def prepared(nodes: Parts, **options: Any) -> Model:
    """A model as these passes find it."""
    return PREPARED.run(compact(nodes, **options))


# -- merge-branches --------------------------------------------------------------------------------------------------

FREE = {"norm": "none"}
CONV3, CONV1 = ("conv", {"kernel": 3, **BARE}, ["input"]), ("conv", {"kernel": 1, **BARE}, ["input"])


def test_convolutions_of_one_value_and_the_value_itself_become_one_convolution() -> None:
    nodes: Parts = {
        "a": CONV3,
        "b": CONV1,
        "n": ("batch_norm", {}, ["input"]),
        "m": ("avg_pool", {"kernel": 3, "count_include_pad": True}, ["input"]),
        "mn": ("batch_norm", {}, ["m"]),
        "out": ("add", {"act": "relu"}, ["a", "b", "n", "mn", "input"]),
    }
    for shape in ((4, 6, 6), (4, 7)):
        after = TO_EXPORT.run(compact(nodes, shape=shape))
        assert ops_of(after) == ["conv", "relu"]
        assert_same(compact(nodes, shape=shape), after)


def test_depthwise_branches_become_one_depthwise_convolution() -> None:
    nodes: Parts = {
        "a": ("depthwise_conv", {"kernel": 3, "stride": 2, **BARE}, ["input"]),
        "b": ("depthwise_conv", {"kernel": 3, "dilation": 2, "stride": 2, "bias": False, **BARE}, ["input"]),
        "c": ("avg_pool", {"kernel": 2, "stride": 2, "padding": 0}, ["input"]),
        "d": ("conv", {"kernel": 1, "stride": 2}, ["input"]),
        "out": ("add", {}, ["a", "b", "c", "d"]),
    }
    after = fired(MergeBranches(), prepared(nodes))
    assert sorted(ops_of(after)) == ["add", "conv", "depthwise_conv", "relu"]


@pytest.mark.parametrize(
    "branch",
    [
        ("conv", {"kernel": 3, "norm": "none"}, ["input"]),  # an activation between
        ("avg_pool", {"kernel": 3}, ["input"]),  # means of fewer pixels at the border
        ("max_pool", {"kernel": 3}, ["input"]),
        ("conv", {"kernel": 3, "groups": 2, **BARE}, ["input"]),
        ("conv", {"kernel": 7, **BARE}, ["other"]),  # of another value
    ],
)
def test_what_is_not_linear_or_reads_another_value_stays(branch: Any) -> None:
    nodes: Parts = {"other": ("relu", {}, ["input"]), "a": CONV3, "b": branch, "s": ("add", {}, ["a", "b"])}
    nodes |= {"out": ("concat", {}, ["s", "other"])}
    quiet(MergeBranches(), prepared(nodes))


def test_a_branch_with_another_reader_or_a_dear_kernel_stays() -> None:
    read: Parts = {"a": CONV3, "b": CONV1, "s": ("add", {}, ["a", "b"]), "out": ("concat", {}, ["s", "a"])}
    quiet(MergeBranches(), compact(read))
    wide: Parts = {
        "a": ("conv", {"kernel": 1, "channels": 64, **BARE}, ["input"]),
        "b": ("depthwise_conv", {"kernel": 5, **BARE}, ["input"]),
        "out": ("add", {}, ["a", "b"]),
    }
    quiet(MergeBranches(), compact(wide, shape=(64, 6, 6)))


# -- stack-chains ----------------------------------------------------------------------------------------------------


def bottleneck(name: str, channels: int, kernel: int, stride: int = 1) -> Parts:
    return {
        f"{name}_e": ("conv", {"kernel": 1, "channels": channels, **FREE}, ["input"]),
        f"{name}_d": ("depthwise_conv", {"kernel": kernel, "stride": stride, **FREE, "act": "relu6"}, [f"{name}_e"]),
        f"{name}_p": ("conv", {"kernel": 1, "channels": 4, "bias": name == "a", **BARE}, [f"{name}_d"]),
    }


def test_added_bottlenecks_become_one_wider_one() -> None:
    for stride, reads in ((1, ["a_p", "input", "b_p", "c_p"]), (2, ["a_p", "b_p", "c_p"])):
        chains = bottleneck("a", 6, 3, stride) | bottleneck("b", 3, 5, stride) | bottleneck("c", 5, 3, stride)
        model = prepared(chains | {"out": ("add", {}, reads)})
        after = fired(StackChains(), model)
        assert ops_of(after)[:5] == ["conv", "relu", "depthwise_conv", "relu6", "conv"]
        assert [n.shape[0] for n in after.graph.nodes() if n.op == "depthwise_conv"] == [14]
        assert len(after.graph) == 2 + 6


def test_joined_convolutions_become_one() -> None:
    nodes: Parts = {
        "a": ("conv", {"kernel": 1, "channels": 3, "norm": "none"}, ["input"]),
        "b": ("conv", {"kernel": 1, "channels": 5, "norm": "none", "bias": False}, ["input"]),
        "z": ("relu", {}, ["input"]),
        "out": ("concat", {}, ["z", "a", "b"]),
    }
    after = fired(StackChains(), prepared(nodes))
    assert sorted(ops_of(after)) == ["concat", "conv", "relu", "relu"]


def test_chains_that_differ_or_stand_apart_stay() -> None:
    nodes: Parts = {
        "a": ("conv", {"kernel": 1, "norm": "none"}, ["input"]),
        "b": ("conv", {"kernel": 1, "norm": "none", "act": "silu"}, ["input"]),
        "c": ("conv", {"kernel": 3, "norm": "none", "act": "silu"}, ["input"]),
        "d": ("conv", {"kernel": 1, "norm": "none"}, ["input"]),  # not beside its equal
        "out": ("concat", {}, ["a", "b", "c", "d"]),
    }
    quiet(StackChains(), prepared(nodes))
    chains = bottleneck("a", 6, 3) | bottleneck("b", 3, 3) | {"out": ("add", {}, ["a_p", "b_p"])}
    chains |= {"both": ("concat", {}, ["out", "b_d"])}  # read by another
    quiet(StackChains(), prepared(chains))


# -- split-projections -----------------------------------------------------------------------------------------------


def test_a_convolution_of_a_large_join_is_taken_apart() -> None:
    nodes: Parts = {
        "a": ("relu", {}, ["input"]),
        "b": ("depthwise_conv", {"kernel": 3, "norm": "none", "act": "none"}, ["input"]),
        "out": ("project", {"norm": "none"}, ["a", "b", "input"]),
    }
    large = prepared(nodes, shape=(4, 48, 48))
    after = fired(SplitProjections(), large)
    assert ops_of(after).count("conv") == 3
    assert "concat" not in ops_of(after)
    assert total_cost(after.graph).flops == total_cost(large.graph).flops
    quiet(SplitProjections(), prepared(nodes, shape=(4, 44, 44)))
    shared: Parts = {"a": nodes["a"], "b": nodes["b"], "j": ("concat", {}, ["a", "b"])}
    shared |= {"c": ("conv", {"kernel": 1}, ["j"]), "k": ("max_pool", {"kernel": 3}, ["j"])}
    shared |= {"end": ("concat", {}, ["c", "k"])}
    quiet(SplitProjections(), prepared(shared, shape=(4, 48, 48)))


# -- ungroup ---------------------------------------------------------------------------------------------------------


def test_few_narrow_groups_become_none() -> None:
    for kind in ("conv", "conv_transpose"):
        nodes: Parts = {"c": (kind, {"kernel": 3, "channels": 6, "groups": 2, **BARE}, ["input"])}
        after = fired(Ungroup(), compact(nodes))
        assert after.weights["c.weight"].shape == (6, 4, 3, 3)
        assert read_attrs(kind, after.graph.node("c").attrs).groups == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("op", "groups", "shape"),
    [("conv", 8, (8, 6, 6)), ("conv", 2, (32, 6, 6)), ("conv", 2, (8, 48, 48)), ("group_norm", 2, (8, 6, 6))],
)
def test_many_wide_or_large_groups_stay(op: str, groups: int, shape: tuple[int, ...]) -> None:
    attrs = {"groups": groups} | ({"kernel": 1, **BARE} if op == "conv" else {})
    quiet(Ungroup(), compact({"c": (op, attrs, ["input"])}, shape=shape))


# -- pad-channels ----------------------------------------------------------------------------------------------------


def test_channels_that_nobody_reads_fill_the_kernels_of_the_runtime() -> None:
    nodes: Parts = {
        "a": ("conv", {"kernel": 3, "channels": 12, "act": "sigmoid"}, ["input"]),
        "b": ("depthwise_conv", {"kernel": 3, "act": "relu"}, ["a"]),
        "c": ("conv", {"kernel": 1, "channels": 12, "norm": "none"}, ["b"]),
        "s": ("add", {"norm": "batch"}, ["c", "a"]),
        "p": ("project", {"channels": 10}, ["s", "b", "input"]),
        "mean": ("global_avg_pool", {}, ["p"]),
        "out": ("linear", {"channels": 3}, ["mean"]),
    }
    after = fired(PadChannels(), prepared(nodes))
    channels = {node.id: node.shape[0] for node in after.graph.nodes()}
    assert (channels["a.conv"], channels["p.concat"], channels["mean"], channels["out"]) == (16, 36, 16, 3)


@pytest.mark.parametrize(
    "rest",
    [
        {"out": ("softmax", {}, ["c"])},  # reads all channels
        {"out": ("group_norm", {"groups": 3}, ["c"])},
        {"x": ("conv", {"kernel": 1, "groups": 3, **BARE}, ["c"]), "out": ("add", {}, ["x", "c"])},
        {"out": ("relu", {}, ["c"])},  # the network's output
    ],
)
def test_channels_that_are_read_together_stay(rest: Parts) -> None:
    quiet(PadChannels(), prepared({"c": ("conv", {"kernel": 1, "channels": 12}, ["input"]), **rest}))


def test_channels_stay_where_many_would_be_added_or_values_are_large() -> None:
    def ends(channels: int, **options: Any) -> Model:
        nodes: Parts = {
            "c": ("conv", {"kernel": 1, "channels": channels}, ["input"]),
            "d": ("depthwise_conv", {"kernel": 3}, ["c"]),
            "out": ("conv", {"kernel": 1, "channels": 3}, ["d"]),
        }
        return prepared(nodes, **options)

    quiet(PadChannels(), ends(7))
    quiet(PadChannels(), ends(32))
    quiet(PadChannels(), ends(10, shape=(4, 32, 32)))
    fired(PadChannels(), ends(8))
    quiet(PadChannels(), ends(24))
    fired(PadChannels(), ends(28))
    fired(PadChannels(), ends(14, shape=(4, 32, 32)))


def test_a_multiple_of_8_is_enough_for_convolutions_between_all_channels() -> None:
    def dense(channels: int) -> Model:
        first = ("conv", {"kernel": 3, "channels": channels}, ["input"])
        nodes: Parts = {"c": first, "d": ("conv", {"kernel": 3, "channels": channels, "act": "none"}, ["c"])}
        nodes |= {"s": ("add", {"act": "relu"}, ["d", "c"]), "mean": ("global_avg_pool", {}, ["s"])}
        return prepared(nodes | {"out": ("linear", {"channels": 3}, ["mean"])})

    quiet(PadChannels(), dense(24))
    fired(PadChannels(), dense(20))


# -- all of them -----------------------------------------------------------------------------------------------------

LINEAR: tuple[tuple[str, dict[str, Any]], ...] = (
    ("conv", {"kernel": 3, **BARE}),
    ("conv", {"kernel": 1, **BARE}),
    ("conv", {"kernel": 1, "norm": "none"}),
    ("conv", {"kernel": 3, "groups": 2, **BARE}),
    ("depthwise_conv", {"kernel": 3, **BARE}),
    ("depthwise_conv", {"kernel": 3, "dilation": 2, **BARE}),
    ("depthwise_conv", {"kernel": 5, "norm": "none", "act": "relu"}),
    ("avg_pool", {"kernel": 3, "count_include_pad": True}),
    ("avg_pool", {"kernel": 3}),
    ("batch_norm", {}),
    ("identity", {}),
    ("add", {}),
    ("project", {}),
)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([(4, 3, 5), (4, 6), (4, 48, 48)]))
def test_exported_networks_compute_what_they_did(seed: int, shape: tuple[int, ...]) -> None:
    channels = 4 if seed % 2 else 12
    graph = random_graph(seed, channels=channels, size=shape[1:], gated=0.0, ops=LINEAR).copy(Phase.COMPACT)
    model = Model(graph, {}, random_weights(graph, seed))
    assert_same(model, TO_EXPORT.run(model))
