"""Sums and other values without weights: computed once for all who read them."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from compiler.ir.graph import Phase
from compiler.ir.text import text
from compiler.passes.reuse_sums import ReuseSums
from compiler.passes.share_equal_nodes import ShareEqualNodes
from tests.compiler.passes.test_fold import BARE, Parts, compact, fired, ops_of, quiet
from tests.graphs import graph_of, model_of
from tests.interpreter import evaluate, random_input

# -- share-equal-nodes -----------------------------------------------------------------------------------------------


def test_equal_sums_and_pools_are_computed_once() -> None:
    nodes: Parts = {
        "a": ("sigmoid", {}, ["input"]),
        "s": ("add", {}, ["a", "input"]),
        "t": ("add", {}, ["input", "a"]),
        "p": ("max_pool", {"kernel": 3}, ["s"]),
        "q": ("max_pool", {"kernel": 3}, ["t"]),
        "c": ("conv", {"kernel": 3, **BARE}, ["p"]),
        "d": ("conv", {"kernel": 3, **BARE}, ["q"]),
        "out": ("add", {}, ["c", "d"]),
    }
    assert ops_of(fired(ShareEqualNodes(), compact(nodes))) == ["sigmoid", "add", "max_pool", "conv", "conv", "add"]


def test_what_differs_or_is_read_together_is_not_shared() -> None:
    pools: Parts = {
        "p": ("max_pool", {"kernel": 3}, ["input"]),
        "q": ("max_pool", {"kernel": 5}, ["input"]),
        "r": ("avg_pool", {"kernel": 3}, ["input"]),
        "out": ("add", {}, ["p", "q", "r"]),
    }
    quiet(ShareEqualNodes(), compact(pools))
    twice: Parts = {"p": ("relu", {}, ["input"]), "q": ("relu", {}, ["input"]), "out": ("add", {}, ["p", "q"])}
    quiet(ShareEqualNodes(), compact(twice))
    joins: Parts = {
        "a": ("relu", {}, ["input"]),
        "j": ("concat", {}, ["a", "input"]),
        "k": ("concat", {}, ["input", "a"]),
        "out": ("add", {}, ["j", "k"]),
    }
    quiet(ShareEqualNodes(), compact(joins))


# -- reuse-sums ------------------------------------------------------------------------------------------------------


def test_a_sum_reads_the_sums_it_contains() -> None:
    nodes: Parts = {
        **{name: ("scale", {"factor": number + 2.0}, ["input"]) for number, name in enumerate("abcde")},
        "s": ("add", {}, ["a", "b"]),
        "t": ("add", {}, ["c", "d"]),
        "all": ("add", {}, ["a", "b", "c", "d", "e"]),
        "out": ("add", {}, ["s", "t", "all"]),
    }
    after = fired(ReuseSums(), compact(nodes))
    assert [e.src for e in after.graph.inputs("all")] == ["s", "t", "e"]
    assert len(after.graph) == len(nodes) + 2
    quiet(ReuseSums(), after)


def test_sums_that_only_overlap_are_left_alone() -> None:
    nodes: Parts = {
        "a": ("relu", {}, ["input"]),
        "b": ("silu", {}, ["input"]),
        "s": ("add", {}, ["a", "b"]),
        "t": ("add", {}, ["b", "input"]),
        "out": ("add", {}, ["s", "t"]),
    }
    quiet(ReuseSums(), compact(nodes))
    active: Parts = {"a": ("relu", {}, ["input"]), "s": ("add", {"act": "relu"}, ["a", "input"])}
    longer: Parts = {"b": ("silu", {}, ["s"]), "t": ("add", {}, ["a", "input", "b"])}
    quiet(ReuseSums(), compact(active | longer))


def values(count: int) -> Parts:
    """So many different values v0, v1, ..."""
    return {f"v{number}": ("scale", {"factor": number + 2.0}, ["input"]) for number in range(count)}


def test_a_common_part_becomes_a_sum_where_that_saves_two_additions() -> None:
    three: Parts = {
        **values(5),
        "s": ("add", {}, ["v0", "v1", "v2", "v3"]),
        "t": ("add", {}, ["v4", "v2", "v1", "v0"]),
        "out": ("concat", {}, ["s", "t"]),
    }
    after = fired(ReuseSums(), compact(three)).graph
    assert [e.src for e in after.inputs("s_part")] == ["v0", "v1", "v2"]
    assert [e.src for e in after.inputs("s")] == ["s_part", "v3"]
    assert [e.src for e in after.inputs("t")] == ["v4", "s_part"]
    pair_of_three: Parts = {
        **values(5),
        **{f"s{n}": ("add", {}, ["v0", "v1", f"v{n}"]) for n in (2, 3, 4)},
        "out": ("concat", {}, ["s2", "s3", "s4"]),
    }
    after = fired(ReuseSums(), compact(pair_of_three)).graph
    assert [[e.src for e in after.inputs(f"s{n}")] for n in (2, 3, 4)] == [["s2_part", f"v{n}"] for n in (2, 3, 4)]


def test_a_value_is_not_read_twice() -> None:
    nodes: Parts = {
        **values(2),
        "s": ("add", {}, ["v0", "v1"]),
        "twice": ("add", {}, ["s", "v0", "v1"]),
        "out": ("add", {"act": "silu"}, ["twice"]),
    }
    quiet(ReuseSums(), compact(nodes))


def random_sums(seed: int) -> Parts:
    """Sums of random values and of each other."""
    rng = random.Random(seed)
    nodes = values(6)
    for index in range(8):
        nodes[f"s{index}"] = ("add", {}, rng.sample(list(nodes), rng.randint(2, 6)))
    read = {source for _, _, sources in nodes.values() for source in sources}
    return nodes | {"out": ("concat", {}, [name for name in nodes if name not in read])}


def test_random_sums_keep_their_value_and_lose_additions() -> None:
    def additions(graph: Any) -> int:
        return sum(len(graph.inputs(node.id)) - 1 for node in graph.nodes() if node.op == "add")

    lost = 0
    for seed in range(100):
        before = model_of(graph_of(random_sums(seed), shape=(2, 1, 1), phase=Phase.COMPACT))
        after = ReuseSums().run(before)
        x = random_input(before.graph, seed)
        expected = evaluate(before.graph, {}, x)
        assert np.abs(evaluate(after.graph, {}, x) - expected).max() <= 1e-12 * np.abs(expected).max()
        saved, added = additions(before.graph) - additions(after.graph), len(after.graph) - len(before.graph)
        assert saved >= 2 * added >= 0
        assert text(ReuseSums().run(after).graph) == text(after.graph)
        lost += saved
    assert lost >= 300
