"""How near a step of the supernet comes to what the machine can do.

    python -m benchmarks.roofline [--spec SPEC] [--device cpu|cuda] [--precision fp32 bf16] [--rounds N] [--json]

Work, from the cost model (`graphspec compile` prints the same): multiply-adds of convolutions and linear layers count
as 2 FLOPs. A weight step is the forward pass once and the backward pass twice that (gradients of inputs and of
weights); a gate step needs no gradients of weights: forward once, backward once. Bytes are what every op must read and
write once in float32 (half in bf16), weights once a batch, norms and activations in the registers of the op before:
once for forward, twice for backward in both steps (each op reads its input and its output's gradient and writes its
input's gradient). Gates, norms and optimizers count nothing.

Ceilings, measured in the same run: a large matrix product, and copies beyond and within the caches. The floor of a step
is the larger of the times that its FLOPs and its bytes take. It is given twice, because caches keep some of what one op
leaves for the next: `from memory` is the floor if they kept nothing (a step can beat it), `from cache` if they kept
everything (no step that is run op by op can beat it). `reached` is floor / measured.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from benchmarks.common import (
    ROOT,
    Timing,
    as_json,
    best_seconds,
    ceilings,
    finished,
    interleave,
    parser,
    show,
    table,
)
from benchmarks.supernet import BATCH, KINDS, Variant, make_step
from compiler.analysis.costs import total_cost
from compiler.ir.graph import Graph
from compiler.language.config import SearchConfig
from compiler.ops import BYTES
from graphspec.api import load
from runtime.training.heap import freed_memory_kept

FORWARDS = {"weight": 3, "gate": 2}  # times the forward pass's FLOPs
TRAFFIC = 3  # times the forward pass's bytes
PRECISIONS = ("fp32", "bf16")
LARGE, SMALL = 256 * 2**20, 4 * 2**20  # bytes of a copy beyond any cache, and within one


# -- the machine ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Limits:
    """What the machine does at best, in this run."""

    flops: float  # FLOP/s of a matrix product in the step's precision
    memory: float  # bytes/s read and written by a copy beyond any cache
    cache: float  # bytes/s by one within it


def measured_limits(device: torch.device, precisions: Sequence[str], size: int | None) -> dict[str, Limits]:
    """By precision; from matrices of `size` rows (None: large for the device)."""
    top = ceilings(device, size, LARGE)
    source, target = (torch.randn(SMALL // 4, device=device) for _ in range(2))
    cache = 2 * SMALL / best_seconds(lambda: target.copy_(source), device)
    return {name: Limits(top.flops[name], top.bandwidth, cache) for name in precisions}


def better(first: dict[str, Limits], second: dict[str, Limits]) -> dict[str, Limits]:
    """The higher of each: whatever else runs can only lower them."""
    return {
        name: Limits(*(max(getattr(one[name], f.name) for one in (first, second)) for f in fields(Limits)))
        for name in first
    }


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


def row(graph: Graph, variant: Variant, kind: str, timing: Timing, top: Limits) -> dict[str, Any]:
    """A step beside its floor."""
    work = work_of(graph, kind, variant.precision)
    return {
        "step": kind,
        "variant": variant.name,
        "gflop": work.flops / 1e9,
        "gigabytes": work.bytes / 1e9,
        "compute_ms": 1e3 * work.flops / top.flops,
        "memory_ms": 1e3 * work.bytes / top.memory,
        "cache_ms": 1e3 * work.bytes / top.cache,
        "measured_ms": 1e3 * timing.median,
        "reached_from_memory": work.floor(top.flops, top.memory) / timing.median,
        "reached_from_cache": work.floor(top.flops, top.cache) / timing.median,
        "timing": as_json(timing),
    }


def measure(graph: Graph, config: SearchConfig, device: torch.device, args: argparse.Namespace) -> dict[str, Any]:
    """The ceilings (measured before and after the steps), and a row for every step."""
    variants = [
        Variant(f"{lowering}, {precision}", lowering, precision=precision)
        for precision in args.precision
        for lowering in ("reference", "fused")
    ]
    first = measured_limits(device, args.precision, args.matrix)
    timings = {}
    for kind in KINDS:
        steps = {v.name: finished(make_step(v, kind, graph, config, device), device) for v in variants}
        timings[kind] = interleave(steps, args.rounds)
    top = better(first, measured_limits(device, args.precision, args.matrix))
    rows = [row(graph, v, kind, timings[kind][v.name], top[v.precision]) for kind in KINDS for v in variants]
    return {"ceilings": {name: asdict(limits) for name, limits in top.items()}, "rows": rows}


def report(found: dict[str, Any]) -> list[str]:
    """A table of ceilings and one of steps."""
    names = {"memory": f"copy of {LARGE >> 20} MiB", "cache": f"copy of {SMALL >> 20} MiB"}
    limits = [
        [f"matrix product, {name}", f"{top['flops'] / 1e9:,.0f} GFLOP/s"] for name, top in found["ceilings"].items()
    ]
    top = next(iter(found["ceilings"].values()))
    limits += [[names[key], f"{top[key] / 1e9:,.1f} GB/s"] for key in ("memory", "cache")]
    columns = ("step", "variant", "gflop", "gigabytes", "compute_ms", "memory_ms", "cache_ms", "measured_ms")
    header = ["step", "variant", "GFLOP", "GB", "ms to compute", "ms to move from memory", "from cache", "measured ms"]
    reached = ("reached_from_memory", "reached_from_cache")
    rows = [[*(r[key] for key in columns), *(f"{r[key]:.0%}" for key in reached)] for r in found["rows"]]
    return [
        table(["ceiling", "measured"], limits),
        table([*header, "reached, floor from memory", "floor from cache"], rows),
    ]


@freed_memory_kept()  # as in every search
def main() -> None:
    """Measure and print."""
    options = parser(__doc__)
    options.add_argument("--spec", default=str(ROOT / "specs" / "dso_nas_cifar10_small.yaml"))
    options.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE")
    options.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options.add_argument("--precision", choices=PRECISIONS, nargs="+", default=["fp32"])
    options.add_argument("--matrix", type=int, help="rows of the matrices that are multiplied; default: 2048 or 8192")
    options.add_argument("--rounds", type=int, default=9)
    args = options.parse_args()
    spec, graph = load(args.spec, args.settings)
    found = measure(graph, spec.config.search, torch.device(args.device), args)
    show(args.json, found, report(found))


if __name__ == "__main__":
    main()
