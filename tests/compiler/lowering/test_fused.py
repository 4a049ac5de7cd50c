"""Both lowerings against the plain formula: outputs and gradients on random graphs, and how the fused one is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx

from compiler.ir.graph import INPUT, Graph
from compiler.lowering import groups
from compiler.lowering.torch import fused
from compiler.lowering.torch.fx import Lowering, gate_parameters, load_gates, load_weights, lower
from compiler.lowering.torch.kernels import gated_sum, gated_sums, joint_projection, projection, push
from compiler.passes.prune_zero_edges import prune, surviving_edges
from tests.compiler.plain import evaluate, level_graph, random_params
from tests.graphs import graph_of, random_gates, random_graph

LOWERINGS: tuple[Lowering, ...] = ("reference", "fused")
WAYS: dict[str, tuple[Lowering, int]] = {
    "reference": ("reference", 0),
    "stacks": ("fused", 0),
    "fused": ("fused", groups.EDGES_PER_VALUE),  # where stacks pay: in graphs as small as these, hardly ever
}


@dataclass(frozen=True)
class Outcome:
    """Logits and gradients, each kind as one vector."""

    logits: Tensor
    images: Tensor
    weights: Tensor
    gates: Tensor

    def error_against(self, right: Outcome) -> list[float]:
        """Relative errors; gradients that cancel to almost nothing are compared with the whole gradient."""
        whole = torch.cat([right.images, right.weights, right.gates]).norm()
        errors = [((self.logits - right.logits).norm() / right.logits.norm()).item()]
        for mine, other in ((self.images, right.images), (self.weights, right.weights), (self.gates, right.gates)):
            errors.append(((mine - other).norm() / torch.maximum(other.norm(), 1e-3 * whole)).item())
        return errors


def images_for(graph: Graph, seed: int, batch: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, *graph.node(INPUT).shape, generator=generator, dtype=torch.float64)


def loss_of(logits: Tensor) -> Tensor:
    return (logits * torch.linspace(0.5, 1.5, logits.numel(), dtype=logits.dtype).view_as(logits)).square().sum()


def flat(grads: list[Tensor | None]) -> Tensor:
    return torch.cat([torch.zeros(0), *(g.double().flatten() for g in grads if g is not None)])


def outcome_of_formula(graph: Graph, params: dict[str, Tensor], gates: dict[str, float], x: Tensor) -> Outcome:
    x = x.clone().requires_grad_()
    own = {g: torch.tensor(v, dtype=torch.float64, requires_grad=True) for g, v in gates.items()}
    logits = evaluate(graph, params, own, x)
    leaves = [x, *params.values(), *own.values()]
    found = torch.autograd.grad(loss_of(logits), leaves, allow_unused=True)
    grads = [torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(leaves, found, strict=True)]
    count = 1 + len(params)
    ordered = dict(zip(own, grads[count:], strict=True))
    by_vector = [ordered[g] for ids in graph.gate_scopes().values() for g in ids]
    return Outcome(logits.detach(), flat(grads[:1]), flat(grads[1:count]), flat(by_vector))


def network(
    graph: Graph, way: str, params: dict[str, Tensor], gates: dict[str, float], dtype: torch.dtype
) -> fx.GraphModule:
    lowering, edges_per_value = WAYS[way]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(groups, "EDGES_PER_VALUE", edges_per_value)
        module = lower(graph, lowering=lowering).to(dtype)
    load_weights(module, {name: p.detach() for name, p in params.items()} | dict(module.named_buffers()))
    load_gates(module, graph, gates)
    return module


def outcome_of(module: fx.GraphModule, graph: Graph, params: dict[str, Tensor], x: Tensor) -> Outcome:
    x = x.clone().requires_grad_()
    logits = module(x)
    loss_of(logits).backward()
    grads = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in module.named_parameters()}
    vectors = [grads[f"{scope}.gates"] for scope in gate_parameters(module, graph)]
    return Outcome(logits.detach().double(), flat([x.grad]), flat([grads[name] for name in params]), flat(vectors))


def check_against_formula(graph: Graph, seed: int) -> None:
    params, gates, x = random_params(graph, seed), random_gates(graph, seed, zeros=0.2), images_for(graph, seed)
    right = outcome_of_formula(graph, params, gates, x)
    for way in WAYS:
        module = network(graph, way, params, gates, torch.float64)
        found = outcome_of(module, graph, params, x)
        assert max(found.error_against(right)) < 1e-10, way


@pytest.mark.slow
@settings(max_examples=140)
@given(st.integers(0, 10**6), st.integers(1, 9), st.sampled_from((0.3, 0.7, 1.0)))
def test_random_graphs_follow_the_formula(seed: int, nodes: int, gated: float) -> None:
    check_against_formula(random_graph(seed, nodes=nodes, gated=gated), seed)


@pytest.mark.slow
@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 3))
def test_random_levels_follow_the_formula(seed: int, levels: int) -> None:
    check_against_formula(level_graph(seed, levels=levels), seed)


@settings(max_examples=20)
@given(st.integers(0, 10**6))
def test_pruned_graphs_follow_the_formula(seed: int) -> None:
    graph = level_graph(seed)
    closed = {gate for gate, value in random_gates(graph, seed, zeros=0.6).items() if value == 0.0}
    if surviving_edges(graph, closed):
        check_against_formula(prune(graph, closed), seed)


@pytest.mark.slow
def test_float32_is_as_exact_as_edge_by_edge() -> None:
    """Errors against float64, added up over graphs, are at most those of the reference and 20 %."""
    totals = {way: torch.zeros(4) for way in WAYS}
    for seed in range(24):
        graph = level_graph(seed, channels=8, size=10) if seed % 2 else random_graph(seed, channels=8, size=10)
        params, gates, x = random_params(graph, seed), random_gates(graph, seed, zeros=0.2), images_for(graph, seed, 8)
        right = outcome_of_formula(graph, params, gates, x)
        for way in WAYS:
            module = network(graph, way, params, gates, torch.float32).to(memory_format=torch.channels_last)
            found = outcome_of(module, graph, params, x.float().to(memory_format=torch.channels_last))
            totals[way] += torch.tensor(found.error_against(right)).clamp(max=1e-2)
    for way in ("stacks", "fused"):
        assert (totals[way] <= 1.2 * totals["reference"]).all(), totals


# -- how it is made -------------------------------------------------------------------------------------------------


def calls(module: fx.GraphModule, function: Callable[..., object]) -> int:
    return sum(node.target is function for node in module.graph.nodes)


def full_levels(levels: int = 3) -> Graph:
    """One block: every op reads all before it through gates, a gated projection reads them all."""
    nodes: dict[str, tuple[str, dict[str, object], list[str | tuple[str, str]]]] = {}
    values = [INPUT]
    for level in range(levels):
        new = []
        for name, attrs in (("sep_conv", {}), ("max_pool", {"norm": "batch", "act": "relu"})):
            node = f"block.{name}{level}"
            nodes[node] = (name, {"kernel": 3, **attrs}, [(v, f"block/{node}<{v}") for v in values])
            new.append(node)
        values += new
    nodes["block.mix"] = ("project", {"channels": 4}, [(v, f"block/mix<{v}") for v in values[1:]])
    nodes["pool"] = ("global_avg_pool", {}, ["block.mix"])
    return graph_of(nodes)


@pytest.mark.usefixtures("stacks")
def test_a_level_is_one_call() -> None:
    module = lower(full_levels(3))
    assert calls(module, gated_sums) == 3
    assert calls(module, push) == 4  # the input, and each level
    assert calls(module, projection) == 1
    assert (
        calls(module, torch.mul)
        == calls(module, torch.add)
        == calls(module, gated_sum)
        == calls(module, torch.cat)
        == 0
    )


def test_few_edges_need_no_stack() -> None:
    graph = graph_of(
        {
            "a": ("relu", {}, [INPUT]),
            "b": ("sigmoid", {}, [INPUT]),
            "out": ("add", {}, [("a", "s/out<a"), ("b", "s/out<b")]),
        }
    )
    module = lower(graph)
    assert (calls(module, gated_sum), calls(module, push)) == (1, 0)


def test_a_network_without_gates_is_plain() -> None:
    graph = graph_of({"a": ("conv", {"kernel": 3}, [INPUT]), "out": ("add", {}, ["a", INPUT])})
    module = lower(graph)
    assert all(calls(module, f) == 0 for f in (push, gated_sum, gated_sums, projection, torch.mul))
    x = torch.randn(2, 4, 6, 6)
    assert (module(x) - lower(graph, lowering="reference")(x)).abs().max() < 1e-6


def kept_bytes(run: Callable[[], Tensor]) -> int:
    """Bytes of the distinct memory that is kept for the backward pass."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        run()
    return sum(kept.values())


