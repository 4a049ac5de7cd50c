"""The graph IR: what a network is, without weights and without gate values.

A node's value is `op(sum of gate_e * value(src_e))` over its incoming edges, which is the paper's formula (equation
3); an op that reads its inputs apart (`concat`, `project`) gates each input on its own. Numbers live beside the graph
in a `Model`, keyed by gate id and by `<node id>.<param>`, so that a pass touches tensors only when that is its job.
This is the only file that knows how a graph is stored.
"""

from __future__ import annotations

import enum
import heapq
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import networkx as nx

AttrValue = int | float | str | bool | None | tuple[int, ...] | tuple[float, ...]
Attrs = tuple[tuple[str, AttrValue], ...]

INPUT, OUTPUT = "input", "output"  # ids of the one node that brings the image and the one that takes the logits


class Phase(enum.Enum):
    """Which rule table a graph obeys."""

    RAW = "raw"  # just elaborated: types may be unknown
    SEARCH = "search"  # typed; gates on edges
    COMPACT = "compact"  # pruned; no gate, every node on a path from input to output


@dataclass(frozen=True, slots=True)
class TensorType:
    """The shape of a value without the batch: `(C, H, W)` for images, `(C,)` for vectors. Always float32."""

    shape: tuple[int, ...]

    def __str__(self) -> str:
        return "x".join(map(str, self.shape))

    @property
    def numel(self) -> int:
        """Elements per image."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Node:
    """A value and the operation that makes it; `attrs` are sorted pairs, `type` is filled by `infer-types`."""

    id: str
    op: str
    attrs: Attrs = ()
    type: TensorType | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the value; the graph must be typed."""
        assert self.type is not None, f"{self.id} has no type yet: run infer-types first"
        return self.type.shape


@dataclass(frozen=True, slots=True)
class Edge:
    """`src` feeds input number `slot` of `dst`, multiplied by `gate` (`<scope>/<dst><<src>`; many edges may share it)."""

    src: str
    dst: str
    slot: int
    gate: str | None = None


@dataclass(frozen=True, slots=True)
class Block:
    """A block instance: the nodes whose id starts with `<id>.`. `kind` is its name in the spec."""

    id: str
    kind: str
    stage: str  # id of the stage it stands in, or its own id outside of stages
    inputs: tuple[str, ...]  # ids of the nodes whose values it takes
    output: str  # id of the node whose value it gives

    def holds(self, node_id: str) -> bool:
        """Whether the node belongs to this block."""
        return node_id.startswith(self.id + ".")


def gate_scope(gate: str) -> str:
    """The share scope of a gate id: the gates of one scope form one vector of the supernet."""
    return gate.partition("/")[0]


def attrs_of(pairs: Mapping[str, Any]) -> Attrs:
    """Attributes as a node keeps them: sorted pairs, lists as tuples."""
    return tuple((k, tuple(v) if isinstance(v, list) else v) for k, v in sorted(pairs.items()))


