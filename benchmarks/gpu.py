"""The supernet on one GPU: is it right, how fast is it, and how near to what the card can do.

    python -m benchmarks.gpu [--budget-seconds 440] [--json] [--device cpu --tiny]

First every result is compared with float64 on the CPU; if one is wrong the exit status is 1. Then the steps of the
full and the share space of CIFAR-10 are timed, the most telling ones first, and a search of the share space is
projected from measured epochs. Every line is printed as soon as it is known; what does not fit into the budget is left
out and said to be. Bars: fused in bf16 at least 4 times as fast as the reference in fp32, a search under 3 GPU hours.

`roofline` is the floor over the time. The floor is the larger of two times: the step's floating-point operations at the
measured rate of a large matrix product in that precision, and its bytes (see `benchmarks.roofline`) at that of a copy.
`predicted GiB` is what the check before training predicts of the peak beside it, for steps whose kernels start one by
one.
Last, because a profiler slows down what runs after it: `kernels` are what the GPU starts, copies and fills included,
and `busy ms` is how long they run, so the rest of a step's time the GPU waits for the CPU.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from benchmarks.common import ROOT, Bar, Ceilings, bar_table, ceilings, machine_line, parser, reason, show, table
from benchmarks.gpu_checks import all_checks
from benchmarks.gpu_search import projected
from benchmarks.gpu_steps import KINDS, Taken, Variant, measure, profiled, random_batch, start
from benchmarks.roofline import work_of
from compiler.errors import RunError
from compiler.ir.graph import Graph
from compiler.language.config import SearchConfig
from compiler.language.spec import Spec
from compiler.lowering.memory import MemoryModel, Training
from graphspec.api import load

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
    "space", "variant", "step", "ms", "min", "max", "peak GiB", "predicted GiB", "TFLOP/s", "roofline", "speed",
)  # fmt: skip
FAILURES = (RunError, RuntimeError)  # torch.OutOfMemoryError is one, and so are errors of CUDA
ROW = "row: "  # begins a line of the process that measures compiled steps
LEFT_FOR_A_ROW = 25.0  # seconds: making the network, warming up, measuring
FOR_PROFILES = 50.0  # seconds at the end
GRACE = 25.0  # seconds after the budget, for what has begun


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
    profiles: list[dict[str, Any]] = field(default_factory=list)
    search: dict[str, Any] | None = None
    left_out: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        """A line for people, on stderr where JSON goes to stdout."""
        print(text, file=sys.stderr if self.as_json else sys.stdout, flush=True)

    def left(self, reserved: float = FOR_PROFILES) -> float:
        """Seconds of the budget, but for what is reserved."""
        return self.deadline - time.monotonic() - reserved

    def failed(self, space: str, variant: str, error: Exception) -> None:
        """Say why there is no row."""
        self.say(line((space, variant, reason(error), *[None] * (len(HEADER) - 3))))


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
        except FAILURES as error:
            report.failed(space.name, variant.name, error)
        tidy(report.device)


def tidy(device: torch.device) -> None:
    """Free what the last network took."""
    gc.collect()
    if device.type == "cuda":
        with suppress(*FAILURES):  # after some errors CUDA says the same to all that is asked of it
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
        **asdict(taken),
        "median_seconds": taken.median,
        "predicted_bytes": predicted_bytes(report, space, variant, kind),
        "flops_per_second": None if variant.pruned else flops / taken.median,
        "roofline": None if least is None else least / taken.median,
        "speed": base["median_seconds"] / taken.median if base else None,
    }
    report.rows.append(row)
    rate = row["flops_per_second"]
    report.say(
        line((
            space.name, variant.name, kind,
            *(1000 * value for value in (taken.median, min(taken.seconds), max(taken.seconds))),
            *(None if row[key] is None else row[key] / 2**30 for key in ("peak_bytes", "predicted_bytes")),
            None if rate is None else rate / 1e12,
            None if row["roofline"] is None else f"{row['roofline']:.1%}",
            row["speed"],
        ))
    )  # fmt: skip


def predicted_bytes(report: Report, space: Space, variant: Variant, kind: str) -> int | None:
    """The peak of a step by the model; None where torch decides by itself what it keeps."""
    if variant.graphed or variant.compiled:
        return None
    training = Training.of(variant.settings(space.config), on_cpu=report.device.type == "cpu")
    memory = MemoryModel(variant.graph(space.graph), training).at(space.batch)
    return memory.weight_step if kind == "weight" else memory.gate_step


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


def profiles(report: Report, space: Space, variants: Iterable[Variant], most: int = 12) -> None:
    """What steps do on the GPU, in networks made anew; then where their time goes."""
    report.say(f"\n{table(('variant', 'step', 'kernels', 'busy ms'), ())}")
    for variant in variants:
        if variant.needs_cuda() and report.device.type != "cuda":
            continue
        if report.left(0.0) < LEFT_FOR_A_ROW / 2:
            report.left_out.append(f"kernels of {variant.name}")
            continue
        try:
            net = start(variant, space.graph, space.config, report.device)
            batch = random_batch(space.graph, space.batch, report.device, variant.channels_last)
            found = {kind: profiled(net, kind, batch, variant) for kind in KINDS}
        except FAILURES as error:
            report.say(line((variant.name, reason(error), None, None)))
            continue
        for kind, one in found.items():
            report.profiles.append({"variant": variant.name, "step": kind, **asdict(one)})
            busy = None if one.busy_seconds is None else 1000 * one.busy_seconds
            report.say(line((variant.name, kind, one.kernels, busy)))
        del net
        tidy(report.device)
    for row in (row for row in report.profiles if row["by_kernel"]):
        report.say(f"\nkernels of a {row['step']} step, {row['variant']}\n")
        longest = [(1000 * s, name[:110]) for name, s in list(row["by_kernel"].items())[:most]]
        report.say(table(("ms", "kernel"), longest))


# -- torch.compile, in a process that can be ended --------------------------------------------------------------------


def compiled(report: Report, space: Space) -> None:
    """Steps of the full space under torch.compile: as many as a process gets done in what is left of the budget."""
    done: set[str] = set()
    if report.device.type == "cuda" and report.left() > 2 * LEFT_FOR_A_ROW:
        command = [sys.executable, "-m", "benchmarks.gpu", "--compiled-rows", "--device", str(report.device)]
        command += ["--tiny"] if report.tiny else []
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            timer = threading.Timer(report.left(), process.kill)
            timer.start()
            assert process.stdout is not None
            try:
                for text in process.stdout:
                    done |= compiled_row(report, space, text)
            finally:
                timer.cancel()
                process.kill()
    report.left_out += [f"full: {v.name}" for v in COMPILED if v.name not in done]


def compiled_row(report: Report, space: Space, text: str) -> set[str]:
    """Print and keep what a line of that process tells; the variant that it was about, if any."""
    if not (text.startswith(ROW) and text.endswith("\n")):
        return set()  # a library has printed it, or the process was ended in the middle of it
    told = json.loads(text.removeprefix(ROW))
    variant = COMPILED[told["variant"]]
    if "error" in told:
        report.failed(space.name, variant.name, RuntimeError(told["error"]))
    else:
        add_row(report, space, variant, told["step"], Taken(**told["taken"]))
    return {variant.name}


def compiled_rows(device: torch.device, tiny: bool) -> None:
    """In the process of its own: a line for every step, or for what kept a variant from its steps."""
    space = Space.of("full", FULL, tiny)
    batch = random_batch(space.graph, space.batch, device)
    for index, variant in enumerate(COMPILED):
        try:
            net = start(variant, space.graph, space.config, device)
            for kind in KINDS:
                taken = measure(net, kind, batch, variant, 0.0 if tiny else 1.0, 2 if tiny else 5)
                print(ROW + json.dumps({"variant": index, "step": kind, "taken": asdict(taken)}), flush=True)
        except FAILURES as error:
            print(ROW + json.dumps({"variant": index, "error": reason(error)}), flush=True)


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


def search(report: Report, space: Space) -> None:
    """Project a search, and begin the table anew after it."""
    if report.left() < 2 * LEFT_FOR_A_ROW:
        report.left_out.append("the search")
        return
    try:
        report.search = projected(space.spec, space.graph, report.device, report.tiny, min(80.0, report.left() / 2))
        told = report.search["text"]
    except FAILURES as error:
        told = f"the search failed: {reason(error)}"
    tidy(report.device)
    report.say(f"\n{told}\n\n{table(HEADER, ())}")


def run(report: Report) -> None:
    """Measure in order of worth."""
    report.ceilings = ceilings(report.device, *((64, 2**20) if report.tiny else (None, None)))
    rates = ", ".join(f"{name} {rate / 1e12:.3g} TFLOP/s" for name, rate in report.ceilings.flops.items())
    report.say(f"\nceilings: {rates}, copy {report.ceilings.bandwidth / 1e9:.4g} GB/s\n")
    full, share = Space.of("full", FULL, report.tiny), Space.of("share", SHARE, report.tiny)
    report.say(table(HEADER, ()))
    steps(report, full, FIRST)
    search(report, share)
    steps(report, full, NEXT)
    steps(report, share, FIRST)
    steps(report, full, LAST)
    compiled(report, full)
    profiles(report, full, FIRST)
    if report.left_out:
        report.say(f"\nnot measured: {'; '.join(report.left_out)}")
    report.say(f"\n{bar_table(bars(report))}\n\n{machine_line()}")


def stop(report: Report) -> None:
    """End the process with what there is by now: a GPU that hangs holds the main thread, which nothing else ends."""
    if report.as_json:
        show(True, record(report), (), bars(report))
    print("stopped: the time is up", file=sys.stderr)
    sys.stdout.flush()
    os._exit(1)


def record(report: Report) -> dict[str, Any]:
    """The report for `--json`."""
    limits = asdict(report.ceilings) if report.ceilings else None
    parts = {"checks": report.checks, "ceilings": limits, "rows": report.rows, "search": report.search}
    return parts | {"profiles": report.profiles, "left_out": report.left_out}


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
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # CUDA graphs are captured on the current one
    if args.compiled_rows:
        compiled_rows(device, args.tiny)
        return 0
    report = Report(device, time.monotonic() + args.budget_seconds, args.tiny, args.json)
    limit = threading.Timer(args.budget_seconds + GRACE, stop, [report])
    limit.daemon = True
    limit.start()
    try:
        right = check(report)
        run(report)
    finally:
        limit.cancel()
        if args.json:
            show(True, record(report), (), bars(report))
    if not right:
        report.say("\nWRONG RESULTS, see `NO` in the first table: the times above mean nothing until they are right")
    return 0 if right else 1


if __name__ == "__main__":
    raise SystemExit(main())
