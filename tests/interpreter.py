"""What a graph computes, said a second time: each node straight from its definition, in torch functions and float64.

Slow and independent of the lowerings and of the rows in `compiler.lowering`: tests compare those with this.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from compiler.ir.graph import INPUT, OUTPUT, Edge, Graph, Node
from compiler.ops import Reads, node_tensors, op, read_attrs, steps

Tensors = Mapping[str, Tensor]


def random_weights(graph: Graph, seed: int, dtype: Any = np.float64) -> dict[str, Any]:
    """Weights and statistics for every node: normal, scaled to keep values near 1; variances between 0.5 and 1.5."""
    rng = np.random.default_rng(seed)
    weights = {}
    for node in graph.nodes():
        tensors = node_tensors(graph, node)
        for name, shape in (tensors.params | tensors.buffers).items():
            if name.endswith("running_var"):
                value = rng.uniform(0.5, 1.5, shape)
            else:
                value = rng.standard_normal(shape) / max(1.0, np.prod(shape[1:])) ** 0.5
            weights[f"{node.id}.{name}"] = value.astype(dtype)
    return weights


def random_input(graph: Graph, seed: int, batch: int = 3, dtype: Any = np.float64) -> Any:
    """Images `(N, C, H, W)` for a graph."""
    return np.random.default_rng(seed).standard_normal((batch, *graph.node(INPUT).shape)).astype(dtype)


def evaluate(
    graph: Graph,
    weights: Mapping[str, Any],
    x: Any,
    gates: Mapping[str, float] | None = None,
    edges: Collection[Edge] | None = None,
) -> Any:
    """The logits for images `x`, in float64. Only `edges` (default: all) carry anything: the others are closed.

    A closed edge adds nothing to a sum and feeds zeros to an op that reads its inputs apart; a node without open edges
    is not computed.
    """
    params = {name: torch.as_tensor(np.asarray(value, np.float64)) for name, value in weights.items()}
    values = {INPUT: torch.as_tensor(np.asarray(x, np.float64))}
    for node in graph.nodes():
        if node.id != INPUT:
            inputs = _inputs(graph, node, values, gates or {}, edges)
            if inputs:
                values[node.id] = apply(node, inputs, params)
    return values[OUTPUT].numpy()


def _inputs(
    graph: Graph, node: Node, values: Tensors, gates: Mapping[str, float], edges: Collection[Edge] | None
) -> list[Tensor]:
    incoming = graph.inputs(node.id)
    gated = {
        e: values[e.src] * (1.0 if e.gate is None else gates.get(e.gate, 1.0))
        for e in incoming
        if edges is None or e in edges
    }
    if not gated:
        return []
    if op(node.op).reads is Reads.SUM:
        return [torch.stack(list(gated.values())).sum(0)]
    batch = len(values[INPUT])
    return [
        gated[e] if e in gated else torch.zeros(batch, *graph.node(e.src).shape, dtype=torch.float64) for e in incoming
    ]


def apply(node: Node, inputs: list[Tensor], params: Tensors) -> Tensor:
    """A node's value from its inputs, summed already where the op sums; `params` are by `<node>.<param>`."""
    for step in steps(node.op, node.attrs):
        prefix = f"{node.id}.{step.name}." if step.name else f"{node.id}."
        own = {name.removeprefix(prefix): value for name, value in params.items() if name.startswith(prefix)}
        inputs = [MEANING[step.op](read_attrs(step.op, step.attrs), inputs, own)]
    return inputs[0]


def _conv(a: Any, ins: list[Tensor], p: Tensors, groups: int) -> Tensor:
    return F.conv2d(ins[0], p["weight"], p.get("bias"), a.stride, a.pad, a.dilation, groups)


def _avg_pool(a: Any, ins: list[Tensor], p: Tensors) -> Tensor:
    def sums(x: Tensor) -> Tensor:
        ones = torch.ones(x.shape[1], 1, a.kernel, a.kernel, dtype=x.dtype)
        return F.conv2d(x, ones, None, a.stride, a.pad, a.dilation, x.shape[1])

    return sums(ins[0]) / sums(torch.ones_like(ins[0]))


def _norm(x: Tensor, mean: Tensor, var: Tensor, p: Tensors, eps: float) -> Tensor:
    def wide(v: Tensor) -> Tensor:
        return v.reshape(1, -1, *[1] * (x.dim() - 2))

    return (x - mean) / (var + eps).sqrt() * wide(p["weight"]) + wide(p["bias"])


def _batch_norm(a: Any, ins: list[Tensor], p: Tensors) -> Tensor:
    shape = (1, -1, *[1] * (ins[0].dim() - 2))
    return _norm(ins[0], p["running_mean"].reshape(shape), p["running_var"].reshape(shape), p, a.eps)


def _layer_norm(a: Any, ins: list[Tensor], p: Tensors) -> Tensor:
    dims = tuple(range(1, ins[0].dim()))
    var, mean = torch.var_mean(ins[0], dims, correction=0, keepdim=True)
    return _norm(ins[0], mean, var, p, a.eps)


def _squeeze_excite(a: Any, ins: list[Tensor], p: Tensors) -> Tensor:
    inner = F.relu(F.conv2d(ins[0].mean((2, 3), keepdim=True), p["reduce_weight"], p["reduce_bias"]))
    return ins[0] * F.conv2d(inner, p["expand_weight"], p["expand_bias"]).sigmoid()


def _mean(a: Any, ins: list[Tensor], p: Tensors) -> Tensor:
    mean = ins[0].mean(a.dims, keepdim=a.keep)
    return mean if mean.dim() > 1 else mean[:, None]


MEANING: dict[str, Callable[[Any, list[Tensor], Tensors], Tensor]] = {
    "output": lambda a, ins, p: ins[0],
    "conv": lambda a, ins, p: _conv(a, ins, p, a.groups),
    "depthwise_conv": lambda a, ins, p: _conv(a, ins, p, ins[0].shape[1]),
    "max_pool": lambda a, ins, p: F.max_pool2d(ins[0], a.kernel, a.stride, a.pad, a.dilation),
    "avg_pool": _avg_pool,
    "identity": lambda a, ins, p: ins[0],
    "zero": lambda a, ins, p: ins[0].new_zeros(len(ins[0]), a.channels or ins[0].shape[1], *ins[0].shape[2:]),
    "scale": lambda a, ins, p: a.factor * ins[0],
    "linear": lambda a, ins, p: F.linear(ins[0].flatten(1), p["weight"], p.get("bias")),
    "global_avg_pool": lambda a, ins, p: ins[0].mean((2, 3)),
    "flatten": lambda a, ins, p: ins[0].flatten(1),
    "add": lambda a, ins, p: ins[0],
    "concat": lambda a, ins, p: torch.cat(ins, 1),
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "relu": lambda a, ins, p: torch.where(ins[0] > 0, ins[0], 0.0),  # no gradient at 0, in every version of torch
    "relu6": lambda a, ins, p: ins[0].clamp(0, 6),
    "hard_swish": lambda a, ins, p: ins[0] * (ins[0] + 3).clamp(0, 6) / 6,
    "silu": lambda a, ins, p: ins[0] * ins[0].sigmoid(),
    "gelu": lambda a, ins, p: ins[0] * 0.5 * (1 + torch.erf(ins[0] / 2**0.5)),
    "sigmoid": lambda a, ins, p: ins[0].sigmoid(),
    "squeeze_excite": _squeeze_excite,
    "dropout": lambda a, ins, p: ins[0],
    "drop_path": lambda a, ins, p: ins[0],
    "mean": _mean,
}
