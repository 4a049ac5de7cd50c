"""How many channels may stay: kernels are slower on odd counts, so a width loses channels in whole steps.

A *width* is the channels that one node of the spec makes, and its gates stand for them. It keeps a multiple of
`round_to`, or of a smaller power of two where it has fewer; the strongest gates decide which channels those are.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Set

from compiler.ir.graph import Graph

Strength = Mapping[str, float]


def widths(graph: Graph) -> dict[str, list[str]]:
    """The gates of every width that has some, in the order of its channels."""
    found: dict[str, list[str]] = {}
    edges = set(graph.edge_gates())
    for gate in graph.gates():
        if gate not in edges:
            found.setdefault(gate.rpartition("#")[0], []).append(gate)
    return found


def kept_for_rounding(graph: Graph, closed: Collection[str], strength: Strength, round_to: int) -> set[str]:
    """The strongest of the closed gates that must stay, so that every width that keeps channels keeps whole steps."""
    kept: set[str] = set()
    for step, gates in _steps(graph, round_to):
        left = [gate for gate in gates if gate not in closed]
        spare = sorted((gate for gate in gates if gate in closed), key=lambda gate: (-strength[gate], gate))
        kept.update(spare[: rounded_up(len(left), len(gates), step) - len(left)])
    return kept


def rounded_up(count: int, most: int, step: int) -> int:
    """The next multiple of `step`, or of the next power of two where that is smaller; not more than `most`."""
    if count == 0:
        return 0
    step = min(step, 2 ** math.ceil(math.log2(count)))
    return min(most, -(-count // step) * step)


def closing_order(graph: Graph, closed: Set[str], strength: Strength, round_to: int) -> list[list[str]]:
    """What may close, the weakest first: single edges, and steps of channels but for the best of every width.

    A width all of whose gates are closed already has none to keep.
    """
    units = [[gate] for gate in graph.edge_gates()]
    for step, gates in _steps(graph, round_to):
        best = sorted(gates, key=lambda gate: (-strength[gate], gate))
        first = 0 if closed >= set(gates) else step
        units += [best[i : i + step] for i in range(first, len(best), step)]
    return sorted(units, key=lambda unit: (sum(strength[gate] for gate in unit) / len(unit), unit))


def _steps(graph: Graph, round_to: int) -> Iterator[tuple[int, list[str]]]:
    """Every width's gates, and how many of them make a step: a gate may close several channels of a value."""
    closes = Counter[str]()
    for ids in graph.channel_gates.values():
        here = Counter(gate for gate in ids if gate is not None)
        closes |= {gate: count for gate, count in here.items() if gate not in closes}
    for gates in widths(graph).values():
        yield max(1, round_to // closes[gates[0]]), gates
