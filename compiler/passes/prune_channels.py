"""Leaving out closed channels: every value, attribute and weight keeps the channels of the classes that stay.

    conv, linear:         y = W[kept out, kept in] x[kept in]      what was left out was zero
    channel by channel:   every tensor keeps the rows of the kept channels
    grouped convolution:  W[kept out, kept in of a group]          the groups stay equal, or whole groups go

`compiler.analysis.coupling` says which channels go together, and where their gates must stand so that they are zero
wherever a weight reads them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any

from compiler.analysis.coupling import Classes, couple, whole_groups
from compiler.ir.graph import INPUT, Attrs, Graph, Node, attrs_of
from compiler.ops import Affine, Channels, node_tensors, read_attrs, steps, traits_of
from compiler.passes.infer_types import infer_types

Cut = tuple[tuple[int, tuple[int, ...]], ...]  # indices to keep, in turn along these dimensions


def without_channels(graph: Graph, closed: Collection[str]) -> Graph:
    """The typed graph without the channels that these gates close; every value must keep one of its own."""
    coupling = couple(graph)
    gone = coupling.closed_by(closed)
    if not gone:
        return graph
    pruned = graph.copy()
    for node in graph.nodes():
        made = coupling.steps[node.id]
        pruned.replace(replace(node, attrs=_attrs(graph, node, made[0], made[-1], gone)))
    pruned.channel_gates = {
        node_id: tuple(ids[i] for i in _kept(coupling.of(node_id), gone))
        for node_id, ids in graph.channel_gates.items()
    }
    pruned.drop_lost_choices()
    return infer_types(pruned)


def channel_cuts(graph: Graph, closed: Collection[str]) -> Iterator[tuple[str, Cut]]:
    """Every tensor of the graph that loses channels, and what it keeps."""
    coupling = couple(graph)
    gone = coupling.closed_by(closed)
    for node in graph.nodes() if gone else ():
        names = [*(tensors := node_tensors(graph, node)).params, *tensors.buffers]
        made = coupling.steps[node.id]
        for step, read, given in zip(steps(node.op, node.attrs), made, made[1:], strict=False):
            own = {name: name.rpartition(".")[2] for name in names if name.rpartition(".")[0] == step.name}
            rows = _kept(given, gone)
            for name, last in own.items():
                cut = [(0, rows)] if len(rows) < len(given) else []
                columns = _columns(graph, node, read, step.op, step.attrs, gone) if last == "weight" else None
                cut += [(1, columns)] if columns is not None else []
                if cut:
                    yield f"{node.id}.{name}", tuple(cut)


def _kept(classes: Classes, gone: Collection[int]) -> tuple[int, ...]:
    return tuple(i for i, found in enumerate(classes) if found not in gone)


def _columns(
    graph: Graph, node: Node, read: Classes, op: str, attrs: Attrs, gone: Collection[int]
) -> tuple[int, ...] | None:
    """The columns that a step's weight keeps, of the channels it reads or of those of a group; None if all."""
    traits = traits_of(op, attrs)
    if traits.affine is not Affine.WEIGHT or traits.channels is Channels.KEPT:
        return None
    if traits.channels is Channels.GROUPED:
        if whole_groups(graph, node):
            return None
        read = read[: len(read) // read_attrs(op, attrs).groups]
    kept = _kept(read, gone)
    return kept if 0 < len(kept) < len(read) else None


def _attrs(graph: Graph, node: Node, read: Classes, given: Classes, gone: Collection[int]) -> Attrs:
    """The node's attributes that count channels, counted again."""
    attrs: dict[str, Any] = dict(node.attrs)
    if node.op == INPUT:
        return node.attrs
    if attrs.get("channels") is not None:
        attrs["channels"] = len(_kept(given, gone))
    size = len(read) // attrs.get("groups", 1)
    if "groups" in attrs and (size == 1 or whole_groups(graph, node)):
        attrs["groups"] = len(_kept(read[::size], gone))
    if isinstance(attrs.get("factor"), tuple):
        attrs["factor"] = tuple(attrs["factor"][i] for i in _kept(given, gone))
    if "stop" in attrs:
        start = attrs.get("start", 0)
        attrs |= {"start": len(_kept(read[:start], gone)), "stop": len(_kept(read[: attrs["stop"]], gone))}
    return attrs_of(attrs)
