"""The graph IR: what a network is, without weights and without gate values.

A node's value is `op(sum of gate_e * value(src_e))` over its incoming edges, which is the paper's formula (equation
3); an op that reads its inputs apart (`concat`, `project`) gates each input on its own. Behind a node, each channel may
be multiplied by a gate as well. Numbers live beside the graph
in a `Model`, keyed by gate id and by `<node id>.<param>`, so that a pass touches tensors only when that is its job.
This is the only file that knows how a graph is stored.
"""

from __future__ import annotations

import copy
import enum
import heapq
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

AttrValue = int | float | str | bool | None | tuple[int | tuple[int, ...], ...] | tuple[float, ...]
Attrs = tuple[tuple[str, AttrValue], ...]

INPUT, OUTPUT = "input", "output"  # ids of the node that brings the image and of the main output; also their ops


class Phase(enum.Enum):
    """Which rule table a graph obeys."""

    RAW = "raw"  # just elaborated: types may be unknown
    SEARCH = "search"  # typed; gates on edges
    COMPACT = "compact"  # pruned; no gate, every node on a path from input to output


@dataclass(frozen=True, slots=True)
class TensorType:
    """Shape of a float32 value without the batch: `(C, H, W)` of an image, `(C, T)` of a signal, `(C,)` of a vector."""

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


class Edge(NamedTuple):  # a tuple, which is made and compared several times as fast as a dataclass
    """`src` feeds input number `slot` of `dst`, multiplied by `gate` (`<scope>/<dst><<src>`, which edges may share)."""

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


class Subject(enum.Enum):
    """What a gate closes when it is zero."""

    EDGE = "edge"
    CHANNELS = "channels"


@dataclass(frozen=True, slots=True)
class Choice:
    """Gates that are alternatives to each other; at most `most` of them may stay (None: any number)."""

    id: str
    gates: tuple[str, ...]
    most: int | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """What a search decides: which of the alternatives stay. One alternative stays or goes."""

    id: str
    alternatives: tuple[str, ...]  # ids of gates, all of one subject
    most: int | None
    subject: Subject


def block_of(node_id: str, blocks: Collection[str]) -> str:
    """Which of the blocks, given by their ids, a node stands in; empty if in none."""
    while node_id and node_id not in blocks:
        node_id = node_id.rpartition(".")[0]
    return node_id


def gate_scope(gate: str) -> str:
    """The share scope of a gate id: the gates of one scope form one vector of the supernet."""
    return gate.partition("/")[0]


def attrs_of(pairs: Mapping[str, Any]) -> Attrs:
    """Attributes as a node keeps them: sorted pairs, lists as tuples."""
    return tuple((k, frozen(v)) for k, v in sorted(pairs.items()))


def frozen(value: Any) -> Any:
    """Lists as tuples, however deep."""
    return tuple(map(frozen, value)) if isinstance(value, list) else value


