"""The control experiment: random edges at a size, nothing trained (the paper's random baseline)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from random import Random

from compiler.analysis.guards import smallest_closed
from compiler.analysis.limits import budget_share
from compiler.analysis.rounding import widths
from compiler.architecture.random_network import random_closed
from compiler.errors import RunError
from compiler.ir.graph import Graph
from compiler.language.config import BudgetConfig
from compiler.passes.prune_zero_edges import prune
from runtime.strategies.base import Found, ReportSection, Strategy
from runtime.strategies.limits import within_budget

Levels = dict[str, float]


class RandomNetwork(Strategy):
    """A random network of at most `search.random_params` parameters."""

    def found(self) -> Found:
        """All its gates at 1; RunError if no size is set."""
        config, graph = self.space.config, self.space.graph
        if config.search.random_params is None:
            raise RunError(
                "search.strategy random needs a size to draw at\n"
                "  try: --match RUN (what RUN found) or --set search.random_params=N"
            )
        drawn = prune(graph, random_closed(graph, config.search.random_params, config.seed))
        return Found(dict.fromkeys(drawn.gates(), 1.0))

    def report(self) -> ReportSection:
        """Says that nothing was searched."""
        size = self.space.config.search.random_params
        return ReportSection(f"The control: a random network of at most {size:,} parameters. Nothing was trained.")


def closed_at_random(graph: Graph, budget: BudgetConfig, levels: Mapping[str, float]) -> set[str]:
    """Gates to close for a network within a budget; of edges those of the lowest levels, of widths shares like theirs.

    Where no network of the space, or every one, is within the budget, it is drawn at half way between the smallest and
    the largest one, and the width multiplier does the rest.
    """
    strength = {gate: 2 * levels[gate] for gate in graph.edge_gates()}
    for width, gates in widths(graph).items():
        strength |= {gate: levels[width] * len(gates) / (n + 0.5) for n, gate in enumerate(gates)}
    least = budget_share(prune(graph, smallest_closed(graph)), budget)
    most = budget_share(graph, budget)
    target = 1.0 if least < 1 < most else math.sqrt(least * most)
    return within_budget(graph, set(), strength, lambda some: budget_share(some, budget) / target, budget.round_to)


def random_levels(graph: Graph, seed: int) -> Levels:
    """A number from 0 to 1 for every gate of an edge and every width."""
    draw = Random(seed)
    return {unit: draw.random() for unit in (*graph.edge_gates(), *widths(graph))}


def permuted_levels(graph: Graph, gates: Mapping[str, float], seed: int) -> Levels:
    """What a search found (its open gates), each moved to another edge, and the shares kept to other widths."""
    draw, found = Random(seed), Levels()
    kept = {width: sum(gate in gates for gate in own) / len(own) for width, own in widths(graph).items()}
    for levels in ({gate: gates.get(gate, 0.0) for gate in graph.edge_gates()}, kept):
        values = [*levels.values()]
        draw.shuffle(values)
        found |= {unit: value + 1e-6 * draw.random() for unit, value in zip(levels, values, strict=True)}
    return found
