"""The supernet: what carries over when it shrinks, and what never changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from compiler.analysis.weights import weight_shapes
from compiler.ir.graph import Graph
from compiler.language.config import SearchConfig
from compiler.lowering.torch.batch_parts import BatchNorm
from compiler.lowering.torch.fx import lower
from compiler.passes.prune_zero_edges import prune, surviving_edges
from graphspec import api
from runtime.search.supernet import Supernet
from runtime.strategies.apgnag import APGNAG
from runtime.strategies.dso import gate_optimizer, gate_tensors, restored_gates
from runtime.strategies.penalties import Penalty, set_gammas
from runtime.training.captured import Capture
from runtime.training.step import backward, training_loss
from tests.recorded import Recorder
from tests.tasks import class_task
from tests.tiny import TINY, write_spec

CPU = torch.device("cpu")
TASK = class_task()


def tiny_graph(folder: Path, *overrides: str) -> Graph:
    return api.load(write_spec(folder), overrides)[1]


def batch(seed: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(8, 1, 8, 8, generator=random, dtype=dtype)
    return x, torch.randint(0, 10, (8,), generator=random)


def logits(net: Supernet, x: Tensor) -> Tensor:
    """In double precision, so that the order of sums does not show."""
    net.module.double()
    found: Tensor = net.module(x)
    return found.detach()


def train(net: Supernet, gates: APGNAG, steps: range) -> None:
    """Weight and gate steps in turns, with a penalty as in a search."""
    penalty = Penalty(net.graph, net.graph, net.config.gates)
    for seed in steps:
        for params, optimizer in ((net.weight_params, net.weights), (net.gate_vectors, gates)):
            loss_fn = training_loss(class_task(), net.graph, net.weight_network, net.config, CPU)
            backward(loss_fn, batch(seed), [*net.weight_params.values(), *net.gate_vectors.values()], net.config)
            if params is net.gate_vectors:
                set_gammas(penalty, gates, net.gate_vectors)
            optimizer.step()


def close(net: Supernet, share: int) -> set[str]:
    """Set every gate whose number is a multiple of `share` to exactly zero, but for the reduction's.

    So are the gates behind ops that lose all inputs by it, which give the constant of their bias until they go.
    """
    wanted = {g for n, g in enumerate(net.graph.gates()) if n % share == 0 and not g.startswith("reduce")}
    closed = set(net.graph.gates()) - {edge.gate for edge in surviving_edges(net.graph, wanted)}
    with torch.no_grad():
        for scope, gates in net.graph.gate_scopes().items():
            for row, gate in enumerate(gates):
                if gate in closed:
                    net.gate_vectors[scope][row] = 0.0
    return closed


MERGED = """
      a: {op: conv, channels: "2*C", kernel: 1, stride: 2, from: in}
      b: {op: conv, channels: "2*C", kernel: 1, choose: [{name: weight, op: identity}, sep_conv_3x3], from: [a, conv]}
      conv: {op: conv, channels: "2*C", kernel: 3, stride: 2, from: in}
      out: {op: add, from: [a, {node: b, gated: true}]}
