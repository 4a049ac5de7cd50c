"""Sparsity weights: equations 9 and 10, latency, shared gates and the exempt last input."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import Parameter

from compiler import ops
from compiler.ir.graph import INPUT, Block, Graph
from compiler.language.config import GateConfig
from compiler.lowering.torch.fx import load_gates, load_weights, lower
from compiler.passes.prune_zero_edges import prune, surviving_edges
from runtime.strategies.apgnag import APGNAG
from runtime.strategies.latency import OpTimes
from runtime.strategies.penalties import MIN_FACTOR, OpCall, Penalty, priced_call, set_gammas
from tests.compiler.plain import random_params
from tests.graphs import graph_of, random_gates, random_graph

GAMMA = 0.01
POOL = {"kernel": 3, "norm": "batch", "act": "relu"}
Sources = list[str | tuple[str, str]]
Parts = dict[str, tuple[str, dict[str, Any], Sources]]
BLOCK_OPS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("sep3", "sep_conv", {"kernel": 3}),
    ("sep5", "sep_conv", {"kernel": 5}),
    ("pool", "max_pool", POOL),
    ("mean", "avg_pool", POOL),
)


def block_parts(block: str, source: str, scope: str, channels: int) -> Parts:
    """Two levels of four ops as the method has them: plain first level, gated second, gated project, shortcut."""
    parts: Parts = {}
    first = [f"{block}.one.{name}" for name, _, _ in BLOCK_OPS]
    for name, op, attrs in BLOCK_OPS:
        parts[f"{block}.one.{name}"] = (op, attrs, [source])
    for name, op, attrs in BLOCK_OPS:
        gated: Sources = [(s, f"{scope}/two.{name}<{s.removeprefix(block)}") for s in (source, *first)]
        parts[f"{block}.two.{name}"] = (op, attrs, gated)
    made = [i for i in parts if i.startswith(f"{block}.")]
    to_mix: Sources = [(s, f"{scope}/mix<{s.removeprefix(block)}") for s in made]
    parts[f"{block}.mix"] = ("project", {"channels": channels}, to_mix)
    parts[f"{block}.out"] = ("add", {}, [f"{block}.mix", source])
    return parts


def network(channels: int = 8, size: int = 6, share: bool = False, reduction: bool = False) -> Graph:
    """Two blocks, a reduction block between them when asked for, a head."""
    parts = block_parts("a", INPUT, "same" if share else "a", channels)
    blocks = [Block("a", "normal", "s0", (INPUT,), "a.out")]
    last, width = "a.out", channels
    if reduction:
        width = 2 * channels
        wide = {"channels": width, "stride": 2}
        parts["r.one"] = ("conv", {"kernel": 1, **wide}, [last])
        parts["r.three"] = ("conv", {"kernel": 3, **wide}, [last])
        parts["r.out"] = ("add", {}, [("r.one", "r/out<one"), ("r.three", "r/out<three")])
        blocks.append(Block("r", "reduce", "r", (last,), "r.out"))
        last = "r.out"
    second = block_parts("b", last, "same" if share else "b", width)
    if share:  # shared gates are named by their place in the block, whatever the block reads
        second = {
            node: (
                op,
                attrs,
                [(s[0], s[1].replace(f"<{last}", f"<{INPUT}")) if isinstance(s, tuple) else s for s in src],
            )
            for node, (op, attrs, src) in second.items()
        }
    blocks.append(Block("b", "normal", "s1", (last,), "b.out"))
    head: Parts = {"pooled": ("global_avg_pool", {}, ["b.out"]), "logits": ("linear", {"channels": 3}, ["pooled"])}
    return graph_of({**parts, **second, **head}, shape=(channels, size, size), blocks=tuple(blocks))


def penalty(graph: Graph, adaptive: str = "none", exempt: bool = True, **more: Any) -> Penalty:
    config = GateConfig.model_validate({"gamma": GAMMA, "adaptive": adaptive, "exempt_last_input": exempt})
    return Penalty(graph, more.pop("full", graph), config, **more)


def factors(gammas: Mapping[str, float]) -> dict[str, float]:
    return {gate: gamma / GAMMA for gate, gamma in gammas.items()}


def into(graph: Graph, node: str) -> list[str]:
    return [e.gate for e in graph.inputs(node) if e.gate is not None]


# -- constant and FLOPs ---------------------------------------------------------------------------------------------


def test_constant_gamma_covers_every_gate() -> None:
    graph = network(reduction=True)
    assert penalty(graph).gammas([]) == dict.fromkeys(graph.gates(), GAMMA)


def flops_of(graph: Graph, block: str, dead: Collection[str] = (), mix_inputs: int | None = None) -> int:
    """Multiply-adds of a block, counted by node, `mix` reading its first inputs only."""
    total = 0
    for node in graph.nodes():
        if node.id.startswith(block + ".") and node.id not in dead:
            shapes = ops.input_shapes(graph, node)
            kept = shapes[:mix_inputs] if node.op == "project" else shapes
            total += ops.cost(node.op, node.attrs, kept, len(kept)).flops
    return total


def test_adaptive_flops_is_equation_9() -> None:
    graph = network()
    dead = {"a.two.sep3", "a.two.sep5"}
    closed = [gate for node in dead for gate in into(graph, node)]
    found = factors(penalty(graph, "flops").gammas(closed))
    share = flops_of(graph, "a", dead, mix_inputs=6) / flops_of(graph, "a")
    assert 0.3 < share < 0.7
    assert {gate: f for gate, f in found.items() if gate.startswith("a/")} == pytest.approx(
        dict.fromkeys([g for g in graph.gates() if g.startswith("a/")], share)
    )
    assert {f for gate, f in found.items() if gate.startswith("b/")} == {1.0}


def test_flops_of_an_op_without_a_way_out_do_not_count() -> None:
    graph = network()
    closed = ["a/mix<.two.sep5"]
    found = factors(penalty(graph, "flops").gammas(closed))
    share = flops_of(graph, "a", {"a.two.sep5"}, mix_inputs=7) / flops_of(graph, "a")
    assert found["a/two.sep3<input"] == pytest.approx(share)


def test_flops_of_the_block_come_from_the_full_graph() -> None:
    full = network()
    closed = [gate for node in ("a.two.sep3", "a.two.sep5") for gate in into(full, node)]
    pruned = full.restricted_to(surviving_edges(full, closed))
    before = penalty(full, "flops").gammas(closed)
    after = penalty(pruned, "flops", full=full).gammas([])
    assert after == {gate: before[gate] for gate in pruned.gates()}


def test_shared_gates_get_the_mean_of_their_blocks() -> None:
    graph = network(share=True)
    assert len(graph.gates()) * 2 == sum(e.gate is not None for e in graph.edges())
    full = penalty(graph, "flops")
    b_pruned = graph.restricted_to(e for e in graph.edges() if e.dst not in ("b.two.sep5",) and e.src != "b.two.sep5")
    found = factors(penalty(b_pruned, "flops", full=graph).gammas([]))
    share = flops_of(graph, "b", {"b.two.sep5"}, mix_inputs=7) / flops_of(graph, "b")
    assert found["same/mix<.one.pool"] == pytest.approx((1 + share) / 2)
    assert found["same/two.sep5<.one.pool"] == pytest.approx(1.0)  # only block a has this edge now
    assert set(factors(full.gammas([])).values()) == {1.0}


def test_no_block_goes_unpenalised() -> None:
    graph = network()
    closed = [g for g in graph.gates() if g.startswith("a/")]
    for adaptive in ("flops", "memory_access"):
        found = factors(penalty(graph, adaptive).gammas(closed))
        assert min(found.values()) >= MIN_FACTOR
    assert factors(penalty(graph, "flops").gammas(closed))["a/mix<.two.sep3"] < 0.4


def test_block_without_flops_counts_in_full() -> None:
    parts: Parts = {
        "p.max": ("max_pool", POOL, [(INPUT, "p/max<in")]),
        "p.out": ("add", {}, ["p.max", INPUT]),
        "mean": ("global_avg_pool", {}, ["p.out"]),
    }
    graph = graph_of(parts, blocks=(Block("p", "p", "p", (INPUT,), "p.out"),))
    assert factors(penalty(graph, "flops", exempt=False).gammas([])) == {"p/max<in": 1.0}


def test_gates_outside_of_blocks_follow_the_rest_of_the_network() -> None:
    parts: Parts = {
        "one": ("conv", {"kernel": 1, "channels": 4}, [INPUT]),
        "three": ("conv", {"kernel": 3, "channels": 4}, [INPUT]),
        "out": ("add", {}, [("one", "n/out<one"), ("three", "n/out<three")]),
    }
    found = factors(penalty(graph_of(parts), "flops").gammas(["n/out<three"]))
    assert found == pytest.approx({"n/out<one": 0.1, "n/out<three": 0.1})


# -- memory access cost ---------------------------------------------------------------------------------------------


def test_adaptive_mac_reproduces_the_published_ratios() -> None:
    """0.986 : 1 : 0.447 : 0.447 at 16x16x96, and 0.531 for a project input (its 1x1 convolution, not the whole)."""
    graph = network(channels=96, size=16)
    found = factors(penalty(graph, "memory_access").gammas([]))
    for node, ratio in (("two.sep3", 0.986), ("two.sep5", 1.0), ("two.pool", 0.447), ("two.mean", 0.447)):
        for gate in into(graph, f"a.{node}"):
            assert found[gate] == pytest.approx(ratio, abs=5e-4)
    for gate in into(graph, "a.mix"):
        assert found[gate] == pytest.approx(0.531, abs=5e-4)


def test_largest_mac_is_of_what_lives() -> None:
    graph = network(channels=96, size=16)
    closed = [gate for block in "ab" for gate in into(graph, f"{block}.two.sep5")]
    found = factors(penalty(graph, "memory_access").gammas(closed))
    assert {found[gate] for gate in into(graph, "a.two.sep3")} == {1.0}
    assert {found[gate] for gate in closed} == {1.0}  # dead ones are not penalised beyond gamma
    assert found["a/two.pool<input"] == pytest.approx(0.447 / 0.986, abs=5e-4)


def test_branches_of_a_reduction_are_weighed_by_their_own_cost() -> None:
    graph = network(reduction=True)
    calls = {e.src: priced_call(graph, e) for e in graph.inputs("r.out")}
    assert {src: dict(c.attrs)["kernel"] for src, c in calls.items()} == {"r.one": 1, "r.three": 3}
    found = factors(penalty(graph, "memory_access").gammas([]))
    assert MIN_FACTOR < found["r/out<one"] < found["r/out<three"] <= 1
    assert set(factors(penalty(graph, "flops").gammas([])).values()) == {1.0}


# -- latency --------------------------------------------------------------------------------------------------------


def test_adaptive_latency_goes_from_a_half_to_one() -> None:
    graph = network()
    seconds = {"sep_conv": 0.3, "max_pool": 0.1, "avg_pool": 0.1, "project": 0.2}
    calls = {priced_call(graph, e) for e in graph.edges() if e.gate is not None}
    table: dict[OpCall, float] = {call: seconds[call.op] for call in calls}
    found = factors(penalty(graph, "latency", latency=table).gammas([]))
    assert {found[g] for g in into(graph, "a.two.sep5")} == {1.0}
    assert {found[g] for g in into(graph, "a.two.pool")} == {0.5}
    assert [found[g] for g in into(graph, "b.mix")] == pytest.approx([0.75] * 8)
    alike = dict.fromkeys(calls, 0.1)
    assert set(factors(penalty(graph, "latency", latency=alike).gammas([])).values()) == {1.0}


def test_adaptive_latency_needs_times() -> None:
    with pytest.raises(ValueError, match="measured times"):
        penalty(network(), "latency")


# -- the last living input ------------------------------------------------------------------------------------------


def test_last_living_input_is_exempt_until_its_op_is_dead() -> None:
    graph = network()
    gates = into(graph, "a.two.sep3")
    exempting = penalty(graph)
    assert exempting.gammas(gates[2:])[gates[0]] == GAMMA
    found = exempting.gammas(gates[1:])
    assert [found[g] for g in gates] == [0, GAMMA, GAMMA, GAMMA, GAMMA]
    assert sum(gamma == 0 for gamma in found.values()) == 1
    dead = exempting.gammas([*gates[1:], "a/mix<.two.sep3"])
    assert dead[gates[0]] == GAMMA
    assert penalty(graph, exempt=False).gammas(gates[1:])[gates[0]] == GAMMA


def test_project_keeps_its_last_input() -> None:
    graph = network()
    gates = into(graph, "a.mix")
    found = penalty(graph).gammas(gates[1:])
    assert found[gates[0]] == 0
    assert found[gates[1]] == GAMMA


def test_ops_that_feel_their_scale_are_not_exempt() -> None:
    graph = network(reduction=True)
    assert penalty(graph).gammas(["r/out<one"])["r/out<three"] == GAMMA


def test_plain_input_counts_as_living() -> None:
    parts: Parts = {
        "one": ("conv", {"kernel": 3}, [INPUT]),
        "two": ("conv", {"kernel": 3}, [INPUT, ("one", "g/two<one")]),
    }
    assert penalty(graph_of(parts)).gammas([]) == {"g/two<one": GAMMA}


NORMED = {"kernel": 3, "norm": "batch", "act": "relu"}
CHAINS: dict[str, tuple[bool, list[tuple[str, dict[str, Any]]]]] = {
    "bias and batch norm": (True, [("conv", {"kernel": 3, "bias": True})]),
    "bias and layer norm": (False, [("conv", {"kernel": 3, "bias": True, "norm": "none"}), ("layer_norm", {})]),
    "bias without norm": (False, [("conv", {"kernel": 3, "norm": "none", "bias": True})]),
    "identity": (True, [("identity", {}), ("conv", NORMED)]),
    "relu": (True, [("relu", {}), ("sep_conv", NORMED)]),
    "pools and scale": (True, [("max_pool", {"kernel": 3}), ("scale", {"factor": 0.5}), ("batch_norm", {})]),
    "pool and layer norm": (True, [("avg_pool", {"kernel": 3}), ("layer_norm", {})]),
    "bias, then pool": (
        True,
        [("conv", NORMED | {"norm": "none", "act": "none"}), ("avg_pool", {"kernel": 3}), ("batch_norm", {})],
    ),
    "bias, then relu": (False, [("conv", NORMED | {"norm": "none"}), ("batch_norm", {})]),
    "bias, then padding": (False, [("conv", NORMED | {"norm": "none", "act": "none"}), ("conv", NORMED)]),
    "bias, then one pixel": (
        True,
        [("conv", NORMED | {"norm": "none", "act": "none"}), ("conv", NORMED | {"kernel": 1})],
    ),
    "sigmoid": (False, [("sigmoid", {}), ("conv", NORMED)]),
    "nothing behind": (False, [("identity", {})]),
}


@pytest.mark.parametrize("kind", CHAINS)
@pytest.mark.parametrize("beside", [False, True])
def test_a_lone_gate_is_exempt_exactly_where_training_does_not_feel_it(kind: str, beside: bool) -> None:
    """Scaling the gate is tried on the network itself; `beside`, something else reads the value or is added to it."""
    undone, chain = CHAINS[kind]
    parts: Parts = {"first": ("conv", {"kernel": 3, "channels": 4}, [INPUT])}
    before: Sources = [("first", "g/0<first"), (INPUT, "g/0<in")]
    for number, (op, attrs) in enumerate(chain):
        parts[str(number)] = (op, attrs, before)
        before = [str(number)]
    parts["out"] = ("add", {}, [*before, *(["0", "first"] if beside and len(chain) > 1 else [])])
    parts |= {"pool": ("global_avg_pool", {}, ["out"]), "logits": ("linear", {"channels": 3}, ["pool"])}
    graph = prune(graph_of(parts), {"g/0<in"})
    module, vectors = lower(graph).double(), random_params(graph, 3)
    load_weights(module, {name: value.detach() for name, value in vectors.items()} | dict(module.named_buffers()))
    x, found = torch.randn(8, 4, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), []
    for gate in (10.0, 20.0):  # so that eps does not show
        load_gates(module, graph, {"g/0<first": gate})
        found.append(module(x).detach())
    is_blind = torch.allclose(*found, rtol=0, atol=1e-3 * float(found[0].abs().max()))
    assert (penalty(graph).gammas([])["g/0<first"] == 0) == is_blind == (undone and not (beside and len(chain) > 1))


ADAPTIVE = ["flops", "memory_access", "latency"]


@given(seed=st.integers(0, 10_000), adaptive=st.sampled_from(ADAPTIVE), zeros=st.floats(0.1, 0.6))
@settings(max_examples=60)
def test_cutting_what_is_closed_changes_no_factor(seed: int, adaptive: str, zeros: float) -> None:
    joined: Parts = {
        "j.a": ("conv", {"kernel": 3, "channels": 3}, [INPUT]),
        "j.b": ("sep_conv", {"kernel": 3}, [INPUT]),
    }
    joined |= {"j.joined": ("concat", {}, [("j.a", "j/a"), ("j.b", "j/b"), (INPUT, "j/in")])}
    joined |= {
        "j.pool": ("max_pool", {"kernel": 3}, [("j.joined", "j/pool")]),
        "j.conv": ("conv", {"kernel": 3, "channels": 4}, [("j.pool", "j/conv"), ("j.joined", "j/skip")]),
    }
    graph = graph_of({**joined, "out": ("project", {"channels": 2}, [("j.conv", "k/conv"), (INPUT, "k/in")])})
    closed = {gate for gate, value in random_gates(graph, seed, zeros).items() if value == 0} - {"k/in"}
    left = prune(graph, closed)
    more = {"latency": OpTimes(lambda call: float(call.mac_bytes) ** 0.5)} if adaptive == "latency" else {}
    before = penalty(graph, adaptive, **more).gammas(closed)
    after = penalty(left, adaptive, full=graph, **more).gammas([])
    assert after == {gate: before[gate] for gate in left.gates()}


def test_shared_gate_is_exempt_only_where_every_living_edge_is_a_last_one() -> None:
    graph = network(share=True)
    gate, *others = into(graph, "a.two.pool")
    assert penalty(graph).gammas(others)[gate] == 0
    plain = Graph("plain", graph.phase, graph.blocks)
    for node in graph.nodes():
        plain.add(node)
    for edge in graph.edges():
        ungated = (edge.src, edge.dst) == ("b.one.mean", "b.two.pool")
        plain.connect(edge.src, edge.dst, None if ungated else edge.gate)
    assert penalty(plain).gammas(others)[gate] == GAMMA


# -- properties and the optimizer -----------------------------------------------------------------------------------


@given(seed=st.integers(0, 10_000), adaptive=st.sampled_from(["none", "flops", "memory_access"]))
@settings(max_examples=60)
def test_every_gate_is_penalised_within_bounds_or_exempt(seed: int, adaptive: str) -> None:
    graph = random_graph(seed)
    closed = {gate for gate, value in random_gates(graph, seed).items() if value == 0}
    found = factors(penalty(graph, adaptive).gammas(closed))
    assert list(found) == graph.gates()
    living = surviving_edges(graph, closed)
    for edge in graph.edges():
        if edge.gate is None or found[edge.gate] > 0:
            continue
        assert [e for e in living if e.dst == edge.dst] == [edge]
    assert all(f == 0 or MIN_FACTOR <= f <= 1 for f in found.values())
    strict = factors(penalty(graph, adaptive, exempt=False).gammas(closed))
    assert all(MIN_FACTOR <= f <= 1 for f in strict.values())
    assert {g: f for g, f in found.items() if f} == {g: f for g, f in strict.items() if found[g]}


def test_gammas_reach_the_optimizer_by_scope() -> None:
    graph = network(reduction=True)
    vectors = {scope: Parameter(torch.ones(len(gates))) for scope, gates in graph.gate_scopes().items()}
    optimizer = APGNAG(vectors.values())
    rule = penalty(graph, "memory_access")
    gates = graph.gate_scopes()["a"]
    closed = into(graph, "a.two.sep3")[1:]
    with torch.no_grad():
        vectors["a"][[gates.index(g) for g in closed]] = 0
    set_gammas(rule, optimizer, vectors)
    expected = rule.gammas(closed)
    for scope, members in graph.gate_scopes().items():
        found = optimizer.state[vectors[scope]]["gamma"]
        torch.testing.assert_close(found, torch.tensor([expected[g] for g in members]))
    assert (optimizer.state[vectors["a"]]["gamma"] == 0).sum() == 1
