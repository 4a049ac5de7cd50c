"""`expand-parts`: put the primitive ops of every composite node in its place.

    n = sep_conv(a, b)   ->   n.depthwise = depthwise_conv(a, b);  n.pointwise = conv(n.depthwise);  ...

The weights stay as they are, because a composite node calls them `<node>.<step>.<param>` already. The first step takes
all inputs the way the node did: summed, or apart where the first step is a `concat`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from compiler.ir.graph import Model, Node
from compiler.ops import parts
from compiler.passes.base import Pass
from compiler.passes.draft import Draft, sources_of
from compiler.passes.infer_types import infer_types


@dataclass(frozen=True)
class ExpandParts(Pass):
    """Put the primitive ops of every composite node in its place; weights keep their names."""

    def run(self, model: Model) -> Model:
        """The model with primitive nodes only."""
        draft = Draft(model.graph, empty=True)
        last = draft.renamed  # composite node -> the node of its last step
        for node in model.graph.nodes():
            sources = [(last.get(src, src), gate) for src, gate in sources_of(model.graph, node.id)]
            chain = parts(node.op, node.attrs)
            if not chain:
                draft.add(node, sources)
                continue
            for step in chain:
                draft.add(Node(f"{node.id}.{step.name}", step.op, step.attrs), sources)
                sources = [(f"{node.id}.{step.name}", None)]
            last[node.id] = f"{node.id}.{chain[-1].name}"
        return replace(model, graph=infer_types(draft.graph()))