"""


def test_choices_that_an_op_with_parts_merges_are_searched_and_saved(tmp_path: Path) -> None:
    start, end = TINY.index("\n      a: {op: conv"), TINY.index("  head:\n")
    graph = api.load(write_spec(tmp_path, TINY[:start] + MERGED + TINY[end:]))[1]
    net = Supernet.start(graph, TASK, SearchConfig(), CPU, seed=0, gate_init=1.0)
    train(net, gate_optimizer(net), range(2))
    tensors = net.tensors()
    assert {"model/reduce.b.conv.weight", "model/reduce.b.conv.sep_conv_3x3.norm.bias"} <= tensors.keys()
    assert {f"model/{name}" for name in weight_shapes(graph)} <= tensors.keys()
    again = Supernet.restore(graph, TASK, SearchConfig(), CPU, tensors)
    assert torch.equal(again.module(batch(9)[0]), net.module(batch(9)[0]))
    smaller = net.pruned({gate for gate in graph.gates() if gate.endswith("<b.conv.weight")})
    assert smaller.graph.edge_count() < graph.edge_count()


@pytest.mark.parametrize("lowering", ["fused", "reference"])
@pytest.mark.parametrize("sharing", ["none", "block"])
def test_pruning_zero_gates_changes_no_output_and_keeps_momenta(tmp_path: Path, lowering: str, sharing: str) -> None:
    config = SearchConfig.model_validate({"lowering": lowering, "gates": {"gamma": 0.05}})
    before = Supernet.start(tiny_graph(tmp_path, f"gates.share={sharing}"), TASK, config, CPU, seed=4, gate_init=1.0)
    gates = gate_optimizer(before)
    train(before, gates, range(3))
    closed = close(before, 3)
    after = before.pruned(closed)
    assert after.graph.edge_count() < before.graph.edge_count()
    old = {**before.tensors(), **gate_tensors(before, gates)}
    new = {**after.tensors(), **gate_tensors(after, restored_gates(after, old, before.graph))}
    assert {name for name in new if name not in old} == set()
    whole = [name for name in new if name.startswith("momentum/") and new[name].shape == old[name].shape]
    assert len(whole) > 10
    assert all(torch.equal(new[name], old[name]) for name in whole)
    rows = {g: (s, n) for s, gates in before.graph.gate_scopes().items() for n, g in enumerate(gates)}
    for scope, gates in after.graph.gate_scopes().items():
        for key in ("v", "prox", "gamma"):
            expected = [old[f"gate_state/{rows[g][0]}/{key}"][rows[g][1]] for g in gates]
            assert torch.equal(new[f"gate_state/{scope}/{key}"], torch.stack(expected))
    x = batch(9, torch.float64)[0]
    expected_logits = logits(before, x)
    assert torch.allclose(logits(after, x), expected_logits, rtol=1e-10, atol=1e-12)
    assert float(expected_logits.std()) > 1e-3


def test_a_weight_step_after_pruning_is_the_one_before_it(tmp_path: Path) -> None:
    before = Supernet.start(tiny_graph(tmp_path), TASK, SearchConfig(), CPU, seed=4, gate_init=1.0)
    train(before, gate_optimizer(before), range(2))
    after = before.pruned(close(before, 3))
    for net in (before, after):
        loss_fn = training_loss(class_task(), net.graph, net.weight_network, net.config, CPU)
        backward(loss_fn, batch(5), list(net.weight_params.values()), net.config)
        net.weights.step()
    for name, weight in after.weight_params.items():
        if weight.shape == before.weight_params[name].shape:
            assert torch.allclose(weight, before.weight_params[name], rtol=1e-4, atol=1e-6), name


def test_a_restored_supernet_goes_on_bit_identical(tmp_path: Path) -> None:
    config = SearchConfig.model_validate({"gates": {"gamma": 0.05}})
    net = Supernet.start(tiny_graph(tmp_path), TASK, config, CPU, seed=4, gate_init=1.0)
    gates = gate_optimizer(net)
    train(net, gates, range(2))
    saved = {name: t.clone() for name, t in {**net.tensors(), **gate_tensors(net, gates)}.items()}
    copy = Supernet.restore(net.graph, TASK, config, CPU, saved)
    copied_gates = restored_gates(copy, saved, net.graph)
    train(net, gates, range(2, 4))
    train(copy, copied_gates, range(2, 4))
    ours = {**net.tensors(), **gate_tensors(net, gates)}
    theirs = {**copy.tensors(), **gate_tensors(copy, copied_gates)}
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_scales_stay_1_biases_are_free_and_gates_stay_float32(tmp_path: Path, precision: str) -> None:
    config = SearchConfig.model_validate({"precision": precision})
    net = Supernet.start(tiny_graph(tmp_path), TASK, config, CPU, seed=4, gate_init=1.0)
    gates = gate_optimizer(net)
    train(net, gates, range(2))
    norms = [part for part in net.module.modules() if isinstance(part, BatchNorm)]
    assert all(torch.equal(norm.weight, torch.ones_like(norm.weight)) for norm in norms)
    assert all(bool((norm.bias != 0).any()) for norm in norms)
    for vector in net.gate_vectors.values():
        assert vector.dtype == torch.float32
        assert vector.grad is not None
        assert vector.grad.dtype == torch.float32
        assert all(t.dtype == torch.float32 for t in gates.state[vector].values())


def test_only_weights_of_several_dimensions_decay(tmp_path: Path) -> None:
    net = Supernet.start(tiny_graph(tmp_path), TASK, SearchConfig(weight_decay=0.5), CPU, seed=4, gate_init=1.0)
    decays = {id(p): group["weight_decay"] for group in net.weights.param_groups for p in group["params"]}
    assert {name: decays[id(p)] for name, p in net.weight_params.items()} == {
        name: 0.0 if name.endswith("bias") else 0.5 for name in net.weight_params
    }
    assert not {id(vector) for vector in net.gate_vectors.values()} & decays.keys()


def test_a_sample_is_the_pruned_network_and_gives_its_numbers_back(tmp_path: Path) -> None:
    net = Supernet.start(tiny_graph(tmp_path), TASK, SearchConfig(), CPU, seed=4, gate_init=1.0)
    net.weight_step(batch(0), 0.1)
    closed = {gate for n, gate in enumerate(net.graph.gates()) if n % 3 == 0 and not gate.startswith("reduce")}
    sample = net.pruned(closed)
    alone = lower(prune(net.graph, closed))
    alone.load_state_dict(sample.module.state_dict())
    x = batch(7, torch.float64)[0]
    assert torch.allclose(logits(sample, x), alone.double()(x), rtol=1e-10, atol=1e-12)
    sample.module.float()
    before = {name: tensor.clone() for name, tensor in net.tensors().items()}
    sample.weight_step(batch(1), 0.1)
    net.absorb(sample)
    again, after = net.pruned(closed).tensors(), net.tensors()
    assert again.keys() == sample.tensors().keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in sample.tensors().items())
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed
    assert {name for name in changed if name not in again} == set(), "what the sample lacks stays"


def test_samples_take_turns_with_fused_steps(tmp_path: Path) -> None:
    """As captured ones are: torch has those of SGD only where all weights have momenta, or none."""
    capture = Capture(Recorder())
    net = Supernet.start(tiny_graph(tmp_path), TASK, SearchConfig(), CPU, seed=4, gate_init=1.0, capture=capture)
    gates = [gate for gate in net.graph.gates() if not gate.startswith("reduce")]
    for closed in (gates[::3], gates[1::3]):
        sample = net.pruned(closed)
        assert all(group["fused"] for group in sample.weights.param_groups)
        sample.weight_step(batch(0), 0.1)
        net.absorb(sample)


CHOICES = """
    nodes:
      mid: {op: add, from: in, choose: [sep_conv_3x3, avg_pool_3x3]}
      out: {op: add, from: [mid, in]}
