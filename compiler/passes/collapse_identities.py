"""`collapse-identities`: remove nodes that give back what they read.

1. `identity`, ops that act in training only, `scale` by 1.
2. `add` and `concat` of a single value, `flatten` of a vector.
3. A pool with a 1x1 window, stride 1 and no padding; `mean` over dimensions of size 1 that it keeps.
4. `relu` of a value that is never negative: of relu, relu6 or sigmoid, or of pools, sums and joins of those.

One such node stays where its reader reads the source as well (a node reads a value at most once); lowerings give it no
operation of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from compiler.ir.graph import Graph, Model, Node
from compiler.ops import op, parts, read_attrs
from compiler.passes.base import Pass
from compiler.passes.draft import Draft

NEVER_NEGATIVE = frozenset({"relu", "relu6", "sigmoid", "zero"})
KEEPS_SIGN = frozenset(
    {"max_pool", "avg_pool", "global_avg_pool", "mean", "add", "concat", "identity", "flatten", "dropout", "drop_path"}
)


@dataclass(frozen=True)
class CollapseIdentities(Pass):
    """Remove nodes that give back what they read."""

    name = "collapse-identities"

    def run(self, model: Model) -> Model:
        """The model without them, as far as no node would read a value twice."""
        graph = model.graph
        draft = Draft(graph)
        users = draft.users()
        positive = _never_negative(graph)
        renamed: dict[str, str] = {}
        for node in graph.nodes():
            if not gives_back_its_input(graph, node, positive):
                continue
            source = draft.reads[node.id][0][0]
            if not draft.reads_both(users[node.id], source):
                draft.redirect(node.id, source, users)
                renamed[node.id] = source
        return replace(model, graph=draft.graph(renamed=renamed))


def _never_negative(graph: Graph) -> set[str]:
    found: set[str] = set()
    for node in graph.nodes():
        follows = all(edge.src in found for edge in graph.inputs(node.id)) and bool(graph.inputs(node.id))
        if not parts(node.op, node.attrs) and (node.op in NEVER_NEGATIVE or (node.op in KEEPS_SIGN and follows)):
            found.add(node.id)
    return found


def gives_back_its_input(graph: Graph, node: Node, positive: set[str] | frozenset[str] = frozenset()) -> bool:
    """Whether the node's value is that of its one input; `positive` are nodes whose values are never negative."""
    edges = graph.inputs(node.id)
    if len(edges) != 1 or edges[0].gate is not None or node.op == "output" or parts(node.op, node.attrs):
        return False
    attrs = read_attrs(node.op, node.attrs)
    source = graph.node(edges[0].src)
    match node.op:
        case "identity" | "add" | "concat":
            return True
        case "scale":
            return bool(attrs.factor == 1.0)
        case "flatten":
            return len(source.shape) == 1
        case "max_pool" | "avg_pool":
            return bool(attrs.kernel == 1 and attrs.stride == 1 and attrs.pad == 0)
        case "mean":
            return source.shape == node.shape and all(source.shape[d - 1] == 1 for d in attrs.dims)
        case "relu":
            return source.id in positive
        case _:
            return op(node.op).training_only
