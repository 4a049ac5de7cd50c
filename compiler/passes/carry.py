"""Which weights a pruned graph takes from the larger one, and which slice of them.

A joining op (`concat`, `project`) that loses an input loses that input's channels. They were zero: a closed gate feeds
zeros. So the loss is exact wherever zeros contribute nothing:

    mixed by a weight (conv, linear):   W [x; 0] = W[:, kept] x     the slice of the weight goes, and the loss ends here
    channel by channel, f(0) = 0 (relu, pools, depthwise conv without bias, ...):     the loss goes on to the users

It is not exact at batch norm (BN(0) is a constant), at a grouped convolution, or where another value is added to the
same channels or multiplied with them; `can_lose_channels` says so, and pruning then feeds zeros in the lost input's
place.
"""

from __future__ import annotations

import math
from typing import Any

from compiler.ir.graph import Graph, Node
from compiler.ops import Channels, Reads, chain_of, node_tensors, op, steps
from compiler.passes.prune_channels import Cut


def can_lose_channels(graph: Graph) -> dict[str, bool]:
    """For every node: whether channels that are zero may vanish from what it reads without changing any logit."""
    answer: dict[str, bool] = {}
    for node in reversed(graph.nodes()):
        answer[node.id] = _can_lose(graph, node, answer)
    return answer


def _can_lose(graph: Graph, node: Node, answer: dict[str, bool]) -> bool:
    if op(node.op).reads is not Reads.APART and len(graph.inputs(node.id)) > 1:
        return False
    for traits in chain_of(node.op, node.attrs):
        if traits.mixes_by_weight:
            return True
        if not traits.keeps_zero:
            return False
    return all(answer[edge.dst] for edge in graph.users(node.id))


Shrunk = dict[str, tuple[int, ...]]  # nodes that lost channels: which of the earlier ones are left


def carried_tensors(before: Graph, after: Graph) -> tuple[dict[str, Cut], Shrunk]:
    """For every parameter and buffer of `after`, a `before` with fewer edges, the slice it takes (`()` for all of it).

    The same slices fit whatever is kept beside a weight (momenta, averages), since those have its shape.
    """
    shrunk: Shrunk = {}
    plan: dict[str, Cut] = {}
    for node in after.nodes():
        tensors = node_tensors(after, node)
        plan |= dict.fromkeys((f"{node.id}.{name}" for name in (*tensors.params, *tensors.buffers)), ())
        if node.id in before:
            kept = _kept_inputs(before, after, node, shrunk)
            if kept is not None:
                plan |= _follow(after, node, kept, shrunk)
    return plan, shrunk


def _kept_inputs(before: Graph, after: Graph, node: Node, shrunk: Shrunk) -> tuple[int, ...] | None:
    """Indices of the channels that are left of what a node reads; None if all are."""
    sources = [edge.src for edge in after.inputs(node.id)]
    if op(node.op).reads is not Reads.APART:
        return shrunk.get(sources[0]) if sources else None
    earlier = before.inputs(node.id)
    if len(earlier) == len(sources) and not any(src in shrunk for src in sources):
        return None
    kept: list[int] = []
    offset = 0
    for src in (edge.src for edge in earlier):
        channels = before.node(src).shape[0]
        if src in sources:
            kept += [offset + i for i in shrunk.get(src, range(channels))]
        offset += channels
    return tuple(kept)


def _follow(graph: Graph, node: Node, kept: tuple[int, ...], shrunk: Shrunk) -> dict[str, Cut]:
    """The slices of one node's weights; notes in `shrunk` if its value lost channels too."""
    cuts: dict[str, Cut] = {}
    tensors = node_tensors(graph, node)
    for step, traits in zip(steps(node.op, node.attrs), chain_of(node.op, node.attrs), strict=True):
        own = [name for name in (*tensors.params, *tensors.buffers) if name.rpartition(".")[0] == step.name]
        if traits.mixes_by_weight:
            return cuts | {f"{node.id}.{name}": ((1, kept),) for name in own if name.endswith("weight")}
        cuts |= {f"{node.id}.{name}": ((0, kept),) for name in own}
        if traits.channels is Channels.FLATTENED:
            pixels = math.prod(graph.node(graph.inputs(node.id)[0].src).shape[1:])
            kept = tuple(i * pixels + p for i in kept for p in range(pixels))
    shrunk[node.id] = kept
    return cuts


def joined_cuts(first: Cut, second: Cut) -> Cut:
    """What is left after both cuts, in turn."""
    found = dict(first)
    for dim, indices in second:
        found[dim] = tuple(found[dim][i] for i in indices) if dim in found else indices
    return tuple(found.items())


def take(array: Any, cut: Cut) -> Any:
    """The slice of a numpy array or torch tensor that a cut leaves."""
    for dim, indices in cut:
        array = array[(slice(None),) * dim + (list(indices),)]
    return array
