"""`stack-chains`: chains of equal layers that read one value become one chain with the channels of all.

Joined afterwards, next to each other:
    [f(E1 x); f(E2 x)]   ->   f([E1; E2] x)
Added up behind a last convolution, as parallel inverted bottlenecks are:
    P1 f(D1 f(E1 x)) + P2 f(D2 f(E2 x))   ->   [P1, P2] f([D1; D2] f([E1; E2] x))

E is a convolution, D a depthwise one (a smaller kernel gets a border of zeros), f an activation and P a convolution:
    (P1 y1 + b1) + (P2 y2 + b2) = [P1, P2] [y1; y2] + (b1 + b2)
Applies where the layers agree in everything but channels and depthwise kernels, nobody else reads what is between them,
and wider kernels cost no more than the passes over memory that go.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from math import prod

import numpy as np

from compiler.ir.graph import Graph, Model, Node, attrs_of
from compiler.ops import Affine, Channels, node_tensors, read_attrs, traits_alone
from compiler.ops.windows import Axis, Window
from compiler.passes.base import Pass
from compiler.passes.draft import Draft, Weights
from compiler.passes.infer_types import infer_types
from compiler.passes.merge_branches import PASS, is_sum, joint_axis, placed, window_attrs
from compiler.passes.split_projections import takes_channels

Chain = tuple[Node, ...]


@dataclass(frozen=True)
class StackChains(Pass):
    """Turn chains of equal layers that read one value into one chain with the channels of all."""

    def run(self, model: Model) -> Model:
        """The model with fewer and wider chains; without weights it stays as it is."""
        graph, weights = model.graph, dict(model.weights)
        draft = Draft(graph)
        for node in graph.nodes() if weights else ():
            for chains in _stackable(graph, node):
                _stack(graph, draft, node, chains, weights)
        return replace(model, graph=infer_types(draft.graph()), weights=weights)


def _stackable(graph: Graph, node: Node) -> Iterator[list[Chain]]:
    """Groups of chains that end at a join or a sum and that may be stacked."""
    joins = traits_alone(node.op, node.attrs).channels is Channels.JOINED
    if not joins and not is_sum(graph, node):
        return
    found = [_chain(graph, edge.src, ends_mixed=not joins) for edge in graph.inputs(node.id)]
    kinds = [chain and _kinds(graph, chain) for chain in found]
    order = range(len(found))
    grouped = groupby(order if joins else sorted(order, key=lambda slot: kinds.index(kinds[slot])), kinds.__getitem__)
    for kind, slots in grouped:
        chains = [chain for slot in slots if (chain := found[slot])]
        if kind and len(chains) > 1 and _pays(graph, chains):
            yield chains


def _chain(graph: Graph, end: str, *, ends_mixed: bool) -> Chain | None:
    """The layers up to a node, from the first convolution between all channels on; with `ends_mixed` it ends in one."""
    chain: list[Node] = []
    while True:
        node, edges = graph.node(end), graph.inputs(end)
        if len(edges) != 1 or len(graph.users(end)) != 1 or len(node.shape) < 2:
            return None
        mixes = traits_alone(node.op, node.attrs).mixes_by_weight
        inside = bool(chain) or not ends_mixed
        if not (takes_channels(node) if mixes else inside and _is_layer(graph, node)):
            return None
        chain.insert(0, node)
        if mixes and inside:
            return tuple(chain)
        end = edges[0].src


def _is_layer(graph: Graph, node: Node) -> bool:
    """Whether the node does the same to every channel, or is depthwise."""
    traits, attrs = traits_alone(node.op, node.attrs), read_attrs(node.op, node.attrs)
    if traits.channels is not Channels.KEPT:
        return False
    if node_tensors(graph, node).params:
        return traits.affine is Affine.WEIGHT and isinstance(attrs, Window) and "bias" in dict(attrs)
    return isinstance(attrs, Window) or not any(isinstance(value, tuple) for _, value in node.attrs)


def _kinds(graph: Graph, chain: Chain) -> tuple[object, ...]:
    """What chains must have in common: the value they read and the kind of every layer."""
    return graph.inputs(chain[0].id)[0].src, *map(_kind, chain)


def _kind(node: Node) -> tuple[object, ...]:
    """What layers must have in common: all but their channels, biases, and of depthwise ones their kernels."""
    attrs, free = dict(node.attrs), {"bias", "channels"}
    if _is_depthwise(node):
        free |= {"kernel", "padding", "dilation"}
    sizes = node.shape[1:] if "kernel" in free else ()
    return node.op, sizes, tuple(item for item in attrs.items() if item[0] not in free)


def _is_depthwise(node: Node) -> bool:
    traits = traits_alone(node.op, node.attrs)
    return traits.affine is Affine.WEIGHT and traits.channels is Channels.KEPT


def _windows(graph: Graph, layers: Iterable[Node]) -> tuple[Axis, ...]:
    """The window that holds the taps of all these layers."""
    layers = list(layers)
    given, out = graph.node(graph.inputs(layers[0].id)[0].src).shape[1:], layers[0].shape[1:]
    each = [read_attrs(node.op, node.attrs).axes(len(out)) for node in layers]
    along = zip(zip(*each, strict=True), given, out, strict=True)
    return tuple(joint_axis(axes, size, count) for axes, size, count in along)


def _pays(graph: Graph, chains: list[Chain]) -> bool:
    """Whether the taps that depthwise kernels gain cost no more than the nodes that go."""
    more = 0
    for layers in zip(*chains, strict=True):
        if _is_depthwise(layers[0]):
            taps = prod(axis.kernel for axis in _windows(graph, layers))
            own = [prod(read_attrs(n.op, n.attrs).kernels(n.shape)) for n in layers]
            more += sum((taps - one) * prod(n.shape) for one, n in zip(own, layers, strict=True))
    return more <= PASS * sum(prod(chain[-1].shape) for chain in chains)


def _stack(graph: Graph, draft: Draft, end: Node, chains: list[Chain], weights: Weights) -> None:
    """Put the stacked chain in the place of the first one, and take the others away."""
    last = len(chains[0]) - 1
    for number, layers in enumerate(zip(*chains, strict=True)):
        summed = number == last and is_sum(graph, end)
        draft.nodes[layers[0].id] = _stacked(graph, layers, weights, summed=summed)
    gone = {chain[-1].id for chain in chains[1:]}
    left = [source for source in draft.reads[end.id] if source[0] not in gone]
    if len(left) == 1:
        draft.nodes[end.id] = Node(end.id, "identity", type=end.type)
    draft.reads[end.id] = left


def _stacked(graph: Graph, layers: tuple[Node, ...], weights: Weights, *, summed: bool) -> Node:
    """One layer with the channels of all, or with `summed` one that reads all channels."""
    first = layers[0]
    attrs = dict(first.attrs)
    if traits_alone(first.op, first.attrs).affine is not Affine.WEIGHT:
        return first
    kernels = [weights.pop(f"{node.id}.weight") for node in layers]
    given = [weights.pop(f"{node.id}.bias", None) for node in layers]
    zeros = [np.zeros(len(kernel), kernel.dtype) for kernel in kernels]
    biases = [zero if bias is None else bias for bias, zero in zip(given, zeros, strict=True)]
    if _is_depthwise(first):
        window = _windows(graph, layers)
        axes = [read_attrs(node.op, node.attrs).axes(len(node.shape) - 1) for node in layers]
        kernels = [placed(kernel, own, window) for kernel, own in zip(kernels, axes, strict=True)]
        attrs |= window_attrs(window)
    else:
        attrs["channels"] = len(kernels[0]) if summed else sum(map(len, kernels))
    weights[f"{first.id}.weight"] = np.concatenate(kernels, 1 if summed else 0)
    weights[f"{first.id}.bias"] = sum(biases) if summed else np.concatenate(biases)
    return replace(first, attrs=attrs_of(attrs | {"bias": True}))
