"""The supernet's step by lowering, layout, precision and size: `python -m benchmarks.supernet`.

A weight step and a gate step are what the search does: batch, forward, backward, optimizer. Variants take turns in
one process. `peak MiB` is what torch allocates in a step at most, besides weights and momenta, by its own account in a
child process per variant; by how much a process grows, `benchmarks.memory` tells. Run with nothing else on the machine,
and trust the ratios.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import (
    Bar,
    account,
    as_json,
    dispatched_ops,
    in_child,
    interleave,
    parser,
    show,
    table,
)
from benchmarks.jobs import TASK, halves
from compiler.elaborate.builder import load
from compiler.ir.graph import Block, Graph
from compiler.language.config import SearchConfig
from compiler.passes.prune_zero_edges import prune
from runtime.search.supernet import Supernet
from runtime.training.captured import CALLED, Capture
from runtime.training.heap import freed_memory_kept
from runtime.training.step import set_precision

Row = dict[str, Any]
KINDS = ("weight", "gate")
BATCH, IMAGES = 64, 1024


@dataclass(frozen=True)
class Variant:
    """One way to run the supernet."""

    name: str
    lowering: str = "fused"
    channels_last: bool = True
    pruned: float = 0.0  # share of the gated edges taken away
    recompute: bool = False
    precision: str = "fp32"
    compiled: bool = False


VARIANTS = (
    Variant("per-edge, default layout", "reference", channels_last=False),
    Variant("per-edge", "reference"),
    Variant("fused"),
    Variant("fused, recompute", recompute=True),
    Variant("per-edge, 90 % pruned", "reference", pruned=0.9),
    Variant("fused, 90 % pruned", pruned=0.9),
)
EXTRA = (
    Variant("per-edge, bf16", "reference", precision="bf16"),
    Variant("fused, bf16", precision="bf16"),
    Variant("per-edge, compiled", "reference", compiled=True),
    Variant("fused, compiled", compiled=True),
)
BASE, DEFAULT_LAYOUT, FUSED, PRUNED = "per-edge", "per-edge, default layout", "fused", "fused, 90 % pruned"


# -- the network ------------------------------------------------------------------------------------------------------


def thinned(graph: Graph, share: float, seed: int = 0) -> Graph:
    """The graph with this share of every block's gated edges gone; what stays are random paths through the block."""
    rng = random.Random(seed)
    closed: set[str] = set()
    for block in graph.blocks:
        gates = {e.gate for n in graph.nodes() if block.holds(n.id) for e in graph.inputs(n.id) if e.gate is not None}
        wanted = round(len(gates) * (1 - share))
        if wanted:  # a block with few gates, such as a reduction, is left whole
            closed |= gates - _random_paths(graph, block, rng, wanted)
    return prune(graph, closed)


def _random_paths(graph: Graph, block: Block, rng: random.Random, wanted: int, tries: int = 1000) -> set[str]:
    """The gates of random paths, so many or as near below as so many tries come; at least those of one path."""
    kept: set[str] = set()
    for _ in range(tries):
        path = _random_path(graph, block, rng)
        if not kept or len(kept | path) <= wanted:
            kept |= path
        if len(kept) >= wanted:
            break
    return kept


def _random_path(graph: Graph, block: Block, rng: random.Random) -> set[str]:
    """The gates on a random walk from an input of the block to its output."""
    gates, at = set(), rng.choice(block.inputs)
    while at != block.output:
        edge = rng.choice([e for e in graph.users(at) if block.holds(e.dst)])
        at = edge.dst
        if edge.gate is not None:
            gates.add(edge.gate)
    return gates


# -- one step ---------------------------------------------------------------------------------------------------------


CPU = torch.device("cpu")


def start(
    variant: Variant, graph: Graph, config: SearchConfig, device: torch.device = CPU, capture: Capture = CALLED
) -> Supernet:
    """A fresh supernet; also sets the precision of the process."""
    settings = {
        "lowering": variant.lowering,
        "recompute": variant.recompute,
        "precision": variant.precision,
        "compile": variant.compiled,
    }
    config = config.model_copy(update=settings)
    set_precision(config, device)
    graph = thinned(graph, variant.pruned) if variant.pruned else graph
    net = Supernet.start(graph, TASK, config, device, seed=0, gate_init=1.0, capture=capture)
    if not variant.channels_last:
        net.module.to(memory_format=torch.contiguous_format)
    return net


