"""Graphs for tests: tiny ones by hand, random ones from a seed."""

from __future__ import annotations

import random
from collections.abc import Collection
from typing import Any

from compiler.elaborate.channel_gates import Gates, place_gates
from compiler.ir.graph import (
    INPUT,
    OUTPUT,
    Block,
    Choice,
    Graph,
    Model,
    Node,
    Phase,
    TensorType,
    attrs_of,
)
from compiler.ops import op
from compiler.passes.draft import Draft
from compiler.passes.infer_types import infer_types

SAME_SIZE_OPS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("sep_conv", {"kernel": 3}),
    ("sep_conv", {"kernel": 5}),
    ("conv", {"kernel": 3}),
    ("conv", {"kernel": 1, "norm": "none", "act": "none"}),
    ("depthwise_conv", {"kernel": 3}),
    ("max_pool", {"kernel": 3, "norm": "batch", "act": "relu"}),
    ("avg_pool", {"kernel": 3, "norm": "batch", "act": "relu"}),
    ("avg_pool", {"kernel": 3}),
    ("identity", {}),
    ("batch_norm", {"act": "relu"}),
    ("relu", {}),
    ("add", {}),
    ("project", {}),
)


EVERY_OP: tuple[tuple[str, dict[str, Any]], ...] = (
    *SAME_SIZE_OPS,
    ("conv_transpose", {"kernel": 3}),
    ("conv", {"kernel": 3, "groups": 2, "act": "prelu"}),
    ("conv", {"kernel": 2, "padding": [[0, 1]], "act": "elu", "eps": 0.1}),
    ("add", {"norm": "batch", "eps": 0.01, "momentum": 0.5}),
    ("avg_pool", {"kernel": 3, "count_include_pad": True}),
    ("layer_norm", {}),
    ("layer_norm", {"over": "channels"}),
    ("group_norm", {"groups": 2}),
    ("instance_norm", {}),
    ("lrn", {"size": 3}),
    ("squeeze_excite", {"reduction": 2}),
    ("multiply", {}),
    ("channel_shuffle", {"groups": 2}),
    ("scale", {"factor": -0.7}),
    ("scale", {"factor": (0.5, -1.5, 2.0, 0.0)}),
    ("dropout", {}),
    ("drop_path", {}),
    *((name, {}) for name in ("relu6", "hard_swish", "silu", "gelu", "sigmoid", "hard_sigmoid")),
    *((name, {}) for name in ("tanh", "leaky_relu", "elu", "prelu", "softmax")),
)
"""Ops that keep the size of signals and images; `padding` of one axis stands for as many as there are."""


def graph_of(
    nodes: dict[str, tuple[str, dict[str, Any], list[str | tuple[str, str]]]],
    *,
    shape: tuple[int, ...] = (4, 6, 6),
    phase: Phase = Phase.SEARCH,
    blocks: tuple[Block, ...] = (),
    name: str = "tiny",
) -> Graph:
    """`{id: (op, attrs, [source | (source, gate)])}` in any order of dependency; the last node feeds the output."""
    graph = Graph(name, Phase.RAW, blocks)
    graph.add(Node(INPUT, INPUT, type=TensorType(shape)))
    for node_id, (kind, attrs, _) in nodes.items():
        graph.add(Node(node_id, kind, attrs_of(attrs)))
    graph.add(Node(OUTPUT, OUTPUT))
    for node_id, (_, _, sources) in nodes.items():
        for source in sources:
            src, gate = source if isinstance(source, tuple) else (source, None)
            graph.connect(src, node_id, gate)
    graph.connect(next(reversed(nodes)), OUTPUT)
    return infer_types(graph, phase)


