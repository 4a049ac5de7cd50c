"""Products: no gates on their inputs, and nothing left of one that lacks an input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compiler.analysis.guards import reopened
from compiler.elaborate.builder import load
from compiler.errors import RuleError, SpecError
from compiler.ir.graph import Graph, Model
from compiler.ir.verify import verify
from compiler.passes.pipeline import TO_INHERIT
from compiler.passes.prune_zero_edges import prune, surviving_edges
from tests.graphs import graph_of
from tests.interpreter import evaluate, random_input, random_weights

SPEC = """\
graphspec: 1
name: products
input: [3, 8, 8]
classes: 4
blocks:
  body:
    type: "[C, H, W] -> [8, H, W]"
    nodes:
      c: {{op: conv, kernel: 3, from: in}}
      p: {{op: global_avg_pool, from: c}}
      g: {{op: linear, act: hard_sigmoid, from: {from_p}}}
      out: {{op: multiply, from: {inputs}}}
  head:
    type: "[C, H, W] -> [classes]"
    nodes:
      pool: {{op: global_avg_pool, from: in}}
      out: {{op: linear, from: pool}}
network: [body, head]
"""


def weighed(beside: bool = True) -> Graph:
    """Two weighted branches; the weights of each come over gated edges."""
    nodes: dict[str, tuple[str, dict[str, Any], list[Any]]] = {
        "c": ("conv", {"kernel": 3}, ["input"]),
        "means": ("global_avg_pool", {}, [("c", "g/means<c")]),
        "weights": ("linear", {"act": "sigmoid"}, ["means"]),
        "weighed": ("multiply", {}, ["c", "weights"]),
        "after": ("conv", {"kernel": 1}, ["weighed"]),
        "sum": ("add", {}, [("after", "g/sum<after"), ("c", "g/sum<c")] if beside else ["after"]),
        "pool": ("global_avg_pool", {}, ["sum"]),
        "logits": ("linear", {"channels": 3}, ["pool"]),
    }
    return graph_of(nodes)


def test_an_operand_that_starves_closes_the_product() -> None:
    graph = weighed()
    left = {node.id for node in prune(graph, {"g/means<c"}).nodes()}
    assert left == {"input", "c", "sum", "pool", "logits", "output"}
    gates = {gate: 0.0 if gate == "g/means<c" else 0.7 for gate in graph.gates()}
    model = Model(graph, gates, random_weights(graph, 0))
    x = random_input(graph, 1)
    wanted = evaluate(graph, model.weights, x, gates, surviving_edges(graph, {"g/means<c"}))
    compact = TO_INHERIT.run(model)
    np.testing.assert_allclose(evaluate(compact.graph, compact.weights, x), wanted, rtol=1e-9)


def test_the_network_keeps_all_that_a_product_needs() -> None:
    graph = weighed(beside=False)
    assert not surviving_edges(graph, {"g/means<c"})
    assert reopened(graph, ["g/means<c"], lambda edge: 1.0) == ["g/means<c"]


def test_a_gate_on_an_input_breaks_a_rule() -> None:
    nodes: dict[str, Any] = {
        "a": ("relu", {}, ["input"]),
        "out": ("multiply", {}, [("input", "g/out<input"), "a"]),
    }
    with pytest.raises(RuleError, match="closed, it makes the product zero"):
        verify(graph_of(nodes))


@pytest.mark.parametrize(
    ("from_p", "inputs", "message"),
    [
        ("p", "[c, {node: g, gated: true}]", "12:31: error: an input of multiply may not have a gate"),
        ("[{node: p, gated: true}]", "[c, g]", "11:50: error: the edge from 'p' to 'g' may not have a gate: the block"),
    ],
)
def test_a_gate_in_a_spec_has_its_place(tmp_path: Path, from_p: str, inputs: str, message: str) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC.format(from_p=from_p, inputs=inputs))
    with pytest.raises(SpecError, match=r"may not have a gate") as caught:
        load(str(path))
    assert message.split(": ", 1)[1] in str(caught.value)
    assert f"spec.yaml:{message.split(':')[0]}:" in str(caught.value)
