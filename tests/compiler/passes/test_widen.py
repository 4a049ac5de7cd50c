"""widen: channels that hang together stay together, and the widest network within a budget is found."""

from __future__ import annotations

import functools
import math
import random
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.analysis.channels import plan_widths
from compiler.analysis.costs import total_cost
from compiler.analysis.guards import kept_by_strength
from compiler.analysis.limits import budget_share, measured
from compiler.elaborate.builder import load
from compiler.errors import PassError
from compiler.ir.graph import INPUT, OUTPUT, Graph, Model, Node
from compiler.ir.verify import verify
from compiler.language.config import BudgetConfig
from compiler.lowering.torch.fx import lower
from compiler.ops import read_attrs
from compiler.passes.drop_gates import DropGates
from compiler.passes.prune_zero_edges import prune
from compiler.passes.widen import PER_UNIT, Widen, describe_width, solve_width, widen
from tests.graphs import graph_of, random_gates, random_graph, with_output

SPECS = Path(__file__).parents[3] / "specs"
SMALL = ("digits", "hand_wired", "dso_nas_cifar10_small", "darts_cell")
Parts = dict[str, tuple[str, dict[str, Any], list[str | tuple[str, str]]]]


@functools.cache
def searched(name: str, seed: int = 0, zeros: float = 0.6) -> Graph:
    """The compact graph of a shipped spec with random gates closed."""
    graph = load(SPECS / f"{name}.yaml")[1]
    rng = random.Random(seed)
    closed = {gate for gate in graph.gates() if rng.random() < zeros}
    closed -= set(kept_by_strength(graph, closed, {}))
    return DropGates().run(Model(prune(graph, closed))).graph


def with_stem(seed: int) -> Graph:
    """A random graph whose nodes read a stem, not the image: otherwise every sum has the image's channels."""
    inner = random_graph(seed)
    parts: Parts = {"stem": ("conv", {"kernel": 3, "channels": 4}, [INPUT])}
    for node in inner.nodes():
        if node.op not in (INPUT, OUTPUT):
            reads = [("stem" if e.src == INPUT else e.src, e.gate) for e in inner.inputs(node.id)]
            parts[node.id] = (node.op, dict(node.attrs), [(s, g) if g else s for s, g in reads])
    return graph_of(parts, shape=(3, 6, 6))


def channels(graph: Graph) -> dict[str, int]:
    return {node.id: node.shape[0] for node in graph.nodes()}


def written_channels(node: Node) -> int | None:
    return getattr(read_attrs(node.op, node.attrs), "channels", None)


def check(before: Graph, after: Graph, round_to: int) -> None:
    """Everything that widening promises about the result."""
    verify(after)
    assert [n.id for n in after.nodes()] == [n.id for n in before.nodes()]
    assert after.edges() == before.edges()
    assert after.blocks == before.blocks
    assert after.node(INPUT).shape == before.node(INPUT).shape
    assert after.node(OUTPUT).shape == before.node(OUTPUT).shape
    seen: dict[int, set[int]] = {}
    for node in after.nodes():
        written = written_channels(node)
        if written is not None and written != before.node(node.id).shape[0]:
            assert written > 0
            assert written % round_to == 0
            seen.setdefault(before.node(node.id).shape[0], set()).add(written)
    assert all(len(new) == 1 for new in seen.values()), "equal channels stay equal"


# -- one multiplier ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
@settings(max_examples=8)
@given(multiplier=st.floats(0.05, 4.0), round_to=st.sampled_from((1, 4, 8)), seed=st.integers(0, 2))
def test_shipped_specs_stay_legal_at_any_width(name: str, multiplier: float, round_to: int, seed: int) -> None:
    before = searched(name, seed)
    after = widen(before, multiplier, round_to)
    check(before, after, round_to)
    logits = {edge.src for edge in before.inputs(OUTPUT)}
    for node in after.nodes():
        written = written_channels(node)
        if written is not None and node.id not in logits:
            step = math.lcm(round_to, 2)  # every group count in the shipped specs is 1 or 2
            assert written <= step or abs(written - multiplier * before.node(node.id).shape[0]) <= step / 2


