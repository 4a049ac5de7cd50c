"""How near a step of the supernet comes to what the machine can do.

    python -m benchmarks.roofline [--spec SPEC] [--device cpu|cuda] [--precision fp32 bf16] [--rounds N] [--json]

Work, from the cost model (`graphspec compile` prints the same): multiply-adds of convolutions and linear layers count
as 2 FLOPs. A weight step is the forward pass once and the backward pass twice that (gradients of inputs and of
weights); a gate step needs no gradients of weights: forward once, backward once. Bytes are what every op must read and
write once in float32 (half in bf16), weights once a batch, norms and activations in the registers of the op before:
once for forward, twice for backward in both steps (each op reads its input and its output's gradient and writes its
input's gradient). Gates, norms and optimizers count nothing, and no cache keeps anything: it is a floor for a network
that is run op by op, and not for one that is fused over ops.

Ceilings, measured in the same run: the largest matrix product, and copies within and beyond the caches. The floor of a
step is the larger of the times that its FLOPs and its bytes (beyond the caches) take; `reached` is floor / measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import ROOT, Step, Timing, as_json, interleave, parser, show, table
from benchmarks.supernet import BATCH, KINDS, Variant, make_step
from compiler.costs import total_cost
from compiler.elaborate import load
from compiler.ir import Graph
from compiler.ops import BYTES

FORWARDS = {"weight": 3, "gate": 2}  # times the forward pass's FLOPs
TRAFFIC = 3  # times the forward pass's bytes
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LARGE, SMALL = 256 * 2**20, 4 * 2**20  # bytes of a copy beyond any cache, and within one
MATRIX = {"cpu": 2048, "cuda": 8192}


# -- the machine ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ceilings:
    """What the machine does at best, in this run."""

    flops: dict[str, float]  # FLOP/s of a matrix product by precision
    memory: float  # bytes/s read and written by a large copy
    cache: float  # bytes/s by a small one


def finished(step: Callable[[], object], device: torch.device) -> Step:
    """The step with the wait for the device that timing it needs."""
    if device.type != "cuda":
        return step

    def run() -> None:
        step()
        torch.cuda.synchronize(device)

    return run


def probes(device: torch.device, precisions: list[str]) -> tuple[dict[str, Step], dict[str, float]]:
    """Steps that reach a ceiling, and how many FLOPs or bytes each is."""
    steps: dict[str, Step] = {}
    work: dict[str, float] = {}
    size = MATRIX[device.type]
    for name in precisions:
        a, b, out = (torch.randn(size, size, device=device).to(TYPES[name]) for _ in range(3))
        steps[name] = finished(partial(torch.mm, a, b, out=out), device)
        work[name] = 2.0 * size**3
    for name, size, times in (("memory", LARGE, 1), ("cache", SMALL, 64)):
        source, target = (torch.ones(size // 4, device=device) for _ in range(2))
        steps[name] = finished(partial(copy, source, target, times), device)
        work[name] = 2.0 * size * times
    return steps, work


def copy(source: Tensor, target: Tensor, times: int) -> None:
    """Copy again and again."""
    for _ in range(times):
        target.copy_(source)


def ceilings(device: torch.device, precisions: list[str], rounds: int) -> Ceilings:
    """The best of several rounds: whatever else runs can only lower it."""
    steps, work = probes(device, precisions)
    best = {name: work[name] / min(timing.seconds) for name, timing in interleave(steps, rounds).items()}
    return Ceilings({name: best[name] for name in precisions}, best["memory"], best["cache"])


# -- the step ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """What a step must compute and move."""

    flops: float
    bytes: float

    def floor(self, flops_per_second: float, bytes_per_second: float) -> float:
        """Seconds: neither computing nor moving can be quicker."""
        return max(self.flops / flops_per_second, self.bytes / bytes_per_second)


def work_of(graph: Graph, kind: str, precision: str, batch: int = BATCH) -> Work:
    """FLOPs and bytes of a step; see the module."""
    cost = total_cost(graph)
    weights = BYTES * cost.params
    moved = batch * (cost.mac_bytes - weights) + weights
    width = 1.0 if precision == "fp32" else 0.5
    return Work(FORWARDS[kind] * 2.0 * batch * cost.flops, TRAFFIC * moved * width)


def row(graph: Graph, variant: Variant, kind: str, timing: Timing, top: Ceilings) -> dict[str, Any]:
    """A step beside its floor."""
    work, flops = work_of(graph, kind, variant.precision), top.flops[variant.precision]
    floor = work.floor(flops, top.memory)
    return {
        "step": kind,
        "variant": variant.name,
        "gflop": work.flops / 1e9,
        "gigabytes": work.bytes / 1e9,
        "compute_ms": 1e3 * work.flops / flops,
        "memory_ms": 1e3 * work.bytes / top.memory,
        "cache_ms": 1e3 * work.bytes / top.cache,
        "floor_ms": 1e3 * floor,
        "measured_ms": 1e3 * timing.median,
        "reached": floor / timing.median,
        "reached_in_cache": work.floor(flops, top.cache) / timing.median,
        "timing": as_json(timing),
    }


def measure(graph: Graph, config: Any, device: torch.device, precisions: list[str], rounds: int) -> dict[str, Any]:
    """The ceilings before and after the steps (the better counts), and a row for every step."""
    variants = [
        Variant(f"{lowering}, {precision}", lowering, precision=precision)
        for precision in precisions
        for lowering in ("reference", "fused")
    ]
    first = ceilings(device, precisions, rounds)
    timings = {}
    for kind in KINDS:
        steps = {v.name: finished(make_step(v, kind, graph, config, device), device) for v in variants}
        timings[kind] = interleave(steps, rounds)
    last = ceilings(device, precisions, rounds)
    top = Ceilings(
        {name: max(first.flops[name], last.flops[name]) for name in precisions},
        max(first.memory, last.memory),
        max(first.cache, last.cache),
    )
    rows = [row(graph, v, kind, timings[kind][v.name], top) for kind in KINDS for v in variants]
    return {"ceilings": asdict(top), "rows": rows}


def report(found: dict[str, Any]) -> list[str]:
    """A table of ceilings and one of steps."""
    top = found["ceilings"]
    limits = [[f"matrix product, {name}", f"{value / 1e9:,.0f} GFLOP/s"] for name, value in top["flops"].items()]
    limits += [[f"copy of {LARGE >> 20} MiB (memory)", f"{top['memory'] / 1e9:,.1f} GB/s"]]
    limits += [[f"copy of {SMALL >> 20} MiB (cache)", f"{top['cache'] / 1e9:,.1f} GB/s"]]
    header = ["step", "variant", "GFLOP", "GB", "ms to compute", "ms to move", "in cache", "floor ms", "measured ms"]
    rows = [[*list(r.values())[:9], f"{r['reached']:.0%}", f"{r['reached_in_cache']:.0%}"] for r in found["rows"]]
    return [
        table(["ceiling", "measured"], limits),
        table([*header, "reached", "reached, floor in cache"], rows),
    ]


def main() -> None:
    """Measure and print."""
    options = parser(__doc__)
    options.add_argument("--spec", default=str(ROOT / "specs" / "cifar10_small.yaml"))
    options.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE")
    options.add_argument("--device", choices=MATRIX, default="cpu")
    options.add_argument("--precision", choices=TYPES, nargs="+", default=["fp32"])
    options.add_argument("--rounds", type=int, default=9)
    args = options.parse_args()
    spec, graph = load(args.spec, args.settings)
    found = measure(graph, spec.config.search, torch.device(args.device), args.precision, args.rounds)
    show(args.json, found, report(found))


if __name__ == "__main__":
    main()
