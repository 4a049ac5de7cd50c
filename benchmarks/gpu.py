"""The supernet on one GPU: is it right, how fast is it, and how near to what the card can do.

    python -m benchmarks.gpu [--budget-seconds 440] [--json] [--device cpu --tiny]

First every result is compared with float64 on the CPU; if one is wrong the exit status is 1. Then the steps of the
full and the share space of CIFAR-10 are timed, the most telling ones first, and a search of the share space is
projected from measured epochs. Every line is printed as soon as it is known; what does not fit into the budget is left
out and said to be. Bars: fused in bf16 at least 4 times as fast as the reference in fp32, a search under 3 GPU hours.

`roofline` is the floor over the time. The floor is the larger of two times: the step's floating-point operations at the
measured rate of a large matrix product in that precision, and its bytes (see `benchmarks.roofline`) at that of a copy.
`kernels` are what the GPU starts, copies and fills included; `busy ms` is how long they run, so the rest of a step's
time the GPU waits for the CPU.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from benchmarks.common import ROOT, Bar, Ceilings, bar_table, ceilings, machine_line, parser, show, table
from benchmarks.gpu_checks import all_checks
from benchmarks.gpu_search import projected
from benchmarks.gpu_steps import KINDS, Taken, Variant, as_json, measure, random_batch, start
from benchmarks.roofline import work_of
from compiler.elaborate import load
from compiler.ir import Graph
from graphspec.config import SearchConfig
from graphspec.spec import Spec

FULL, SHARE = "specs/dso_nas_cifar10_full.yaml", "specs/dso_nas_cifar10_share.yaml"
SMALL = ("symbols.width=16", "network=[stem, {normal: 2}, reduce, {normal: 1}, reduce, {normal: 1}, head]")
TINY = ("input=[3, 8, 8]", "symbols.width=4", "network=[stem, {normal: 1}, reduce, {normal: 1}, head]")

BASE, BEST, REPLAYED = Variant("reference"), Variant(precision="bf16"), Variant(precision="bf16", graphed=True)
FIRST = (BASE, BEST, REPLAYED)
NEXT = (
    Variant(),
    Variant(precision="tf32"),
    Variant("reference", "bf16"),
    Variant("reference", "tf32"),
    Variant(precision="bf16", graphed=True, searched=True),
    Variant("reference", "bf16", graphed=True),
)
LAST = (
    Variant("reference", channels_last=False),
    Variant("reference", "bf16", channels_last=False),
    Variant(precision="bf16", graphed=True, pruned=0.9),
    *(Variant(lowering, p, graphed=True) for p in ("tf32", "fp32") for lowering in ("fused", "reference")),
)
COMPILED = tuple(
    Variant(lowering, p, compiled=True) for p in ("bf16", "tf32", "fp32") for lowering in ("fused", "reference")
)
HEADER = (
    "space", "variant", "step", "ms", "min", "max", "busy ms", "kernels", "peak GiB", "TFLOP/s", "roofline", "speed",
)  # fmt: skip
LEFT_FOR_A_ROW = 15.0  # seconds: making the network, warming up, measuring, profiling


@dataclass
class Report:
    """What was found so far; lines go to people as they come."""

    device: torch.device
    deadline: float  # of time.monotonic
    tiny: bool
    as_json: bool
    ceilings: Ceilings | None = None
    checks: list[dict[str, Any]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    search: dict[str, Any] | None = None
    left_out: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        """A line for people, on stderr where JSON goes to stdout."""
        print(text, file=sys.stderr if self.as_json else sys.stdout, flush=True)

    def left(self) -> float:
        """Seconds of the budget."""
        return self.deadline - time.monotonic()


@dataclass(frozen=True)
class Space:
    """A search space to be timed."""

    name: str
    spec: Spec
    graph: Graph
    batch: int

    @property
    def config(self) -> SearchConfig:
        """The spec's settings of the search."""
        return self.spec.config.search

    @classmethod
    def of(cls, name: str, path: str, tiny: bool) -> Space:
        """From a spec that ships."""
        spec, graph = load(ROOT / path, TINY if tiny else ())
        return cls(name, spec, graph, 8 if tiny else spec.config.search.batch_size)


# -- correctness ------------------------------------------------------------------------------------------------------


