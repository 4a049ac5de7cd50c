"""Another number of classes: the last layer with weights becomes a fresh one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from compiler.errors import GraphspecError
from compiler.importing.calls import Network
from compiler.ir.graph import INPUT, TensorType, attrs_of
from compiler.ops import infer, op

DEVIATION = 0.01  # of fresh weights


def with_classes(network: Network, classes: int, seed: int = 0) -> Network:
    """The fused network with `classes` outputs, the weights of its last layer drawn anew.

    GraphspecError if more than ops without weights follow that layer.
    """
    layers = [key for key, call in network.calls.items() if op(call.op).sets_channels]
    if not layers or len(network.calls[layers[-1]].weights) > 2:
        raise GraphspecError("there is no last layer to replace: it ends in another op\n  try: without --classes")
    calls, rng = dict(network.calls), np.random.default_rng(seed)
    head = calls[layers[-1]]
    fresh = {
        name: rng.normal(0, DEVIATION, (classes, *array.shape[1:])).astype(np.float32) * float(array.ndim > 1)
        for name, array in head.weights.items()
    }
    calls[layers[-1]] = replace(head, attrs=head.attrs | {"channels": classes}, weights=fresh)
    shapes = {INPUT: network.input}
    for key, call in list(calls.items()):
        types = [TensorType(shapes[source]) for source in call.inputs]
        shapes[key] = infer(call.op, attrs_of(call.attrs), types).shape
        calls[key] = replace(calls[key], shape=shapes[key])
    return Network(network.input, calls, network.output, network.end)
