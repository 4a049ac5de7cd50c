"""How much faster a search step is when several processes share its batch.

    torchrun --nproc-per-node 2 -m benchmarks.scale [--spec SPEC] [--rounds N]

Weight and gate steps of one process on a whole batch (the others wait), and of all on a slice each, with and without
`sync_batch_norm`, in turns.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.common import parser, show, table
from benchmarks.jobs import TASK, halves
from compiler.elaborate.builder import load
from compiler.ir.graph import INPUT, Graph
from compiler.language.config import SearchConfig
from runtime.processes.launch import Launch
from runtime.processes.world import ALONE, World
from runtime.search.supernet import Supernet
from runtime.training.heap import freed_memory_kept
from runtime.training.step import choose_device, set_precision

KINDS = ("weight", "gate")


def make_step(graph: Graph, config: SearchConfig, kind: str, world: World) -> Callable[[], None]:
    """A step on this process's slice of a batch of random images, the optimizer included."""
    device = choose_device("auto")
    set_precision(config, device)
    net = Supernet.start(graph, TASK, config, device, seed=0, gate_init=1.0, world=world)
    gradients, optimizer = halves(net)[kind]
    generator = torch.Generator().manual_seed(world.rank)
    x = torch.randn(config.batch_size // world.size, *graph.node(INPUT).shape, generator=generator)
    batch = (x.to(device), torch.zeros(len(x), dtype=torch.int64, device=device))

    def step() -> None:
        loss = gradients(batch)
        optimizer.step()
        world.tables([float(loss)])

    return step


@freed_memory_kept()  # as in every search
def measured(graph: Graph, config: SearchConfig, world: World, rounds: int) -> list[dict[str, Any]]:
    """Median seconds of each kind of step, and the speed of many over that of one."""
    found = []
    for kind in KINDS:
        apart = config.model_copy(update={"sync_batch_norm": False})
        variants = {
            "one process": make_step(graph, config, kind, ALONE) if world.is_main else None,
            "together": make_step(graph, config, kind, world),
            "together, without sync_batch_norm": make_step(graph, apart, kind, world),
        }
        seconds: dict[str, list[float]] = {name: [] for name in variants}
        for _ in range(rounds + 1):  # the first round warms up
            for name, step in variants.items():
                dist.barrier()
                start = time.perf_counter()
                if step is not None:
                    step()
                dist.barrier()
                seconds[name].append(time.perf_counter() - start)
        base = seconds["one process"][1:]
        for name, taken in seconds.items():
            speed = statistics.median(b / t for b, t in zip(base, taken[1:], strict=True))
            found.append({"step": kind, "variant": name, "seconds": statistics.median(taken[1:]), "speed": speed})
    return found


def main() -> None:
    """Measure and print."""
    options = parser(__doc__)
    options.add_argument("--spec", default="specs/dso_nas_cifar10_small.yaml")
    options.add_argument("--rounds", type=int, default=7)
    args = options.parse_args()
    if Launch.here().size == 1:
        options.error("it compares processes: torchrun --nproc-per-node 2 -m benchmarks.scale")
    spec, graph = load(args.spec)
    world = World.join(choose_device("auto"))
    rows = measured(graph, spec.config.search, world, args.rounds)
    world.leave()
    if world.is_main:
        cells = [[row["step"], row["variant"], 1e3 * row["seconds"], row["speed"]] for row in rows]
        show(args.json, {"measured": rows}, [table(["step", "variant", "median ms", "speed"], cells)])


if __name__ == "__main__":
    main()