def test_every_output_keeps_its_channels() -> None:
    parts: dict[str, Any] = {
        "a": ("conv", {"kernel": 3, "channels": 8}, [INPUT]),
        "b": ("conv", {"kernel": 3, "channels": 16}, ["a"]),
        "pool": ("global_avg_pool", {}, ["b"]),
        "fc": ("linear", {"channels": 3}, ["pool"]),
    }
    graph = graph_of(parts)
    assert [n.shape[0] for n in widen(graph, 2.0, 1).outputs().values()] == [3]
    wide = widen(with_output(graph, "b"), 2.0, 1)
    assert (wide.node("a").shape[0], [n.shape[0] for n in wide.outputs().values()]) == (16, [3, 16])


@settings(max_examples=150)
@given(seed=st.integers(0, 10**6), multiplier=st.floats(0.05, 6.0), round_to=st.sampled_from((1, 2, 8)))
def test_random_graphs_stay_legal_at_any_width(seed: int, multiplier: float, round_to: int) -> None:
    before = with_stem(seed)
    check(before, widen(before, multiplier, round_to), round_to)


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), multiplier=st.floats(0.3, 4.0))
def test_pruned_random_graphs_stay_legal_at_any_width(seed: int, multiplier: float) -> None:
    graph = with_stem(seed)
    closed = {gate for gate, value in random_gates(graph, seed).items() if value == 0.0}
    closed -= set(kept_by_strength(graph, closed, {}))
    before = prune(graph, closed)
    check(before, widen(before, multiplier, 4), 4)


def test_widths_are_rounded_to_the_nearest_multiple_and_never_to_nothing() -> None:
    parts: Parts = {
        "a": ("conv", {"kernel": 3, "channels": 16}, [INPUT]),
        "b": ("conv", {"kernel": 3, "channels": 6}, ["a"]),
        "logits": ("conv", {"kernel": 1, "channels": 3}, ["b"]),
    }
    graph = graph_of(parts)
    for multiplier, a, b in ((1.0, 16, 8), (1.25, 24, 8), (1.2, 16, 8), (0.01, 8, 8), (2.0, 32, 16)):
        found = channels(widen(graph, multiplier, 8))
        assert (found["a"], found["b"], found["logits"]) == (a, b, 3)


def test_a_sum_with_the_image_keeps_the_image_channels() -> None:
    parts: Parts = {
        "a": ("conv", {"kernel": 3, "channels": 4}, [INPUT]),
        "sum": ("add", {}, ["a", INPUT]),
        "b": ("conv", {"kernel": 3, "channels": 4}, ["sum"]),
        "logits": ("conv", {"kernel": 1, "channels": 3}, ["b"]),
    }
    found = channels(widen(graph_of(parts), 3.0, 4))
    assert (found["a"], found["sum"], found["b"]) == (4, 4, 12)


