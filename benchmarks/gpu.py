"""The supernet on one GPU: is it right, and how fast is it?

    python -m benchmarks.gpu [--device cpu --tiny]

First every result is compared with float64 on the CPU; if one is wrong the exit status is 1. Then weight and gate steps
of the full space of CIFAR-10 are timed, the most telling ones first, and a search of the share space is projected from
measured steps. Lines are printed as they come. Bars: fused in bf16 at least 4 times as fast as the reference in fp32,
a search under 3 GPU hours.
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
from pathlib import Path

import torch

from benchmarks.common import ROOT, Bar, bar_table, machine_line, reason, seconds_for, table, wait_for
from benchmarks.gpu_checks import all_checks, random_batch
from benchmarks.jobs import halves
from benchmarks.supernet import KINDS, Variant, start
from compiler.ir.graph import Graph
from compiler.language.config import Configuration, DataConfig
from compiler.language.spec import Spec
from graphspec.api import load
from runtime.data.dataset import load_dataset
from runtime.jobs.logs import Console
from runtime.search.search_job import SearchJob
from runtime.strategies.base import Context
from runtime.strategies.dso import Dso
from runtime.tasks.table import task_of
from runtime.training.stages import Position

FULL, SHARE = "specs/dso_nas_cifar10_full.yaml", "specs/dso_nas_cifar10_share.yaml"
SMALL = ("symbols.width=16", "network=[stem, {normal: 2}, reduce, {normal: 1}, reduce, {normal: 1}, head]")
TINY = ("input=[3, 8, 8]", "symbols.width=4", "network=[stem, {normal: 1}, reduce, {normal: 1}, head]")
BASE, BEST = Variant("reference, fp32", "reference"), Variant("fused, bf16", precision="bf16")
VARIANTS = (
    BASE,
    BEST,
    Variant("fused, fp32"),
    Variant("fused, tf32", precision="tf32"),
    Variant("reference, bf16", "reference", precision="bf16"),
    Variant("fused, bf16, 90 % pruned", precision="bf16", pruned=0.9),
)
HEADER = ("variant", "step", "ms", "min", "max", "peak GiB", "speed")
IMAGES = 50_000  # of CIFAR-10


@dataclass(frozen=True)
class Row:
    """A step that was timed."""

    variant: str
    step: str
    seconds: tuple[float, ...]
    peak_bytes: int | None  # of GPU memory, the network's and the step's

    @property
    def median(self) -> float:
        """Median seconds."""
        return statistics.median(self.seconds)


def line(cells: Sequence[object]) -> str:
    """A line of a table whose head was printed before."""
    return table([""] * len(cells), [cells]).splitlines()[-1]


def check(device: torch.device, tiny: bool) -> bool:
    """Compare with float64 on the CPU and print it, line by line; whether all is right."""
    spec, graph = load(ROOT / FULL, TINY if tiny else SMALL)
    print(f"correctness: error against float64 on the CPU\n\n{table(('check', 'error', 'bound', 'right'), ())}")
    right = True
    for found in all_checks(graph, spec.config.search, device, 8 if tiny else 32):
        print(line((found.name, f"{found.error:.1e}", f"{found.bound:.0e}", "yes" if found.passed else "NO")))
        right &= found.passed
    return right


def measure(spec: Spec, graph: Graph, device: torch.device, tiny: bool) -> list[Row]:
    """Time the steps of every variant and print a line for each, also for what fails."""
    print(f"\nsteps of {graph.name}\n\n{table(HEADER, ())}")
    rows: dict[tuple[str, str], Row] = {}
    for variant in VARIANTS:
        try:
            for row in timed(variant, spec, graph, device, tiny):
                rows[row.variant, row.step] = row
                base = rows.get((BASE.name, row.step))
                times = (1e3 * value for value in (row.median, min(row.seconds), max(row.seconds)))
                peak = None if row.peak_bytes is None else row.peak_bytes / 2**30
                print(line((row.variant, row.step, *times, peak, base.median / row.median if base else None)))
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            print(line((variant.name, reason(error), *[None] * (len(HEADER) - 2))))
        gc.collect()
    return list(rows.values())


def timed(variant: Variant, spec: Spec, graph: Graph, device: torch.device, tiny: bool) -> Iterator[Row]:
    """The weight and the gate step of a fresh network, for about a second each."""
    net = start(variant, graph, spec.config.search, device)
    batch = random_batch(graph, 8 if tiny else spec.config.search.batch_size, device)
    for kind, (gradients, optimizer) in halves(net).items():

        def step(gradients=gradients, optimizer=optimizer) -> None:  # type: ignore[no-untyped-def]
            gradients(batch)
            optimizer.step()

        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        warm_up = seconds_for(step, device, 3) / 3
        count = 2 if tiny else max(5, min(50, round(1 / warm_up)))
        seconds = tuple(seconds_for(step, device) for _ in range(count))
        peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
        yield Row(variant.name, kind, seconds, peak)


def projected_hours(spec: Spec, graph: Graph, device: torch.device, tiny: bool) -> float:
    """Hours of the search as the spec has it, in bf16, from some steps and a validation of each stage; printed.

    The images are random ones of CIFAR-10's number and size. Nothing is pruned while measuring, so a search, which
    shrinks the network, is faster. Checkpoints are left out.
    """
    data = DataConfig(name="fake", fake_size=64 if tiny else IMAGES, crop_padding=4, flip=True)
    search = spec.config.search.model_copy(update={"precision": "bf16"} | ({"batch_size": 8} if tiny else {}))
    dataset = load_dataset(data, graph.node("input").shape, task_of(spec, graph), seed=0)
    config, hours, steps = Configuration(data=data, search=search), 0.0, 2 if tiny else 50
    with tempfile.TemporaryDirectory() as folder:  # latencies are measured for another penalty only
        console = Console(quiet=True)
        context = Context(graph, config, dataset, device, spec.gate_init, console, Path(folder))
        job = SearchJob(Dso(context))
        for number, stage in enumerate(job.stages):
            job.step(stage, Position(number, 0, 0))  # warm up
            wait_for(device)
            began = time.perf_counter()
            for step in range(steps):
                losses = job.step(stage, Position(number, 0, step % stage.steps_per_epoch))
                means = {key: float(value) for key, value in losses.items()}
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
    print(f"search of {graph.name} in bf16, nothing pruned: {hours:.2f} GPU hours")
    return hours


def bars(rows: Sequence[Row], hours: float) -> list[Bar]:
    """What is asked, as far as it was measured."""
    seconds = {(row.variant, row.step): row.median for row in rows}
    found = [
        Bar(f"{BEST.name}, {kind} step: speed against {BASE.name}", seconds[BASE.name, kind] / best, 4.0, at_least=True)
        for kind in KINDS
        if (best := seconds.get((BEST.name, kind))) and (BASE.name, kind) in seconds
    ]
    return [*found, Bar("search of the share space, GPU hours", hours, 3.0)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, measure, print; the exit status."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--device", default="cuda")
    options.add_argument("--tiny", action="store_true", help="small networks, to try the program out")
    args = options.parse_args(arguments)
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("torch sees no NVIDIA GPU; to try the program out: --device cpu --tiny", file=sys.stderr)
        return 1
    right = check(device, args.tiny)
    rows = measure(*load(ROOT / FULL, TINY if args.tiny else ()), device, args.tiny)
    print()
    hours = projected_hours(*load(ROOT / SHARE, TINY if args.tiny else ()), device, args.tiny)
    print(f"\n{bar_table(bars(rows, hours))}\n\n{machine_line()}")
    if not right:
        print("\nWRONG RESULTS, see `NO` in the first table: the times mean nothing until they are right")
    return 0 if right else 1


if __name__ == "__main__":
    raise SystemExit(main())
