"""Peak memory of a training step, predicted and measured, and what recompute and keeping freed memory do to the time.

    python -m benchmarks.memory [--device cuda] [--precision bf16] [--rounds N] [--json]

Predicted is what `graphspec compile` prints. Allocated is the most that torch has taken at a time since before the
network was made, by its own account. On the CPU a process grows by more: its C library cannot use all freed memory
again. That growth is of a child process per variant, in which a step of two images goes before, so that libraries are
loaded, and freed memory is kept as in every training (`runtime.heap`).

Times with and without recompute are of steps that take turns in one process; with freed memory kept and not, of
processes that take turns. Trust the ratios.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer
from torch.profiler import ProfilerActivity, profile

from benchmarks.common import Bar, in_child, interleave, parser, resident, resident_peak, show, table
from benchmarks.jobs import Gradients, halves
from compiler.elaborate import load
from compiler.ir import Graph
from compiler.lowering.memory import MemoryModel, Training
from graphspec.config import SearchConfig
from runtime.heap import freed_memory_kept, give_back
from runtime.supernet import Supernet
from runtime.training import Batch

Row = dict[str, Any]
Steps = dict[str, Callable[[], None]]
KINDS = ("weight", "gate")
CASES = (("digits", 64), ("cifar10_small", 64), ("cifar10_small", 128))
TOLERANCE, MOST_MEMORY, MOST_TIME = 0.2, 0.5, 1.4
CPU = torch.device("cpu")
HEAPS = KEPT, USUAL = ("kept", "usual")
TURNS = 3  # of processes, for each way to treat freed memory


@dataclass(frozen=True)
class Variant:
    """One way to run a step."""

    spec: str
    batch: int
    lowering: str = "fused"
    recompute: bool = False
    precision: str = "fp32"

    def settings(self) -> tuple[Graph, SearchConfig]:
        """The space and how it is searched."""
        spec, graph = load(Path("specs") / f"{self.spec}.yaml")
        changed = {key: value for key, value in asdict(self).items() if key not in ("spec", "batch")}
        return graph, spec.config.search.model_copy(update={**changed, "batch_size": self.batch})


def variants(precision: str) -> Iterator[Variant]:
    """All of them, recompute after the same without it."""
    for spec, batch in CASES:
        for lowering in ("fused", "reference"):
            for recompute in (False, True):
                yield Variant(spec, batch, lowering, recompute, precision)


def make_steps(graph: Graph, config: SearchConfig, batch: int, device: torch.device) -> Steps:
    """A weight step and a gate step of a fresh supernet on a batch of noise."""
    net = Supernet.start(graph, config, device, seed=0, gate_init=1.0)
    x = torch.randn(batch, *graph.node("input").shape, generator=torch.Generator().manual_seed(0))
    images: Batch = (x.to(device, memory_format=torch.channels_last), torch.zeros(batch, dtype=torch.int64).to(device))

    def step(gradients: Gradients, optimizer: Optimizer) -> None:
        gradients(images)
        optimizer.step()

    return {kind: partial(step, *half) for kind, half in halves(net).items()}


# -- memory -----------------------------------------------------------------------------------------------------------


def measured(variant: Variant, device: torch.device) -> dict[str, dict[str, float]]:
    """The most MiB that each kind of step allocates, weights, gradients and momenta included, and, on the CPU, by how
    many MiB the process grows.
    """
    graph, config = variant.settings()
    for step in make_steps(graph, config, 2, device).values():
        step()
    make = partial(make_steps, graph, config, variant.batch, device)
    if device.type == "cuda":
        return {kind: {"allocated_mib": peak} for kind, peak in _allocated_on_cuda(make, device).items()}
    with freed_memory_kept():
        growth, allocated = _growth(make), _allocated(make)
    return {kind: {"allocated_mib": allocated[kind], "grown_mib": growth[kind]} for kind in KINDS}


def _growth(make: Callable[[], Steps]) -> dict[str, float]:
    _settle()
    before, found = resident(), {}
    steps = make()
    steps["weight"]()
    for kind in KINDS:
        _settle()
        found[kind] = resident_peak(steps[kind], times=2) - before
    return found


def _settle() -> None:
    gc.collect()
    give_back()


def _allocated(make: Callable[[], Steps]) -> dict[str, float]:
    steps: Steps = {}

    def start() -> None:
        steps.update(make())
        steps["weight"]()

    left, _ = account(start)
    found = {}
    for kind in KINDS:
        more, peak = account(steps[kind])
        found[kind] = (left + peak) / 2**20
        left += more
    return found


def account(run: Callable[[], None]) -> tuple[int, int]:
    """By how many bytes what torch has allocated on the CPU grows until the end, and at most on the way."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    assert profiler.profiler is not None
    now = most = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return now, most


