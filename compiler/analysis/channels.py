"""Which channels of a graph may change in number, and how they hang together.

Channels have classes as in `compiler.analysis.coupling`, tied only as far as their numbers must agree: those of the
image, of the outputs, of slices and of means over channels stay; which of them meet in a sum does not matter, and
groups divide their number. Nodes that write equally many channels (an attribute `channels`) write the same classes,
unless all channels of one must stay.

Classes that occur equally often in the same written nodes make a *block*: a conv that is added to a concat of a and b
has the blocks of both, c = a + b. Sizes of blocks are the free widths: each may become any multiple of its step.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from compiler.analysis.coupling import FIXED, Classes, Coupler, Zeros, groups_of
from compiler.errors import PassError
from compiler.ir.graph import Graph, Node, attrs_of
from compiler.ops import Channels, chain_of, read_attrs
from compiler.passes.infer_types import infer_types

NAME = "widen"
WidthSum = dict[int, int]  # coefficients by width of the given graph; the key of what stays is 0


@dataclass(frozen=True)
class WidthPlan:
    """The free widths of a graph and what follows from them."""

    graph: Graph
    steps: Mapping[int, int]  # free width -> what its new value must be a multiple of
    channels: Mapping[str, WidthSum]  # node -> its written channels as a sum over free widths
    groups: Mapping[str, WidthSum]  # node -> its groups, where these follow the channels it reads

    def apply(self, widths: Mapping[int, int]) -> Graph:
        """The typed graph in which every free width has become `widths[width]`."""
        graph = self.graph.copy()
        for attr, totals in (("channels", self.channels), ("groups", self.groups)):
            for node_id, total in totals.items():
                node = graph.node(node_id)
                value = sum(factor * (widths[width] if width else 1) for width, factor in total.items())
                graph.replace(replace(node, attrs=attrs_of({**dict(node.attrs), attr: value})))
        return infer_types(graph)


def plan_widths(graph: Graph, round_to: int) -> WidthPlan:
    """The plan of a typed graph; PassError where its widths are bound in a way that no rounding can keep."""
    alone = _Counts(graph, [node.id for node in graph.nodes()])
    counts = _Counts(graph, [i for i, made in alone.written.items() if alone.all_stay(made)])
    sizes = counts.block_sizes()
    channels = {node_id: counts.total(made, sizes) for node_id, made in counts.written.items()}
    steps = dict.fromkeys(sorted({width for total in channels.values() for width in total if width}), round_to)
    for node_id, divisor, classes in counts.divided:
        total = counts.total(classes, sizes)
        if total.get(0, 0) % divisor:
            raise PassError(
                NAME,
                node_id,
                f"{total[0]} of the channels stay (of the image or the logits), and {divisor} groups do not divide "
                f"them",
                "leave the budget out for this network, or let another layer come between",
            )
        for width in total.keys() & steps.keys():
            steps[width] = math.lcm(steps[width], divisor)
    groups = {node_id: counts.total(read, sizes) for node_id, read in counts.groups.items()}
    return WidthPlan(graph, steps, {n: t for n, t in channels.items() if set(t) != {0}}, groups)


class _Counts(Coupler):
    """Ties classes as far as numbers must agree; nodes that are not `alone` share the classes of a width."""

    def __init__(self, graph: Graph, alone: Collection[str]) -> None:
        super().__init__(graph)
        self.alone = frozenset(alone)
        self.shared: dict[int, Classes] = {}  # by width
        self.written: dict[str, Classes] = {}  # by node that writes its channels
        self.groups: dict[str, Classes] = {}  # what decides the groups of a node that has as many as channels
        self.divided: list[tuple[str, int, Classes]] = []  # node, groups, channels that these must divide
        for node in graph.nodes():
            self._enter(node)

    def all_stay(self, some: Classes) -> bool:
        return all(self._root(c) == FIXED for c in some)

    def block_sizes(self) -> dict[int, int]:
        """The size of the block that a class is in; 0 of what stays."""
        places: dict[int, Counter[str]] = defaultdict(Counter)
        for node_id, made in self.written.items():
            for c in made:
                places[self._root(c)][node_id] += 1
        blocks = {c: frozenset(found.items()) for c, found in places.items()}
        sizes = Counter(blocks.values())
        return {c: sizes[block] for c, block in blocks.items()} | {FIXED: 0}

    def total(self, some: Classes, sizes: Mapping[int, int]) -> WidthSum:
        """How many channels these are, as a sum of blocks."""
        return {size: n // (size or 1) for size, n in Counter(sizes[self._root(c)] for c in some).items()}

    def _through(self, node: Node, read: Classes) -> tuple[list[Classes], Zeros]:
        attrs, carried = read_attrs(node.op, node.attrs), [t.channels for t in chain_of(node.op, node.attrs)]
        if Channels.SLICED in carried or isinstance(getattr(attrs, "factor", None), tuple):
            self._fix(read)  # the attributes count channels, which therefore stay
        if getattr(attrs, "channels", None) is not None:
            made = self.written[node.id] = self._of_width(node)
        elif Channels.SLICED in carried or Channels.AVERAGED in carried:
            made = [FIXED] * node.shape[0]
        else:
            made = self._repeated(node, read)
        if carried[0] is Channels.GROUPED and groups_of(node) == len(read):
            self.groups[node.id] = read
            self._tie_each(made, self._repeated(node, read))
        elif carried[0] in (Channels.GROUPED, Channels.SHUFFLED):
            self.divided += [(node.id, groups_of(node), classes) for classes in (read, made)]
        return [read, made], Zeros.PASSES

    def _of_width(self, node: Node) -> Classes:
        made = self._new(node.shape[0])
        return made if node.id in self.alone else self.shared.setdefault(node.shape[0], made)

    def _repeated(self, node: Node, read: Classes) -> Classes:
        """Channels that follow from those read: as many, or a multiple (`flatten`)."""
        factor, rest = divmod(node.shape[0], len(read))
        if rest:
            raise PassError(
                NAME,
                node.id,
                f"cannot tell how the {node.shape[0]} channels of {node.op} follow from the {len(read)} it reads",
                "leave the budget out for this network, or give the op an attribute `channels`",
            )
        return read * factor

    def _tie_each(self, ones: Classes, others: Classes) -> None:
        """In any order, so that what both have need not be tied to anything."""
        left, right = ([self._root(c) for c in some] for some in (ones, others))
        if left != right:
            more, fewer = Counter(left), Counter(right)
            super()._tie_each([*(more - fewer).elements()], [*(fewer - more).elements()])
