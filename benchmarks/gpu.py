"""The supernet on one GPU: is it right, how fast is it, and how near to what the card can do.

    python -m benchmarks.gpu [--budget-seconds 440] [--json] [--device cpu --tiny]

First every result is compared with float64 on the CPU; exit status 1 if one is wrong. Then the steps of the full and
the share space of CIFAR-10 are timed, the most telling ones first, and a search of the share space is projected from
measured epochs. Every line is printed as soon as it is known; what does not fit into the budget is left out and said
to be. Bars: fused in bf16 at least 4 times as fast as edge by edge in fp32, a search under 3 GPU hours.

The roofline's floor is the larger of two times: the step's floating-point operations at the measured rate of a large
matrix product in that precision, and its bytes at the measured rate of a copy. Bytes are those of the cost model's
forward pass, every op reading its inputs and weights and writing its output once, taken three times for a weight step
(values forward; gradients of values and of weights) and twice for a gate step, two bytes a number in bf16.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from benchmarks.common import ROOT, Ceilings, ceilings, machine, table
from benchmarks.gpu_checks import all_checks
from benchmarks.gpu_search import projected
from benchmarks.gpu_steps import KINDS, Taken, Variant, as_json, flops_of_step, measure, random_batch, start
from compiler.costs import total_cost
from compiler.elaborate import load
from compiler.ir import Graph
from graphspec.config import SearchConfig
from graphspec.spec import Spec

FULL, SHARE = "specs/dso_nas_cifar10_full.yaml", "specs/dso_nas_cifar10_share.yaml"
SMALL = ("symbols.width=16", "network=[stem, {normal: 2}, reduce, {normal: 1}, reduce, {normal: 1}, head]")
TINY = ("input=[3, 8, 8]", "symbols.width=4", "network=[stem, {normal: 1}, reduce, {normal: 1}, head]")

BASE, BEST, REPLAYED = "per-edge, fp32", "fused, bf16", "fused, bf16, CUDA graph"
FIRST = (
    Variant(BASE, "reference"),
    Variant(BEST, precision="bf16"),
    Variant(REPLAYED, precision="bf16", graphed=True),
)
REST = (
    Variant("fused, fp32"),
    Variant("fused, tf32", precision="tf32"),
    Variant("per-edge, tf32", "reference", "tf32"),
    Variant("per-edge, bf16", "reference", "bf16"),
    Variant("fused, bf16, cuDNN searched, CUDA graph", precision="bf16", graphed=True, searched=True),
    Variant("per-edge, fp32, default layout", "reference", channels_last=False),
    Variant("per-edge, bf16, default layout", "reference", "bf16", channels_last=False),
    Variant("per-edge, bf16, CUDA graph", "reference", "bf16", graphed=True),
    Variant("fused, bf16, 90 % pruned, CUDA graph", precision="bf16", graphed=True, pruned=0.9),
    Variant("fused, tf32, CUDA graph", precision="tf32", graphed=True),
    Variant(f"{BASE}, again", "reference"),
)
COMPILED = Variant("fused, bf16, torch.compile", precision="bf16", compiled=True)
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
        taken = measure(net, kind, batch, variant, 0.0 if report.tiny else 2.0, 2 if report.tiny else 5)
        add_row(report, space, variant, kind, taken)


def add_row(report: Report, space: Space, variant: Variant, kind: str, taken: Taken) -> None:
    """Print and keep a row."""
    flops, floor = flops_of_step(kind, total_cost(space.graph).flops, space.batch), None
    whole = variant.pruned == 0.0  # else the costs are others
    if report.ceilings is not None and whole:
        floor = max(floors(report.ceilings, space, variant.precision, kind))
    row = {
        "space": space.name, "variant": variant.name, "step": kind, **as_json(taken),
        "flops_per_second": flops / taken.median if whole else None,
        "roofline": floor / taken.median if floor else None,
    }  # fmt: skip
    base = find(report, space.name, BASE, kind)
    row["speed"] = base["median_seconds"] / taken.median if base else 1.0 if variant.name == BASE else None
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


def floors(found: Ceilings, space: Space, precision: str, kind: str) -> tuple[float, float]:
    """Seconds that a step's operations, and that its bytes take at least."""
    cost, times = total_cost(space.graph), 3 if kind == "weight" else 2
    rate = found.flops.get(precision, found.flops["fp32"])
    moved = cost.mac_bytes * space.batch * times / (2 if precision == "bf16" else 1)
    return flops_of_step(kind, cost.flops, space.batch) / rate, moved / found.bandwidth


def find(report: Report, space: str, variant: str, kind: str) -> dict[str, Any] | None:
    """A row that was measured; None if it was not."""
    keys = {"space": space, "variant": variant, "step": kind}
    return next((row for row in report.rows if keys.items() <= row.items()), None)