class Graph:
    """Nodes and edges with a derived, deterministic order: topological, ties by insertion."""

    def __init__(self, name: str, phase: Phase = Phase.RAW, blocks: Iterable[Block] = ()) -> None:
        self.name = name
        self.phase = phase
        self.blocks: tuple[Block, ...] = tuple(blocks)
        self.channel_gates: dict[str, tuple[str | None, ...]] = {}  # node -> the gate behind each of its channels
        self.choices: tuple[Choice, ...] = ()
        self._nodes: dict[str, Node] = {}  # in the order they were added
        self._into: dict[str, dict[str, Edge]] = {}  # destination -> source -> edge, in the order of slots
        self._out_of: dict[str, dict[str, Edge]] = {}  # source -> destination -> edge
        self._order: tuple[Node, ...] | None = None  # what `nodes` gives, until the next edit
        self._edges: tuple[Edge, ...] | None = None  # what `edges` gives, until the next edit
        self._gates: dict[str, None] | None = None  # what `gates` gives, until the next edit
        self._inputs: dict[str, tuple[Edge, ...]] = {}  # what `inputs` gives, until the node gets another edge

    def __contains__(self, node_id: str) -> bool:
        return node_id in self._nodes

    def __len__(self) -> int:
        return len(self._nodes)

    def node(self, node_id: str) -> Node:
        """The node of this id; KeyError if there is none."""
        return self._nodes[node_id]

    def nodes(self) -> tuple[Node, ...]:
        """All nodes, every node after the nodes it reads, ties in the order they were added; ValueError at a cycle."""
        if self._order is None:
            ids = self._sorted_ids()
            if len(ids) < len(self):
                raise ValueError(f"the graph has a cycle: {' -> '.join(self._cycle())}")
            self._order = tuple(self._nodes[node_id] for node_id in ids)
        return self._order

    def _sorted_ids(self) -> list[str]:
        """Ids in the order of `nodes`, without those on a cycle or behind one."""
        names = list(self._nodes)
        rank = {node_id: i for i, node_id in enumerate(names)}
        missing = {node_id: len(self._into[node_id]) for node_id in rank}
        ready = [rank[i] for i, n in missing.items() if n == 0]
        heapq.heapify(ready)
        ids: list[str] = []
        while ready:
            node_id = names[heapq.heappop(ready)]
            ids.append(node_id)
            for user in self._out_of[node_id]:
                missing[user] -= 1
                if missing[user] == 0:
                    heapq.heappush(ready, rank[user])
        return ids

    def find_cycle(self) -> list[str]:
        """Node ids along one cycle, first id repeated at the end; empty if the graph is acyclic."""
        try:
            self.nodes()
        except ValueError:
            return self._cycle()
        return []

    def _cycle(self) -> list[str]:
        import networkx as nx  # a fifth of a second, and needed only to name a cycle

        edges = nx.find_cycle(nx.DiGraph((e.src, e.dst) for users in self._out_of.values() for e in users.values()))
        return [edges[0][0], *(edge[1] for edge in edges)]

    def inputs(self, node_id: str) -> tuple[Edge, ...]:
        """Edges into a node, by slot; KeyError if there is no such node."""
        found = self._inputs.get(node_id)
        if found is None:
            found = self._inputs[node_id] = tuple(self._into[node_id].values())
        return found

    def users(self, node_id: str) -> tuple[Edge, ...]:
        """Edges out of a node, in the order they were added; KeyError if there is no such node."""
        return tuple(self._out_of[node_id].values())

    def edges(self) -> tuple[Edge, ...]:
        """All edges, in the order of the nodes they feed, by slot."""
        if self._edges is None:
            self._edges = tuple(edge for node in self.nodes() for edge in self.inputs(node.id))
        return self._edges

    def edge_count(self) -> int:
        """Number of edges."""
        return sum(map(len, self._into.values()))

    def edge_gates(self) -> list[str]:
        """Ids of the gates on edges without repetition, in the order of their first edge."""
        if self._gates is None:
            self._gates = dict.fromkeys(e.gate for e in self.edges() if e.gate is not None)
        return list(self._gates)

    def gates(self) -> list[str]:
        """Ids of all gates: those on edges, then those on channels in the order of their first channel."""
        behind = (gate for node in self.nodes() for gate in self.channel_gates.get(node.id, ()) if gate is not None)
        return [*self.edge_gates(), *(dict.fromkeys(behind) if self.channel_gates else ())]

    def decisions(self) -> tuple[Decision, ...]:
        """What can be decided: the choices, then every other gate (open or closed), those of edges first."""
        edges = dict.fromkeys(self.edge_gates(), Subject.EDGE)
        chosen = {gate for choice in self.choices for gate in choice.gates}
        free = [Choice(gate, (gate,)) for gate in self.gates() if gate not in chosen]
        return tuple(
            Decision(choice.id, choice.gates, choice.most, edges.get(choice.gates[0], Subject.CHANNELS))
            for choice in (*self.choices, *free)
        )

    def gate_scopes(self) -> dict[str, list[str]]:
        """Gate ids by share scope: the layout of the supernet's gate vectors."""
        scopes: dict[str, list[str]] = {}
        for gate in self.gates():
            scopes.setdefault(gate_scope(gate), []).append(gate)
        return scopes

    def outputs(self) -> dict[str, Node]:
        """The nodes of op `output` by name: the main one, called `output`, then the others in the order of `nodes`."""
        found = {str(dict(node.attrs).get("name", node.id)): node for node in self.nodes() if node.op == OUTPUT}
        return {OUTPUT: found[OUTPUT]} | found

    def ancestors(self, node_id: str) -> set[str]:
        """Ids of all nodes that reach this one."""
        return _reached(node_id, self._into)

    def descendants(self, node_id: str) -> set[str]:
        """Ids of all nodes that this one reaches."""
        return _reached(node_id, self._out_of)

    def add(self, node: Node) -> None:
        """Add a node; ValueError if the id is taken."""
        if node.id in self._nodes:
            raise ValueError(f"node {node.id!r} exists already")
        self._nodes[node.id] = node
        self._into[node.id], self._out_of[node.id] = {}, {}
        self._order = self._edges = self._gates = None

    def connect(self, src: str, dst: str, gate: str | None = None) -> None:
        """Add an edge into the next free slot of `dst`; ValueError if the pair is connected already."""
        for end in (src, dst):
            if end not in self._nodes:
                raise ValueError(f"no node {end!r}")
        if src in self._into[dst]:
            raise ValueError(f"{dst!r} reads {src!r} already")
        edge = Edge(src, dst, len(self._into[dst]), gate)
        self._into[dst][src] = self._out_of[src][dst] = edge
        self._inputs.pop(dst, None)
        self._order = self._edges = self._gates = None

    def replace(self, node: Node) -> None:
        """Put `node` in the place of the node with the same id; KeyError if there is none."""
        self._nodes[self._nodes[node.id].id] = node
        self._order = None

    def copy(self, phase: Phase | None = None) -> Graph:
        """An independent copy, optionally in another phase."""
        twin = copy.copy(self)
        twin.phase = phase or self.phase
        twin._nodes = dict(self._nodes)
        twin._into = {node_id: dict(edges) for node_id, edges in self._into.items()}
        twin._out_of = {node_id: dict(edges) for node_id, edges in self._out_of.items()}
        twin._inputs = dict(self._inputs)
        twin.channel_gates = dict(self.channel_gates)
        return twin

    def restricted_to(self, edges: Iterable[Edge]) -> Graph:
        """The graph of these edges and the nodes they touch (plus input and outputs), slots renumbered densely."""
        kept = set(edges)
        ends = {node_id for node_id, node in self._nodes.items() if node.op in (INPUT, OUTPUT)}
        alive = ends | {e.src for e in kept} | {e.dst for e in kept}
        graph = Graph(self.name, self.phase, self.blocks)
        for node_id, node in self._nodes.items():
            if node_id in alive:
                graph.add(node)
        for node_id in graph._nodes:
            for edge in self.inputs(node_id):
                if edge in kept:
                    graph.connect(edge.src, node_id, edge.gate)
        graph.take_gates_of(self)
        return graph

    def take_gates_of(self, origin: Graph) -> None:
        """Take over the channel gates and choices of the graph that this one is left of: what still has a subject.

        Nodes keep a gate for each channel that they had: what removes channels must remove their gates as well.
        """
        self.channel_gates = {node_id: ids for node_id, ids in origin.channel_gates.items() if node_id in self}
        self.choices = origin.choices
        self.drop_lost_choices()

    def drop_lost_choices(self) -> None:
        """Take gates that are gone out of the choices, and choices without gates out of the graph."""
        if self.choices:
            alive = set(self.gates())
            left = [replace(c, gates=tuple(gate for gate in c.gates if gate in alive)) for c in self.choices]
            self.choices = tuple(choice for choice in left if choice.gates)


def _reached(start: str, links: Mapping[str, Mapping[str, Edge]]) -> set[str]:
    """Everything that links lead to from `start`, which is left out."""
    found: set[str] = set()
    waiting = [start]
    while waiting:
        new = links[waiting.pop()].keys() - found
        found |= new
        waiting += new
    return found - {start}


@dataclass(frozen=True)
class Model:
    """What every pass takes and returns: a graph with its gate values and its weights.

    `weights` maps `<node id>.<param>` to an array. Either mapping may be empty: passes then work on structure alone.
    """

    graph: Graph
    gates: Mapping[str, float] = field(default_factory=dict)
    weights: Mapping[str, Any] = field(default_factory=dict)
