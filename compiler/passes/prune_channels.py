"""Leaving out closed channels: every value, attribute and weight keeps the channels of the classes that stay.

    conv, linear:         y = W[kept out, kept in] x[kept in]      what was left out was zero
    channel by channel:   every tensor keeps the rows of the kept channels
    grouped convolution:  W[kept out, kept in of a group]          the groups stay equal, or whole groups go
    squeeze-excite:       rows or columns of the kept channels     the inner layer stays as it is

So a tensor loses rows (channels given) and columns (channels read) where the smaller node's is smaller.

`compiler.analysis.coupling` says which channels go together, and where their gates must stand so that they are zero
wherever a weight reads them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any

from compiler.analysis.coupling import Classes, couple, whole_groups
from compiler.ir.graph import INPUT, Attrs, Graph, Node, attrs_of
from compiler.ops import Shape, node_tensors, op, read_attrs, steps
from compiler.passes.infer_types import infer_types

Cut = tuple[tuple[int, tuple[int, ...]], ...]  # indices to keep, in turn along these dimensions


def without_channels(graph: Graph, closed: Collection[str]) -> Graph:
    """The typed graph without the channels that these gates close; every value must keep one of its own."""
    coupling = couple(graph)
    gone = coupling.closed_by(closed)
    if not gone:
        return graph
    silent = coupling.silent(closed)  # zeros in the place of what had no channel left
    pruned = graph.restricted_to(edge for edge in graph.edges() if not silent & {edge.src, edge.dst})
    for node in pruned.nodes():
        made = coupling.steps[node.id]
        pruned.replace(replace(node, attrs=_attrs(graph, node, made[0], made[-1], gone)))
    pruned.channel_gates = {
        node_id: tuple(ids[i] for i in _kept(coupling.of(node_id), gone))
        for node_id, ids in pruned.channel_gates.items()
    }
    pruned.drop_lost_choices()
    return infer_types(pruned)


def channel_cuts(graph: Graph, pruned: Graph, closed: Collection[str]) -> Iterator[tuple[str, Cut]]:
    """Every tensor of the graph that loses channels in `pruned`, the graph without them, and what it keeps."""
    coupling = couple(graph)
    gone = coupling.closed_by(closed)
    for node in pruned.nodes() if gone else ():
        made, left = coupling.steps[node.id], _shapes(pruned, node.id)
        sides = {step.name: pair for step, *pair in zip(steps(node.op, node.attrs), made[1:], made, strict=False)}
        for name, shape in _shapes(graph, node.id).items():
            ends = enumerate(zip(shape, left[name], sides[name.rpartition(".")[0]], strict=False))
            cut = [(dim, _kept(side[:size], gone)) for dim, (size, rest, side) in ends if size != rest]
            if cut:
                yield f"{node.id}.{name}", tuple(cut)


def _shapes(graph: Graph, node_id: str) -> dict[str, Shape]:
    tensors = node_tensors(graph, graph.node(node_id))
    return tensors.params | tensors.buffers


def _kept(classes: Classes, gone: Collection[int]) -> tuple[int, ...]:
    return tuple(i for i, found in enumerate(classes) if found not in gone)


def _attrs(graph: Graph, node: Node, read: Classes, given: Classes, gone: frozenset[int]) -> Attrs:
    """The node's attributes that count channels, counted again."""
    attrs: dict[str, Any] = dict(node.attrs)
    if node.op == INPUT:
        return node.attrs
    if attrs.get("channels") is not None:
        attrs["channels"] = len(_kept(given, gone))
    size = len(read) // attrs.get("groups", 1)
    if "groups" in attrs and (size == 1 or whole_groups(graph, node)):
        attrs["groups"] = len(_kept(read[::size], gone))
    if "inner" in op(node.op).attrs.model_fields and not gone.isdisjoint(given):
        attrs["inner"] = read_attrs(node.op, node.attrs).inner_of(len(given))
    if isinstance(attrs.get("factor"), tuple):
        attrs["factor"] = tuple(attrs["factor"][i] for i in _kept(given, gone))
    if "stop" in attrs:
        start = attrs.get("start", 0)
        attrs |= {"start": len(_kept(read[:start], gone)), "stop": len(_kept(read[: attrs["stop"]], gone))}
    return attrs_of(attrs)
