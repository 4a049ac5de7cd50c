"""`add-training-parts`: what only training has, as nodes of a graph that is trained and never exported.

Drop path (per sample, on what ops with several inputs and every `project` read), dropout before the classifier and an
auxiliary head, which is an output with a loss weight. Nodes of the given graph keep their ids, so weights are carried
between the two graphs by name.

Drop path leaves alone: joins (`concat`), shortcuts into a sum, what a `project` gives to a sum (its inputs are dropped
already), and nodes that every path of the network passes unless a shortcut goes by, because a sample that loses all
inputs of such a node would lose its image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from compiler.analysis.costs import block_of
from compiler.errors import PassError
from compiler.ir.graph import OUTPUT, Block, Edge, Graph, Model, Node, attrs_of
from compiler.ops import Reads, only_merges, op
from compiler.passes.base import Pass
from compiler.passes.draft import Draft, free_id, sources_of, taken_paths
from compiler.passes.infer_types import infer_types

NAME = "add-training-parts"
POOL_KERNEL, POOL_STRIDE, NARROW, WIDE = 5, 3, 128, 768  # of the auxiliary head

Inserted = dict[tuple[str, int], list[tuple[str, float]]]  # node, slot -> ops with a probability, put on that input


def with_training_parts(graph: Graph, *, drop_path: float, dropout: float, auxiliary: float, classes: int) -> Graph:
    """The typed graph that is trained; `drop_path` and `dropout` are probabilities, 0 leaves the part out.

    `auxiliary` is the loss weight of the auxiliary head, a further output of `classes` logits; 0 leaves it out.
    PassError if the network has no place for a part.
    """
    for part, p in (("drop_path", drop_path), ("dropout", dropout)):
        if not 0 <= p < 1:
            raise PassError(NAME, graph.name, f"{part} is {p}", "give a probability, at least 0 and below 1")
    inserted: Inserted = {}
    if drop_path > 0:
        _add_drop_path(graph, inserted, drop_path)
    if dropout > 0:
        _add_dropout(graph, inserted, dropout)
    draft = _with_inserted(graph, inserted)
    if auxiliary:
        _add_auxiliary_head(graph, draft, classes, auxiliary)
    return infer_types(draft.graph())


@dataclass(frozen=True)
class AddTrainingParts(Pass):
    """Add drop path, dropout and an auxiliary head, for training only."""

    drop_path: float = 0.0
    dropout: float = 0.0
    auxiliary: float = 0.0

    def run(self, model: Model) -> Model:
        """The model with the parts that are asked for; those that have weights start without."""
        classes = model.graph.node(OUTPUT).shape[0]
        graph = with_training_parts(
            model.graph, drop_path=self.drop_path, dropout=self.dropout, auxiliary=self.auxiliary, classes=classes
        )
        return replace(model, graph=graph)


def _with_inserted(graph: Graph, inserted: Inserted) -> Draft:
    """A draft of the graph with a node on each of these inputs; a gate stays on the edge into the reader.

    The new nodes stand beside the reader, not below it, because modules below a module are taken for its parts.
    """
    draft = Draft(graph, empty=True)
    taken = taken_paths(node.id for node in graph.nodes())
    for node in graph.nodes():
        sources = sources_of(graph, node.id)
        for slot, (source, gate) in enumerate(sources):
            for op_name, p in inserted.get((node.id, slot), ()):
                node_id = free_id(taken, f"{node.id}_{op_name}{slot}")
                draft.add(Node(node_id, op_name, attrs_of({"p": p})), [(source, None)])
                source = node_id
            sources[slot] = (source, gate)
        draft.add(node, sources)
    return draft


def _add_drop_path(graph: Graph, inserted: Inserted, largest: float) -> None:
    """Probabilities grow linearly over the blocks that have such inputs, in the network's order, up to `largest`."""
    home, passed_by_all = block_of(graph), _passed_by_all(graph)
    dropped: dict[str, list[Edge]] = {block.id: [] for block in graph.blocks}
    for node in graph.nodes():
        if node.id in home:
            dropped[home[node.id].id] += _droppable(graph, node, home[node.id], node.id in passed_by_all)
    blocks = [edges for edges in dropped.values() if edges]
    for depth, edges in enumerate(blocks, start=1):
        for edge in edges:
            inserted.setdefault((edge.dst, edge.slot), []).append(("drop_path", largest * depth / len(blocks)))