def _allocated_on_cuda(make: Callable[[], Steps], device: torch.device) -> dict[str, float]:
    gc.collect()
    before, found = torch.cuda.memory_allocated(device), {}
    steps = make()
    steps["weight"]()
    for kind in KINDS:
        torch.cuda.reset_peak_memory_stats(device)
        for _ in range(2):
            steps[kind]()
        found[kind] = (torch.cuda.max_memory_allocated(device) - before) / 2**20
    return found


def predicted(variant: Variant, device: torch.device) -> dict[str, float]:
    """The peaks in MiB that the model gives."""
    graph, config = variant.settings()
    memory = MemoryModel(graph, Training.of(config, on_cpu=device.type == "cpu")).at(variant.batch)
    return {"weight": memory.weight_step / 2**20, "gate": memory.gate_step / 2**20}


def memory_rows(found: Sequence[Variant], device: torch.device) -> list[Row]:
    """A row per variant and kind of step."""
    rows = []
    for variant in found:
        measure = _child(variant, device)
        model = predicted(variant, device)
        for kind in KINDS:
            own = {"predicted_mib": model[kind], "grown_mib": None, **measure[kind]}
            own["predicted_over_allocated"] = own["predicted_mib"] / own["allocated_mib"]
            rows.append({**asdict(variant), "step": kind, **own})
    return rows


def _child(variant: Variant, device: torch.device, *more: str) -> Any:
    return in_child("benchmarks.memory", ["--device", str(device), "--child", json.dumps(asdict(variant)), *more])


# -- time -------------------------------------------------------------------------------------------------------------


def time_rows(spec: str, batch: int, precision: str, rounds: int, device: torch.device) -> list[Row]:
    """What recompute costs in the fused lowering: a row per kind of step."""
    pair = {on: Variant(spec, batch, recompute=on, precision=precision).settings() for on in (False, True)}
    made = {on: make_steps(graph, config, batch, device) for on, (graph, config) in pair.items()}
    rows = []
    for kind in KINDS:
        with freed_memory_kept():
            timings = interleave({str(on): _waited(made[on][kind], device) for on in made}, rounds, warmup=1)
        plain, again = timings["False"], timings["True"]
        rows.append(
            {
                "spec": spec,
                "batch": batch,
                "step": kind,
                "plain_ms": 1000 * plain.median,
                "recompute_ms": 1000 * again.median,
                "time_ratio": plain.speedup_over(again),
            }
        )
    return rows


def heap_rows(spec: str, batch: int, precision: str, rounds: int) -> list[Row]:
    """What keeping freed memory brings on the CPU: a row per kind of step, with recompute and without."""
    rows = []
    for recompute in (False, True):
        variant = Variant(spec, batch, recompute=recompute, precision=precision)
        times: dict[str, list[Any]] = {how: [] for how in HEAPS}
        for _ in range(TURNS):
            for how, found in times.items():
                found.append(_child(variant, CPU, "--heap", how, "--rounds", str(rounds)))
        for kind in KINDS:
            kept, usual = ([one[kind] for one in times[how]] for how in HEAPS)
            rows.append(
                {
                    "spec": spec,
                    "batch": batch,
                    "recompute": recompute,
                    "step": kind,
                    "kept_ms": statistics.median(one["ms"] for one in kept),
                    "usual_ms": statistics.median(one["ms"] for one in usual),
                    "speed": statistics.median(b["ms"] / a["ms"] for a, b in zip(kept, usual, strict=True)),
                    "kept_faults": statistics.median(one["page_faults"] for one in kept),
                    "usual_faults": statistics.median(one["page_faults"] for one in usual),
                }
            )
    return rows


def timed(variant: Variant, how: str, rounds: int) -> Row:
    """Milliseconds and page faults of both kinds of step, which take turns as in a search."""
    graph, config = variant.settings()
    with freed_memory_kept() if how == KEPT else nullcontext():
        timings = interleave(make_steps(graph, config, variant.batch, CPU), rounds)
    return {
        kind: {"ms": 1000 * timing.median, "page_faults": statistics.median(timing.page_faults)}
        for kind, timing in timings.items()
    }