def check(report: Report) -> bool:
    """Compare with float64 on the CPU, line by line; whether all is right."""
    spec, graph = load(ROOT / FULL, TINY if report.tiny else SMALL)
    report.say("\ncorrectness: error against float64 on the CPU\n")
    report.say(table(("check", "error", "bound", "right"), ()))
    for found in all_checks(graph, spec.config.search, report.device, 8 if report.tiny else 32):
        report.checks.append(asdict(found) | {"passed": found.passed})
        cells = (found.name, f"{found.error:.1e}", f"{found.bound:.0e}", "yes" if found.passed else "NO")
        report.say(line(cells))
    return all(row["passed"] for row in report.checks)


def line(cells: Sequence[object]) -> str:
    """A line of a table whose head was printed before."""
    return table([""] * len(cells), [cells]).splitlines()[-1]


# -- steps ------------------------------------------------------------------------------------------------------------


def steps(report: Report, space: Space, variants: Iterable[Variant]) -> None:
    """A row for the weight and the gate step of every variant that fits into the budget."""
    for variant in variants:
        name = f"{space.name}: {variant.name}"
        if variant.needs_cuda() and report.device.type != "cuda":
            continue
        if report.left() < LEFT_FOR_A_ROW:
            report.left_out.append(name)
            continue
        try:
            variant_rows(report, space, variant)
        except torch.OutOfMemoryError:
            report.say(line((space.name, variant.name, "out of memory", *[None] * (len(HEADER) - 3))))
        gc.collect()
        if report.device.type == "cuda":
            torch.cuda.empty_cache()


def variant_rows(report: Report, space: Space, variant: Variant) -> None:
    """Rows for the weight and the gate step of a fresh network."""
    net = start(variant, space.graph, space.config, report.device)
    batch = random_batch(space.graph, space.batch, report.device, variant.channels_last)
    for kind in KINDS:
        taken = measure(net, kind, batch, variant, 0.0 if report.tiny else 1.0, 2 if report.tiny else 5)
        add_row(report, space, variant, kind, taken)


def add_row(report: Report, space: Space, variant: Variant, kind: str, taken: Taken) -> None:
    """Print and keep a row."""
    least, flops = floor(report, space, variant, kind), work_of(space.graph, kind, "fp32", space.batch).flops
    base = {"median_seconds": taken.median} if variant == BASE else find(report, space.name, BASE, kind)
    row = {
        "space": space.name,
        "variant": variant.name,
        "step": kind,
        **as_json(taken),
        "flops_per_second": None if variant.pruned else flops / taken.median,
        "roofline": None if least is None else least / taken.median,
        "speed": base["median_seconds"] / taken.median if base else None,
    }
    report.rows.append(row)
    busy, peak, rate = row["busy_seconds"], row["peak_bytes"], row["flops_per_second"]
    report.say(
        line((
            space.name, variant.name, kind,
            *(1000 * value for value in (taken.median, min(taken.seconds), max(taken.seconds))),
            None if busy is None else 1000 * busy, taken.kernels, None if peak is None else peak / 2**30,
            None if rate is None else rate / 1e12,
            None if row["roofline"] is None else f"{row['roofline']:.1%}",
            row["speed"],
        ))
    )  # fmt: skip


def floor(report: Report, space: Space, variant: Variant, kind: str) -> float | None:
    """Seconds that a step takes at least; None for a pruned network, whose costs are others."""
    if report.ceilings is None or variant.pruned:
        return None
    work = work_of(space.graph, kind, "bf16" if variant.precision == "bf16" else "fp32", space.batch)
    return work.floor(
        report.ceilings.flops.get(variant.precision, report.ceilings.flops["fp32"]), report.ceilings.bandwidth
    )


def find(report: Report, space: str, variant: Variant, kind: str) -> dict[str, Any] | None:
    """A row that was measured; None if it was not."""
    keys = {"space": space, "variant": variant.name, "step": kind}
    return next((row for row in report.rows if keys.items() <= row.items()), None)


def kernels(report: Report, variants: Iterable[Variant], most: int = 12) -> None:
    """Where the GPU's time goes in steps of the full space."""
    for variant, kind in itertools.product(variants, KINDS):
        row = find(report, "full", variant, kind)
        if row is not None and row["by_kernel"]:
            report.say(f"\nkernels of a {kind} step, {variant.name}\n")
            longest = [(1000 * s, name[:110]) for name, s in list(row["by_kernel"].items())[:most]]
            report.say(table(("ms", "kernel"), longest))


