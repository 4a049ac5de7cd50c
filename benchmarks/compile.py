"""How compiling grows with the graph: time and peak memory of `graphspec compile` for generated specs.

    python -m benchmarks.compile [--edges 1000 10000 100000] [--rounds 3] [--json]

Every compilation runs in a process of its own, and the whole process is measured, start-up included. Growth is the CPU
time for ten times the edges; `without start-up` takes away what a spec of one block costs, which leaves the compiler's
own growth. The time of a process is the smallest of its rounds, because other work on the machine only adds to it.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks.common import ROOT, Bar, parser, show, table

SPEC = """\
graphspec: 1
name: generated
input: [3, 32, 32]
classes: 10
symbols: {{width: 16}}
blocks:
  stem:
    type: "[3, H, W] -> [width, H, W]"
    nodes:
      out: {{op: conv, kernel: 3, from: in}}
  normal:
    type: "[C, H, W] -> [C, H, W]"
    levels: {{count: 4, ops: [sep_conv_3x3, sep_conv_5x5, max_pool_3x3, avg_pool_3x3]}}
    nodes:
      mix: {{op: project, from: levels.*, gated: true}}
      out: {{op: add, from: [mix, in]}}
  head:
    type: "[C, H, W] -> [classes]"
    nodes:
      pool: {{op: global_avg_pool, from: in}}
      out: {{op: linear, from: pool}}
network: [stem, {{normal: {blocks}}}, head]
"""
EDGES_PER_BLOCK = 4 * (1 + 5 + 9 + 13) + 16 + 2
LARGE = 100_000  # edges of the graph that the bars are about


@dataclass(frozen=True)
class Compilation:
    """A compilation in a process of its own: what was compiled and what the process took."""

    edges: int
    gates: int
    seconds: float  # wall clock
    cpu_seconds: float
    megabytes: float  # peak resident memory


def compilation(spec: Path, out: Path) -> Compilation:
    """Compile a spec in a child process; RuntimeError if it fails."""
    program = (
        "import json, resource, sys; from graphspec import api; "
        "c = api.compile(sys.argv[1], out=sys.argv[2], root=__import__('pathlib').Path(sys.argv[2]).parent); "
        "print(json.dumps([c.costs.table.total.edges, c.costs.gates, "
        "resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))"
    )
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", program, str(spec), str(out)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(done.stderr)
    edges, gates, megabytes = json.loads(done.stdout)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Compilation(edges, gates, seconds, cpu, megabytes)


def best(edges: int, rounds: int) -> Compilation:
    """A compilation of a spec with about so many edges, each time the smallest of several rounds."""
    with tempfile.TemporaryDirectory(prefix="graphspec-bench-") as folder:
        spec = Path(folder) / "generated.yaml"
        spec.write_text(SPEC.format(blocks=max(1, edges // EDGES_PER_BLOCK)))
        found = [compilation(spec, Path(folder) / f"run{i}") for i in range(rounds)]
    return replace(found[0], seconds=min(c.seconds for c in found), cpu_seconds=min(c.cpu_seconds for c in found))


def growth(small: Compilation, large: Compilation, start_up: float = 0.0) -> float:
    """CPU time of the larger graph by that of the smaller, per ten times the edges, `start_up` seconds taken away."""
    work = [max(c.cpu_seconds - start_up, 1e-3) for c in (small, large)]
    return work[1] / work[0] * 10 / (large.edges / small.edges)


def bars(found: list[Compilation]) -> list[Bar]:
    """What the largest graph is held to; none where it is smaller than `LARGE`."""
    largest, smaller = found[-1], found[-2]
    if largest.edges < 0.99 * LARGE:
        return []
    return [
        Bar(f"seconds for {LARGE:,} edges", largest.seconds, 15.0),
        Bar("MB of memory for them", largest.megabytes, 1000.0),
        Bar("time for ten times the edges, starting up included", growth(smaller, largest), 12.0),
    ]


def main() -> None:
    """Print a table, or JSON, of all sizes with the growth from each to the next."""
    options = parser(__doc__)
    options.add_argument("--edges", type=int, nargs="+", default=[1_000, 10_000, LARGE])
    options.add_argument("--rounds", type=int, default=3)
    args = options.parse_args()
    found = [best(edges, args.rounds) for edges in (1, *sorted(args.edges))]
    start_up = found[0].cpu_seconds
    rows = [asdict(c) | {"growth": None, "growth_without_start_up": None} for c in found]
    for row, small, large in zip(rows[2:], found[1:], found[2:], strict=False):
        row |= {"growth": growth(small, large), "growth_without_start_up": growth(small, large, start_up)}
    sizes = table([key.replace("_", " ") for key in rows[0]], [list(row.values()) for row in rows])
    show(args.json, {"sizes": rows}, [sizes], bars(found))


if __name__ == "__main__":
    main()
