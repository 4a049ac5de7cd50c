"""`pad-channels`: numbers of channels become multiples of 16, by channels that nobody reads.

    y = W x + b   ->   [y; 0] = [[W, 0]; [0, 0]] [x; *] + [b; 0]

The rows of new channels are zero, and so are the columns that read new channels, whatever these hold by then: ops
between that work channel by channel may turn zeros into anything. onnxruntime's kernels take 8 or 16 channels at a
time, and channels that do not fill them cost reorderings and slow kernels around every depthwise convolution, pool and
norm.

Where nothing but convolutions between all channels and sums follow, a multiple of 8 is enough, and from 24 on where
depthwise ones and batch norms do, too.

Applies where a convolution gets at most `MOST` times as many channels; where its value has more than `LARGE` numbers,
so that multiply-adds cost more than nodes, at most `MOST_IN_LARGE` times as many. Stays as it is where an op reads its
channels together without a weight that could leave some out (softmax, group norm, an output, ...), or adds them to
channels that lie elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from compiler.ir.graph import INPUT, OUTPUT, Graph, Model, Node, attrs_of
from compiler.ops import Affine, Channels, node_tensors, read_attrs, traits_alone
from compiler.ops.windows import Window
from compiler.passes.base import Pass
from compiler.passes.draft import Draft, Weights
from compiler.passes.infer_types import infer_types
from compiler.passes.split_projections import LARGE, takes_channels

MULTIPLE = 16
MOST = 2.0  # times as many channels, in a small value
MOST_IN_LARGE = 1.34


@dataclass(frozen=True)
class Value:
    """Where the channels of a value lie."""

    places: tuple[int, ...]  # of each channel that it had
    channels: int  # that it has now
    layers: frozenset[str] = frozenset()  # that decide it

    @property
    def padded(self) -> bool:
        """Whether it has channels that nobody reads."""
        return self.channels > len(self.places)


@dataclass(frozen=True)
class PadChannels(Pass):
    """Make numbers of channels multiples of 16 where that saves more than it costs; only where there are weights."""

    def run(self, model: Model) -> Model:
        """The model with channels that nobody reads."""
        graph, weights = model.graph, dict(model.weights)
        if not weights:
            return model
        kept = _well_filled(graph)  # layers that keep their channels
        while True:
            values, conflicts = _values(graph, kept)
            if not conflicts - kept:
                break
            kept |= conflicts
        draft = Draft(graph)
        for node in graph.nodes():
            if node.id != INPUT:
                draft.nodes[node.id] = _padded(graph, node, values, weights)
        return replace(model, graph=infer_types(draft.graph()), weights=weights)


def _well_filled(graph: Graph) -> set[str]:
    """Layers with a multiple of 8 channels that only convolutions and what works number by number read."""
    values, _ = _values(graph, set())
    found = {node.id for node in graph.nodes() if node.id in values[node.id].layers and node.shape[0] % 8 == 0}
    for node in graph.nodes():
        if _wants_all(node):
            found -= values[node.id].layers if len(node.shape) > 1 else set()
    return found


def _wants_all(node: Node) -> bool:
    """Whether it works channel by channel with a kernel that wants a multiple of 16; 24, 40 ... are enough for most.

    With AVX-512 onnxruntime fills these up itself, which takes as long as ours; without, 8 at a time are faster.
    """
    traits = traits_alone(node.op, node.attrs)
    wants = not traits.is_elementwise if traits.affine is Affine.NO else node.shape[0] <= MULTIPLE
    return traits.channels is Channels.KEPT and wants


def _values(graph: Graph, kept: set[str]) -> tuple[dict[str, Value], set[str]]:
    """Where channels come to lie, and the layers that must keep theirs as well."""
    values: dict[str, Value] = {}
    conflicts: set[str] = set()
    for node in graph.nodes():
        sources = [values[edge.src] for edge in graph.inputs(node.id)]
        values[node.id], fits = _value(graph, node, sources, kept)
        if not fits:
            conflicts |= {layer for source in sources for layer in source.layers}
    return values, conflicts


def _value(graph: Graph, node: Node, sources: list[Value], kept: set[str]) -> tuple[Value, bool]:
    """Where the node's channels lie, and whether it can read where those of its sources do."""
    traits, own = traits_alone(node.op, node.attrs), Value(tuple(range(node.shape[0])), node.shape[0])
    if traits.mixes_by_weight and takes_channels(node):
        wanted = -(-own.channels // MULTIPLE) * MULTIPLE
        most = MOST if wanted * prod(node.shape[1:]) <= LARGE else MOST_IN_LARGE
        fits = len(node.shape) > 1 and wanted <= most * own.channels and node.id not in kept
        chosen = wanted if fits else own.channels
        return Value(own.places, chosen, frozenset({node.id})), True
    layers = frozenset(layer for source in sources for layer in source.layers)
    if traits.channels is Channels.JOINED:
        offsets = np.cumsum([0, *(source.channels for source in sources)]).tolist()
        joined = zip(offsets, sources, strict=False)
        return Value(tuple(at + place for at, s in joined for place in s.places), offsets[-1], layers), True
    if traits.channels is Channels.KEPT and node.op not in (INPUT, OUTPUT) and _is_by_channel(node):
        first = sources[0]
        return replace(first, layers=layers), all(
            (s.places, s.channels) == (first.places, first.channels) for s in sources
        )
    return own, not any(source.padded for source in sources)


def _is_by_channel(node: Node) -> bool:
    """Whether no attribute says something of each channel."""
    if isinstance(read_attrs(node.op, node.attrs), Window):
        return True
    return not any(isinstance(value, tuple) for _, value in node.attrs)


def _padded(graph: Graph, node: Node, values: Mapping[str, Value], weights: Weights) -> Node:
    """The node over the padded values; its tensors in their places."""
    own, sources = values[node.id], [values[edge.src] for edge in graph.inputs(node.id)]
    tensors = node_tensors(graph, node)
    mixes = traits_alone(node.op, node.attrs).mixes_by_weight
    for name in (*tensors.params, *tensors.buffers):
        key, fill = f"{node.id}.{name}", 1.0 if name == "running_var" else 0.0
        weights[key] = _spread(weights[key], 0, own, fill)
        if mixes and weights[key].ndim > 1:
            weights[key] = _spread(weights[key], 1, sources[0], 0.0)
    if mixes and own.padded:
        return replace(node, attrs=attrs_of(dict(node.attrs) | {"channels": own.channels}))
    return node


def _spread(array: Any, dim: int, value: Value, fill: float) -> Any:
    """The array with its rows along `dim` where the value's channels lie, and `fill` elsewhere."""
    if not value.padded:
        return array
    wide = np.full((*array.shape[:dim], value.channels, *array.shape[dim + 1 :]), fill, array.dtype)
    wide[(slice(None),) * dim + (list(value.places),)] = array
    return wide
