"""Which arrays belong to a graph, by `<node id>.<param>`, and whether given ones fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compiler.errors import GraphspecError
from compiler.ir.graph import Graph
from compiler.ops import node_tensors

GATES = ".gates"  # behind a share scope: the name of the vector of its gates

Shapes = dict[str, tuple[int, ...]]


def weight_shapes(graph: Graph) -> Shapes:
    """The shape of every parameter and buffer of a typed graph."""
    found: Shapes = {}
    for node in graph.nodes():
        tensors = node_tensors(graph, node)
        found |= {f"{node.id}.{name}": shape for name, shape in (tensors.params | tensors.buffers).items()}
    return found


def fitting(weights: Mapping[str, Any], shapes: Shapes) -> dict[str, Any]:
    """The arrays asked for; others are left aside. GraphspecError if one is missing or has another shape."""
    for name, shape in shapes.items():
        found = tuple(weights[name].shape) if name in weights else None
        if found != shape:
            wrong = f"the weight {name!r} has shape {found}, the graph asks for {shape}"
            what = f"no weight called {name!r}" if found is None else wrong
            raise GraphspecError(f"{what}\n  try: weights that were saved for this graph")
    return {name: weights[name] for name in shapes}
