"""Which channels of which values must go together, and behind which nodes a closed channel has to be made zero.

Every channel of every value has a *class*: channels that must stay or go together are in one. A conv writes channels
of new classes; norms, pools and depthwise convs pass them on; sums tie the channels of their inputs one by one; joins,
shuffles, slices and `flatten` move them (`compiler.ops.Channels`). A grouped conv ties the same places of all its
groups, so that these stay equal, or all channels of each group where a gate closes groups. Channels of the image, of
the outputs, and those that an op mixes without a weight that could be cut (`layer_norm`, `mean` over channels) stay.

A closed channel must be zero wherever a weight reads it, or leaving it out would change the result. So its gate stands
behind each node that makes the channel anew (conv, norm and activation together), and again behind each that makes
something else than zero of zero (a norm after a concat): relu(beta) would be left of it otherwise.
"""

from __future__ import annotations

import enum
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from compiler.ir.graph import INPUT, OUTPUT, Graph, Node
from compiler.ops import (
    Affine,
    Channels,
    Numbers,
    Reads,
    Shape,
    Step,
    gives_zeros,
    input_shapes,
    op,
    read_attrs,
    traits_of,
    walk,
)

FIXED = 0  # the class of channels that stay
Classes = list[int]


class Zeros(enum.Enum):
    """What a node makes of a channel of zeros that it reads."""

    PASSES = enum.auto()  # zeros
    LOSES = enum.auto()  # something else in the same channel
    READS = enum.auto()  # nothing there: the channels that it gives are others


@dataclass(frozen=True)
class Coupling:
    """The classes of all channels of a graph."""

    steps: Mapping[str, Sequence[Classes]]  # by node: what its first step reads (joined), then what each step gives
    places: frozenset[str]  # nodes behind which closed channels must be made zero
    gates: Mapping[int, frozenset[str]]  # the gates that close a class, of those that have some

    def of(self, node_id: str) -> Classes:
        """The classes of the channels that a node gives."""
        return self.steps[node_id][-1]

    def closed_by(self, closed: Collection[str]) -> frozenset[int]:
        """The classes all of whose gates are closed."""
        shut = frozenset(closed)
        return frozenset(found for found, gates in self.gates.items() if gates <= shut)

    def silent(self, closed: Collection[str]) -> set[str]:
        """The nodes that give no channel any more."""
        gone = self.closed_by(closed)
        return {node_id for node_id, made in self.steps.items() if gone.issuperset(made[-1])} if gone else set()


@lru_cache(maxsize=8)
def couple(graph: Graph) -> Coupling:
    """The coupling of a finished graph, which is kept: later edits of the graph are not seen."""
    return Coupler(graph).coupling()


def whole_groups(graph: Graph, node: Node) -> bool:
    """Whether the gates behind a grouped convolution close whole groups."""
    ids = graph.channel_gates.get(node.id, ())
    size = len(ids) // max(1, groups_of(node))
    return size > 1 and len(set(ids)) > 1 and all(i == ids[n - n % size] for n, i in enumerate(ids))


def groups_of(node: Node) -> int:
    """The attribute `groups` of a convolution; 1 where there is none."""
    return int(getattr(read_attrs(node.op, node.attrs), "groups", 1))


