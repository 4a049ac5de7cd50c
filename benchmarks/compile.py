"""How compiling grows with the graph: time and peak memory of `graphspec compile` for generated specs.

    python -m benchmarks.compile [--edges 1000 10000 100000] [--rounds 3] [--json]

Every compilation runs in a process of its own, and the whole process is measured, start-up included. Growth is the CPU
time for ten times the edges; `without start-up` takes away what a spec of one block costs, which leaves the compiler's
own growth. The time of a process is the smallest of its rounds, because other work on the machine only adds to it.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks.common import ROOT, table

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
BARS = {"edges": 100_000, "seconds": 15.0, "megabytes": 1000.0, "growth": 12.0}


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


def main() -> None:
    """Print a table, or JSON, of all sizes with the growth from each to the next."""
    parser = argparse.ArgumentParser(description="Time and memory of graphspec compile against the size of the graph.")
    parser.add_argument("--edges", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = [best(edges, options.rounds) for edges in (1, *sorted(options.edges))]
    start_up = found[0].cpu_seconds
    rows = [asdict(c) | {"growth": None, "growth_without_start_up": None} for c in found]
    for row, small, large in zip(rows[2:], found[1:], found[2:], strict=False):
        row |= {"growth": growth(small, large), "growth_without_start_up": growth(small, large, start_up)}
    if options.json:
        print(json.dumps({"sizes": rows, "bars": BARS}, indent=2))
        return
    print(table([key.replace("_", " ") for key in rows[0]], [list(row.values()) for row in rows]))
    print(
        f"\nBars: {', '.join(f'{key} {value:,.0f}' for key, value in BARS.items())}. Growth: for ten times the edges."
    )


if __name__ == "__main__":
    main()
