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
from typing import TypeVar

from compiler.errors import PassError
from compiler.ir.graph import INPUT, Graph, Node, attrs_of
from compiler.ops import Channels, Reads, chain_of, input_shapes, op, read_attrs
from compiler.passes.infer_types import infer_types

NAME = "widen"
Key = TypeVar("Key", str, int)
CONSTANT = ""  # the key of a sum's constant part; the others are ids of nodes that write their channels
Sum = dict[str, int]  # coefficients by key, none of them zero
WidthSum = dict[int, int]  # coefficients by width of the given graph; the constant's key is 0


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
    relations = _relations(graph)
    relations.solve_constants()
    derived = _derive(relations)

    def rewritten(total: Sum) -> WidthSum:
        return _substituted(relations.in_widths(total), derived)

    channels = {node_id: rewritten({node_id: 1}) for node_id in relations.written}
    free = sorted({width for total in channels.values() for width in total if width})
    steps = dict.fromkeys(free, round_to)
    for node_id, divisor, read in relations.divided:
        total = rewritten(read)
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
    groups = {node_id: rewritten(total) for node_id, total in relations.groups.items()}
    return WidthPlan(graph, steps, {n: t for n, t in channels.items() if set(t) != {0}}, groups)


@dataclass
class _Relations:
    """What the graph says about channels; written ones are unknowns, some of them the same one, some constants."""

    written: dict[str, int] = field(default_factory=dict)  # channels of the nodes that write them
    zeros: list[tuple[str, Sum]] = field(default_factory=list)  # node, left minus right of what must be equal in it
    groups: dict[str, Sum] = field(default_factory=dict)  # groups that follow the channels a conv reads
    divided: list[tuple[str, int, Sum]] = field(default_factory=list)  # node, groups, channels that these must divide
    same_as: dict[str, str] = field(default_factory=dict)
    constants: set[str] = field(default_factory=set)  # of unknowns that stand for themselves

    def solve_constants(self) -> None:
        """Work in all equalities between two unknowns, and between some and a constant."""
        changed = True
        while changed:
            changed = False
            for _, zero in self.zeros:
                difference = self.reduced(zero)
                constant = difference.pop(CONSTANT, 0)
                if len({factor > 0 for factor in difference.values()}) == 1:  # positive numbers with a constant sum
                    self.constants.update(difference)
                    changed = True
                elif constant == 0 and sorted(difference.values()) == [-1, 1]:
                    a, b = difference
                    self.same_as[b] = a
                    changed = True

    def reduced(self, total: Sum) -> Sum:
        """The sum over the unknowns that are left."""
        return _collected(self._unknown(key, factor) for key, factor in total.items())

    def in_widths(self, total: Sum) -> WidthSum:
        """The sum over the widths that the unknowns have in the given graph."""
        return _collected((self.written[name] if name else 0, factor) for name, factor in self.reduced(total).items())

    def _unknown(self, key: str, factor: int) -> tuple[str, int]:
        """The unknown that stands for all that equal this one, or the constant that it is."""
        while key in self.same_as:
            key = self.same_as[key]
        return (CONSTANT, factor * self.written[key]) if key in self.constants else (key, factor)


def _collected(terms: Iterable[tuple[Key, int]]) -> dict[Key, int]:
    """The sum of these terms, each key once and no coefficient zero."""
    found: dict[Key, int] = {}
    for key, factor in terms:
        found[key] = found.get(key, 0) + factor
    return {key: factor for key, factor in found.items() if factor}


def _minus(left: Sum, right: Sum) -> Sum:
    return _collected([*left.items(), *_times(right, -1).items()])


def _times(total: Sum, factor: int) -> Sum:
    return {key: factor * n for key, n in total.items()}


def _relations(graph: Graph) -> _Relations:
    found = _Relations()
    sums: dict[str, Sum] = {}
    for node in graph.nodes():
        if node.op == INPUT:
            sums[INPUT] = {CONSTANT: node.shape[0]}
            continue
        reads = [sums[edge.src] for edge in graph.inputs(node.id)]
        if op(node.op).reads is not Reads.APART:
            found.zeros += [(node.id, _minus(reads[0], other)) for other in reads[1:]]
            reads = reads[:1]
        read = _collected(term for total in reads for term in total.items())
        sums[node.id] = _channels(graph, node, read, found)
    found.constants = set().union(*(sums[node.id] for node in graph.outputs().values())) - {CONSTANT}
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
    if carried[0] is Channels.SHUFFLED:
        found.divided.append((node.id, attrs.groups, read))
    if carried[0] is Channels.SLICED:  # the attributes count channels, which therefore stay
        found.zeros.append((node.id, _minus(read, {CONSTANT: input_shapes(graph, node)[0][0]})))
        return {CONSTANT: node.shape[0]}
    return _passed_on(graph, node, read) if made is read else made


def _bind_groups(graph: Graph, node: Node, groups: int, read: Sum, made: Sum, found: _Relations) -> None:
    """Groups divide the channels on both sides; with one channel a group, they follow the channels that are read."""
    channels = input_shapes(graph, node)[0][0]
    if groups == channels:
        found.groups[node.id] = read
        found.zeros.append((node.id, _minus(made, _times(read, node.shape[0] // channels))))
    else:
        found.divided += [(node.id, groups, read), (node.id, groups, made)]


def _passed_on(graph: Graph, node: Node, read: Sum) -> Sum:
    """Channels that follow from those read: as many, or a multiple (`flatten`)."""
    shapes = input_shapes(graph, node)
    channels = sum(shape[0] for shape in shapes) if op(node.op).reads is Reads.APART else shapes[0][0]
    factor, rest = divmod(node.shape[0], channels)
    if rest:
        raise PassError(
            NAME,
            node.id,
            f"cannot tell how the {node.shape[0]} channels of {node.op} follow from the {channels} it reads",
            "leave the budget out for this network, or give the op an attribute `channels`",
        )
    return _times(read, factor)


def _derive(relations: _Relations) -> dict[int, WidthSum]:
    """Widths that are sums of others, over widths that are not."""
    derived: dict[int, WidthSum] = {}
    left = [(where, relations.in_widths(zero)) for where, zero in relations.zeros]
    for where, zero in sorted(left, key=lambda pair: max(pair[1], default=0)):
        parts = _substituted(zero, derived)
        if not parts:
            continue
        width = max(parts)
        factor = parts.pop(width)
        parts = {other: -factor * n for other, n in parts.items()}
        if abs(factor) != 1 or min(parts.values()) < 0:
            raise PassError(
                NAME,
                where,
                f"reads values of {width} and more channels that are sums of several widths; no single width follows "
                f"from the others, so they cannot be scaled together",
                "leave the budget out for this network, or add values of the same width only",
            )
        derived = {known: _substituted(total, {width: parts}) for known, total in derived.items()} | {width: parts}
    return derived


def _substituted(total: WidthSum, derived: Mapping[int, WidthSum]) -> WidthSum:
    return _collected(
        (part, factor * n) for width, factor in total.items() for part, n in derived.get(width, {width: 1}).items()
    )
