"""A strategy of one's own for gamma, the sparsity weight of the gates: long skips within a block cost more.

    python examples/gamma_strategy.py [SPEC]

It is DSO with another `Penalty`. The search makes a penalty for its graph, and a new one whenever it has removed edges;
before every gate step it asks for the weights of all gates, given those that are closed.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from pathlib import Path

import graphspec
from runtime.strategies.dso import Dso
from runtime.strategies.penalties import Penalty

SPEC = Path(__file__).parent.parent / "specs" / "digits.yaml"


class ShortEdges(Penalty):
    """gamma times the number of levels that an edge spans: 1 between neighbours, 2 past one level, ..."""

    def gammas(self, closed: Collection[str]) -> Mapping[str, float]:
        """gamma by gate id; the exemption of an op's last input and adaptive modes stay what they are."""
        return {gate: gamma * span(gate) for gate, gamma in super().gammas(closed).items()}


class ShortEdgesDso(Dso):
    """DSO that prefers short edges."""

    penalty_type = ShortEdges


def span(gate: str) -> int:
    """Levels between the ends of a gate `<scope>/<destination><<source>`; 1 for edges that do not join two levels."""
    destination, _, source = gate.partition("/")[2].partition("<")
    levels = [end.removeprefix("level").partition(".")[0] for end in (destination, source)]
    if not all(level.isdecimal() for level in levels):
        return 1
    return int(levels[0]) - int(levels[1])


def main(spec: Path, overrides: list[str]) -> None:
    """Compile and search with this strategy, and say what was found."""
    compiled = graphspec.compile(spec, overrides=overrides)
    found = graphspec.search(compiled.run, strategy=ShortEdgesDso)
    print(f"kept {found.kept_edges} of {found.edges} edges; the architecture is in {found.architecture}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else SPEC, sys.argv[2:])
