"""`collapse-identities`: remove nodes that give back what they read.

1. Ops with f(x) = x for every x, where the shape stays: `identity`, `dropout`, `scale` by 1, `add` and `concat` of a
   single value, `flatten` of a vector, a pool with a 1x1 window, `mean` over dimensions of size 1 that it keeps.
2. Ops with f(x) = x for x >= 0 (`relu`), of a value that is never negative: of relu, relu6 or sigmoid, or of pools,
   sums and joins of those.

One such node stays where its reader reads the source as well (a node reads a value at most once); lowerings give it no
operation of its own.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from compiler.ir.graph import OUTPUT, Graph, Model, Node
from compiler.ops import Numbers, Values, traits_alone
from compiler.passes.base import Pass
from compiler.passes.draft import Draft


@dataclass(frozen=True)
class CollapseIdentities(Pass):
    """Remove nodes that give back what they read."""

    def run(self, model: Model) -> Model:
        """The model without them, as far as no node would read a value twice."""
        graph = model.graph
        draft = Draft(graph)
        positive = _never_negative(graph)
        for node in graph.nodes():
            if gives_back_its_input(graph, node, positive):
                draft.redirect(node.id, draft.reads[node.id][0][0])
        return replace(model, graph=draft.graph())


def _never_negative(graph: Graph) -> set[str]:
    found: set[str] = set()
    for node in graph.nodes():
        sources = [edge.src for edge in graph.inputs(node.id)]
        values = traits_alone(node.op, node.attrs).values
        if values in (Values.NONNEGATIVE, Values.ZERO) or (
            values is Values.SIGN_KEPT and sources and found.issuperset(sources)
        ):
            found.add(node.id)
    return found


def gives_back_its_input(graph: Graph, node: Node, positive: Collection[str] = ()) -> bool:
    """Whether the node's value is that of its one input; `positive` are nodes whose values are never negative."""
    edges = graph.inputs(node.id)
    if len(edges) != 1 or edges[0].gate is not None or node.op == OUTPUT:
        return False
    source = graph.node(edges[0].src)
    least = Numbers.NONNEGATIVE if source.id in positive else Numbers.ALL
    return traits_alone(node.op, node.attrs).unchanged >= least and source.shape == node.shape