class Coupler:
    """Goes through a graph from the image on and ties classes, each of which points to one that it was tied to."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.parents = [FIXED]
        self.steps: dict[str, list[Classes]] = {}
        self.zeros: dict[str, Zeros] = {}
        self.weighing: set[str] = set()  # nodes in which a weight adds up channels that are read
        self.by_gate: dict[str, int] = {}  # a class that each gate closes

    def coupling(self) -> Coupling:
        """The coupling of the graph as it is now."""
        graph = self.graph
        for node in graph.nodes():
            self._enter(node)
            for gate, made in zip(graph.channel_gates.get(node.id, ()), self.steps[node.id][-1], strict=False):
                if gate is not None:
                    self._tie(self.by_gate.setdefault(gate, made), made)
        found = {i: [[self._root(c) for c in made] for made in each] for i, each in self.steps.items()}
        gates = defaultdict(set)
        for gate, made in self.by_gate.items():
            gates[self._root(made)].add(gate)
        return Coupling(found, self._places(), {c: frozenset(ids) for c, ids in gates.items()})

    def _enter(self, node: Node) -> None:
        reads = [self.steps[edge.src][-1] for edge in self.graph.inputs(node.id)]
        if node.op == INPUT:
            self.steps[node.id], self.zeros[node.id] = [[FIXED] * node.shape[0]], Zeros.READS
            return
        if op(node.op).reads is Reads.APART:
            reads = [[c for read in reads for c in read]]
        for other in reads[1:]:
            self._tie_each(reads[0], other)
        if node.op == OUTPUT:
            self._fix(reads[0])
        self.steps[node.id], self.zeros[node.id] = self._through(node, reads[0])

    def _through(self, node: Node, read: Classes) -> tuple[list[Classes], Zeros]:
        made, zeros = [read], Zeros.PASSES
        if gives_zeros(node.op, node.attrs) and dict(node.attrs).get("channels") is not None:
            return [read, self._new(node.shape[0])], Zeros.PASSES
        for step, _, _, shapes, out in walk(node.op, node.attrs, input_shapes(self.graph, node)):
            traits, now = traits_of(step.op, step.attrs), made[-1]
            passed = self._passed_on(node, step, now, shapes, out)
            if traits.channels is Channels.SCALED and zeros is not Zeros.PASSES:
                self._fix(now)
            if traits.channels is Channels.SCALED or passed is None:
                self.weighing.add(node.id)
            if passed is not None:
                made.append(passed)
                if zeros is Zeros.PASSES and traits.homogeneous < Numbers.ZERO:
                    zeros = Zeros.LOSES
                continue
            if traits.affine is not Affine.WEIGHT or zeros is Zeros.LOSES:
                self._fix(now)
            zeros = Zeros.READS
            made.append(self._written(step, now, out[0]) if traits.affine is Affine.WEIGHT else [FIXED] * out[0])
        return made, zeros

    def _passed_on(self, node: Node, step: Step, read: Classes, shapes: list[Shape], out: Shape) -> Classes | None:
        """The classes of what a step gives, where its channels are those that it reads; None where they are not."""
        traits, attrs = traits_of(step.op, step.attrs), read_attrs(step.op, step.attrs)
        match traits.channels:
            case Channels.KEPT | Channels.JOINED | Channels.SCALED:
                return read
            case Channels.FLATTENED:
                return [c for c in read for _ in range(math.prod(shapes[0][1:]))]
            case Channels.SLICED:
                return read[attrs.start : attrs.stop]
            case Channels.SHUFFLED:
                return self._shuffled(read, attrs.groups)
            case Channels.GROUPED if traits.affine is Affine.WEIGHT:
                return self._by_group(node, read, attrs.groups, out[0])
            case _:
                return None

    def _shuffled(self, read: Classes, groups: int) -> Classes:
        size = len(read) // groups
        self._tie_places(read, groups)
        return [read[k * size + i] for i in range(size) for k in range(groups)]

    def _by_group(self, node: Node, read: Classes, groups: int, channels: int) -> Classes | None:
        """Depthwise, each channel makes its own ones; where gates close groups, each group makes its own.

        None where all groups keep the same channels; they may have lost all but one each.
        """
        size, roots = len(read) // groups, {self._root(c) for c in read}
        if not whole_groups(self.graph, node) and (size > 1 or (len(roots) == 1 and FIXED not in roots)):
            return None
        for k in range(groups):
            self._tie_all(read[k * size : (k + 1) * size])
        return [read[n * groups // channels * size] for n in range(channels)]

    def _written(self, step: Step, read: Classes, channels: int) -> Classes:
        is_grouped = traits_of(step.op, step.attrs).channels is Channels.GROUPED
        groups = read_attrs(step.op, step.attrs).groups if is_grouped else 1
        self._tie_places(read, groups)
        return self._new(channels // groups) * groups

    def _new(self, count: int) -> Classes:
        start = len(self.parents)
        self.parents += range(start, start + count)
        return list(range(start, start + count))

    def _root(self, found: int) -> int:
        parents = self.parents
        while parents[found] != found:
            parents[found] = parents[parents[found]]
            found = parents[found]
        return found

    def _tie(self, one: int, other: int) -> None:
        low, high = sorted((self._root(one), self._root(other)))
        self.parents[high] = low

    def _tie_each(self, ones: Classes, others: Classes) -> None:
        for one, other in zip(ones, others, strict=True):
            self._tie(one, other)

    def _tie_all(self, some: Iterable[int]) -> None:
        first, *others = some
        for other in others:
            self._tie(first, other)

    def _tie_places(self, read: Classes, groups: int) -> None:
        """The same places of all groups."""
        size = len(read) // groups
        for k in range(1, groups):
            self._tie_each(read[:size], read[k * size : (k + 1) * size])

    def _fix(self, some: Classes) -> None:
        self._tie_all([FIXED, *some])

    def _places(self) -> frozenset[str]:
        needed: dict[str, bool] = {}
        for node in reversed(self.graph.nodes()):
            readers = [self.graph.node(edge.dst) for edge in self.graph.users(node.id)]
            needed[node.id] = any(self._needs_zeros(reader, node, needed) for reader in readers)
        groups = {n.id for n in self.graph.nodes() if groups_of(n) > 1 and whole_groups(self.graph, n)}
        makes = (i for i, zeros in self.zeros.items() if zeros is not Zeros.PASSES and needed[i])
        return frozenset(groups.union(makes) - {INPUT})

    def _needs_zeros(self, reader: Node, source: Node, needed: Mapping[str, bool]) -> bool:
        """Whether closed channels that `reader` reads from `source` must be zero. Of a product, those of one input."""
        classes = {self._root(c) for c in self.steps[reader.id][0]}
        if reader.id in self.weighing and (len(classes) > 1 or FIXED in classes):  # one of a single class goes with it
            return True
        is_part = op(reader.op).reads is Reads.TOGETHER and source.id != _largest_input(self.graph, reader)
        return self.zeros[reader.id] is Zeros.PASSES and needed[reader.id] and not is_part


def _largest_input(graph: Graph, product: Node) -> str:
    sources = [edge.src for edge in graph.inputs(product.id)]
    return max(sources, key=lambda i: math.prod(graph.node(i).shape))
