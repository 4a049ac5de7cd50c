"""Found, derived, random and gateless networks take one road to what is trained: equal ones become equal graphs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.analysis.costs import total_cost
from compiler.analysis.guards import kept_by_strength
from compiler.analysis.limits import budget_share
from compiler.architecture.derive import derive
from compiler.architecture.found import Architecture
from compiler.architecture.random_network import random_closed
from compiler.errors import PassError
from compiler.ir.graph import INPUT, Graph, Model, Phase
from compiler.ir.text import text
from compiler.ir.verify import verify
from compiler.language.config import BudgetConfig
from compiler.lowering.torch.fx import lower, lower_model, weights_of
from compiler.passes.draft import Draft
from compiler.passes.pipeline import PRUNED, compacted
from graphspec.api import load
from tests.graphs import random_gates, random_graph
from tests.interpreter import random_weights

NO_BUDGET = BudgetConfig()


def architecture(graph: Graph, gates: dict[str, float], strategy: str = "apg_nag") -> Architecture:
    found = Architecture.of(graph, gates, strategy=strategy, seed=0, spec_hash="", metrics={}, costs={})
    return Architecture.from_yaml(found.to_yaml(), "arch.yaml")


def without_gates(graph: Graph) -> Graph:
    draft = Draft(graph)
    draft.reads = {dst: [(src, None) for src, _ in sources] for dst, sources in draft.reads.items()}
    return draft.graph()


@pytest.mark.parametrize("factor", [None, 0.6, 3.0])
@pytest.mark.parametrize("spec", ["digits", "hand_wired"])
def test_equal_networks_are_equal_graphs_by_every_road(spec: str, factor: float | None) -> None:
    graph = load(f"specs/{spec}.yaml", ["gates.share=block"])[1]
    half = total_cost(graph).params * 2 // 3
    closed = random_closed(graph, half, seed=1)
    drawn = {gate: 1.0 for gate in graph.gates() if gate not in closed}
    searched = dict.fromkeys(drawn, 0.25)
    random, found = architecture(graph, drawn, "random"), architecture(graph, searched)
    pruned = PRUNED.run(found.model(graph)).graph
    roads = {
        "random": random.model(graph),
        "found": found.model(graph),
        "derived": derive(random, graph).model(graph),
        "gateless": Model(without_gates(pruned)),
    }
    params = total_cost(pruned).params
    budget = NO_BUDGET if factor is None else BudgetConfig(params=round(params * factor), round_to=2)
    networks = {road: compacted(model, budget) for road, model in roads.items()}
    for model, _ in networks.values():
        verify(model.graph, Phase.COMPACT)
        assert not model.gates
        assert not model.weights
        assert budget_share(model.graph, budget) <= 1
    assert len({(text(model.graph), width) for model, width in networks.values()}) == 1
    width = networks["found"][1]
    assert width == 1 if factor is None else (width < 1) == (factor < 1)


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6))
def test_inherited_weights_go_with_the_network_whose_widths_stay(seed: int) -> None:
    graph = random_graph(seed)
    gates = random_gates(graph, seed)
    closed = {gate for gate, value in gates.items() if value == 0.0}
    gates |= dict.fromkeys(kept_by_strength(graph, closed, gates), 0.5)
    model = Model(graph, gates, weights_of(lower(graph)))
    found, width = compacted(model, BudgetConfig(params=1), inherit=True)
    plain, _ = compacted(Model(graph, gates), NO_BUDGET)
    verify(found.graph, Phase.COMPACT)
    assert width == 1
    assert set(found.weights) == set(lower(found.graph).state_dict())
    shapes = {node.id: node.shape for node in found.graph.nodes() if node.op != "scale"}
    assert shapes == {node.id: node.shape for node in plain.graph.nodes()}


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6))
def test_an_inherited_network_computes_the_same_in_training_too(seed: int) -> None:
    graph = random_graph(seed)
    gates = random_gates(graph, seed)
    gates |= {gate: 0.02 if seed % 2 else 0.5 for gate, value in gates.items() if value == 0.0}
    model = Model(graph, gates, random_weights(graph, seed))
    images = torch.randn(3, *graph.node(INPUT).shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inherited, _ = compacted(model, NO_BUDGET, inherit=True)
    with torch.no_grad():
        found, expected = (lower_model(each).double().train()(images) for each in (inherited, model))
    # batch norm over three values magnifies the rounding of parameters to float32
    assert float((found - expected).abs().max()) <= 1e-4 * float(expected.abs().max())


def test_the_pass_that_fails_is_named_on_every_road() -> None:
    graph = random_graph(0)
    with pytest.raises(PassError, match="narrowest network"):
        compacted(Model(graph, dict.fromkeys(graph.gates(), 1.0)), BudgetConfig(params=1))
    with pytest.raises(PassError, match="there are no weights to fold") as caught:
        compacted(Model(graph, dict.fromkeys(graph.gates(), 0.5)), NO_BUDGET, inherit=True)
    assert caught.value.__notes__ == ["while running 'fold-gates', pass 2 of 2"]