def test_a_concat_that_is_added_to_a_value_gives_it_the_sum_of_its_parts() -> None:
    parts: Parts = {
        "a": ("conv", {"kernel": 1, "channels": 6}, [INPUT]),
        "b": ("conv", {"kernel": 1, "channels": 10}, [INPUT]),
        "joined": ("concat", {}, ["a", "b"]),
        "c": ("conv", {"kernel": 1, "channels": 16}, [INPUT]),
        "sum": ("add", {}, ["joined", "c"]),
        "logits": ("conv", {"kernel": 1, "channels": 3}, ["sum"]),
    }
    found = channels(widen(graph_of(parts), 1.3, 8))  # 16 alone would become 24
    assert (found["a"], found["b"], found["c"]) == (8, 16, 24)
    found = channels(widen(graph_of(parts), 1.0, 8))  # 16 alone would stay
    assert (found["a"], found["b"], found["c"]) == (8, 8, 16)


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), multiplier=st.floats(0.05, 6.0), round_to=st.sampled_from((1, 2, 8)))
def test_joins_that_are_added_keep_equal_channels(seed: int, multiplier: float, round_to: int) -> None:
    rng = random.Random(seed)
    total = rng.randint(2, 20)
    parts: Parts = {"whole": ("conv", {"kernel": 1, "channels": total}, [INPUT])}
    for name in ("left", "right"):  # their parts cut each other in any way
        ends = sorted({0, total, *rng.choices(range(total), k=3)})
        own = {f"{name}{i}": b - a for i, (a, b) in enumerate(pairwise(ends))}
        parts |= {i: ("conv", {"kernel": 1, "channels": n}, ["whole"]) for i, n in own.items()}
        parts |= {name: ("concat", {}, [*own])}
    parts["doubled"] = ("conv", {"kernel": 1, "channels": 2 * total, "groups": total}, ["whole"])
    parts |= {name: ("concat", {}, rng.sample(("left", "right"), 2)) for name in ("both", "again")}
    parts["sum"] = ("add", {}, ["left", "right", "whole"])
    parts["sums"] = ("add", {}, ["both", "again", "doubled"])
    parts |= {"ends": ("concat", {}, ["sum", "sums"]), "logits": ("conv", {"kernel": 1, "channels": 3}, ["ends"])}
    after = widen(graph_of(parts), multiplier, round_to)
    check(graph_of(parts), after, round_to)
    assert all(node.shape[0] % round_to == 0 for node in after.nodes() if node.id in {*parts} - {"logits"})
    assert widen(graph_of(parts), 50.0, round_to).node("left0").shape[0] >= 50 - round_to


def test_parts_that_cut_each_other_scale_with_what_they_have_in_common() -> None:
    parts: Parts = {
        **{f"c{n}": ("conv", {"kernel": 1, "channels": n}, [INPUT]) for n in (4, 12, 6, 10)},
        "left": ("concat", {}, ["c4", "c12"]),
        "right": ("concat", {}, ["c6", "c10"]),
        "sum": ("add", {}, ["left", "right"]),
        "logits": ("conv", {"kernel": 1, "channels": 3}, ["sum"]),
    }
    found = channels(widen(graph_of(parts), 4.0, 8))  # blocks of 4, 2 and 10
    assert (found["c4"], found["c12"], found["c6"], found["c10"]) == (16, 8 + 40, 16 + 8, 40)


def test_groups_divide_and_depthwise_stays_depthwise() -> None:
    parts: Parts = {
        "stem": ("conv", {"kernel": 1, "channels": 12}, [INPUT]),
        "grouped": ("conv", {"kernel": 3, "channels": 24, "groups": 3}, ["stem"]),
        "depthwise": ("conv", {"kernel": 3, "channels": 24, "groups": 24}, ["grouped"]),
        "doubled": ("conv", {"kernel": 3, "channels": 48, "groups": 24}, ["depthwise"]),
        "squeeze": ("squeeze_excite", {"reduction": 4}, ["doubled"]),
        "pool": ("global_avg_pool", {}, ["squeeze"]),
        "logits": ("linear", {"channels": 3}, ["pool"]),
    }
    wide = widen(graph_of(parts), 2.4, 8)
    verify(wide)
    found = channels(wide)
    assert (found["stem"], found["grouped"], found["depthwise"], found["doubled"]) == (24, 48, 48, 96)
    groups = {i: read_attrs("conv", wide.node(i).attrs).groups for i in ("grouped", "depthwise", "doubled")}
    assert groups == {"grouped": 3, "depthwise": 48, "doubled": 48}


def test_groups_over_channels_that_stay_must_divide_them() -> None:
    parts: Parts = {
        "a": ("conv", {"kernel": 1, "channels": 5}, [INPUT]),
        "joined": ("concat", {}, [INPUT, "a"]),
        "grouped": ("conv", {"kernel": 1, "channels": 6, "groups": 3}, ["joined"]),
        "logits": ("conv", {"kernel": 1, "channels": 3}, ["grouped"]),
    }
    with pytest.raises(PassError, match="4 of the channels stay") as caught:
        widen(graph_of(parts), 2.0, 8)
    assert caught.value.where == "grouped"


