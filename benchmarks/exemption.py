"""What exempting the last living input of an op from the penalty does: digits, several seeds, with and without.

    python -m benchmarks.exemption --seeds 0,1,2,3,4 [--json] [--set KEY=VALUE ...]

Each seed is searched twice, with everything equal but `search.gates.exempt_last_input`, and both networks are
retrained shortly at the width they were found with. Printed: operations and edges kept, validation accuracy of the
pruned supernet and test accuracy after retraining, as mean and standard deviation over the seeds.
"""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import graphspec
from benchmarks.common import ROOT, parser, show, table
from compiler.errors import PassError
from compiler.ir.graph import Graph
from compiler.ir.text import from_json

SPEC = ROOT / "specs" / "digits.yaml"
SETTINGS = ("budget.params=null", "budget.flops=null", "retrain.epochs=10")


@dataclass(frozen=True)
class Outcome:
    """One search and the retraining of what it found; None where the search has cut the network."""

    exempt: bool
    seed: int
    ops: int  # in the search space
    kept_ops: int | None
    edges: int
    kept_edges: int | None
    validation_accuracy: float | None
    test_accuracy: float | None


def candidates(graph: Graph) -> int:
    """Ops among which the search chooses: those of the levels."""
    return sum(".level" in node.id for node in graph.nodes())


def measure(exempt: bool, seed: int, settings: list[str], folder: Path) -> Outcome:
    """Search and retrain in a run directory below `folder`."""
    overrides = [*SETTINGS, *settings, f"seed={seed}", f"search.gates.exempt_last_input={str(exempt).lower()}"]
    compiled = graphspec.compile(SPEC, out=folder / f"{exempt}-{seed}", overrides=overrides, root=folder)
    assert compiled.run is not None
    full = (exempt, seed, candidates(compiled.graph))
    try:
        found = graphspec.search(compiled.run, quiet=True)
    except PassError:  # every path was closed
        return Outcome(*full, None, compiled.graph.edge_count(), None, None, None)
    kept = from_json(compiled.run.search.graph_json.read_text(encoding="utf-8"))
    trained = graphspec.retrain(compiled.run, quiet=True)
    return Outcome(*full, candidates(kept), found.edges, found.kept_edges, found.accuracy, trained.accuracy)


def summary(outcomes: list[Outcome], exempt: bool) -> list[str]:
    """A row of the table: mean ± standard deviation over the seeds that were not cut."""
    rows = [o for o in outcomes if o.exempt is exempt]
    whole = [o for o in rows if o.kept_edges is not None]

    def over_seeds(name: str, scale: float, unit: str, total: str = "") -> str:
        values = [scale * float(getattr(o, name)) for o in whole]
        if not values:
            return ""
        deviation = statistics.stdev(values) if len(values) > 1 else 0.0
        space = f" of {getattr(rows[0], total)}" if total else ""
        return f"{statistics.mean(values):.1f} ± {deviation:.1f}{unit}{space}"

    return [
        "exempt" if exempt else "penalised",
        f"{len(whole)} of {len(rows)}",
        over_seeds("kept_ops", 1, "", "ops"),
        over_seeds("kept_edges", 1, "", "edges"),
        over_seeds("validation_accuracy", 100, " %"),
        over_seeds("test_accuracy", 100, " %"),
    ]


def main() -> None:
    """Measure and print."""
    options = parser(__doc__)
    options.add_argument("--seeds", default="0,1,2,3,4", help="seeds, separated by commas")
    options.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE")
    args = options.parse_args()
    seeds = [int(seed) for seed in args.seeds.split(",")]
    with tempfile.TemporaryDirectory(prefix="exemption-") as folder:
        outcomes = [measure(exempt, seed, args.settings, Path(folder)) for seed in seeds for exempt in (True, False)]
    header = [
        "last living input",
        "not cut",
        "ops kept",
        "edges kept",
        "validation, pruned supernet",
        "test, retrained",
    ]
    found = table(header, [summary(outcomes, exempt) for exempt in (True, False)])
    show(args.json, {"outcomes": [asdict(outcome) for outcome in outcomes]}, [found])


if __name__ == "__main__":
    main()
