"""What a graph computes in training, edge by edge, and random graphs to try lowerings on.

Shares no code with the lowerings: nodes are evaluated by `tests.interpreter`, batch norm from its definition.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from compiler.ir.graph import INPUT, OUTPUT, Block, Graph
from compiler.ops import Reads, node_tensors, op
from tests import interpreter
from tests.graphs import graph_of

LEVEL_OPS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("sep_conv", {"kernel": 3}),
    ("sep_conv", {"kernel": 5, "act": "silu"}),
    ("max_pool", {"kernel": 3, "norm": "batch", "act": "relu"}),
    ("avg_pool", {"kernel": 3, "norm": "batch", "act": "relu"}),
    ("conv", {"kernel": 1, "norm": "none", "act": "relu"}),
)


def _batch_norm(a: Any, ins: list[Tensor], p: Mapping[str, Tensor]) -> Tensor:
    x = ins[0]
    dims = [d for d in range(x.dim()) if d != 1]
    wide = (1, -1, *[1] * (x.dim() - 2))
    mean = x.mean(dims, keepdim=True)
    variance = ((x - mean) ** 2).mean(dims, keepdim=True)
    return (x - mean) / (variance + a.eps).sqrt() * p["weight"].view(wide) + p["bias"].view(wide)


def evaluate(graph: Graph, params: Mapping[str, Tensor], gates: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """The logits for images `x`; every edge is multiplied by its gate and every sum added up in a loop."""
    values = {INPUT: x}
    with patch.dict(interpreter.MEANING, {"batch_norm": _batch_norm}):
        for node in graph.nodes()[1:]:
            inputs = []
            for edge in graph.inputs(node.id):
                value = values[edge.src]
                inputs.append(value if edge.gate is None else gates[edge.gate] * value)
            if op(node.op).reads is Reads.SUM:
                total = inputs[0]
                for value in inputs[1:]:
                    total = total + value
                inputs = [total]
            values[node.id] = interpreter.apply(node, inputs, params)
    return values[OUTPUT]


def random_params(graph: Graph, seed: int) -> dict[str, Tensor]:
    """Float64 parameters by `<node>.<param>`, requiring gradients, of a size that keeps values near 1."""
    generator = torch.Generator().manual_seed(seed)
    params = {}
    for node in graph.nodes():
        for name, shape in node_tensors(graph, node).params.items():
            fan_in = max(1, torch.Size(shape[1:]).numel())
            value = torch.randn(shape, generator=generator, dtype=torch.float64) / fan_in**0.5
            params[f"{node.id}.{name}"] = value.requires_grad_()
    return params


def level_graph(seed: int, *, channels: int = 4, size: int = 6, levels: int = 3) -> Graph:
    """Two blocks of random levels that share one gate vector, some edges open or missing, and a gated reduction."""
    rng = random.Random(seed)
    ops = [rng.choice(LEVEL_OPS) for _ in range(rng.randint(2, 3))]
    missing = {(level, j): rng.random() for level in range(levels) for j in range(len(ops))}
    open_edges = rng.choice((0.0, 0.2))
    nodes: dict[str, tuple[str, dict[str, Any], list[str | tuple[str, str]]]] = {}
    blocks, current = [], INPUT
    for index in range(2):
        edges = random.Random(seed)  # both blocks alike: they share gates
        block = f"stage.block{index}"
        values = [(current, "in")]
        for level in range(levels):
            new = []
            for j, (name, attrs) in enumerate(ops):
                read = [v for v in values if level == 0 or edges.random() > 0.5 * missing[level, j]] or values[:1]
                gated = [edges.random() >= open_edges for _ in read]
                sources: list[str | tuple[str, str]] = [
                    (src, f"stage/l{level}_{j}<{label}") if gate else src
                    for (src, label), gate in zip(read, gated, strict=True)
                ]
                nodes[f"{block}.l{level}_{j}"] = (name, attrs, sources)
                new.append((f"{block}.l{level}_{j}", f"l{level}_{j}"))
            values += new
        mixed: list[str | tuple[str, str]] = [(src, f"stage/mix<{label}") for src, label in values[1:]]
        nodes[f"{block}.mix"] = ("project", {"channels": channels, "norm": rng.choice(("batch", "none"))}, mixed)
        nodes[f"{block}.out"] = ("add", {}, [f"{block}.mix", current])
        blocks.append(Block(block, "normal", "stage", (current,), f"{block}.out"))
        current = f"{block}.out"
    for name, kernel in (("a", 1), ("b", 3)):
        nodes[f"down.{name}"] = ("conv", {"kernel": kernel, "stride": 2, "channels": 2 * channels}, [current])
    nodes["down.out"] = ("add", {}, [("down.a", "down/out<a"), ("down.b", "down/out<b")])
    blocks.append(Block("down", "reduce", "down", (current,), "down.out"))
    nodes["pool"] = ("global_avg_pool", {}, ["down.out"])
    nodes["logits"] = ("linear", {"channels": 3}, ["pool"])
    return graph_of(nodes, shape=(channels, size, size), blocks=tuple(blocks), name=f"levels{seed}")