def random_graph(
    seed: int,
    *,
    nodes: int = 7,
    channels: int = 4,
    size: int | tuple[int, ...] = 6,
    gated: float = 0.7,
    ops: tuple[tuple[str, dict[str, Any]], ...] = SAME_SIZE_OPS,
) -> Graph:
    """A random typed DAG of same-size ops, ending in a project, a pool and a linear layer; every node is on a path."""
    sizes = (size, size) if isinstance(size, int) else size
    rng = random.Random(seed)
    parts: dict[str, tuple[str, dict[str, Any], list[str | tuple[str, str]]]] = {}
    unread: list[str] = []
    ids = [INPUT]

    def wire(node_id: str, sources: list[str]) -> list[str | tuple[str, str]]:
        return [(s, f"blk/{node_id}<{s}") if rng.random() < gated else s for s in sources]

    for index in range(nodes):
        op, attrs = rng.choice(ops)
        attrs = attrs | ({"channels": channels} if op in ("conv", "sep_conv", "project", "conv_transpose") else {})
        attrs |= {"padding": attrs["padding"] * len(sizes)} if "padding" in attrs else {}
        node_id = f"blk.n{index}"
        sources = rng.sample(ids, rng.randint(1, min(len(ids), 4)))
        unread = [i for i in unread if i not in sources] + [node_id]
        parts[node_id] = (op, attrs, [*sources] if op == "multiply" else wire(node_id, sources))
        ids.append(node_id)
    merge = rng.choice(("add", "project", "concat"))
    parts["blk.out"] = (merge, {"channels": channels} if merge == "project" else {}, wire("blk.out", unread))
    parts["pool"] = ("global_avg_pool", {}, ["blk.out"])
    parts["logits"] = ("linear", {"channels": 3}, ["pool"])
    block = Block("blk", "blk", "blk", (INPUT,), "blk.out")
    return graph_of(parts, shape=(channels, *sizes), blocks=(block,), name=f"random{seed}")


def with_channel_gates(graph: Graph, declared: Collection[str] | None = None) -> Graph:
    """A copy with gates on the channels of these nodes (default: of all that make channels), as far as they may go."""
    found = graph.copy()
    nodes = [n.id for n in graph.nodes() if (op(n.op).sets_channels if declared is None else n.id in declared)]
    place_gates(found, {node_id: Gates(f"v/{node_id}", None) for node_id in nodes})
    return found


def with_choices(graph: Graph, seed: int) -> Graph:
    """A copy with gates on channels, and with random choices between its gates."""
    rng = random.Random(seed)
    found = with_channel_gates(graph)
    choices = []
    for kind in (found.edge_gates(), found.gates()[len(found.edge_gates()) :]):
        rng.shuffle(kind)
        while len(kind) > 2:
            taken = [kind.pop() for _ in range(rng.randint(1, 3)) if kind]
            choices.append(Choice(f"choice/{len(choices)}", tuple(taken), rng.choice((None, 1, 2))))
    found.choices = tuple(choices)
    return found


def with_output(graph: Graph, source: str, node_id: str = "second", **attrs: Any) -> Graph:
    """A copy in which this node's value is a further output, called as its node unless `attrs` say otherwise."""
    found = graph.copy()
    found.add(Node(node_id, OUTPUT, attrs_of({"name": node_id} | attrs), graph.node(source).type))
    found.connect(source, node_id)
    return found


def only_output(graph: Graph, name: str) -> Graph:
    """The graph whose one output is the one of this name."""
    draft = Draft(graph)
    draft.reads[OUTPUT] = draft.reads[graph.outputs()[name].id]
    for other in [node.id for node in graph.outputs().values() if node.id != OUTPUT]:
        del draft.nodes[other], draft.reads[other]
    return infer_types(draft.graph())


def random_gates(graph: Graph, seed: int, zeros: float = 0.4) -> dict[str, float]:
    """Gate values in 0.1..1.5, each exactly 0 with probability `zeros`."""
    rng = random.Random(seed)
    return {g: 0.0 if rng.random() < zeros else rng.uniform(0.1, 1.5) for g in graph.gates()}


def model_of(graph: Graph, gates: dict[str, float] | None = None) -> Model:
    """A model without weights, gates at 1 unless given."""
    return Model(graph, dict.fromkeys(graph.gates(), 1.0) if gates is None else gates)
