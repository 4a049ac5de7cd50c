"""Gates on channels: from the nodes that a spec names to every node behind which a closed channel has to be zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from compiler.analysis.coupling import FIXED, Coupler, groups_of
from compiler.ir.graph import Graph
from compiler.language.spec import Gated


@dataclass(frozen=True)
class Gates:
    """Gates on a node's channels: what their ids begin with, what the spec asks for (None: on any that may go)."""

    name: str
    kind: Gated | None


def place_gates(graph: Graph, gated: Mapping[str, Gates]) -> dict[str, str]:
    """Put the gates of these nodes into a typed graph; what is wrong, by node.

    Gates of one id are one gate wherever they stand, so that blocks which share gates keep the same channels.
    """
    for node_id, gates in gated.items():
        node = graph.node(node_id)
        if gates.kind == "groups" and groups_of(node) == 1:
            return {node_id: f"{node_id!r} has no groups; write gate: channels"}
        size = node.shape[0] // groups_of(node) if gates.kind == "groups" else 1
        graph.channel_gates[node_id] = tuple(f"{gates.name}#{i // size}" for i in range(node.shape[0]))
    coupling = Coupler(graph).coupling()
    names: dict[int, str] = {}
    for node_id, ids in graph.channel_gates.items():
        for found, gate in zip(coupling.of(node_id), ids, strict=True):
            names.setdefault(found, gate or "")
    names.pop(FIXED, None)
    behind = {n.id: tuple(map(names.get, coupling.of(n.id))) for n in graph.nodes() if n.id in coupling.places}
    graph.channel_gates = {node_id: ids for node_id, ids in behind.items() if any(ids)}
    placed = {gate for ids in graph.channel_gates.values() for gate in ids}
    why = "they are tied to those of the image or of the output, or an op mixes them without a weight"
    return {
        node_id: f"the channels of {node_id!r} cannot go: {why}; leave the gate out"
        for node_id, gates in gated.items()
        if gates.kind and not any(names.get(found) in placed - {None} for found in coupling.of(node_id))
    }
