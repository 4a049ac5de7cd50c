"""Peak memory of a training step, predicted and measured, and what recompute and keeping freed memory do to the time.

    python -m benchmarks.memory [--case SPEC:BATCH ...] [--part sizes|times] [--device cuda] [--precision bf16] [--json]

Predicted is what the check before training counts with, and what `graphspec compile` prints for the CPU. Allocated is
the most that torch has taken at a time since before the network was made, by its own account. On the CPU a process
grows by more, which is a table of its own: its C library cannot use all freed memory again. The growth is of a child
process per variant, in which weight steps, gate steps and validation take turns; a step of two images goes before, so
that libraries are loaded, and freed memory is kept as in every training (`runtime.training.heap`). Where jemalloc is
installed, there is a child process with it besides.

Times with and without recompute are of steps that take turns in one process; with freed memory kept, left to glibc and
with jemalloc, of processes that take turns. Trust the ratios.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from ctypes.util import find_library
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch.optim import Optimizer

from benchmarks.common import ROOT, Bar, Growth, account, finished, in_child, interleave, parser, show, table
from benchmarks.jobs import TASK, Gradients, halves
from compiler.elaborate.builder import load
from compiler.ir.graph import INPUT, Graph
from compiler.language.config import SearchConfig
from compiler.lowering.memory import MemoryModel, Training
from runtime.search.supernet import Supernet
from runtime.training.heap import freed_memory_kept, give_back, heap_here
from runtime.training.step import Batch, evaluate, set_precision

Row = dict[str, Any]
Steps = dict[str, Callable[[], object]]
KINDS = ("weight", "gate")
VALIDATION = "validation"
SIZES, TIMES = "sizes", "times"
ALLOCATED, GROWN = "allocated", "grown"  # what a child process is asked for, and TIMES
Case = tuple[str, int]  # a spec that ships, and a batch size
CASES: tuple[Case, ...] = (("digits", 64), ("cifar10_small", 64), ("cifar10_small", 128))
TOLERANCE, MOST_MEMORY, MOST_TIME = 0.2, 0.5, 1.4
CPU = torch.device("cpu")
KEPT, USUAL, JEMALLOC = "kept", "usual", "jemalloc"  # ways to treat freed memory
ALLOCATORS = {KEPT: "C library", JEMALLOC: "jemalloc"}
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
        spec, graph = load(ROOT / "specs" / f"{self.spec}.yaml")
        changed = {key: value for key, value in asdict(self).items() if key not in ("spec", "batch")}
        return graph, spec.config.search.model_copy(update={**changed, "batch_size": self.batch})


def variants(cases: Sequence[Case], precision: str) -> Iterator[Variant]:
    """All of them, recompute after the same without it."""
    for spec, batch in cases:
        for lowering in ("fused", "reference"):
            for recompute in (False, True):
                yield Variant(spec, batch, lowering, recompute, precision)


def make_steps(graph: Graph, config: SearchConfig, batch: int, device: torch.device) -> Steps:
    """A weight step and a gate step of a fresh supernet on a batch of noise, and a batch of its validation."""
    set_precision(config, device)
    net = Supernet.start(graph, TASK, config, device, seed=0, gate_init=1.0)

    def noise(images: int) -> Batch:
        x = torch.randn(images, *graph.node(INPUT).shape, generator=torch.Generator().manual_seed(0))
        return x.to(device, memory_format=torch.channels_last), torch.zeros(images, dtype=torch.int64).to(device)

    def step(gradients: Gradients, optimizer: Optimizer) -> None:
        gradients(images)
        optimizer.step()

    images = noise(batch)
    steps: Steps = {kind: partial(step, *half) for kind, half in halves(net).items()}
    return steps | {VALIDATION: lambda: evaluate(TASK, net.module, [noise(config.evaluation_batch)])}


# -- memory -----------------------------------------------------------------------------------------------------------


def allocated(variant: Variant, device: torch.device) -> dict[str, float]:
    """The most MiB that each kind of step allocates, weights, gradients and momenta included."""
    graph, config = variant.settings()
    make = partial(make_steps, graph, config, variant.batch, device)
    return _allocated_on_cuda(make, device) if device.type == "cuda" else _allocated(make)


def grown(variant: Variant, device: torch.device) -> dict[str, float]:
    """By how many MiB a fresh process grows on the CPU, and what is predicted for its allocator."""
    graph, config = variant.settings()
    small = make_steps(graph, config, 2, device)
    for kind in KINDS:
        small[kind]()
    del small
    gc.collect()
    give_back()
    with freed_memory_kept():
        growth = Growth()
        steps = make_steps(graph, config, variant.batch, device)
        for _ in range(2):
            for step in steps.values():
                step()
    measured = growth.peak_mib
    model, heap = _model(variant, device), heap_here()
    size = model.at(variant.batch).peak if heap is None else model.growth(heap, variant.batch)
    return {"measured": measured, "predicted": size / 2**20}


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
    """The peaks in MiB that the model gives."""
    memory = _model(variant, device).at(variant.batch)
    sizes = {"weight": memory.weight_step, "gate": memory.gate_step, VALIDATION: memory.validation}
    return {kind: size / 2**20 for kind, size in sizes.items()}


def _model(variant: Variant, device: torch.device) -> MemoryModel:
    graph, config = variant.settings()
    return MemoryModel(graph, Training.of(config, on_cpu=device.type == "cpu"))


def allocated_rows(found: Sequence[Variant], device: torch.device) -> list[Row]:
    """What is allocated: a row per variant and kind of step."""
    rows = []
    for variant in found:
        model = predicted(variant, device)
        for kind, size in child(variant, ALLOCATED, KEPT, device).items():
            figures = {"predicted_mib": model[kind], "measured_mib": size, "ratio": model[kind] / size}
            rows.append({**asdict(variant), "step": kind, **figures})
    return rows


def grown_rows(found: Sequence[Variant], device: torch.device) -> list[Row]:
    """What a process on the CPU grows by: a row per variant and allocator."""
    rows = []
    for variant in found if device.type == "cpu" else ():
        for how in allocators():
            sizes = child(variant, GROWN, how, device)
            model, size = sizes["predicted"], sizes["measured"]
            figures = {"predicted_mib": model, "measured_mib": size, "ratio": model / size}
            rows.append({**asdict(variant), "allocator": ALLOCATORS[how], **figures})
    return rows


# -- child processes --------------------------------------------------------------------------------------------------


def allocators() -> list[str]:
    """Ways to treat freed memory that differ in the allocator; jemalloc where it is installed."""
    return [KEPT, JEMALLOC] if find_library(JEMALLOC) else [KEPT]


def child(variant: Variant, what: str, how: str, device: torch.device, rounds: int = 0) -> Any:
    """What a fresh process answers."""
    preload = find_library(JEMALLOC) if how == JEMALLOC else ""
    asked = json.dumps([asdict(variant), what, how])
    arguments = ["--device", str(device), "--rounds", str(rounds), "--child", asked]
    return in_child("benchmarks.memory", arguments, {"LD_PRELOAD": str(preload)})


def answer(variant: Variant, what: str, how: str, device: torch.device, rounds: int) -> Any:
    """In the child process."""
    if what == TIMES:
        return timed(variant, how, rounds)
    return {ALLOCATED: allocated, GROWN: grown}[what](variant, device)


# -- time -------------------------------------------------------------------------------------------------------------


def time_rows(spec: str, batch: int, precision: str, rounds: int, device: torch.device) -> list[Row]:
    """What recompute costs in the fused lowering: a row per kind of step."""
    pair = {on: Variant(spec, batch, recompute=on, precision=precision).settings() for on in (False, True)}
    made = {on: make_steps(graph, config, batch, device) for on, (graph, config) in pair.items()}
    rows = []
    for kind in KINDS:
        with freed_memory_kept():
            timings = interleave({str(on): finished(made[on][kind], device) for on in made}, rounds, warmup=1)
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
    """What other ways to treat freed memory cost on the CPU: a row per kind of step, with recompute and without."""
    ways, rows = [*allocators(), USUAL], []
    for recompute in (False, True):
        variant = Variant(spec, batch, recompute=recompute, precision=precision)
        times: dict[str, list[Any]] = {how: [] for how in ways}
        for _ in range(TURNS):
            for how, found in times.items():
                found.append(child(variant, TIMES, how, CPU, rounds))
        for kind in KINDS:
            row: Row = {"spec": spec, "batch": batch, "recompute": recompute, "step": kind}
            for how in ways:
                own, kept = ([one[kind] for one in times[name]] for name in (how, KEPT))
                row[f"{how}_ms"] = statistics.median(one["ms"] for one in own)
                row[f"{how}_faults"] = statistics.median(one["page_faults"] for one in own)
                row[f"{how}_time_ratio"] = statistics.median(a["ms"] / b["ms"] for a, b in zip(own, kept, strict=True))
            rows.append(row)
    return rows


def timed(variant: Variant, how: str, rounds: int) -> Row:
    """Milliseconds and page faults of both kinds of step, which take turns as in a search."""
    graph, config = variant.settings()
    with nullcontext() if how == USUAL else freed_memory_kept():
        steps = make_steps(graph, config, variant.batch, CPU)
        timings = interleave({kind: steps[kind] for kind in KINDS}, rounds)
    return {
        kind: {"ms": 1000 * timing.median, "page_faults": statistics.median(timing.page_faults)}
        for kind, timing in timings.items()
    }


# -- the report -------------------------------------------------------------------------------------------------------


def bars(cases: Sequence[Case], sizes: Sequence[Row], grown: Sequence[Row], times: Sequence[Row]) -> list[Bar]:
    """What prediction and recompute are held to, for every spec and batch size; of predictions the worst case."""
    found = []
    for spec, batch in cases:
        name = f"{spec} {batch}"
        steps, growth, own_times = (_of(rows, spec=spec, batch=batch) for rows in (sizes, grown, times))
        if steps:
            found.append(Bar(f"{name}: prediction, relative error", _worst(steps), TOLERANCE))
        for kind in KINDS if steps else ():
            share = _recompute_share(_of(steps, lowering="fused", step=kind))
            found.append(Bar(f"{name}: recompute, memory of a {kind} step", share, MOST_MEMORY))
        for allocator in dict.fromkeys(row["allocator"] for row in growth):
            own, words = _of(growth, allocator=allocator), f"growth of the process ({allocator})"
            found.append(Bar(f"{name}: predicted {words}, relative error", _worst(own), TOLERANCE))
            share = _recompute_share(_of(own, lowering="fused"))
            found.append(Bar(f"{name}: recompute, {words}", share, MOST_MEMORY))
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


VARIANT = {"spec": "spec", "batch": "batch", "lowering": "lowering", "recompute": "recompute"}
STEP = {"spec": "spec", "batch": "batch", "step": "step"}
ALLOCATED_COLUMNS = VARIANT | {
    "step": "step",
    "predicted MiB": "predicted_mib",
    "allocated MiB": "measured_mib",
    "predicted / allocated": "ratio",
}
GROWN_COLUMNS = VARIANT | {
    "allocator": "allocator",
    "predicted growth MiB": "predicted_mib",
    "the process grows by MiB": "measured_mib",
    "predicted / measured": "ratio",
}
TIME_COLUMNS = STEP | {"ms": "plain_ms", "ms with recompute": "recompute_ms", "recompute / plain": "time_ratio"}
HEAP_COLUMNS = STEP | {
    "recompute": "recompute",
    "ms": "kept_ms",
    "not kept / kept": "usual_time_ratio",
    "jemalloc / kept": "jemalloc_time_ratio",
    "page faults": "kept_faults",
    "not kept": "usual_faults",
    "jemalloc": "jemalloc_faults",
}


def report(sizes: Sequence[Row], grown: Sequence[Row], times: Sequence[Row], heap: Sequence[Row]) -> list[str]:
    """A table each: what is allocated, how a process grows, what recompute costs, what freed memory costs."""
    tables = ((ALLOCATED_COLUMNS, sizes), (GROWN_COLUMNS, grown), (TIME_COLUMNS, times), (HEAP_COLUMNS, heap))
    return [table(list(columns), [_cells(row, columns.values()) for row in rows]) for columns, rows in tables if rows]


def _cells(row: Row, keys: Iterable[str]) -> list[object]:
    return [{True: "yes", False: "no"}[row[key]] if key == "recompute" else row.get(key) for key in keys]


def _case(text: str) -> Case:
    spec, _, batch = text.partition(":")
    return spec, int(batch)


def main() -> None:
    """Measure and print."""
    options = parser(__doc__)
    options.add_argument("--case", type=_case, action="append", metavar="SPEC:BATCH", help="a spec that ships, by name")
    options.add_argument("--device", default="cpu", help="cpu or cuda")
    options.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    options.add_argument("--part", choices=(SIZES, TIMES), help="default: both")
    options.add_argument("--rounds", type=int, default=5, help="rounds of timing")
    options.add_argument("--child", help=argparse.SUPPRESS)  # what to answer, as JSON: see `child`
    args = options.parse_args()
    device = torch.device(args.device)
    if args.child:
        variant, what, how = json.loads(args.child)
        print(json.dumps(answer(Variant(**variant), what, how, device, args.rounds)))
        return
    if args.rounds < 1:
        options.error("--rounds: at least 1; --part sizes leaves the times out")
    chosen = args.case or CASES
    ways = list(variants(chosen, args.precision)) if args.part != TIMES else []
    sizes, growth = allocated_rows(ways, device), grown_rows(ways, device)
    cases = chosen if args.part != SIZES else ()
    times = [row for case in cases for row in time_rows(*case, args.precision, args.rounds, device)]
    with_heap = cases if device.type == "cpu" else ()
    heap = [row for case in with_heap for row in heap_rows(*case, args.precision, args.rounds)]
    found = {"allocated": sizes, "grown": growth, "times": times, "heap": heap}
    show(args.json, found, report(sizes, growth, times, heap), bars(chosen, sizes, growth, times))


if __name__ == "__main__":
    main()
