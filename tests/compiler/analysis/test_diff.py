"""The difference of two graphs, by block and in total."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.analysis.costs import total_cost
from compiler.analysis.diff import OUTSIDE, diff
from compiler.ir.graph import Block, Graph
from tests.graphs import graph_of, random_gates, random_graph


def network(kernel: int = 3, *, extra: bool = True) -> Graph:
    nodes = {
        "a.wide": ("conv", {"kernel": kernel}, ["input"]),
        "a.out": ("add", {}, ["a.wide", "input"]),
    }
    if extra:
        nodes["a.side"] = ("identity", {}, ["input"])
        nodes["a.out"] = ("add", {}, ["a.wide", "a.side", "input"])
        nodes = {key: nodes[key] for key in ("a.wide", "a.side", "a.out")}
    nodes["last"] = ("relu", {}, ["a.out"])
    return graph_of(nodes, blocks=(Block("a", "kind", "a", ("input",), "a.out"),))


def test_what_went_is_listed_and_counted() -> None:
    found = diff(network(), network(extra=False))
    block = found.blocks[0]
    assert block.gone_nodes == ("a.side",)
    assert block.gone_edges == (("input", "a.side"), ("a.side", "a.out"))
    assert (block.nodes, block.edges) == ((3, 2), (5, 3))
    assert (found.nodes, found.edges) == ((6, 5), (7, 5))
    assert (block.new_nodes, block.new_edges, block.changed_nodes) == ((), (), ())
    assert found.render() == (
        "tiny -> tiny\n"
        "\n"
        "block                nodes           edges           params  FLOPs\n"
        "a                    3 -> 2 (-33 %)  5 -> 3 (-40 %)  152     5,184\n"
        "(outside of blocks)  3               2               0       0\n"
        "total                6 -> 5 (-17 %)  7 -> 5 (-29 %)  152     5,184\n"
        "\n"
        "a:\n"
        "  - node a.side\n"
        "  - edge input -> a.side\n"
        "  - edge a.side -> a.out\n"
    )
    assert "- node" not in found.render(listed=False)


def test_what_came_and_changed() -> None:
    found = diff(network(extra=False), network(kernel=1))
    assert found.blocks[0].new_nodes == ("a.side",)
    assert found.blocks[0].changed_nodes == ("a.wide",)
    assert (found.blocks[0].before.params, found.blocks[0].after.params) == (152, 24)
    assert "  ~ node a.wide\n" in found.render()
    assert "152 -> 24 (-84 %)" in found.render()


def test_equal_graphs_have_no_difference() -> None:
    found = diff(network(), network())
    assert found.same
    assert found.render() == "tiny and tiny have the same nodes and edges\n"


def test_json_form_is_plain_data() -> None:
    record = json.loads(json.dumps(diff(network(), network(extra=False)).as_json()))
    assert record["same"] is False
    assert record["blocks"][0]["gone_nodes"] == ["a.side"]
    assert record["before"]["params"] == 152


def pruned(graph: Graph, gates: dict[str, float]) -> Graph:
    """What is left on paths from input to output when zero gates are closed."""
    edges = [e for e in graph.edges() if e.gate is None or gates[e.gate]]
    while True:
        left = graph.restricted_to(edges)
        alive = left.descendants("input") & left.ancestors("output") | {"input", "output"}
        kept = [e for e in edges if e.src in alive and e.dst in alive]
        if kept == edges:
            return left
        edges = kept


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6))
def test_differences_add_up(seed: int) -> None:
    a = random_graph(seed)
    b = pruned(a, random_gates(a, seed))
    found = diff(a, b)
    for name in ("before", "after"):
        parts = [getattr(block, name) for block in found.blocks]
        whole = getattr(found, name)
        assert sum(part.params for part in parts) == whole.params
        assert sum(part.flops for part in parts) == whole.flops
    assert (found.before, found.after) == (total_cost(a), total_cost(b))
    assert sum(len(block.gone_nodes) for block in found.blocks) == len(a) - len(b)
    assert sum(len(block.gone_edges) for block in found.blocks) == a.edge_count() - b.edge_count()
    assert not any(block.new_nodes or block.new_edges or block.changed_nodes for block in found.blocks)
    assert found.same == (a.edge_count() == b.edge_count())
    assert {block.name for block in found.blocks} <= {"blk", OUTSIDE}
