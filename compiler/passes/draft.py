"""A graph taken apart for editing: nodes in order and what each one reads, put together again at the end.

Passes that remove or rewire nodes edit a `Draft`; `Graph` itself only grows. A draft makes no decisions of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Any

from compiler.ir.graph import INPUT, OUTPUT, Block, Graph, Node, Phase

Source = tuple[str, str | None]  # id of the node read, gate of the edge
Weights = dict[str, Any]  # arrays by `<node id>.<param>`


class Draft:
    """Nodes by id and the sources of each by slot. Ties of the topological order follow the order of the nodes."""

    def __init__(self, graph: Graph, *, empty: bool = False) -> None:
        """A draft of `graph`, or an empty one to fill with its successor's nodes."""
        self.origin = graph
        self.nodes: dict[str, Node] = {}
        self.reads: dict[str, list[Source]] = {}
        self.renamed: dict[str, str] = {}  # removed nodes that blocks may know -> what stands for them
        for node in () if empty else graph.nodes():
            self.add(node, sources_of(graph, node.id))

    def add(self, node: Node, sources: Iterable[Source]) -> None:
        """Append a node; ids it reads may be added later."""
        assert node.id not in self.nodes, f"node {node.id!r} exists already"
        self.nodes[node.id] = node
        self.reads[node.id] = list(sources)

    @functools.cached_property
    def users(self) -> dict[str, list[str]]:
        """Ids of the nodes that read each node; `redirect` keeps them right, other edits do not."""
        found: dict[str, list[str]] = {i: [] for i in self.nodes}
        for dst, sources in self.reads.items():
            for src, _ in sources:
                found[src].append(dst)
        return found

    def redirect(self, old: str, new: str) -> bool:
        """Let all readers of `old` read `new` instead, and remove `old`; False, and no change, if one reads both."""
        if any(src == new for reader in self.users[old] for src, _ in self.reads[reader]):
            return False
        for reader in self.users[old]:
            self.reads[reader] = [(new if src == old else src, gate) for src, gate in self.reads[reader]]
        for src, _ in self.reads[old]:
            self.users[src].remove(old)
        self.users[new] += self.users.pop(old)
        del self.nodes[old], self.reads[old]
        self.renamed[old] = new
        return True

    def graph(self, phase: Phase | None = None) -> Graph:
        """The graph of all nodes that reach an output."""
        alive = self._needed()
        graph = Graph(self.origin.name, phase or self.origin.phase)
        for node in self.nodes.values():
            if node.id in alive:
                graph.add(node)
        for node_id, sources in self.reads.items():
            if node_id in alive:
                for src, gate in sources:
                    graph.connect(src, node_id, gate)
        graph.blocks = living_blocks(self.origin.blocks, graph, self.renamed)
        graph.take_gates_of(self.origin)
        return graph

    def _needed(self) -> set[str]:
        todo = [node.id for node in self.nodes.values() if node.op == OUTPUT]
        needed = {INPUT, *todo}
        while todo:
            fresh = {src for src, _ in self.reads[todo.pop()]} - needed
            needed |= fresh
            todo += fresh
        return needed


def living_blocks(blocks: Iterable[Block], graph: Graph, renamed: dict[str, str]) -> tuple[Block, ...]:
    """The blocks that still have nodes and an output, reduced to the inputs that their nodes still read."""

    def final(node_id: str) -> str:
        while node_id in renamed:
            node_id = renamed[node_id]
        return node_id

    segments = [node.id.split(".") for node in graph.nodes()]
    paths = {".".join(parts[:length]) for parts in segments for length in range(1, len(parts))}
    kept = []
    for block in blocks:
        if final(block.output) not in graph or block.id not in paths:
            continue
        inputs = dict.fromkeys(final(i) for i in block.inputs)
        read = tuple(i for i in inputs if i in graph and any(block.holds(e.dst) for e in graph.users(i)))
        kept.append(replace(block, inputs=read, output=final(block.output)))
    return tuple(kept)


def sources_of(graph: Graph, node_id: str) -> list[Source]:
    """What a node reads, by slot."""
    return [(edge.src, edge.gate) for edge in graph.inputs(node_id)]


def taken_paths(ids: Iterable[str]) -> set[str]:
    """The ids and everything they stand below: what a new node must not be called, nor stand below if it is a node.

    In the network that torch runs, a module below another is one of its parts.
    """
    return {id_[:end] for id_ in ids for end in (*(i for i, c in enumerate(id_) if c == "."), len(id_))}


def free_id(taken: Collection[str], wanted: str) -> str:
    """`wanted`, with as many underscores as it takes to be free."""
    while wanted in taken:
        wanted += "_"
    return wanted
