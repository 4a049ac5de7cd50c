"""`split-sums`: give every sum that an op takes of its inputs a node of its own.

    n = conv(a, b)   ->   n.sum = add(a, b);  n = conv(n.sum)

so that sums can be shared, and lowered to formats whose ops take one input. `add` and ops that read their inputs apart
stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from compiler.errors import PassError
from compiler.ir.graph import Model, Node
from compiler.ops import Reads, op
from compiler.passes.base import Pass
from compiler.passes.draft import Draft, free_id, sources_of


@dataclass(frozen=True)
class SplitSums(Pass):
    """Give every sum that an op takes of its inputs a node of its own."""

    def run(self, model: Model) -> Model:
        """The model in which only `add`, `concat` and custom ops that read apart have several inputs."""
        if model.graph.gates():
            raise PassError(self.name, model.graph.name, "the graph still has gates", "run fold-gates or drop-gates")
        draft, taken = Draft(model.graph, empty=True), {node.id for node in model.graph.nodes()}
        for node in model.graph.nodes():
            sources = sources_of(model.graph, node.id)
            if len(sources) > 1 and node.op != "add" and op(node.op).reads is Reads.SUM:
                total = Node(free_id(taken, f"{node.id}.sum"), "add", type=model.graph.node(sources[0][0]).type)
                draft.add(total, sources)
                sources = [(total.id, None)]
            draft.add(node, sources)
        return replace(model, graph=draft.graph())
