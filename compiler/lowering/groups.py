"""Which nodes the lowerings treat together: blocks with one exit, and gated sums that share a stack. No torch here."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from compiler.ir.graph import Block, Graph, Node, block_of
from compiler.ops import Numbers, Reads, input_shapes, is_projection, op, steps, traits_of, walk

EDGES_PER_VALUE = 1.25
"""A stack pays with more edges than this for every source and every sum. Measured on two cores (Intel Xeon), with the
space of `benchmarks/supernet.py` pruned by 20 to 90 %: the two ways are even at 1.0 to 1.25. Not measured on GPUs,
where every edge starts kernels."""


def regions(graph: Graph, nodes: Sequence[Node]) -> Iterator[list[Node]]:
    """The nodes of each block, and those outside of blocks."""
    found: dict[str, list[Node]] = {block_id: [] for block_id in (*(block.id for block in graph.blocks), "")}
    for node in nodes:
        found[block_of(node.id, found)].append(node)
    yield from found.values()


def exits(graph: Graph) -> dict[str, tuple[list[Node], Block]]:
    """The blocks that give one value, by the node that makes it, with their nodes in order."""
    found = {}
    for block, nodes in zip(graph.blocks, regions(graph, graph.nodes()), strict=False):
        outside = [n for n in nodes if any(not block.holds(e.dst) for e in graph.users(n.id))]
        if len(outside) == 1:
            found[outside[0].id] = nodes, block
    return found


def recomputed_blocks(graph: Graph) -> list[str]:
    """The blocks to compute again in the backward pass, by the node that gives their value: all with one exit but the
    last, whose backward pass comes at once.
    """
    found = exits(graph)
    return [node.id for node in graph.nodes() if node.id in found][:-1]


@dataclass
class Stack:
    """Gated sums and projections that read one buffer: who reads it, and what has been written to it by now."""

    readers: list[Node]
    sources: list[str]
    home: frozenset[str]  # the nodes of the block it belongs to
    slots: dict[str, int] = field(default_factory=dict)  # value -> slot

    def fill(self, computed: Collection[str]) -> list[str]:
        """Give slots to those of the computed values that belong here and have none; they are returned in order."""
        new = [i for i in self.sources if i in computed and i not in self.slots]
        for node_id in new:
            self.slots[node_id] = len(self.slots)
        return new

    def ready(self, graph: Graph, done: Collection[str]) -> list[Node]:
        """The sums that are not done and whose sources all have slots."""
        return [
            node
            for node in self.readers
            if not is_projection(node.op, node.attrs)
            and node.id not in done
            and all(edge.src in self.slots for edge in graph.inputs(node.id))
        ]


def stacks(graph: Graph, region: Sequence[Node]) -> list[Stack]:
    """Readers that share sources, directly or through others, share a stack, where `_pays` says so."""
    groups: list[tuple[set[str], list[Node]]] = []
    for node in region:
        edges = graph.inputs(node.id)
        shapes = {graph.node(edge.src).shape for edge in edges}
        sums = op(node.op).reads is Reads.SUM or is_projection(node.op, node.attrs)
        if not sums or len(shapes) > 1 or not any(edge.gate for edge in edges):
            continue
        sources, readers = {edge.src for edge in edges}, [node]
        for other in [group for group in groups if group[0] & sources]:
            groups.remove(other)
            sources, readers = sources | other[0], other[1] + readers
        groups.append((sources, readers))
    home = [node.id for node in region]
    return [
        Stack(readers, _in_order(graph, readers, home), frozenset(home))
        for sources, readers in groups
        if _pays(graph, sources, readers)
    ]


def _in_order(graph: Graph, readers: Sequence[Node], home: Sequence[str]) -> list[str]:
    """What is read: first the values of other blocks, then those of the own block in the order they are computed."""
    sources = dict.fromkeys(edge.src for node in readers for edge in graph.inputs(node.id))
    own = dict.fromkeys(node_id for node_id in home if node_id in sources)
    return [*(i for i in sources if i not in own), *own]


def _pays(graph: Graph, sources: set[str], readers: list[Node]) -> bool:
    """Whether products are faster than adding edge by edge, which takes its time for every edge; a stack does for every
    source and every sum. Projections read values just as well where they lie.
    """
    sums = [node for node in readers if not is_projection(node.op, node.attrs)]
    return sum(len(graph.inputs(node.id)) for node in sums) > EDGES_PER_VALUE * (len(sources) + len(sums))


def leaves_relu(graph: Graph, node: Node, stack_of: dict[str, Stack]) -> bool:
    """Whether the node's last step is a ReLU that may be left to a stack of its own block, which alone reads it."""
    parts = steps(node.op, node.attrs)
    if len(parts) < 2 or parts[-1].op != "relu" or node.id in graph.channel_gates:
        return False
    first, *others = [stack_of.get(edge.dst) for edge in graph.users(node.id)]
    return first is not None and node.id in first.home and all(stack is first for stack in others)


def kept_apart(graph: Graph, readers: Sequence[Node]) -> tuple[bool, ...]:
    """Which of the sums that one product gives these readers lie in memory of their own while weights are trained.

    They are those that their readers keep, where others are not kept, whose memory can then be used again.
    """
    kept = [_keeps_sum(graph, node) for node in readers]
    return tuple(own and not all(kept) for own in kept)


def _keeps_sum(graph: Graph, node: Node) -> bool:
    """Whether the backward pass needs what the node reads: it does where the first thing done to it has weights."""
    for step, row, attrs, shapes, out in walk(node.op, node.attrs, input_shapes(graph, node)):
        if row.reads is Reads.APART or traits_of(step.op, step.attrs).unchanged is not Numbers.ALL:
            return bool(row.params(attrs, shapes, out))
    return False