def test_flatten_and_means_over_channels_are_followed() -> None:
    parts: Parts = {
        "stem": ("conv", {"kernel": 1, "channels": 4}, [INPUT]),
        "map": ("mean", {"dims": (1,), "keep": True}, ["stem"]),
        "wide": ("conv", {"kernel": 1, "channels": 4}, ["map"]),
        "flat": ("flatten", {}, ["wide"]),
        "logits": ("linear", {"channels": 3}, ["flat"]),
    }
    found = channels(widen(graph_of(parts), 2.0, 4))
    assert (found["stem"], found["map"], found["wide"], found["flat"], found["logits"]) == (8, 1, 8, 8 * 36, 3)


def test_widened_zeros_fill_the_place_of_a_lost_input() -> None:
    parts: Parts = {
        "stem": ("conv", {"kernel": 1, "channels": 4}, [INPUT]),
        "a": ("conv", {"kernel": 1, "channels": 4}, ["stem"]),
        "joined": ("concat", {}, [("stem", "b/joined<stem"), ("a", "b/joined<a")]),
        "norm": ("batch_norm", {}, ["joined"]),
        "logits": ("conv", {"kernel": 1, "channels": 3}, ["norm"]),
    }
    pruned = prune(graph_of(parts), {"b/joined<a"})
    found = channels(widen(pruned, 2.0, 4))
    assert (found["stem"], found["joined_zero1"], found["norm"]) == (8, 8, 16)


@pytest.mark.parametrize(("multiplier", "round_to"), [(0.0, 8), (-1.0, 8), (math.nan, 8), (math.inf, 8), (1.0, 0)])
def test_senseless_numbers_are_refused(multiplier: float, round_to: int) -> None:
    with pytest.raises(PassError, match="give a positive number"):
        widen(searched("digits"), multiplier, round_to)


def test_the_pass_widens_structure_and_refuses_weights() -> None:
    graph = searched("digits")
    model = Widen(2.0, 4).run(Model(graph))
    assert channels(model.graph) == channels(widen(graph, 2.0, 4))
    with pytest.raises(PassError, match="weights of the old widths"):
        Widen(2.0, 4).run(Model(graph, {}, {"stem.out.conv.weight": 0}))


# -- budgets ----------------------------------------------------------------------------------------------------------


@functools.cache
def all_costs(name: str, seed: int, round_to: int) -> list[int]:
    """Parameters at every multiplier up to 8 at which a width grows by a step."""
    graph, upto = searched(name, seed), 8
    points = {Fraction(1, 10**6)}
    for c in {n.shape[0] for n in graph.nodes()}:
        for k in range(2, math.ceil(upto * c / round_to) + 1):
            points.add((k - Fraction(1, 2)) * round_to / c + Fraction(1, 10**9))
    return [total_cost(widen(graph, float(m), round_to)).params for m in sorted(points)]