# -- torch.compile, in a process that can be ended --------------------------------------------------------------------


def compiled(report: Report, space: Space) -> None:
    """Steps of the full space under torch.compile: as many as a process gets done in what is left of the budget."""
    done: set[str] = set()
    if report.device.type == "cuda" and report.left() > 2 * LEFT_FOR_A_ROW:
        command = [sys.executable, "-m", "benchmarks.gpu", "--compiled-rows", "--device", str(report.device)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            timer = threading.Timer(report.left(), process.kill)
            timer.start()
            assert process.stdout is not None
            for text in process.stdout:
                index, kind, fields = json.loads(text)
                add_row(report, space, COMPILED[index], kind, Taken(**fields))
                done.add(COMPILED[index].name)
            timer.cancel()
    report.left_out += [f"full: {v.name}" for v in COMPILED if v.name not in done]


def compiled_rows(device: torch.device, tiny: bool) -> None:
    """In the process of its own: a line of JSON for every step."""
    space = Space.of("full", FULL, tiny)
    for index, variant in enumerate(COMPILED):
        net = start(variant, space.graph, space.config, device)
        for kind in KINDS:
            taken = measure(net, kind, random_batch(space.graph, space.batch, device), variant, 1.0, 5)
            print(json.dumps([index, kind, asdict(taken)]), flush=True)


# -- the whole --------------------------------------------------------------------------------------------------------


def bars(report: Report) -> list[Bar]:
    """What is asked, as far as it was measured."""
    found = []
    for variant, kind in itertools.product((BEST, REPLAYED), KINDS):
        row = find(report, "full", variant, kind)
        if row is not None and row["speed"] is not None:
            name = f"{variant.name}, {kind} step: speed against {BASE.name}"
            found.append(Bar(name, row["speed"], 4.0, at_least=True))
    if report.search is not None:
        found.append(Bar("search of the share space, GPU hours", report.search["hours"], 3.0))
    return found


def run(report: Report) -> None:
    """Measure in order of worth."""
    report.ceilings = ceilings(report.device, *((64, 2**20) if report.tiny else (None, None)))
    rates = ", ".join(f"{name} {rate / 1e12:.3g} TFLOP/s" for name, rate in report.ceilings.flops.items())
    report.say(f"\nceilings: {rates}, copy {report.ceilings.bandwidth / 1e9:.4g} GB/s\n")
    full, share = Space.of("full", FULL, report.tiny), Space.of("share", SHARE, report.tiny)
    report.say(table(HEADER, ()))
    steps(report, full, FIRST)
    if report.left() > 2 * LEFT_FOR_A_ROW:
        report.search = projected(share.spec, share.graph, report.device, report.tiny, min(80.0, report.left() / 2))
        report.say(f"\n{report.search['text']}\n\n{table(HEADER, ())}")
    else:
        report.left_out.append("the search")
    steps(report, full, NEXT)
    steps(report, share, FIRST)
    steps(report, full, LAST)
    compiled(report, full)
    kernels(report, FIRST)
    if report.left_out:
        report.say(f"\nnot measured: {'; '.join(report.left_out)}")
    report.say(f"\n{bar_table(bars(report))}\n\n{machine_line()}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, measure, print; the exit status."""
    options = parser(__doc__)
    options.add_argument("--device", default="cuda")
    options.add_argument("--tiny", action="store_true", help="small networks, to try the program out")
    options.add_argument("--budget-seconds", type=float, default=440.0)
    options.add_argument("--compiled-rows", action="store_true", help=argparse.SUPPRESS)
    args = options.parse_args(arguments)
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("torch sees no NVIDIA GPU; to try the program out: --device cpu --tiny", file=sys.stderr)
        return 1
    if args.compiled_rows:
        compiled_rows(device, args.tiny)
        return 0
    report = Report(device, time.monotonic() + args.budget_seconds, args.tiny, args.json)
    right = check(report)
    run(report)
    if not right:
        report.say("\nWRONG RESULTS, see `NO` in the first table: the times above mean nothing until they are right")
    if args.json:
        limits = asdict(report.ceilings) if report.ceilings else None
        found = {"checks": report.checks, "ceilings": limits, "rows": report.rows, "search": report.search}
        show(True, found | {"left_out": report.left_out}, (), bars(report))
    return 0 if right else 1


if __name__ == "__main__":
    raise SystemExit(main())
