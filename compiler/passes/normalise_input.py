"""Bake the data set's normalisation into a graph: images then come as raw numbers, 0 to `white` (255 of bytes).

    (x / white - mean) / std  is a batch norm with these statistics times white, weight 1 and bias 0

so a batch norm node after the input says it, and `fold-batch-norm` moves it into the first convolution where that one
does not pad (padding stands for normalised zero, which is `mean` before normalisation).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compiler.errors import GraphspecError
from compiler.ir.graph import INPUT, Model, Node, attrs_of
from compiler.passes.draft import Draft, sources_of

NORMALISE = "normalise"
EPS = 1e-12  # next to (white * std)^2 it vanishes in float32


def normalise_input(model: Model, mean: Sequence[float], std: Sequence[float], white: float = 255.0) -> Model:
    """The model for raw images; `mean` and `std` are in 0..1, one for each channel (or one for all)."""
    graph = model.graph
    channels = graph.node(INPUT).shape[0]
    if {len(mean), len(std)} - {1, channels}:
        raise GraphspecError(
            f"the normalisation has {len(mean)} means and {len(std)} deviations for {channels} channels\n"
            f"  try: data.mean and data.std with one number for each channel"
        )
    draft = Draft(graph, empty=True)
    for node in graph.nodes():
        sources = [(NORMALISE if src == INPUT else src, gate) for src, gate in sources_of(graph, node.id)]
        draft.add(node, sources)
        if node.id == INPUT:
            norm = Node(NORMALISE, "batch_norm", attrs_of({"eps": EPS}), node.type)
            draft.add(norm, [(INPUT, None)])
    statistics = {
        "weight": np.ones(channels),
        "bias": np.zeros(channels),
        "running_mean": np.broadcast_to(np.asarray(mean) * white, channels),
        "running_var": np.broadcast_to(np.square(np.asarray(std) * white), channels),
    }
    added = {f"{NORMALISE}.{name}": value.astype(np.float32) for name, value in statistics.items()}
    return Model(draft.graph(), model.gates, {**model.weights, **added})
