"""The control experiment: random edges at a size, nothing trained (the paper's random baseline)."""

from __future__ import annotations

from compiler.architecture.random_network import random_closed
from compiler.errors import RunError
from compiler.passes.prune_zero_edges import prune
from runtime.strategies.base import Found, ReportSection, Strategy


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
