"""`infer-types`: give every node the type its op makes of the types it reads."""

from __future__ import annotations

from dataclasses import dataclass, replace

from compiler.errors import PassError
from compiler.ir.graph import INPUT, Graph, Model, Phase
from compiler.ops import TypeMismatchError, infer
from compiler.passes.base import Pass


def infer_types(graph: Graph, phase: Phase | None = None) -> Graph:
    """A copy with all types inferred from the input's type on; PassError naming the node whose inputs do not fit."""
    typed = graph.copy(phase)
    for node in graph.nodes():
        if node.op == INPUT:
            continue
        types = [t for edge in graph.inputs(node.id) if (t := typed.node(edge.src).type) is not None]
        try:
            typed.replace(replace(node, type=infer(node.op, node.attrs, types)))
        except TypeMismatchError as error:
            sources = ", ".join(f"{e.src}: {typed.node(e.src).type}" for e in graph.inputs(node.id))
            raise PassError(InferTypes.name, node.id, f"{error} (reads {sources})") from error
    return typed


@dataclass(frozen=True)
class InferTypes(Pass):
    """Give every node the type its op makes of the types it reads."""

    def run(self, model: Model) -> Model:
        """The model with a typed graph."""
        return replace(model, graph=infer_types(model.graph))