@pytest.mark.parametrize("name", ["digits", "hand_wired"])
@settings(max_examples=15)
@given(params=st.integers(3_000, 150_000), seed=st.integers(0, 1))
def test_the_widest_network_within_the_budget_is_found(name: str, params: int, seed: int) -> None:
    graph, round_to = searched(name, seed), 4
    budget = BudgetConfig(params=params, round_to=round_to)
    costs = all_costs(name, seed, round_to)
    if min(costs) > params:
        with pytest.raises(PassError, match=f"has {min(costs):,} params"):
            solve_width(graph, budget)
        return
    found = widen(graph, solve_width(graph, budget), round_to)
    check(graph, found, round_to)
    assert total_cost(found).params == max(c for c in costs if c <= params)
    assert max(costs) > params, "the list of multipliers covers the budget"


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    factor=st.floats(0.5, 8.0),
    round_to=st.sampled_from((1, 2, 8)),
    more=st.floats(1 / PER_UNIT, 10.0),
)
def test_no_larger_multiplier_fits_the_budget(seed: int, factor: float, round_to: int, more: float) -> None:
    graph = with_stem(seed)
    smallest, cost = total_cost(widen(graph, 1e-6, round_to)), total_cost(graph)
    budget = BudgetConfig(
        params=max(smallest.params, round(factor * cost.params)),
        flops=max(smallest.flops, round(factor * cost.flops)),
        round_to=round_to,
    )
    multiplier = solve_width(graph, budget)
    found = widen(graph, multiplier, round_to)
    check(graph, found, round_to)
    assert budget_share(found, budget) <= 1
    larger = widen(graph, multiplier + more, round_to)
    if plan_widths(graph, round_to).steps:
        assert budget_share(larger, budget) > 1
    else:
        assert (multiplier, channels(larger)) == (1.0, channels(graph))


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), multiplier=st.floats(0.05, 6.0), more=st.floats(0, 3.0))
def test_costs_never_fall_when_the_multiplier_grows(seed: int, multiplier: float, more: float) -> None:
    graph = with_stem(seed)
    before, after = (measured(widen(graph, m, 2)) for m in (multiplier, multiplier + more))
    assert all(before[name] <= after[name] for name in before)


@pytest.mark.parametrize(
    ("name", "budget"),
    [
        ("dso_nas_cifar10_small", BudgetConfig(params=300_000)),
        ("dso_nas_cifar10_small", BudgetConfig(flops=30_000_000)),
        ("dso_nas_cifar10_small", BudgetConfig(params=1_000_000, flops=50_000_000)),
        ("dso_nas_cifar10_full", BudgetConfig(params=3_000_000)),
    ],
)
def test_realistic_budgets_are_nearly_used_up(name: str, budget: BudgetConfig) -> None:
    graph = searched(name)
    assert 0.9 <= budget_share(widen(graph, solve_width(graph, budget), budget.round_to), budget) <= 1


def test_a_budget_below_the_narrowest_network_is_refused_with_the_range() -> None:
    with pytest.raises(PassError, match="narrowest network") as caught:
        solve_width(searched("digits"), BudgetConfig(params=100))
    assert "the budget of 100 params; the reachable range goes from there upwards" in str(caught.value)


def test_a_budget_beyond_all_multipliers_is_refused() -> None:
    parts: Parts = {
        "stem": ("conv", {"kernel": 1, "channels": 1}, [INPUT]),
        "pool": ("global_avg_pool", {}, ["stem"]),
        "logits": ("linear", {"channels": 3}, ["pool"]),
    }
    with pytest.raises(PassError, match=r"widest network .* still below"):
        solve_width(graph_of(parts), BudgetConfig(params=10**9, round_to=1))


def test_a_network_without_free_widths_fits_or_does_not() -> None:
    parts: Parts = {"pool": ("global_avg_pool", {}, [INPUT]), "logits": ("linear", {"channels": 3}, ["pool"])}
    graph = graph_of(parts)
    assert solve_width(graph, BudgetConfig(params=15)) == 1.0
    with pytest.raises(PassError, match="costs more than"):
        solve_width(graph, BudgetConfig(params=14))


def test_the_description_says_how_much_of_the_budget_is_left() -> None:
    graph = searched("hand_wired")
    params = total_cost(graph).params
    half_used = describe_width(graph, 1.25, BudgetConfig(params=2 * params))
    assert half_used.startswith(f"width x1.25: {params:,} params, ")
    assert half_used.endswith(", 50.0% of the budget left")
    assert "budget" not in describe_width(graph, 1.0, BudgetConfig())


# -- it runs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("params", [9_000, 60_000])
def test_pruned_and_widened_digits_run(params: int) -> None:
    graph = searched("digits")
    found = widen(graph, solve_width(graph, BudgetConfig(params=params, round_to=4)), 4)
    module = lower(found).eval()
    assert sum(p.numel() for p in module.parameters()) == total_cost(found).params <= params
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        logits = module(torch.randn(2, 1, 8, 8, generator=generator))
    assert logits.shape == (2, 10)
    assert torch.isfinite(logits).all()
