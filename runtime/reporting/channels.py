"""Channels kept by every width: now, and over the epochs of the search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compiler.analysis.rounding import widths
from compiler.ir.graph import Graph
from runtime.reporting.record import GateHistory

WIDE, HIGH = 120.0, 18.0  # of the small curve, in pixels


@dataclass(frozen=True)
class ChannelRow:
    """One width: how many channels it had and keeps, and the points of a curve of those kept by epoch."""

    name: str
    full: int
    kept: int
    points: str


def channel_rows(graph: Graph, history: GateHistory, kept: Graph | None) -> list[ChannelRow]:
    """A row for every width with gates on its channels; `graph` is the whole space, `kept` what is left of it."""
    alive = None if kept is None else set(kept.gates())
    rows = []
    for name, gates in widths(graph).items():
        counts = [sum(values[gate] != 0 for gate in gates) for values in history.values()]
        left = counts[-1] if alive is None else sum(gate in alive for gate in gates)
        rows.append(ChannelRow(name.replace("/", ": "), len(gates), left, _curve([*counts, left], len(gates))))
    return rows


def _curve(counts: Sequence[int], most: int) -> str:
    step = WIDE / max(1, len(counts) - 1)
    return " ".join(f"{i * step:.1f},{HIGH * (1 - count / most):.1f}" for i, count in enumerate(counts))
