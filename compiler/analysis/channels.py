"""Which channels of a graph may change, and how they hang together.

The channels of every value are a sum of *written* channels (an attribute `channels`) and constants: a conv writes
them, batch norm and pools pass them on, `concat` adds them up, `flatten` multiplies them (`compiler.ops.Channels`).
Sums of values ask for equal channels. From these equations follows, in this order:

1. Image channels and the channels of the outputs are constants, and so is whatever must equal a constant.
2. Written channels that must be equal are one unknown; so are all others that are equal in the given graph.
3. Where a `concat` must equal an unknown, the unknown is derived from the parts: c = a + b.

What is left are the free widths: each may become any multiple of its step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from compiler.errors import PassError
from compiler.ir.graph import INPUT, Attrs, Graph, Node, attrs_of
from compiler.ops import Channels, Reads, chain_of, input_shapes, op, read_attrs
from compiler.passes.infer_types import infer_types

NAME = "widen"
CONSTANT = ""  # the key of a sum's constant part; the others are ids of nodes that write their channels
Sum = dict[str, int]  # coefficients by key, none of them zero
WidthSum = dict[int, int]  # coefficients by width of the given graph; the constant's key is 0


@dataclass(frozen=True, eq=False)
class Equation:
    """Two sums that must be equal because `where` reads (or is) both."""

    where: str
    left: Sum
    right: Sum


@dataclass
class _Relations:
    """What the graph says about channels, before anything is solved."""

    written: dict[str, int] = field(default_factory=dict)  # channels of the nodes that write them
    equations: list[Equation] = field(default_factory=list)
    groups: dict[str, Sum] = field(default_factory=dict)  # groups that follow the channels a conv reads
    divided: list[tuple[str, int, Sum]] = field(default_factory=list)  # node, groups, channels that these must divide
    logits: set[str] = field(default_factory=set)  # what the outputs have their channels of


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
        for node_id in {**self.channels, **self.groups}:
            node = graph.node(node_id)
            graph.replace(replace(node, attrs=self._attrs(node, widths)))
        return infer_types(graph)

    def _attrs(self, node: Node, widths: Mapping[int, int]) -> Attrs:
        if node.id not in self.channels and node.id not in self.groups:
            return node.attrs
        attrs = dict(node.attrs)
        if node.id in self.channels:
            attrs["channels"] = _value(self.channels[node.id], widths)
        if node.id in self.groups:
            attrs["groups"] = _value(self.groups[node.id], widths)
        return attrs_of(attrs)


def _value(total: WidthSum, widths: Mapping[int, int]) -> int:
    return sum(factor * (widths[width] if width else 1) for width, factor in total.items())


def plan_widths(graph: Graph, round_to: int) -> WidthPlan:
    """The plan of a typed graph; PassError where its widths are bound in a way that no rounding can keep."""
    relations = _relations(graph)
    unknowns = _solve_constants(relations)
    derived = _derive(relations, unknowns)

    def rewritten(total: Sum) -> WidthSum:
        return _substituted(unknowns.in_widths(total), derived)

    channels = {node_id: rewritten({node_id: 1}) for node_id in relations.written}
    free = sorted({width for total in channels.values() for width in total if width})
    steps = dict.fromkeys(free, round_to)
    for node_id, divisor, read in relations.divided:
        total = rewritten(read)
        if total.get(0, 0) % divisor:
            raise _undividable(node_id, divisor, total[0])
        for width in total.keys() & steps.keys():
            steps[width] = math.lcm(steps[width], divisor)
    groups = {node_id: rewritten(total) for node_id, total in relations.groups.items()}
    return WidthPlan(graph, steps, {n: t for n, t in channels.items() if set(t) != {0}}, groups)


# -- reading the graph ------------------------------------------------------------------------------------------------


def _relations(graph: Graph) -> _Relations:
    found = _Relations()
    sums: dict[str, Sum] = {}
    for node in graph.nodes():
        if node.op == INPUT:
            sums[INPUT] = {CONSTANT: node.shape[0]}
            continue
        reads = [sums[edge.src] for edge in graph.inputs(node.id)]
        if op(node.op).reads is Reads.SUM:
            found.equations += [Equation(node.id, reads[0], other) for other in reads[1:]]
            reads = reads[:1]
        sums[node.id] = _channels(graph, node, _added(reads), found)
    found.logits = set().union(*(sums[node.id] for node in graph.outputs().values()))
    return found


def _channels(graph: Graph, node: Node, read: Sum, found: _Relations) -> Sum:
    """The channels of a node's value as a sum; notes in `found` what they are bound to."""
    attrs = read_attrs(node.op, node.attrs)
    made = read
    if getattr(attrs, "channels", None) is not None:
        found.written[node.id] = node.shape[0]
        made = {node.id: 1}
    carried = [traits.channels for traits in chain_of(node.op, node.attrs)]
    if made is read and Channels.AVERAGED in carried:
        return {CONSTANT: node.shape[0]}
    if carried[0] is Channels.GROUPED:
        _bind_groups(graph, node, attrs.groups, read, made, found)
    if made is read:
        return _passed_on(graph, node, read)
    return made


