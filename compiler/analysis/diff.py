"""`graphspec diff`: what of one graph is missing in another, and what is new, per block and in total.

Made for a search space and what a search left of it, which share node ids; it works for any two graphs.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from compiler.analysis.costs import block_of, node_costs
from compiler.ir.graph import Graph
from compiler.ops import Cost

OUTSIDE = "(outside of blocks)"


@dataclass(frozen=True)
class BlockDiff:
    """The differences inside one block. Edges belong to the block of the node they feed."""

    name: str
    gone_nodes: tuple[str, ...]
    new_nodes: tuple[str, ...]
    changed_nodes: tuple[str, ...]  # same id, other op, attributes or type
    gone_edges: tuple[tuple[str, str], ...]  # (source, destination)
    new_edges: tuple[tuple[str, str], ...]
    nodes: tuple[int, int]  # before, after
    edges: tuple[int, int]
    before: Cost
    after: Cost

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return not (self.gone_nodes or self.new_nodes or self.changed_nodes or self.gone_edges or self.new_edges)


@dataclass(frozen=True)
class Diff:
    """How graph `b` differs from graph `a`."""

    names: tuple[str, str]
    blocks: tuple[BlockDiff, ...]  # every block of either graph, in the order of `a`
    nodes: tuple[int, int]
    edges: tuple[int, int]
    before: Cost
    after: Cost

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return all(block.same for block in self.blocks)

    def as_json(self) -> dict[str, Any]:
        """Everything as plain data, for `--json`."""
        return asdict(self) | {"same": self.same}

    def render(self, *, listed: bool = True) -> str:
        """A table per block; with `listed` also the names of all that went and came."""
        if self.same:
            return f"{self.names[0]} and {self.names[1]} have the same nodes and edges\n"
        rows: list[tuple[str, ...]] = [("block", "nodes", "edges", "params", "FLOPs")]
        rows += [_row(block.name, block) for block in self.blocks]
        rows.append(_row("total", self))
        lines = [f"{self.names[0]} -> {self.names[1]}", "", *_aligned(rows)]
        return "\n".join([*lines, *(_names(self.blocks) if listed else [])]) + "\n"


def diff(a: Graph, b: Graph) -> Diff:
    """The difference between two typed graphs, by node id and by pair of nodes."""
    places = {node.id: home[node.id].id if node.id in home else OUTSIDE
              for graph, home in ((b, block_of(b)), (a, block_of(a))) for node in graph.nodes()}  # fmt: skip
    costs = (node_costs(a), node_costs(b))
    members: tuple[dict[str, list[str]], dict[str, list[str]]] = ({}, {})
    for graph, found in zip((a, b), members, strict=True):
        for node in graph.nodes():
            found.setdefault(places[node.id], []).append(node.id)
    names = dict.fromkeys([*(block.id for block in (*a.blocks, *b.blocks)), OUTSIDE])
    blocks = [
        _block_diff(name, (a, b), (members[0].get(name, []), members[1].get(name, [])), costs)
        for name in names
        if name in members[0] or name in members[1]
    ]
    totals = [sum(table.values(), Cost()) for table in costs]
    edges = (a.edge_count(), b.edge_count())
    return Diff((a.name, b.name), tuple(blocks), (len(a), len(b)), edges, totals[0], totals[1])


def _block_diff(
    name: str,
    graphs: tuple[Graph, Graph],
    members: tuple[list[str], list[str]],
    costs: tuple[dict[str, Cost], dict[str, Cost]],
) -> BlockDiff:
    a, b = graphs
    pairs = [
        dict.fromkeys((e.src, e.dst) for i in ids for e in g.inputs(i)) for g, ids in zip(graphs, members, strict=True)
    ]
    before, after = (sum((table[i] for i in ids), Cost()) for table, ids in zip(costs, members, strict=True))
    return BlockDiff(
        name,
        gone_nodes=tuple(i for i in members[0] if i not in b),
        new_nodes=tuple(i for i in members[1] if i not in a),
        changed_nodes=tuple(i for i in members[0] if i in b and a.node(i) != b.node(i)),
        gone_edges=tuple(pair for pair in pairs[0] if pair not in pairs[1]),
        new_edges=tuple(pair for pair in pairs[1] if pair not in pairs[0]),
        nodes=(len(members[0]), len(members[1])),
        edges=(len(pairs[0]), len(pairs[1])),
        before=before,
        after=after,
    )


def _row(name: str, part: BlockDiff | Diff) -> tuple[str, ...]:
    costs = ((part.before.params, part.after.params), (part.before.flops, part.after.flops))
    return (name, *(_change(*pair) for pair in (part.nodes, part.edges, *costs)))


def _change(before: int, after: int) -> str:
    if before == after:
        return f"{before:,}"
    share = f" ({100 * (after - before) / before:+.0f} %)" if before else ""
    return f"{before:,} -> {after:,}{share}"


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _names(blocks: tuple[BlockDiff, ...]) -> list[str]:
    """What went (-), came (+) and changed (~), block by block."""
    lines: list[str] = []
    for block in blocks:
        if block.same:
            continue
        lines += ["", f"{block.name}:"]
        lines += [f"  - node {i}" for i in block.gone_nodes]
        lines += [f"  + node {i}" for i in block.new_nodes]
        lines += [f"  ~ node {i}" for i in block.changed_nodes]
        lines += [f"  - edge {src} -> {dst}" for src, dst in block.gone_edges]
        lines += [f"  + edge {src} -> {dst}" for src, dst in block.new_edges]
    return lines
