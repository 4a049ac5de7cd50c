"""Random graphs of all ops, over signals, squares and rectangles: values, gradients and pruning by the definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compiler.errors import PassError
from compiler.ir.graph import Graph, Model
from compiler.lowering.onnx.model import emit
from compiler.lowering.torch.fx import Lowering, load_gates, load_weights, lower
from compiler.ops import known_ops
from compiler.passes.pipeline import TO_INHERIT
from compiler.passes.prune_zero_edges import surviving_edges
from tests.compiler.lowering.test_onnx import assert_parity
from tests.graphs import EVERY_OP, random_gates, random_graph
from tests.interpreter import evaluate, random_input, random_weights

SIZES: tuple[tuple[int, ...], ...] = ((9,), (6, 6), (3, 7))
every_graph = pytest.mark.parametrize(("seed", "size"), [(seed, size) for seed in range(12) for size in SIZES])
ELSEWHERE = {
    "input", "output", "linear", "mean", "flatten", "global_avg_pool", "global_max_pool", "adaptive_avg_pool", "slice",
    "pad", "resize", "zero", "concat",
}  # fmt: skip  # ops that change a size: tried alone, and in the networks of the tests of traits


def graph(seed: int, size: tuple[int, ...]) -> Graph:
    return random_graph(seed, nodes=10, size=size, ops=EVERY_OP)


def test_every_op_is_tried() -> None:
    assert {name for name, _ in EVERY_OP} == known_ops().keys() - ELSEWHERE


@pytest.mark.parametrize("lowering", ["fused", "reference"])
@every_graph
def test_values_and_gradients(seed: int, size: tuple[int, ...], lowering: Lowering) -> None:
    found, x = graph(seed, size), random_input(graph(seed, size), 1)
    weights, gates = random_weights(found, seed), random_gates(found, seed, zeros=0.0)
    module = lower(found, lowering=lowering).double().eval()
    load_weights(module, weights)
    load_gates(module, found, gates)
    image = torch.from_numpy(x).requires_grad_()
    value = module(image)
    expected = evaluate(found, weights, x, gates)
    np.testing.assert_allclose(value.detach().numpy(), expected, rtol=1e-9, atol=1e-9)
    (slope,) = torch.autograd.grad(value.sum(), image)
    direction = np.random.default_rng(seed).standard_normal(x.shape)
    ends = [evaluate(found, weights, x + step * direction, gates).sum() for step in (1e-6, -1e-6)]
    assert float((slope * torch.from_numpy(direction)).sum()) == pytest.approx(
        (ends[0] - ends[1]) / 2e-6, rel=1e-4, abs=1e-5
    )


@every_graph
def test_pruning(seed: int, size: tuple[int, ...]) -> None:
    found, x = graph(seed, size), random_input(graph(seed, size), 1)
    model = Model(found, random_gates(found, seed, zeros=0.3), random_weights(found, seed))
    edges = surviving_edges(found, {gate for gate, value in model.gates.items() if value == 0.0})
    if not edges:
        with pytest.raises(PassError, match="no path from the input to the output survives"):
            TO_INHERIT.run(model)
        return
    compact = TO_INHERIT.run(model)
    expected = evaluate(found, model.weights, x, model.gates, edges)
    np.testing.assert_allclose(evaluate(compact.graph, compact.weights, x), expected, rtol=1e-9, atol=1e-9)
    single = {name: np.asarray(value, np.float32) for name, value in compact.weights.items()}
    exported = Model(compact.graph, {}, single)
    assert_parity(exported, emit(exported))