class Graph:
    """Nodes and edges with a derived, deterministic order: topological, ties by insertion."""

    def __init__(self, name: str, phase: Phase = Phase.RAW, blocks: Iterable[Block] = ()) -> None:
        self.name = name
        self.phase = phase
        self.blocks: tuple[Block, ...] = tuple(blocks)
        self._dag: nx.DiGraph[str] = nx.DiGraph()
        self._order: tuple[Node, ...] | None = None

    def __contains__(self, node_id: str) -> bool:
        return node_id in self._dag

    def __len__(self) -> int:
        return self._dag.number_of_nodes()

    # -- reading ------------------------------------------------------------------------------------------------

    def node(self, node_id: str) -> Node:
        """The node of this id; KeyError if there is none."""
        node: Node = self._dag.nodes[node_id]["node"]
        return node

    def nodes(self) -> tuple[Node, ...]:
        """All nodes, every node after the nodes it reads, ties in the order they were added."""
        if self._order is None:
            self._order = tuple(self.node(i) for i in self._sorted_ids())
        return self._order

    def _sorted_ids(self) -> list[str]:
        rank = {node_id: i for i, node_id in enumerate(self._dag)}
        names = list(rank)
        missing = {node_id: self._dag.in_degree(node_id) for node_id in rank}
        ready = [rank[i] for i, n in missing.items() if n == 0]
        heapq.heapify(ready)
        ids: list[str] = []
        while ready:
            node_id = names[heapq.heappop(ready)]
            ids.append(node_id)
            for user in self._dag.successors(node_id):
                missing[user] -= 1
                if missing[user] == 0:
                    heapq.heappush(ready, rank[user])
        if len(ids) != len(rank):
            raise ValueError(f"the graph has a cycle: {' -> '.join(self.find_cycle())}")
        return ids

    def find_cycle(self) -> list[str]:
        """Node ids along one cycle, first id repeated at the end; empty if the graph is acyclic."""
        try:
            edges = nx.find_cycle(self._dag)
        except nx.NetworkXNoCycle:
            return []
        return [edges[0][0], *(edge[1] for edge in edges)]

    def inputs(self, node_id: str) -> list[Edge]:
        """Edges into a node, by slot."""
        edges: list[Edge] = [e for _, _, e in self._dag.in_edges(node_id, data="edge")]
        edges.sort(key=lambda e: e.slot)
        return edges

    def users(self, node_id: str) -> list[Edge]:
        """Edges out of a node, in the order they were added."""
        return [e for _, _, e in self._dag.out_edges(node_id, data="edge")]

    def edges(self) -> list[Edge]:
        """All edges, in the order of the nodes they feed, by slot."""
        return [edge for node in self.nodes() for edge in self.inputs(node.id)]

    def edge_count(self) -> int:
        """Number of edges."""
        return self._dag.number_of_edges()

    def gates(self) -> list[str]:
        """Gate ids without repetition, in the order of their first edge."""
        return list(dict.fromkeys(e.gate for e in self.edges() if e.gate is not None))

    def gate_scopes(self) -> dict[str, list[str]]:
        """Gate ids by share scope: the layout of the supernet's gate vectors."""
        scopes: dict[str, list[str]] = {}
        for gate in self.gates():
            scopes.setdefault(gate_scope(gate), []).append(gate)
        return scopes

    def ancestors(self, node_id: str) -> set[str]:
        """Ids of all nodes that reach this one."""
        return set(nx.ancestors(self._dag, node_id))

    def descendants(self, node_id: str) -> set[str]:
        """Ids of all nodes that this one reaches."""
        return set(nx.descendants(self._dag, node_id))

    # -- editing ------------------------------------------------------------------------------------------------

    def add(self, node: Node) -> None:
        """Add a node; ValueError if the id is taken."""
        if node.id in self._dag:
            raise ValueError(f"node {node.id!r} exists already")
        self._dag.add_node(node.id, node=node)
        self._order = None

    def connect(self, src: str, dst: str, gate: str | None = None) -> None:
        """Add an edge into the next free slot of `dst`; ValueError if the pair is connected already."""
        if self._dag.has_edge(src, dst):
            raise ValueError(f"{dst!r} reads {src!r} already")
        for end in (src, dst):
            if end not in self._dag:
                raise ValueError(f"no node {end!r}")
        self._dag.add_edge(src, dst, edge=Edge(src, dst, self._dag.in_degree(dst), gate))
        self._order = None

    def replace(self, node: Node) -> None:
        """Put `node` in the place of the node with the same id."""
        self._dag.nodes[node.id]["node"] = node
        self._order = None

    def copy(self, phase: Phase | None = None) -> Graph:
        """An independent copy, optionally in another phase."""
        twin = Graph(self.name, phase or self.phase, self.blocks)
        twin._dag = self._dag.copy()
        twin._order = self._order
        return twin

    def restricted_to(self, edges: Iterable[Edge]) -> Graph:
        """The graph of these edges and the nodes they touch (plus input and output), slots renumbered densely."""
        kept = set(edges)
        alive = {INPUT, OUTPUT} | {e.src for e in kept} | {e.dst for e in kept}
        graph = Graph(self.name, self.phase, self.blocks)
        for node_id in self._dag:
            if node_id in alive:
                graph.add(self.node(node_id))
        for node_id in graph._dag:
            for edge in self.inputs(node_id):
                if edge in kept:
                    graph.connect(edge.src, node_id, edge.gate)
        return graph


@dataclass(frozen=True)
class Model:
    """What every pass takes and returns: a graph with its gate values and its weights.

    `weights` maps `<node id>.<param>` to an array. Either mapping may be empty: passes then work on structure alone.
    """

    graph: Graph
    gates: Mapping[str, float] = field(default_factory=dict)
    weights: Mapping[str, Any] = field(default_factory=dict)