def kernels(report: Report, names: Sequence[str], most: int = 12) -> None:
    """Where the GPU's time goes in steps of the full space."""
    for row in report.rows:
        if row["space"] == "full" and row["variant"] in names and row["by_kernel"]:
            report.say(f"\nkernels of a {row['step']} step, {row['variant']}\n")
            longest = [(1000 * s, name[:110]) for name, s in list(row["by_kernel"].items())[:most]]
            report.say(table(("ms", "kernel"), longest))


# -- torch.compile, in a process that can be ended --------------------------------------------------------------------


def compiled(report: Report) -> None:
    """Steps of the full space under torch.compile, as far as compiling ends within the budget."""
    if report.left() < 2 * LEFT_FOR_A_ROW or report.device.type != "cuda":
        report.left_out.append(f"full: {COMPILED.name}")
        return
    command = [sys.executable, "-m", "benchmarks.gpu", "--compiled-only", "--device", str(report.device), "--json"]
    try:
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=report.left(), check=True)
    except subprocess.TimeoutExpired as error:
        report.left_out.append(f"full: {COMPILED.name} (compiling and measuring takes more than {error.timeout:.0f} s)")
        return
    except subprocess.CalledProcessError as error:
        report.left_out.append(f"full: {COMPILED.name} (failed with exit status {error.returncode}, see above)")
        return
    space = Space.of("full", FULL, report.tiny)
    for row in json.loads(done.stdout)["rows"]:
        taken = Taken(tuple(row["seconds"]), row["peak_bytes"], row["kernels"], row["busy_seconds"], row["by_kernel"])
        add_row(report, space, COMPILED, row["step"], taken)


# -- the whole --------------------------------------------------------------------------------------------------------


def bars(report: Report) -> Iterator[tuple[str, str, float | None]]:
    """What is asked, and what was found."""
    for name in (BEST, REPLAYED):
        for kind in KINDS:
            row = find(report, "full", name, kind)
            yield f"{name}, {kind} step: speed against {BASE}", ">= 4", row["speed"] if row else None
    hours = report.search["hours"] if report.search else None
    yield "search of the share space, GPU hours", "< 3", hours


def run(report: Report) -> None:
    """Measure in order of worth."""
    size = (64, 2**20) if report.tiny else (None, None)
    report.ceilings = ceilings(report.device, *size)
    rates = ", ".join(f"{name} {rate / 1e12:.3g} TFLOP/s" for name, rate in report.ceilings.flops.items())
    report.say(f"\nceilings: {rates}, copy {report.ceilings.bandwidth / 1e9:.4g} GB/s")
    full = Space.of("full", FULL, report.tiny)
    share = Space.of("share", SHARE, report.tiny)
    for precision in ("fp32", "bf16"):
        work, moved = (1000 * s for s in floors(report.ceilings, full, precision, "weight"))
        report.say(
            f"floor of a weight step of the full space, {precision}: arithmetic {work:.3g} ms, memory {moved:.3g} ms"
        )
    report.say("\n" + table(HEADER, ()))
    steps(report, full, FIRST)
    if report.left() > 2 * LEFT_FOR_A_ROW:
        report.search = projected(share.spec, share.graph, report.device, report.tiny, min(120.0, report.left() / 2))
        report.say(f"\n{report.search['text']}\n")
    else:
        report.left_out.append("the search")
    steps(report, share, FIRST)
    steps(report, full, REST)
    compiled(report)
    kernels(report, (BASE, BEST, REPLAYED))
    report.say("\n" + table(("bar", "asked", "found"), list(bars(report))))
    if report.left_out:
        report.say(f"\nnot measured: {'; '.join(report.left_out)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small networks, to try the program out")
    parser.add_argument("--budget-seconds", type=float, default=440.0)
    parser.add_argument("--json", action="store_true", help="JSON on stdout, the tables on stderr")
    parser.add_argument("--compiled-only", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("torch sees no NVIDIA GPU; to try the program out: --device cpu --tiny", file=sys.stderr)
        return 1
    report = Report(device, time.monotonic() + options.budget_seconds, options.tiny, options.json)
    where = machine() | {"device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"}
    if options.compiled_only:
        steps(report, Space.of("full", FULL, options.tiny), (COMPILED,))
    else:
        report.say(f"{where}")
        if check(report):
            run(report)
        else:
            report.say("\nwrong results: nothing was timed")
    if options.json:
        found = {"machine": where, "checks": report.checks, "rows": report.rows, "search": report.search}
        limits = asdict(report.ceilings) if report.ceilings else None
        print(
            json.dumps(found | {"ceilings": limits, "bars": list(bars(report)), "left_out": report.left_out}, indent=1)
        )
    return 0 if all(row["passed"] for row in report.checks) else 1


if __name__ == "__main__":
    raise SystemExit(main())