def _waited(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    def run() -> None:
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run


# -- the report -------------------------------------------------------------------------------------------------------


def bars(memory: Sequence[Row], times: Sequence[Row]) -> list[Bar]:
    """What prediction and recompute are held to, for every spec and batch size; of predictions the worst case."""
    found = []
    for spec, batch in CASES:
        name = f"{spec} {batch}"
        own = [row for row in memory if (row["spec"], row["batch"]) == (spec, batch)]
        for key, what in (("allocated_mib", ""), ("grown_mib", " by growth")):
            if any(row[key] is None for row in own):
                continue
            errors = [abs(row["predicted_mib"] / row[key] - 1) for row in own]
            found.append(Bar(f"{name}: prediction, relative error{what}", max(errors), TOLERANCE))
            for kind in KINDS:
                fused = [row for row in own if (row["lowering"], row["step"]) == ("fused", kind)]
                sizes = {row["recompute"]: row[key] for row in fused}
                share = sizes[True] / sizes[False]
                found.append(Bar(f"{name}: recompute, memory of a {kind} step{what}", share, MOST_MEMORY))
        for row in times:
            if (row["spec"], row["batch"]) == (spec, batch):
                found.append(Bar(f"{name}: recompute, time of a {row['step']} step", row["time_ratio"], MOST_TIME))
    return found


MEMORY_COLUMNS = {
    "spec": "spec",
    "batch": "batch",
    "lowering": "lowering",
    "recompute": "recompute",
    "step": "step",
    "predicted MiB": "predicted_mib",
    "allocated MiB": "allocated_mib",
    "predicted / allocated": "predicted_over_allocated",
    "the process grows by MiB": "grown_mib",
}
TIME_COLUMNS = {
    "spec": "spec",
    "batch": "batch",
    "step": "step",
    "ms": "plain_ms",
    "ms with recompute": "recompute_ms",
    "recompute / plain": "time_ratio",
}
HEAP_COLUMNS = {
    "spec": "spec",
    "batch": "batch",
    "recompute": "recompute",
    "step": "step",
    "ms": "kept_ms",
    "ms, freed memory not kept": "usual_ms",
    "speed": "speed",
    "page faults": "kept_faults",
    "page faults, not kept": "usual_faults",
}


def report(memory: Sequence[Row], times: Sequence[Row], heap: Sequence[Row]) -> list[str]:
    """A table of memory, one of what recompute costs and one of what keeping freed memory brings."""
    tables = ((MEMORY_COLUMNS, memory), (TIME_COLUMNS, times), (HEAP_COLUMNS, heap))
    return [table(list(columns), [_cells(row, columns.values()) for row in rows]) for columns, rows in tables if rows]


def _cells(row: Row, keys: Iterable[str]) -> list[object]:
    return [{True: "yes", False: "no"}[row[key]] if key == "recompute" else row[key] for key in keys]


def main() -> None:
    """Measure and print."""
    options = parser(__doc__)
    options.add_argument("--device", default="cpu", help="cpu or cuda")
    options.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    options.add_argument("--rounds", type=int, default=5, help="rounds of timing; 0 leaves the times out")
    options.add_argument("--child", help=argparse.SUPPRESS)  # child: print the peaks of this variant
    options.add_argument("--heap", choices=HEAPS, help=argparse.SUPPRESS)  # and with this, its times instead
    args = options.parse_args()
    device = torch.device(args.device)
    if args.child:
        variant = Variant(**json.loads(args.child))
        print(json.dumps(timed(variant, args.heap, args.rounds) if args.heap else measured(variant, device)))
        return
    memory = memory_rows(list(variants(args.precision)), device)
    cases = CASES if args.rounds else ()
    times = [row for case in cases for row in time_rows(*case, args.precision, args.rounds, device)]
    with_heap = cases if device.type == "cpu" else ()
    heap = [row for case in with_heap for row in heap_rows(*case, args.precision, args.rounds)]
    found = {"memory": memory, "times": times, "heap": heap}
    show(args.json, found, report(memory, times, heap), bars(memory, times))


if __name__ == "__main__":
    main()
