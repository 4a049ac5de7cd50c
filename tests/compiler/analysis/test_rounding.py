"""Widths lose channels in whole steps."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from compiler.analysis.rounding import closing_order, kept_for_rounding, rounded_up, widths
from tests.graphs import graph_of, with_channel_gates

GRAPH = with_channel_gates(
    graph_of(
        {
            "a": ("conv", {"kernel": 1, "channels": 12}, ["input"]),
            "grouped": ("conv", {"kernel": 3, "groups": 2, "channels": 8}, ["a"]),
            "b": ("conv", {"kernel": 1, "channels": 20}, [("grouped", "s/b<grouped")]),
            "pool": ("global_avg_pool", {}, ["b"]),
            "logits": ("linear", {"channels": 3}, ["pool"]),
        }
    )
)


def test_widths_are_the_gates_of_a_node() -> None:
    assert {name: len(gates) for name, gates in widths(GRAPH).items()} == {"v/a": 6, "v/grouped": 4, "v/b": 20}


@given(count=st.integers(0, 200), most=st.integers(0, 200), step=st.sampled_from([1, 2, 4, 8, 16]))
def test_counts_are_rounded_up_to_steps_or_powers_of_two(count: int, most: int, step: int) -> None:
    count = min(count, most)
    found = rounded_up(count, most, step)
    assert count <= found <= most
    assert found in (0, 1, 2, 4, most) or found % min(step, 8) == 0
    assert found < count + step


@given(st.lists(st.booleans(), min_size=30, max_size=30), st.integers(0, 1000))
def test_the_strongest_stay(shut: list[bool], seed: int) -> None:
    gates = [gate for of in widths(GRAPH).values() for gate in of]
    closed = {gate for gate, is_shut in zip(gates, shut, strict=True) if is_shut}
    strength = {gate: (seed * (i + 1) * 7919 % 1009) / 1009 for i, gate in enumerate(GRAPH.gates())}
    kept = kept_for_rounding(GRAPH, closed, strength, 8)
    assert kept <= closed
    for name, of in widths(GRAPH).items():
        step = 8 if name == "v/b" else 4  # of channels that come in pairs, as many as make 8
        left = [gate for gate in of if gate not in closed - kept]
        assert len(left) == rounded_up(sum(gate not in closed for gate in of), len(of), step)
        gone = [strength[gate] for gate in of if gate in closed - kept]
        assert all(strength[gate] >= max(gone, default=0) for gate in kept.intersection(of))


def test_the_weakest_steps_close_first_and_the_best_step_of_a_width_stays() -> None:
    strength = {gate: float(i) for i, gate in enumerate(GRAPH.gates())}
    units = closing_order(GRAPH, set(), strength, 8)
    assert [len(unit) for unit in units] == [1, 2, 4, 8]
    assert units[0] == ["s/b<grouped"]
    means = [sum(map(strength.get, unit)) / len(unit) for unit in units]  # type: ignore[arg-type]
    assert means == sorted(means)
    assert not {"v/b#19", "v/a#5", "v/grouped#3"} & {gate for unit in units for gate in unit}
    everything = closing_order(GRAPH, set(GRAPH.gates()), strength, 8)
    assert sorted(gate for unit in everything for gate in unit) == sorted(GRAPH.gates())
