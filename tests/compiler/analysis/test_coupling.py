"""Which channels go together, and behind which nodes their gates stand."""

from __future__ import annotations

from typing import Any

from compiler.analysis.coupling import FIXED, couple
from compiler.ir.graph import Graph
from compiler.passes.prune_zero_edges import prune
from tests.graphs import graph_of, with_channel_gates

Parts = dict[str, tuple[str, dict[str, Any], list[str | tuple[str, str]]]]
HEAD: Parts = {"pool": ("global_avg_pool", {}, ["last"]), "logits": ("linear", {"channels": 3}, ["pool"])}


def gated(nodes: Parts) -> Graph:
    """A network that ends in the node `last`, with gates wherever channels may go."""
    return with_channel_gates(graph_of(nodes | HEAD))


def test_values_that_are_added_share_their_channels() -> None:
    graph = gated(
        {
            "stem": ("conv", {"kernel": 3, "channels": 8}, ["input"]),
            "inner": ("conv", {"kernel": 3, "channels": 6}, ["stem"]),
            "outer": ("conv", {"kernel": 3, "channels": 8, "act": "none"}, ["inner"]),
            "last": ("add", {"act": "relu"}, ["outer", "stem"]),
        }
    )
    coupling = couple(graph)
    assert coupling.of("stem") == coupling.of("outer") == coupling.of("pool") != coupling.of("inner")
    assert set(coupling.of("input") + coupling.of("logits")) == {FIXED}
    assert graph.channel_gates["stem"] == graph.channel_gates["outer"] == tuple(f"v/stem#{i}" for i in range(8))
    assert graph.channel_gates.keys() == {"stem", "inner", "outer"}


def test_gates_stand_again_behind_a_norm() -> None:
    graph = gated(
        {
            "a": ("conv", {"kernel": 1, "channels": 8}, ["input"]),
            "wide": ("depthwise_conv", {"kernel": 3}, ["a"]),
            "plain": ("depthwise_conv", {"kernel": 3, "norm": "none", "act": "none", "bias": False}, ["wide"]),
            "last": ("conv", {"kernel": 1, "channels": 6}, ["plain"]),
        }
    )
    assert graph.channel_gates["wide"] == tuple(f"v/a#{i}" for i in range(8))
    assert graph.channel_gates.keys() == {"wide", "last"}  # nobody reads zeros of `a`, and `plain` gives zeros of zeros


def test_a_norm_behind_a_join_takes_the_gates_of_its_parts() -> None:
    graph = gated(
        {
            "a": ("conv", {"kernel": 1, "channels": 3, "norm": "none", "act": "none"}, ["input"]),
            "b": ("conv", {"kernel": 1, "channels": 2, "norm": "none", "act": "none"}, ["a"]),
            "join": ("concat", {"norm": "batch", "act": "relu"}, ["b", "a"]),
            "last": ("conv", {"kernel": 1, "channels": 4}, ["join"]),
        }
    )
    assert graph.channel_gates["join"] == ("v/b#0", "v/b#1", "v/a#0", "v/a#1", "v/a#2")
    assert graph.channel_gates["a"] == ("v/a#0", "v/a#1", "v/a#2")  # `b` reads it
    assert "b" not in graph.channel_gates


def test_of_a_product_one_input_has_to_be_zero() -> None:
    graph = gated(
        {
            "a": ("conv", {"kernel": 1, "channels": 6}, ["input"]),
            "means": ("global_avg_pool", {}, ["a"]),
            "weights": ("linear", {"channels": 6, "act": "sigmoid"}, ["means"]),
            "last": ("multiply", {}, ["weights", "a"]),
        }
    )
    assert couple(graph).of("weights") == couple(graph).of("a")
    assert graph.channel_gates.keys() == {"a"}


def test_squeeze_excite_passes_on_what_it_scales_and_has_to_read_zeros() -> None:
    graph = gated(
        {
            "a": ("conv", {"kernel": 1, "channels": 6}, ["input"]),
            "wide": ("depthwise_conv", {"kernel": 3}, ["a"]),
            "scaled": ("squeeze_excite", {}, ["wide"]),
            "last": ("batch_norm", {}, ["scaled"]),
        }
    )
    assert couple(graph).of("last") == couple(graph).of("a")
    assert graph.channel_gates.keys() == {"wide", "last"}
    pruned = prune(graph, {"v/a#0", "v/a#3"})
    assert [pruned.node(i).shape[0] for i in ("a", "wide", "scaled", "last")] == [4] * 4
    assert dict(pruned.node("scaled").attrs)["inner"] == 1


def test_groups_keep_the_same_channels_and_a_shuffle_moves_them() -> None:
    graph = gated(
        {
            "a": ("conv", {"kernel": 1, "channels": 8}, ["input"]),
            "grouped": ("conv", {"kernel": 3, "groups": 2, "channels": 4}, ["a"]),
            "mixed": ("channel_shuffle", {"groups": 2}, ["grouped"]),
            "last": ("conv", {"kernel": 1, "channels": 4}, ["mixed"]),
        }
    )
    assert graph.channel_gates["a"] == tuple(f"v/a#{i % 4}" for i in range(8))
    assert graph.channel_gates["grouped"] == ("v/grouped#0", "v/grouped#1") * 2
    first, second = couple(graph).of("grouped")[:2]
    assert couple(graph).of("mixed") == [first, first, second, second]


def test_what_mixes_channels_without_a_weight_fixes_them() -> None:
    for op, attrs in (("layer_norm", {}), ("lrn", {"size": 3}), ("group_norm", {"groups": 2})):
        graph = graph_of({"a": ("conv", {"kernel": 1}, ["input"]), "last": (op, attrs, ["a"]), **HEAD})
        assert set(couple(graph).of("a")) == {FIXED}, op
