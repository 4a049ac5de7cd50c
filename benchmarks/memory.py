"""Peak memory of a training step, predicted and measured, and what recompute and keeping freed memory do to the time.

    python -m benchmarks.memory [--device cuda] [--precision bf16] [--rounds N] [--json]

Predicted is what `graphspec compile` prints. Allocated is the most that torch has taken at a time since before the
network was made, by its own account. On the CPU a process grows by more, which is a table of its own: its C library
cannot use all freed memory again. The growth is of a child process per variant, in which weight steps, gate steps and
validation take turns; a step of two images goes before, so that libraries are loaded, and freed memory is kept as in
every training (`runtime.heap`).

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
from compiler.ir import INPUT, Graph
from compiler.lowering.memory import MemoryModel, Training
from graphspec.config import SearchConfig
from runtime.heap import freed_memory_kept, give_back, heap_here
from runtime.supernet import Supernet
from runtime.training import Batch, evaluate

Row = dict[str, Any]
Steps = dict[str, Callable[[], object]]
KINDS = ("weight", "gate")
VALIDATION = "validation"
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
    """A weight step and a gate step of a fresh supernet on a batch of noise, and a batch of its validation."""
    net = Supernet.start(graph, config, device, seed=0, gate_init=1.0)

    def noise(images: int) -> Batch:
        x = torch.randn(images, *graph.node(INPUT).shape, generator=torch.Generator().manual_seed(0))
        return x.to(device, memory_format=torch.channels_last), torch.zeros(images, dtype=torch.int64).to(device)

    def step(gradients: Gradients, optimizer: Optimizer) -> None:
        gradients(images)
        optimizer.step()

    images = noise(batch)
    steps: Steps = {kind: partial(step, *half) for kind, half in halves(net).items()}
    return steps | {VALIDATION: lambda: evaluate(net.module, [noise(config.evaluation_batch)])}


# -- memory -----------------------------------------------------------------------------------------------------------


def measured(variant: Variant, device: torch.device) -> dict[str, float]:
    """The most MiB that each kind of step allocates, weights, gradients and momenta included, and, on the CPU, by how
    many MiB the process grows (`grown`).
    """
    graph, config = variant.settings()
    small = make_steps(graph, config, 2, device)
    for kind in KINDS:
        small[kind]()
    del small
    make = partial(make_steps, graph, config, variant.batch, device)
    if device.type == "cuda":
        return _allocated_on_cuda(make, device)
    with freed_memory_kept():
        grown = _growth(make)
    return {"grown": grown, **_allocated(make)}


def _growth(make: Callable[[], Steps]) -> float:
    _settle()
    before = resident()
    steps = make()

    def turn() -> None:
        for step in steps.values():
            step()

    return resident_peak(turn, times=2) - before


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
    for kind, step in steps.items():
        more, peak = account(step)
        found[kind] = (left + peak) / 2**20
        left += more
    return found


def account(run: Callable[[], object]) -> tuple[int, int]:
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
    for kind, step in steps.items():
        torch.cuda.reset_peak_memory_stats(device)
        for _ in range(2):
            step()
        found[kind] = (torch.cuda.max_memory_allocated(device) - before) / 2**20
    return found


def predicted(variant: Variant, device: torch.device) -> dict[str, float]:
    """The peaks in MiB that the model gives and, where it is known how the process grows, its growth."""
    graph, config = variant.settings()
    on_cpu = device.type == "cpu"
    model = MemoryModel(graph, Training.of(config, on_cpu))
    memory, heap = model.at(variant.batch), heap_here() if on_cpu else None
    growth = {} if heap is None else {"grown": model.growth(heap, variant.batch) / 2**20}
    steps = {"weight": memory.weight_step, "gate": memory.gate_step, VALIDATION: memory.validation}
    return {kind: size / 2**20 for kind, size in steps.items()} | growth


def memory_rows(found: Sequence[Variant], device: torch.device) -> tuple[list[Row], list[Row]]:
    """What is allocated, a row per variant and kind of step, and what a process grows by, a row per variant."""
    allocated, grown = [], []
    for variant in found:
        measure, model = _child(variant, device), predicted(variant, device)
        for what in (what for what in model if what in measure):
            sizes = model[what], measure[what]
            figures = {"predicted_mib": sizes[0], "measured_mib": sizes[1], "ratio": sizes[0] / sizes[1]}
            if what == "grown":
                grown.append({**asdict(variant), **figures})
            else:
                allocated.append({**asdict(variant), "step": what, **figures})
    return allocated, grown


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
        steps = make_steps(graph, config, variant.batch, CPU)
        timings = interleave({kind: steps[kind] for kind in KINDS}, rounds)
    return {
        kind: {"ms": 1000 * timing.median, "page_faults": statistics.median(timing.page_faults)}
        for kind, timing in timings.items()
    }


def _waited(step: Callable[[], object], device: torch.device) -> Callable[[], None]:
    def run() -> None:
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run


# -- the report -------------------------------------------------------------------------------------------------------


def bars(allocated: Sequence[Row], grown: Sequence[Row], times: Sequence[Row]) -> list[Bar]:
    """What prediction and recompute are held to, for every spec and batch size; of predictions the worst case."""
    found = []
    for spec, batch in CASES:
        name = f"{spec} {batch}"
        steps, growth, own_times = (_of(rows, spec=spec, batch=batch) for rows in (allocated, grown, times))
        found.append(Bar(f"{name}: prediction, relative error", _worst(steps), TOLERANCE))
        for kind in KINDS:
            share = _recompute_share(_of(steps, lowering="fused", step=kind))
            found.append(Bar(f"{name}: recompute, memory of a {kind} step", share, MOST_MEMORY))
        if growth:
            found.append(Bar(f"{name}: predicted growth, relative error", _worst(growth), TOLERANCE))
            share = _recompute_share(_of(growth, lowering="fused"))
            found.append(Bar(f"{name}: recompute, growth of the process", share, MOST_MEMORY))
        for row in own_times:
            found.append(Bar(f"{name}: recompute, time of a {row['step']} step", row["time_ratio"], MOST_TIME))
    return found


def _of(rows: Iterable[Row], **wanted: object) -> list[Row]:
    return [row for row in rows if wanted.items() <= row.items()]


def _worst(rows: Sequence[Row]) -> float:
    return max(abs(row["ratio"] - 1) for row in rows)


def _recompute_share(rows: Sequence[Row]) -> float:
    size = {row["recompute"]: row["measured_mib"] for row in rows}
    share: float = size[True] / size[False]
    return share


ALLOCATED_COLUMNS = {
    "spec": "spec",
    "batch": "batch",
    "lowering": "lowering",
    "recompute": "recompute",
    "step": "step",
    "predicted MiB": "predicted_mib",
    "allocated MiB": "measured_mib",
    "predicted / allocated": "ratio",
}
GROWN_COLUMNS = {
    "spec": "spec",
    "batch": "batch",
    "lowering": "lowering",
    "recompute": "recompute",
    "predicted growth MiB": "predicted_mib",
    "the process grows by MiB": "measured_mib",
    "predicted / measured": "ratio",
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


def report(allocated: Sequence[Row], grown: Sequence[Row], times: Sequence[Row], heap: Sequence[Row]) -> list[str]:
    """A table each: what is allocated, how a process grows, what recompute costs, what keeping freed memory brings."""
    tables = ((ALLOCATED_COLUMNS, allocated), (GROWN_COLUMNS, grown), (TIME_COLUMNS, times), (HEAP_COLUMNS, heap))
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
    allocated, grown = memory_rows(list(variants(args.precision)), device)
    cases = CASES if args.rounds else ()
    times = [row for case in cases for row in time_rows(*case, args.precision, args.rounds, device)]
    with_heap = cases if device.type == "cpu" else ()
    heap = [row for case in with_heap for row in heap_rows(*case, args.precision, args.rounds)]
    found = {"allocated": allocated, "grown": grown, "times": times, "heap": heap}
    show(args.json, found, report(allocated, grown, times, heap), bars(allocated, grown, times))


if __name__ == "__main__":
    main()
