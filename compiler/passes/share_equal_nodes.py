"""`share-equal-nodes`: compute a value once that several nodes compute alike.

Two nodes without weights of one op, with the same attributes and the same sources (in any order where they are added),
have the same value: the users of the second read the first. A searched block reads the same sum in several ops.
Does not apply where a node reads both, because a node reads a value at most once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from compiler.ir.graph import Model
from compiler.ops import Reads, node_tensors, op
from compiler.passes.base import Pass
from compiler.passes.draft import Draft


@dataclass(frozen=True)
class ShareEqualNodes(Pass):
    """Compute a value once that several nodes without weights compute alike."""

    def run(self, model: Model) -> Model:
        """The model with each such value computed once."""
        draft = Draft(model.graph)
        first: dict[object, str] = {}
        for node in model.graph.nodes():
            if node_tensors(model.graph, node).params or not draft.reads[node.id]:
                continue
            sources = [src for src, _ in draft.reads[node.id]]
            if op(node.op).reads is Reads.SUM:
                sources.sort()
            twin = first.setdefault((node.op, node.attrs, tuple(sources)), node.id)
            if twin != node.id:
                draft.redirect(node.id, twin)
        return replace(model, graph=draft.graph())
