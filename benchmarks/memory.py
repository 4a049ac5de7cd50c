"""Memory of a search: what `compile` says, what the check before training finds, and what torch allocates.

    python -m benchmarks.memory [--spec NAME ...] [--rounds 3] [--json]

Allocated is the most that torch's profiler counts in a weight step and a gate step, with the network and its momenta.
For the estimates it is measured with 2 and 4 images and extrapolated to the spec's batch size; for the check it is that
of the full batch. The ways to save memory or time take turns in one process: trust the ratios.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch

from benchmarks.common import ROOT, Bar, Timing, account, interleave, parser, shipped, show, table
from compiler.analysis.costs import total_cost, weight_step_bytes
from compiler.ir.graph import INPUT
from runtime.search.supernet import Supernet
from runtime.tasks.table import task_of
from runtime.training.heap import freed_memory_kept
from runtime.training.memory import Line, Trial, measured, noise
from runtime.training.step import Batch

Row = dict[str, Any]
SPECS = tuple(path.stem for path in sorted((ROOT / "specs").glob("*.yaml")))
FAST = ("digits", "dso_nas_cifar10_small")  # whose full batch is measured
WAYS = {"plain": (False, True), "recompute": (True, True), "freed memory not kept": (False, False)}
CPU, MIB, TURNS, SMALL = torch.device("cpu"), 2**20, 3, (2, 4)
SIZES = ("spec", "batch", "said_mib", "allocated_mib", "ratio")
COLUMNS = {
    "estimates": SIZES,
    "checks": (*SIZES, "recompute", "seconds"),
    "ways": ("spec", "way", "ms", "time_ratio", "page_faults"),
}


def supernet(name: str, **settings: Any) -> Supernet:
    """Of a spec that ships."""
    spec, graph = shipped(name)
    config = spec.config.search.model_copy(update=settings)
    return Supernet.start(graph, task_of(spec, graph), config, CPU, spec.config.seed, spec.gate_init)


def allocated(net: Supernet, images: int) -> int:
    """Bytes at the peak of a weight step and a gate step, of which the first takes more."""
    net.step(batch_for(net, 2))
    net.module.zero_grad()
    held = sum(tensor.nbytes for tensor in net.tensors().values())
    return held + account(lambda: net.step(batch_for(net, images)))[1]


def batch_for(net: Supernet, images: int) -> Batch:
    """Images of noise."""
    return noise(images, net.graph.node(INPUT).shape, net.task, CPU)


def estimate(name: str) -> Row:
    """What `compile` says, beside what torch allocates."""
    net = supernet(name)
    batch, line = net.config.batch_size, Line.through(SMALL, [allocated(net, images) for images in SMALL])
    return row(name, batch, weight_step_bytes(total_cost(net.graph), batch), line.at(batch))


def check(name: str, recompute: bool) -> Row:
    """What two small steps find and the seconds they take, beside what torch allocates."""
    net, start = supernet(name, recompute=recompute), time.perf_counter()
    trial, batch = Trial(net.task, net.config, net.module, (net.weights,), net.step), net.config.batch_size
    held = sum(tensor.nbytes for tensor in net.tensors().values())
    found = held + measured(trial, CPU, net.graph.node(INPUT).shape, batch)[0].at(batch)
    seconds = time.perf_counter() - start
    return row(name, batch, found, allocated(net, batch)) | {"recompute": recompute, "seconds": seconds}


def row(name: str, batch: int, said: int, size: int) -> Row:
    """A line of the first two tables."""
    return {"spec": name, "batch": batch, "said_mib": said / MIB, "allocated_mib": size / MIB, "ratio": said / size}


def ways(name: str, rounds: int) -> Iterator[Row]:
    """What recompute costs, and what it brings that freed memory stays with the process."""
    found: dict[str, list[Timing]] = {way: [] for way in WAYS}
    nets = {recompute: supernet(name, recompute=recompute) for recompute in (False, True)}
    steps = {on: partial(net.step, batch_for(net, net.config.batch_size)) for on, net in nets.items()}
    for way in list(WAYS) * TURNS:
        recompute, kept = WAYS[way]
        with freed_memory_kept() if kept else nullcontext():
            found[way].append(interleave({way: steps[recompute]}, rounds)[way])
    for way, timings in found.items():
        ratio = statistics.median(a.median / b.median for a, b in zip(timings, found["plain"], strict=True))
        faults = statistics.median(count for timing in timings for count in timing.page_faults)
        ms = 1000 * statistics.median(timing.median for timing in timings)
        yield {"spec": name, "way": way, "ms": ms, "time_ratio": ratio, "page_faults": faults}


def bars(record: dict[str, list[Row]]) -> Iterator[Bar]:
    """What they are held to."""
    for found in record["estimates"]:
        yield Bar(f"{found['spec']}: estimate, relative error", abs(found["ratio"] - 1), 0.35)
    for found in record["checks"]:
        again = " with recompute" if found["recompute"] else ""
        yield Bar(f"{found['spec']}: check{again}, relative error", abs(found["ratio"] - 1), 0.1)


def main() -> None:
    """Measure and print."""
    options = parser(__doc__)
    options.add_argument("--spec", action="append", choices=SPECS, help="default: all that ship")
    options.add_argument("--rounds", type=int, default=3, help="rounds of timing in each turn")
    args = options.parse_args()
    names = args.spec or SPECS
    fast = [name for name in names if name in FAST]
    record = {
        "estimates": [estimate(name) for name in names],
        "checks": [check(name, recompute) for name in fast for recompute in (False, True)],
        "ways": [found for name in fast for found in ways(name, args.rounds)],
    }
    tables = [table(keys, [[found[key] for key in keys] for found in record[part]]) for part, keys in COLUMNS.items()]
    show(args.json, record, tables, list(bars(record)))


if __name__ == "__main__":
    main()