def test_a_stack_where_it_pays() -> None:
    """2 levels of 2 ops: 8 edges for 5 sources and 4 sums; 8 levels: 128 for 17 and 16."""
    few, many = lower(full_levels(2)), lower(full_levels(8))
    assert (calls(few, gated_sum), calls(few, joint_projection), calls(few, push)) == (4, 1, 0)
    assert (calls(many, gated_sum), calls(many, gated_sums), calls(many, projection)) == (0, 8, 1)


@pytest.mark.usefixtures("stacks_or_not")
@pytest.mark.parametrize(("step", "share"), [("weights", 0.75), ("gates", 0.5)])
def test_fused_keeps_less_for_the_backward_pass(step: str, share: float) -> None:
    found = {}
    for lowering in LOWERINGS:
        module = lower(full_levels(3), lowering=lowering)
        for name, p in module.named_parameters():
            p.requires_grad_(name.endswith(".gates") == (step == "gates"))
        images = torch.randn(16, 4, 6, 6).to(memory_format=torch.channels_last)
        found[lowering] = kept_bytes(lambda module=module, images=images: module(images))
    assert found["fused"] < share * found["reference"], found


@pytest.mark.usefixtures("stacks")
@pytest.mark.parametrize("pool", [("max_pool", {"kernel": 3}), ("add", {"norm": "batch", "act": "relu"})])
def test_a_sum_is_copied_where_that_frees_others(
    monkeypatch: pytest.MonkeyPatch, pool: tuple[str, dict[str, object]]
) -> None:
    """A pool does not keep what it reads; batch norm does, also behind an op that only hands its sum on."""
    graph = graph_of(
        {
            "block.conv": ("conv", {"kernel": 3}, [(INPUT, "block/conv<input")]),
            "block.other": (*pool, [(INPUT, "block/other<input")]),
            "out": ("add", {}, ["block.conv", "block.other"]),
        }
    )
    kept = []
    for copies in (True, False):
        if not copies:
            monkeypatch.setattr(fused, "kept_apart", lambda graph, readers: (False,) * len(readers))
        module = lower(graph)
        gate_parameters(module, graph)["block"].requires_grad_(False)
        images = torch.randn(16, 4, 6, 6, requires_grad=True)
        kept.append(kept_bytes(lambda module=module, images=images: module(images)))
    slot = 16 * 4 * 6 * 6 * 4
    assert kept[1] - kept[0] == (slot if pool[0] == "max_pool" else 0)