def make_step(
    variant: Variant, kind: str, graph: Graph, config: SearchConfig, device: torch.device = CPU
) -> Callable[[], None]:
    """A weight or gate step of a fresh supernet, its batch included."""
    net = start(variant, graph, config, device)
    layout = torch.channels_last if variant.channels_last else torch.contiguous_format
    gradients, optimizer = halves(net)[kind]
    batch = _batches(net.graph, layout, device)

    def step() -> None:
        set_precision(net.config, device)  # of the process: variants take turns
        gradients(batch())
        optimizer.step()

    return step


def _batches(graph: Graph, layout: torch.memory_format, device: torch.device) -> Callable[[], tuple[Tensor, Tensor]]:
    """Random batches from uint8 images in the device's memory, normalised."""
    generator = torch.Generator().manual_seed(0)
    shape = (IMAGES, *graph.node("input").shape)
    images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8).to(device)
    labels = torch.randint(0, 10, (IMAGES,), generator=generator).to(device)

    def batch() -> tuple[Tensor, Tensor]:
        rows = torch.randperm(IMAGES, generator=generator)[:BATCH].to(device)
        return images[rows].to(memory_format=layout).float().sub_(127.5).div_(64.0), labels[rows]

    return batch


# -- the report -------------------------------------------------------------------------------------------------------


def measure(
    kind: str, variants: Sequence[Variant], graph: Graph, config: SearchConfig, args: argparse.Namespace
) -> list[Row]:
    """One row per variant."""
    steps = {v.name: make_step(v, kind, graph, config) for v in variants}
    timings = interleave(steps, args.rounds)
    rows = []
    for variant in variants:
        timing, step = timings[variant.name], steps[variant.name]
        child = ["--spec", args.spec, "--peak", variant.name, "--kind", kind]
        rows.append(
            {
                "variant": variant.name,
                "step": kind,
                **as_json(timing),
                "speedup": timing.speedup_over(timings[BASE]),
                "speedup_default_layout": timing.speedup_over(timings[DEFAULT_LAYOUT]),
                "speedup_fused": timing.speedup_over(timings[FUSED]),
                "peak_mib": in_child("benchmarks.supernet", child),
                "ops": None if variant.compiled else dispatched_ops(step),
            }
        )
    return rows


def bars(rows: Sequence[Row]) -> list[Bar]:
    """The figures that the fused lowering is held to."""
    found = []
    for kind in sorted({row["step"] for row in rows}):
        by_name = {row["variant"]: row for row in rows if row["step"] == kind}
        fused, pruned = by_name[FUSED], by_name[PRUNED]
        memory = fused["peak_mib"] / by_name[BASE]["peak_mib"]
        found += [
            Bar(f"{kind} step: speed against per-edge", fused["speedup"], 1.2, at_least=True),
            Bar(f"{kind} step: against the default layout", fused["speedup_default_layout"], 2.3, at_least=True),
            Bar(f"{kind} step: peak memory against per-edge", memory, 0.7),
            Bar(f"{kind} step: time with 90 % pruned", 1 / pruned["speedup_fused"], 0.5),
        ]
    return found


def report(rows: Sequence[Row]) -> list[str]:
    """A table of all steps."""
    keys = ("median", "min", "max")
    cells = [
        [row["step"], row["variant"], *(1000 * row[key] for key in keys), row["speedup"], row["peak_mib"], row["ops"]]
        for row in rows
    ]
    return [table(["step", "variant", "median ms", "min", "max", "speed", "peak MiB", "operators"], cells)]


@freed_memory_kept()  # as in every search
def main() -> None:
    """Measure and print."""
    options = parser(__doc__)
    options.add_argument("--spec", default="specs/dso_nas_cifar10_small.yaml")
    options.add_argument("--rounds", type=int, default=9)
    options.add_argument("--all", action="store_true", help="also bf16 and torch.compile (minutes of compiling)")
    options.add_argument("--peak", help=argparse.SUPPRESS)  # child: print the peak memory of this variant
    options.add_argument("--kind", choices=KINDS, help="only this kind of step")
    args = options.parse_args()
    spec, graph = load(args.spec)
    config = spec.config.search
    if args.peak:
        variant = next(v for v in (*VARIANTS, *EXTRA) if v.name == args.peak)
        step = make_step(variant, args.kind, graph, config)
        step()  # makes the momenta, and compiled code
        print(json.dumps(account(step)[1] / 2**20))
        return
    variants = (*VARIANTS, *EXTRA) if args.all else VARIANTS
    rows = [row for kind in KINDS if args.kind in (None, kind) for row in measure(kind, variants, graph, config, args)]
    show(args.json, {"rows": rows}, report(rows), bars(rows))


if __name__ == "__main__":
    main()
