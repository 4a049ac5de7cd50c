"""`merge-branches`: a sum of linear branches that read one value is one convolution.

    sum of (K_i * x + b_i)   ->   (sum of K_i) * x + (sum of b_i)

where each kernel K_i stands in a window that holds all their taps, zeros elsewhere. A branch is a convolution, a
depthwise one, x itself (K = 1 at the centre), a batch norm of x (K = a, b = c of a x + c) or a mean over a window whose
size is the same everywhere (K = 1 / taps), the last one also with a batch norm behind. If every branch works channel by
channel the result is depthwise; in a full kernel such a branch has its numbers on the diagonal.

Applies where the strides are equal, nobody else reads the branches, and multiply-adds and passes over memory are not
more than before: to read and write a number takes as long as `PASS` multiply-adds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import gcd, prod
from typing import Any

import numpy as np

from compiler.ir.graph import Graph, Model, Node, attrs_of
from compiler.ops import Affine, Channels, Numbers, Pixels, Reads, node_cost, op, read_attrs, traits_alone
from compiler.ops.pools import AvgPoolAttrs
from compiler.ops.windows import Axis, Window
from compiler.passes.base import Pass
from compiler.passes.draft import Draft, Weights
from compiler.passes.fold_batch_norm import affine_form

PASS = 20  # multiply-adds


@dataclass(frozen=True)
class Branch:
    """A linear map of a value."""

    nodes: tuple[str, ...]  # what computes it
    source: str
    axes: tuple[Axis, ...]
    kernel: Any  # (channels given, channels read, ...), or (channels, 1, ...) where it works channel by channel
    bias: Any  # (channels given)
    by_channel: bool


@dataclass(frozen=True)
class MergeBranches(Pass):
    """Turn a sum of linear branches that read one value into one convolution."""

    def run(self, model: Model) -> Model:
        """The model with fewer branches; without weights it stays as it is."""
        graph, weights = model.graph, dict(model.weights)
        draft = Draft(graph)
        for total in graph.nodes() if weights else ():
            if is_sum(graph, total) and total.shape[1:]:
                for branches in _groups(graph, total.id, weights):
                    _merge(graph, draft, total.id, branches, weights)
        return replace(model, graph=draft.graph(), weights=weights)


def is_sum(graph: Graph, node: Node) -> bool:
    """Whether the node only adds up several values."""
    several = len(graph.inputs(node.id)) > 1 and op(node.op).reads is Reads.SUM
    return several and traits_alone(node.op, node.attrs).unchanged is Numbers.ALL


def _groups(graph: Graph, total: str, weights: Weights) -> list[list[Branch]]:
    """The branches of a sum that read one value, where that are several."""
    ids = [edge.src for edge in graph.inputs(total)]
    found = {i: _branch(graph, i, weights) for i in ids}
    sources = {branch.source for branch in found.values() if branch is not None}
    found |= {i: _identity(graph, i) for i in ids if i in sources}
    groups: dict[str, list[Branch]] = {}
    for branch in found.values():
        if branch is not None:
            groups.setdefault(branch.source, []).append(branch)
    return [group for group in groups.values() if len(group) > 1]


def _identity(graph: Graph, node_id: str) -> Branch:
    channels, *sizes = graph.node(node_id).shape
    kernel, axes = np.ones((channels, 1, *[1] * len(sizes))), tuple(Axis(1) for _ in sizes)
    return Branch((), node_id, axes, kernel, np.zeros(channels), by_channel=True)


def _branch(graph: Graph, node_id: str, weights: Weights) -> Branch | None:
    """The node as a linear map of what it reads, or of what the mean before it reads."""
    node = graph.node(node_id)
    edges = graph.inputs(node_id)
    if len(edges) != 1 or len(graph.users(node_id)) != 1 or len(node.shape) < 2:
        return None
    source, traits = edges[0].src, traits_alone(node.op, node.attrs)
    if traits.affine is Affine.STATISTICS:
        inner = _branch(graph, source, weights) or _identity(graph, source)
        scale, shift = affine_form(node, weights)
        kernel = inner.kernel * scale.reshape(-1, *[1] * (inner.kernel.ndim - 1))
        return replace(inner, nodes=(*inner.nodes, node_id), kernel=kernel, bias=inner.bias * scale + shift)
    if traits.unchanged is Numbers.ALL and node.shape == graph.node(source).shape:
        return replace(_identity(graph, source), nodes=(node_id,))
    return _window(node, source, graph.node(source).shape, weights)


def _window(node: Node, source: str, shape: tuple[int, ...], weights: Weights) -> Branch | None:
    attrs, traits = read_attrs(node.op, node.attrs), traits_alone(node.op, node.attrs)
    if not isinstance(attrs, Window):
        return None
    axes, by_channel = attrs.axes(len(shape) - 1), traits.channels is Channels.KEPT
    if isinstance(attrs, AvgPoolAttrs):
        if attrs.ceil_mode or not (attrs.counts_padding or not any(a.before + a.after for a in axes)):
            return None
        taps = tuple(axis.kernel for axis in axes)
        kernel, bias = np.full((shape[0], 1, *taps), 1.0 / prod(taps)), np.zeros(shape[0])
    elif (
        traits.affine is Affine.WEIGHT
        and traits.pixels is not Pixels.UNKNOWN
        and (by_channel or traits.mixes_by_weight)
    ):
        kernel = np.asarray(weights[f"{node.id}.weight"], np.float64)
        bias = np.asarray(weights.get(f"{node.id}.bias", np.zeros(node.shape[0])), np.float64)
    else:
        return None
    return Branch((node.id,), source, axes, kernel, bias, by_channel)


def joint_axis(axes: Sequence[Axis], size: int, count: int) -> Axis:
    """A window of the same stride that holds the taps of all: over `size` pixels they give `count` each."""
    taps = {axis.dilation * tap - axis.before for axis in axes for tap in range(axis.kernel)} | {0}
    low, high, stride = min(taps), max(taps), axes[0].stride
    step = gcd(*(tap - low for tap in taps)) or 1
    after = max(0, (count - 1) * stride + high - size + 1)
    return Axis((high - low) // step + 1, stride, step, -low, after)


def placed(kernel: Any, axes: Sequence[Axis], window: Sequence[Axis]) -> Any:
    """A kernel (..., taps of `axes`) in a wider window, zeros elsewhere."""
    wide = np.zeros((*kernel.shape[:2], *(axis.kernel for axis in window)), kernel.dtype)
    places = []
    for axis, whole in zip(axes, window, strict=True):
        first, step = (whole.before - axis.before) // whole.dilation, axis.dilation // whole.dilation
        places.append(slice(first, first + (axis.kernel - 1) * step + 1, max(step, 1)))
    wide[(slice(None), slice(None), *places)] = kernel
    return wide


def window_attrs(axes: Sequence[Axis]) -> dict[str, Any]:
    """The attributes that say this window."""
    return {
        "kernel": tuple(axis.kernel for axis in axes),
        "stride": tuple(axis.stride for axis in axes),
        "dilation": tuple(axis.dilation for axis in axes),
        "padding": tuple((axis.before, axis.after) for axis in axes),
    }


def _merge(graph: Graph, draft: Draft, total: str, branches: list[Branch], weights: Weights) -> None:
    """Put one convolution in the place of the branches, if that is no more work."""
    out, given = graph.node(total).shape, graph.node(branches[0].source).shape
    if any(len({axis.stride for axis in along}) > 1 for along in zip(*(b.axes for b in branches), strict=True)):
        return
    along = zip(zip(*(b.axes for b in branches), strict=True), given[1:], out[1:], strict=True)
    window = [joint_axis(axes, size, count) for axes, size, count in along]
    by_channel = all(branch.by_channel for branch in branches)
    taps, values = prod(axis.kernel for axis in window), prod(out)
    before = sum(_work(graph, graph.node(i)) for b in branches for i in b.nodes)
    if (taps * (1 if by_channel else given[0]) + PASS) * values > before + PASS * values * (len(branches) - 1):
        return
    kernel = sum(placed(b.kernel if by_channel else _full(b), b.axes, window) for b in branches)
    left = [
        source for source in draft.reads[total] if source[0] not in {(b.nodes or (b.source,))[-1] for b in branches}
    ]
    name = total if not left else next(b.nodes[-1] for b in branches if b.nodes)
    attrs = {"bias": True, "norm": "none", "act": "none", **window_attrs(window)}
    attrs |= {} if by_channel else {"channels": out[0]}
    merged = Node(name, "depthwise_conv" if by_channel else "conv", attrs_of(attrs), graph.node(total).type)
    kind = next(iter(weights.values())).dtype
    for key in [key for b in branches for i in b.nodes for key in weights if key.rpartition(".")[0] == i]:
        del weights[key]
    weights[f"{name}.weight"] = kernel.astype(kind)
    weights[f"{name}.bias"] = sum(b.bias for b in branches).astype(kind)
    draft.nodes[name], draft.reads[name] = merged, [(branches[0].source, None)]
    if left:
        draft.reads[total] = [*left, (name, None)]


def _work(graph: Graph, node: Node) -> int:
    """What the node takes, in multiply-adds."""
    nothing = traits_alone(node.op, node.attrs).unchanged is Numbers.ALL
    return 0 if nothing else node_cost(graph, node).flops + PASS * prod(node.shape)


def _full(branch: Branch) -> Any:
    """The kernel between all channels."""
    if not branch.by_channel:
        return branch.kernel
    channels = len(branch.kernel)
    return np.eye(channels).reshape(channels, channels, *[1] * (branch.kernel.ndim - 2)) * branch.kernel