def _bind_groups(graph: Graph, node: Node, groups: int, read: Sum, made: Sum, found: _Relations) -> None:
    """Groups divide the channels on both sides; with one channel a group, they follow the channels that are read."""
    channels = input_shapes(graph, node)[0][0]
    if groups == channels:
        found.groups[node.id] = read
        found.equations.append(Equation(node.id, made, _times(read, node.shape[0] // channels)))
    else:
        found.divided += [(node.id, groups, read), (node.id, groups, made)]


def _passed_on(graph: Graph, node: Node, read: Sum) -> Sum:
    """Channels that follow from those read: as many, or a multiple (`flatten`)."""
    channels = sum(shape[0] for shape in input_shapes(graph, node))
    factor, rest = divmod(node.shape[0], channels)
    if rest:
        raise PassError(
            NAME,
            node.id,
            f"cannot tell how the {node.shape[0]} channels of {node.op} follow from the {channels} it reads",
            "leave the budget out for this network, or give the op an attribute `channels`",
        )
    return _times(read, factor)


def _added(sums: Iterable[Sum]) -> Sum:
    total: Sum = {}
    for one in sums:
        for key, factor in one.items():
            total[key] = total.get(key, 0) + factor
    return total


def _times(total: Sum, factor: int) -> Sum:
    return {key: factor * n for key, n in total.items()}


# -- solving ----------------------------------------------------------------------------------------------------------


@dataclass
class _Unknowns:
    """Written channels as unknowns: which are the same one, and which are constants."""

    channels: Mapping[str, int]
    same_as: dict[str, str] = field(default_factory=dict)
    constants: set[str] = field(default_factory=set)  # of unknowns that stand for themselves

    def name(self, node_id: str) -> str:
        """The unknown that stands for all that equal this one."""
        while node_id in self.same_as:
            node_id = self.same_as[node_id]
        return node_id

    def unite(self, a: str, b: str) -> None:
        """Make two unknowns one."""
        self.same_as[self.name(b)] = self.name(a)

    def in_unknowns(self, total: Sum) -> Sum:
        """The sum over the unknowns that are left."""
        found: Sum = {}
        for key, factor in total.items():
            name = self.name(key)
            if name in self.constants:
                name, factor = CONSTANT, factor * self.channels[name]
            found[name] = found.get(name, 0) + factor
        return {key: factor for key, factor in found.items() if factor}

    def in_widths(self, total: Sum) -> WidthSum:
        """The sum over the widths that the unknowns have in the given graph."""
        found: WidthSum = {}
        for name, factor in self.in_unknowns(total).items():
            width = self.channels[name] if name else 0
            found[width] = found.get(width, 0) + factor
        return {width: factor for width, factor in found.items() if factor}

    def difference(self, equation: Equation) -> Sum:
        """Left side minus right side, which must be zero."""
        return self.in_unknowns(_added([equation.left, _times(equation.right, -1)]))


def _solve_constants(relations: _Relations) -> _Unknowns:
    """Unknowns with all equalities between two of them, and between some and a constant, worked in."""
    unknowns = _Unknowns(relations.written)
    unknowns.constants.update(key for key in relations.logits if key)
    changed = True
    while changed:
        changed = False
        for equation in relations.equations:
            difference = unknowns.difference(equation)
            constant = difference.pop(CONSTANT, 0)
            signs = {factor > 0 for factor in difference.values()}
            if len(signs) == 1:  # a sum of positive numbers that is constant: every one of them stays
                unknowns.constants.update(difference)
                changed = True
            elif constant == 0 and sorted(difference.values()) == [-1, 1]:
                unknowns.unite(*difference)
                changed = True
    return unknowns


def _derive(relations: _Relations, unknowns: _Unknowns) -> dict[int, WidthSum]:
    """Widths that are sums of others, over widths that are not."""
    derived: dict[int, WidthSum] = {}
    left = {e: unknowns.in_widths(unknowns.difference(e)) for e in relations.equations}
    for equation in sorted(left, key=lambda e: max(left[e], default=0)):
        difference = _substituted(left[equation], derived)
        if not difference:
            continue
        width = max(difference)
        factor = difference.pop(width)
        parts = {other: -factor * n for other, n in difference.items()}
        if abs(factor) != 1 or min(parts.values()) < 0:
            raise _bound(equation, width)
        derived = {known: _substituted(total, {width: parts}) for known, total in derived.items()} | {width: parts}
    return derived


def _bound(equation: Equation, width: int) -> PassError:
    return PassError(
        NAME,
        equation.where,
        f"reads values of {width} and more channels that are sums of several widths; no single width follows from "
        f"the others, so they cannot be scaled together",
        "leave the budget out for this network, or add values of the same width only",
    )


def _undividable(node_id: str, groups: int, constant: int) -> PassError:
    return PassError(
        NAME,
        node_id,
        f"{constant} of the channels stay (of the image or the logits), and {groups} groups do not divide them",
        "leave the budget out for this network, or let another layer come between",
    )


def _substituted(total: WidthSum, derived: Mapping[int, WidthSum]) -> WidthSum:
    found: WidthSum = {}
    for width, factor in total.items():
        for part, n in derived.get(width, {width: 1}).items():
            found[part] = found.get(part, 0) + factor * n
    return {width: factor for width, factor in found.items() if factor}
