"""Models for tests of passes, and what a pass must do to them."""

from __future__ import annotations

from typing import Any

import numpy as np

from compiler.ir.graph import Model, Phase
from compiler.ir.text import text
from compiler.ir.verify import verify
from compiler.passes.base import Pass
from tests.graphs import graph_of
from tests.interpreter import evaluate, random_input, random_weights

Parts = dict[str, tuple[str, dict[str, Any], list[str | tuple[str, str]]]]
BARE = {"norm": "none", "act": "none"}


def compact(nodes: Parts, **options: Any) -> Model:
    graph = graph_of(nodes, phase=Phase.COMPACT, **options)
    return Model(graph, {}, random_weights(graph, 0))


def gated(nodes: Parts, gates: dict[str, float]) -> Model:
    graph = graph_of(nodes)
    return Model(graph, gates, random_weights(graph, 0))


def assert_same(before: Model, after: Model) -> None:
    verify(after.graph)
    x = random_input(before.graph, 5)
    expected = evaluate(before.graph, before.weights, x, before.gates)
    found = evaluate(after.graph, after.weights, x, after.gates)
    assert np.abs(found - expected).max() <= 1e-9 * np.abs(expected).max()


def fired(step: Pass, model: Model) -> Model:
    """The model after the pass, which must have changed it and kept its numbers."""
    after = step.run(model)
    assert text(after.graph) != text(model.graph)
    assert_same(model, after)
    return after


def quiet(step: Pass, model: Model) -> None:
    assert text(step.run(model).graph) == text(model.graph)


def ops_of(model: Model) -> list[str]:
    return [node.op for node in model.graph.nodes() if node.op not in ("input", "output")]
