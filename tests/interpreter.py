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
                value = apply(node, inputs, params)
                behind = [1.0 if gate is None else (gates or {}).get(gate, 1.0) for gate in _behind(graph, node)]
                values[node.id] = value * torch.tensor(behind, dtype=torch.float64).view(-1, *[1] * (value.dim() - 2))
    return values[OUTPUT].numpy()


def _behind(graph: Graph, node: Node) -> tuple[str | None, ...]:
    return graph.channel_gates.get(node.id, (None,) * node.shape[0])


def _inputs(
    graph: Graph, node: Node, values: Tensors, gates: Mapping[str, float], edges: Collection[Edge] | None
) -> list[Tensor]:
    incoming = graph.inputs(node.id)
    gated = {
        e: values[e.src] * (1.0 if e.gate is None else gates.get(e.gate, 1.0))
        for e in incoming
        if edges is None or e in edges
    }
    if not gated or (op(node.op).reads is Reads.TOGETHER and len(gated) < len(incoming)):
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


def _each(value: Any, axes: int) -> Any:
    return value if isinstance(value, tuple) else (value,) * axes


def _borders(a: Any, axes: int) -> list[tuple[int, int]]:
    """Padding before and after each axis."""
    if a.padding is None:
        return [(d * (k - 1) // 2,) * 2 for d, k in zip(_each(a.dilation, axes), _each(a.kernel, axes), strict=True)]
    return [_each(side, 2) for side in _each(a.padding, axes)]


def _pad(x: Tensor, borders: list[tuple[int, int]], value: float = 0.0) -> Tensor:
    return F.pad(x, [width for border in reversed(borders) for width in border], value=value)


def _conv(a: Any, ins: list[Tensor], p: Tensors, groups: int) -> Tensor:
    x = ins[0]
    function = F.conv2d if x.dim() == 4 else F.conv1d
    return function(_pad(x, _borders(a, x.dim() - 2)), p["weight"], p.get("bias"), a.stride, 0, a.dilation, groups)


def _conv_transpose(a: Any, ins: list[Tensor], p: Tensors) -> Tensor:
    """Zeros between the pixels, then a convolution with the mirrored window."""
    x, borders = ins[0], []
    axes = x.dim() - 2
    strides = _each(a.stride, axes)
    spread = x.new_zeros(*x.shape[:2], *((n - 1) * s + 1 for n, s in zip(x.shape[2:], strides, strict=True)))
    spread[(..., *(slice(None, None, s) for s in strides))] = x
    windows = zip(_borders(a, axes), *(_each(v, axes) for v in (a.kernel, a.dilation, a.output_padding)), strict=True)
    for (before, after), kernel, dilation, margin in windows:
        reach = dilation * (kernel - 1)
        borders.append((reach - before, reach - after + margin))
    mirrored = p["weight"].flip(tuple(range(2, 2 + axes)))
    function = F.conv2d if axes == 2 else F.conv1d
    return function(_pad(spread, borders), mirrored, p.get("bias"), 1, 0, a.dilation, a.groups)


def _windows(a: Any, x: Tensor, outside: float) -> tuple[Tensor, Tensor]:
    """The taps of each window `(N, C, ..., taps)`, and for each whether it counts."""
    axes, places, counted = x.dim() - 2, [], []
    each = (_each(v, axes) for v in (a.kernel, a.stride, a.dilation))
    for size, (before, after), kernel, stride, dilation in zip(x.shape[2:], _borders(a, axes), *each, strict=True):
        room = (size + before + after - dilation * (kernel - 1) - 1) / stride
        count = int(np.ceil(room) if a.ceil_mode else np.floor(room)) + 1
        if a.ceil_mode and (count - 1) * stride >= size + before:
            count -= 1
        taps = torch.arange(count)[:, None] * stride + torch.arange(kernel) * dilation - before
        widened = (before, after) if getattr(a, "count_include_pad", False) else (0, 0)
        counted.append((taps >= -widened[0]) & (taps < size + widened[1]))
        places.append(taps)
    reach = max(int(taps.abs().max()) for taps in places) + 1
    padded, moved = _pad(x, [(reach, reach)] * axes, outside), [taps + reach for taps in places]
    if axes == 1:
        return padded[..., moved[0]], counted[0]
    rows, columns = moved[0][:, None, :, None], moved[1][None, :, None, :]
    inside = counted[0][:, None, :, None] & counted[1][None, :, None, :]
    return padded[..., rows, columns].flatten(-2), inside.flatten(-2)


def _avg_pool(a: Any, ins: list[Tensor], p: Tensors) -> Tensor:
    taps, inside = _windows(a, ins[0], 0.0)
    return taps.sum(-1) / inside.sum(-1)


def _adaptive_avg_pool(a: Any, ins: list[Tensor], p: Tensors) -> Tensor:
    x = ins[0]
    for axis, count in enumerate(_each(a.size, x.dim() - 2), 2):
        size = x.shape[axis]
        ends = [(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]
        x = torch.stack([x.narrow(axis, low, high - low).mean(axis) for low, high in ends], axis)
    return x


def _norm(x: Tensor, mean: Tensor, var: Tensor, p: Tensors, eps: float) -> Tensor:
    def wide(v: Tensor) -> Tensor:
        return v.reshape(1, -1, *[1] * (x.dim() - 2))

    return (x - mean) / (var + eps).sqrt() * wide(p["weight"]) + wide(p["bias"])


def _batch_norm(a: Any, ins: list[Tensor], p: Tensors) -> Tensor:
    shape = (1, -1, *[1] * (ins[0].dim() - 2))
    return _norm(ins[0], p["running_mean"].reshape(shape), p["running_var"].reshape(shape), p, a.eps)


def _layer_norm(a: Any, ins: list[Tensor], p: Tensors) -> Tensor:
    dims = (1,) if a.over == "channels" else tuple(range(1, ins[0].dim()))
    var, mean = torch.var_mean(ins[0], dims, correction=0, keepdim=True)
    return _norm(ins[0], mean, var, p, a.eps)


def _squeeze_excite(a: Any, ins: list[Tensor], p: Tensors) -> Tensor:
    inner = F.relu(F.linear(ins[0].flatten(2).mean(-1), p["reduce_weight"].flatten(1), p["reduce_bias"]))
    gate = F.linear(inner, p["expand_weight"].flatten(1), p["expand_bias"]).sigmoid()
    return ins[0] * gate.view(*gate.shape, *[1] * (ins[0].dim() - 2))


def _group_norm(groups: int, a: Any, ins: list[Tensor], p: Tensors) -> Tensor:
    rows = ins[0].reshape(len(ins[0]), groups, -1)
    var, mean = torch.var_mean(rows, 2, correction=0, keepdim=True)
    normed = ((rows - mean) / (var + a.eps).sqrt()).reshape(ins[0].shape)
    zero, one = torch.zeros(1, dtype=rows.dtype), torch.ones(1, dtype=rows.dtype)
    return _norm(normed, zero, one, p, 0.0)


def _lrn(a: Any, ins: list[Tensor], p: Tensors) -> Tensor:
    x = ins[0]
    near = [(max(0, c - a.size // 2), min(x.shape[1], c + a.size // 2 + 1)) for c in range(x.shape[1])]
    sums = torch.stack([x[:, low:high].square().sum(1) for low, high in near], 1)
    return x / (a.k + a.alpha * sums / a.size) ** a.beta


def _multiply(a: Any, ins: list[Tensor], p: Tensors) -> Tensor:
    total = max(ins, key=lambda x: x.dim()) * 0 + 1
    for x in ins:
        total = total * x.reshape(*x.shape, *[1] * (total.dim() - x.dim()))
    return total


def _shuffle(a: Any, ins: list[Tensor], p: Tensors) -> Tensor:
    count = ins[0].shape[1] // a.groups
    return torch.stack([ins[0][:, row * count + column] for column in range(count) for row in range(a.groups)], 1)


def _border(a: Any, ins: list[Tensor], p: Tensors) -> Tensor:
    x = ins[0]
    for axis, side in enumerate(_each(a.padding, x.dim() - 2), 2):
        (before, after), size = _each(side, 2), x.shape[axis]
        places = torch.arange(-before, size + after)  # fewer than there are, where pixels are cut off
        inside = places.clamp(0, size - 1)
        if a.mode == "reflect":
            inside = size - 1 - (size - 1 - places.abs()).abs()
        x = x.index_select(axis, inside)
        if a.mode == "zeros":
            kept = ((places >= 0) & (places < size)).to(x.dtype)
            x = x * kept.reshape(-1, *[1] * (x.dim() - 1 - axis))
    return x


def _resize(a: Any, ins: list[Tensor], p: Tensors) -> Tensor:
    x = ins[0]
    axes = x.dim() - 2
    sizes = _each(a.size, axes) if a.size else [s * n for s, n in zip(_each(a.scale, axes), x.shape[2:], strict=True)]
    for axis, count in enumerate(sizes, 2):
        size, places = x.shape[axis], torch.arange(count, dtype=torch.float64)
        if a.mode == "nearest":
            x = x.index_select(axis, torch.arange(count) * size // count)
            continue
        at = ((places + 0.5) * size / count - 0.5).clamp(0, size - 1)
        low = at.floor().long()
        share = (at - low).reshape(-1, *[1] * (x.dim() - 1 - axis))
        x = x.index_select(axis, low) * (1 - share) + x.index_select(axis, (low + 1).clamp(max=size - 1)) * share
    return x


def _mean(a: Any, ins: list[Tensor], p: Tensors) -> Tensor:
    mean = ins[0].mean(a.dims, keepdim=a.keep)
    return mean if mean.dim() > 1 else mean[:, None]


MEANING: dict[str, Callable[[Any, list[Tensor], Tensors], Tensor]] = {
    "output": lambda a, ins, p: ins[0],
    "conv": lambda a, ins, p: _conv(a, ins, p, a.groups),
    "depthwise_conv": lambda a, ins, p: _conv(a, ins, p, ins[0].shape[1]),
    "conv_transpose": _conv_transpose,
    "max_pool": lambda a, ins, p: _windows(a, ins[0], -np.inf)[0].max(-1).values,
    "adaptive_avg_pool": _adaptive_avg_pool,
    "global_max_pool": lambda a, ins, p: ins[0].flatten(2).amax(-1),
    "avg_pool": _avg_pool,
    "identity": lambda a, ins, p: ins[0],
    "zero": lambda a, ins, p: ins[0].new_zeros(len(ins[0]), a.channels or ins[0].shape[1], *ins[0].shape[2:]),
    "scale": lambda a, ins, p: (
        torch.tensor(a.factor, dtype=torch.float64).reshape(-1, *[1] * (ins[0].dim() - 2)) * ins[0]
    ),
    "linear": lambda a, ins, p: F.linear(ins[0].flatten(1), p["weight"], p.get("bias")),
    "global_avg_pool": lambda a, ins, p: ins[0].flatten(2).mean(-1),
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
    "group_norm": lambda a, ins, p: _group_norm(a.groups, a, ins, p),
    "instance_norm": lambda a, ins, p: _group_norm(ins[0].shape[1], a, ins, p),
    "lrn": _lrn,
    "multiply": _multiply,
    "channel_shuffle": _shuffle,
    "slice": lambda a, ins, p: ins[0][:, a.start : a.stop],
    "pad": _border,
    "resize": _resize,
    "hard_sigmoid": lambda a, ins, p: (ins[0] / 6 + 0.5).clamp(0, 1),
    "tanh": lambda a, ins, p: 1 - 2 / ((2 * ins[0]).exp() + 1),
    "leaky_relu": lambda a, ins, p: torch.where(ins[0] > 0, ins[0], a.slope * ins[0]),
    "elu": lambda a, ins, p: torch.where(ins[0] > 0, ins[0], a.alpha * (ins[0].clamp(max=0).exp() - 1)),
    "prelu": lambda a, ins, p: (
        ins[0].clamp(min=0) + p["slope"].view(-1, *[1] * (ins[0].dim() - 2)) * ins[0].clamp(max=0)
    ),
    "softmax": lambda a, ins, p: ins[0].exp() / ins[0].exp().sum(1, keepdim=True),
    "dropout": lambda a, ins, p: ins[0],
    "drop_path": lambda a, ins, p: ins[0],
    "mean": _mean,
}
