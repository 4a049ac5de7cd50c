"""The supernet on one GPU: is it right, and how fast is it? Part 1 of `benchmarks/gpu.sh`.

    python -m benchmarks.gpu [--seconds N] [--device cpu --tiny]

First every result is compared with float64 on the CPU; if one is wrong the exit status is 1. Then weight and gate steps
of the full and the share space of CIFAR-10 are timed, the most telling ones first, and a search of the share space is
projected from measured steps. Lines are printed as they come, and what there is no time for is left out. Bars: fused
in bf16, captured as CUDA graphs, at least 4 times as fast as the reference in fp32 and twice as fast as without graphs,
a search under 1 GPU hour.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from benchmarks.common import ROOT, Bar, Clock, bar_table, machine_line, reason, seconds_for, table, wait_for
from benchmarks.gpu_checks import all_checks, graphs_of, random_batch
from benchmarks.jobs import whole_steps
from benchmarks.supernet import Variant, start
from compiler.ir.graph import Graph
from compiler.language.config import Configuration, DataConfig
from compiler.language.spec import Spec
from graphspec.api import load
from runtime.data.dataset import load_dataset
from runtime.jobs.logs import Console
from runtime.search.search_job import SearchJob
from runtime.strategies.base import Context
from runtime.strategies.dso import Dso, gate_optimizer
from runtime.tasks.table import task_of
from runtime.training.captured import CALLED, WARM_UP, Capture
from runtime.training.stages import Position

FULL, SHARE = "specs/dso_nas_cifar10_full.yaml", "specs/dso_nas_cifar10_share.yaml"
SMALL = ("symbols.width=16", "network=[stem, {normal: 2}, reduce, {normal: 1}, reduce, {normal: 1}, head]")
TINY = ("input=[3, 8, 8]", "symbols.width=4", "network=[stem, {normal: 1}, reduce, {normal: 1}, head]")
BASE, BEST = Variant("reference, fp32", "reference", precision="fp32"), Variant("fused, bf16", precision="bf16")
GRAPH = Variant("fused, bf16, graph", precision="bf16")  # its steps are captured
VARIANTS = (BASE, BEST, GRAPH)
BATCHES, TINY_BATCHES = (128, 512), (8, 16)
HEADER = ("space", "batch", "variant", "step", "ms", "min", "max", "peak GiB", "speed")
IMAGES = 50_000  # of CIFAR-10
SECONDS, CHECK_SECONDS = 500.0, 180.0


@dataclass(frozen=True)
class Row:
    """A step that was timed."""

    space: str
    batch: int
    variant: str
    step: str
    seconds: tuple[float, ...]
    peak_bytes: int | None  # of GPU memory, the network's and the step's

    @property
    def median(self) -> float:
        """Median seconds."""
        return statistics.median(self.seconds)

    @property
    def place(self) -> tuple[str, int, str]:
        """What it can be compared in."""
        return self.space, self.batch, self.step


def line(cells: Sequence[object]) -> str:
    """A line of a table whose head was printed before."""
    return table([""] * len(cells), [cells]).splitlines()[-1]


def check(device: torch.device, tiny: bool, seconds: float = CHECK_SECONDS) -> bool:
    """Compare with float64 on the CPU and print it, line by line; whether all is right."""
    spec, graph = load(ROOT / FULL, TINY if tiny else SMALL)
    print(f"correctness: error against float64 on the CPU\n\n{table(('check', 'error', 'bound', 'right'), ())}")
    right, clock = True, Clock(seconds)
    for found in all_checks(graph, spec.config.search, device, 8 if tiny else 32):
        print(line((found.name, f"{found.error:.1e}", f"{found.bound:.0e}", "yes" if found.passed else "NO")))
        right &= found.passed
        if clock.is_over("what is not checked yet"):
            break
    return right


def measure(spec: Spec, graph: Graph, device: torch.device, tiny: bool, clock: Clock) -> list[Row]:
    """Time the steps of every variant and batch and print a line for each, also for what fails."""
    rows: list[Row] = []
    for batch in TINY_BATCHES if tiny else BATCHES:
        for variant in VARIANTS:
            if clock.is_over(f"{variant.name}, batch {batch}, of {graph.name}"):
                return rows
            try:
                for row in timed(variant, spec, graph, device, batch, tiny):
                    rows.append(row)
                    base = next((one for one in rows if one.place == row.place), row)
                    times = (1e3 * value for value in (row.median, min(row.seconds), max(row.seconds)))
                    peak = None if row.peak_bytes is None else row.peak_bytes / 2**30
                    speed = base.median / row.median if base.variant == BASE.name else None
                    print(line((graph.name, batch, row.variant, row.step, *times, peak, speed)))
            except RuntimeError as error:  # torch.OutOfMemoryError is one
                print(line((graph.name, batch, variant.name, reason(error), *[None] * (len(HEADER) - 4))))
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
    return rows


def timed(variant: Variant, spec: Spec, graph: Graph, device: torch.device, size: int, tiny: bool) -> Iterator[Row]:
    """The weight and the gate step of a fresh network, for about a second each; RuntimeError if one is not captured."""
    said: list[str] = []
    graphs = graphs_of(device) if variant == GRAPH else None
    capture = Capture(graphs, said.append) if graphs else CALLED
    net = start(variant, graph, spec.config.search, device, capture)
    batch = random_batch(graph, size, device)
    for kind, take in whole_steps(net, gate_optimizer(net)).items():
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        step = partial(take, batch)
        seconds_for(step, device, WARM_UP + 2)
        count = 2 if tiny else max(5, min(50, round(1 / seconds_for(step, device))))
        seconds = tuple(seconds_for(step, device) for _ in range(count))
        if said:
            raise RuntimeError(said[0])
        peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
        yield Row(graph.name, size, variant.name, kind, seconds, peak)


def projected_hours(spec: Spec, graph: Graph, device: torch.device, tiny: bool) -> float:
    """Hours of the search as the spec has it, as `graphspec search` runs it there, from some steps and a validation of
    each stage; printed.

    The images are random ones of CIFAR-10's number and size. Nothing is pruned while measuring, so a search, which
    shrinks the network, is faster. Checkpoints are left out.
    """
    data = DataConfig(name="fake", fake_size=64 if tiny else IMAGES, crop_padding=4, flip=True)
    search = spec.config.search.model_copy(update={"batch_size": 8} if tiny else {})
    dataset = load_dataset(data, graph.node("input").shape, task_of(spec, graph), seed=0)
    config, hours, steps = Configuration(data=data, search=search), 0.0, 2 if tiny else 50
    with tempfile.TemporaryDirectory() as folder:  # latencies are measured for another penalty only
        context = Context(graph, config, dataset, device, spec.gate_init, Console(), Path(folder))
        job = SearchJob(Dso(context))
        for number, stage in enumerate(job.stages):
            for step in range(WARM_UP + 2):
                job.step(stage, Position(number, 0, step % stage.steps_per_epoch))
            wait_for(device)
            began = time.perf_counter()
            losses = [job.step(stage, Position(number, 0, step % stage.steps_per_epoch)) for step in range(steps)]
            means = {key: float(value) for key, value in losses[-1].items()}
            step_seconds = (time.perf_counter() - began) / steps
            began = time.perf_counter()
            job.end_epoch(stage, Position(number, 0, stage.steps_per_epoch), means, step_seconds)
            wait_for(device)
            end = time.perf_counter() - began
            hours += stage.epochs * (stage.steps_per_epoch * step_seconds + end) / 3600
            print(
                f"{stage.name}: {stage.epochs} epochs of {stage.steps_per_epoch} steps of {1e3 * step_seconds:.1f} ms "
                f"and {end:.2f} s of validation"
            )
    print(f"search of {graph.name}, nothing pruned: {hours:.2f} GPU hours")
    return hours


def bars(rows: Sequence[Row], hours: float | None) -> list[Bar]:
    """What is asked, as far as it was measured."""
    seconds = {(*row.place, row.variant): row.median for row in rows}
    found = [
        Bar(f"{space}, batch {batch}, {kind} step: captured against {other.name}", slow / best, least, at_least=True)
        for (space, batch, kind, variant), best in seconds.items()
        for other, least in ((BASE, 4.0), (BEST, 2.0))
        if variant == GRAPH.name and (slow := seconds.get((space, batch, kind, other.name)))
    ]
    return found if hours is None else [*found, Bar("search of the share space, GPU hours", hours, 1.0)]


def parsed(doc: str | None, arguments: Sequence[str] | None, **more: str) -> argparse.Namespace | None:
    """The arguments of a part, options that take a path among them; None where there is no such device."""
    options = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--device", default="cuda")
    options.add_argument("--seconds", type=float, default=SECONDS, help="after which nothing new begins")
    options.add_argument("--tiny", action="store_true", help="small networks, to try the program out")
    for name, text in more.items():
        options.add_argument(f"--{name}", type=Path, help=text)
    args = options.parse_args(arguments)
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        print("torch sees no NVIDIA GPU; to try the program out: --device cpu --tiny", file=sys.stderr)
        return None
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, measure, print; the exit status."""
    args = parsed(__doc__, arguments)
    if args is None:
        return 1
    device, tiny, clock = torch.device(args.device), args.tiny, Clock(args.seconds)
    spaces = [load(ROOT / name, TINY if tiny else ()) for name in (FULL, SHARE)]
    if device.type == "cpu":
        print("a try on the CPU, where nothing is captured: steps named so are called\n")
    right = check(device, tiny, min(CHECK_SECONDS, clock.left))
    print(f"\nsteps\n\n{table(HEADER, ())}")
    rows = [row for space in spaces for row in measure(*space, device, tiny, clock)]
    print()
    hours = None if clock.is_over("the projection of a search") else projected_hours(*spaces[-1], device, tiny)
    print(f"\n{bar_table(bars(rows, hours))}\n\n{machine_line()}")
    if not right:
        print("\nWRONG RESULTS, see `NO` in the first table: the times mean nothing until they are right")
    return 0 if right else 1


if __name__ == "__main__":
    raise SystemExit(main())