@pytest.mark.usefixtures("stacks_or_not")
def test_fixed_parameters_get_no_gradient() -> None:
    graph = full_levels(2)
    module = lower(graph)
    gates = gate_parameters(module, graph)["block"]
    for p in module.parameters():
        p.requires_grad_(p is gates)
    module(torch.randn(4, 4, 6, 6)).square().sum().backward()
    assert [name for name, p in module.named_parameters() if p.grad is not None] == ["block.gates"]


def test_a_stack_of_vectors() -> None:
    graph = graph_of(
        {
            "v": ("global_avg_pool", {}, [INPUT]),
            "a": ("linear", {"channels": 4}, [("v", "s/a<v")]),
            "b": ("linear", {"channels": 4}, [("v", "s/b<v"), ("a", "s/b<a")]),
            "c": ("sigmoid", {}, [("v", "s/c<v"), ("a", "s/c<a"), ("b", "s/c<b")]),
        }
    )
    assert calls(network(graph, "stacks", random_params(graph, 0), random_gates(graph, 0), torch.float32), gated_sums)
    check_against_formula(graph, 0)


def test_gates_of_several_scopes_in_one_sum() -> None:
    graph = graph_of(
        {
            "a": ("relu", {}, [(INPUT, "one/a<in")]),
            "b": ("sigmoid", {}, [(INPUT, "two/b<in"), ("a", "one/b<a")]),
            "c": ("project", {"channels": 2}, [("a", "two/c<a"), ("b", "one/c<b"), (INPUT, "three/c<in")]),
        }
    )
    check_against_formula(graph, 1)


def test_a_projection_over_different_widths() -> None:
    graph = graph_of(
        {
            "a": ("conv", {"kernel": 1, "channels": 2}, [INPUT]),
            "c": ("project", {"channels": 3, "norm": "none"}, [("a", "s/c<a"), (INPUT, "s/c<in")]),
        }
    )
    check_against_formula(graph, 2)


def test_a_value_that_is_zero_passes_no_gradient_on() -> None:
    graph = graph_of(
        {
            "a": ("relu", {}, [INPUT]),
            "z": ("zero", {}, [("a", "s/z<a"), (INPUT, "s/z<in")]),
            "b": ("sigmoid", {}, [("a", "s/b<a"), (INPUT, "s/b<in")]),
            "out": ("add", {}, [("z", "s/out<z"), ("b", "s/out<b"), ("a", "s/out<a")]),
        }
    )
    check_against_formula(graph, 3)