def _droppable(graph: Graph, node: Node, block: Block, passed_by_all: bool) -> list[Edge]:
    edges = graph.inputs(node.id)
    merges, apart = only_merges(node.op, node.attrs), op(node.op).reads is Reads.APART
    if (merges and apart) or (len(edges) < 2 and not apart):
        return []
    shortcuts = [edge for edge in edges if _is_shortcut(graph, edge, block)] if merges else []
    if passed_by_all and not shortcuts:
        return []
    return [e for e in edges if e not in shortcuts and not (merges and _drops_its_inputs(graph.node(e.src)))]


def _drops_its_inputs(node: Node) -> bool:
    return op(node.op).reads is Reads.APART and not only_merges(node.op, node.attrs)


def _is_shortcut(graph: Graph, edge: Edge, block: Block) -> bool:
    source = graph.node(edge.src)
    passes_on = only_merges(source.op, source.attrs) and not source.attrs and len(graph.inputs(source.id)) == 1
    return passes_on or not block.holds(edge.src)


def _passed_by_all(graph: Graph) -> set[str]:
    """Nodes on every path from the input to the output: no edge goes past them in the topological order."""
    position = {node.id: i for i, node in enumerate(graph.nodes())}
    furthest = 0  # the furthest node that an edge from before the current node reaches
    found = set()
    for node_id, i in position.items():
        if furthest <= i:
            found.add(node_id)
        furthest = max([furthest, *(position[edge.dst] for edge in graph.users(node_id))])
    return found


def _add_dropout(graph: Graph, inserted: Inserted, p: float) -> None:
    """Dropout on what the classifier reads: the last linear layer, or where there is none the last layer at all."""
    layers = [node for node in graph.nodes() if op(node.op).sets_channels]
    if not layers:
        raise PassError(NAME, graph.name, "there is no layer to put dropout before", "set retrain.dropout to 0")
    classifier = next((node for node in reversed(layers) if len(node.shape) == 1), layers[-1])
    for slot in range(len(graph.inputs(classifier.id))):
        inserted.setdefault((classifier.id, slot), []).append(("dropout", p))


def _add_auxiliary_head(graph: Graph, draft: Draft, classes: int, weight: float) -> None:
    """Batch norm and relu, average pool, conv 1x1 to 128, conv 2x2 to 768, mean, linear, output."""
    logits = graph.node(OUTPUT)
    if logits.type is None or logits.type.numel != classes:
        raise PassError(NAME, OUTPUT, f"gives {logits.type}, not {classes} logits", "pass the number of logits")
    source = _last_reduction(graph)
    prefix = free_id(taken_paths(draft.nodes), "auxiliary")
    side = min(source.shape[1:])
    kernel = min(POOL_KERNEL, side)
    fitting = (s for s in range(POOL_STRIDE, 1, -1) if (side - kernel) // s >= 1)
    stride = next(fitting, 1)  # the largest that leaves windows for the 2x2 convolution, if one does
    left = (side - kernel) // stride + 1
    parts: dict[str, tuple[str, dict[str, float | str]]] = {
        "norm": ("batch_norm", {"act": "relu"}),
        "pool": ("avg_pool", {"kernel": kernel, "stride": stride, "padding": 0}),
        "narrow": ("conv", {"kernel": 1, "channels": NARROW}),
        "wide": ("conv", {"kernel": min(2, left), "padding": 0, "channels": WIDE}),
        "mean": ("global_avg_pool", {}),
        "logits": ("linear", {"channels": classes}),
        "output": (OUTPUT, {"name": prefix, "weight": weight}),
    }
    previous = source.id
    for part, (op_name, attrs) in parts.items():
        draft.add(Node(f"{prefix}.{part}", op_name, attrs_of(attrs)), [(previous, None)])
        previous = f"{prefix}.{part}"


def _last_reduction(graph: Graph) -> Node:
    """The output of the last block that gives a smaller image than it takes."""
    for block in reversed(graph.blocks):
        output = graph.node(block.output)
        taken = [graph.node(i).shape for i in block.inputs]
        if len(output.shape) > 1 and any(len(s) > 1 and math.prod(output.shape[1:]) < math.prod(s[1:]) for s in taken):
            return output
    raise PassError(
        NAME, graph.name, "no block reduces the size of the image, so an auxiliary head has no place",
        "set retrain.auxiliary_weight to 0",
    )  # fmt: skip