"""


def test_a_softmax_over_each_choice_learns_through_the_gate_vectors(tmp_path: Path) -> None:
    """What a strategy with a softmax does: put it into the vectors, and take its gradient from theirs."""
    begin, end = TINY.index("    levels:"), TINY.index("  reduce:")
    graph = api.load(write_spec(tmp_path, TINY[:begin] + CHOICES.strip("\n") + "\n" + TINY[end:]))[1]
    assert {len(choice.gates) for choice in graph.choices} == {2}
    net = Supernet.start(graph, TASK, SearchConfig(), CPU, seed=4, gate_init=1.0)
    random = torch.Generator().manual_seed(0)
    alphas = {c.id: torch.randn(len(c.gates), generator=random).requires_grad_() for c in graph.choices}

    def vectors() -> dict[str, Tensor]:
        values = {
            gate: weight
            for choice in graph.choices
            for gate, weight in zip(choice.gates, alphas[choice.id].softmax(0), strict=True)
        }
        scopes = graph.gate_scopes()
        return {s: torch.stack([values.get(gate, torch.ones(())) for gate in gates]) for s, gates in scopes.items()}

    chosen = vectors()
    with torch.no_grad():
        for scope, vector in net.gate_vectors.items():
            vector.copy_(chosen[scope])
    net.gate_gradients(batch(3))
    torch.autograd.backward(
        [v for v in chosen.values() if v.requires_grad],
        [net.gate_vectors[s].grad for s, v in chosen.items() if v.requires_grad],
    )
    found = [alpha.grad for alpha in alphas.values()]
    x, y = batch(3)
    out = functional_call(net.module, {f"{scope}.gates": vector for scope, vector in vectors().items()}, (x,))
    expected = torch.autograd.grad(cross_entropy(out, y), list(alphas.values()))
    assert all(float(grad.abs().max()) > 1e-6 for grad in expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours is not None
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-7)
