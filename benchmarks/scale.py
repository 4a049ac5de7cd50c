"""What it costs that several processes share a step: predicted from the cost model, or measured here.

    python -m benchmarks.scale [--spec SPEC] [--processes 1 8 64] [--flops F] [--memory B] ...
    torchrun --nproc-per-node 2 -m benchmarks.scale --measure [--spec SPEC] [--rounds N]

Predicted, every process with a whole batch of its own (*weak* scaling). Computing takes the roofline's floor of
`benchmarks.roofline` divided by the share of it that is reached. A weight step sends the gradients of all weights in a
ring: 2 (N - 1) / N times their bytes, of which torch hides what fits into the backward pass (two thirds of the step); a
gate step sends those of the gates. Every batch norm adds one message forwards and one backwards, whose latency nothing
hides, and every step one for losses and signals. Up to `--per-machine` processes talk over the near link, more over the
far one. Efficiency is computing / (computing + what is not hidden).

Measured: weight and gate steps of one process on a whole batch (the others wait), and of all on a slice each (*strong*
scaling: the same batch), with and without `sync_batch_norm`, in turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.common import parser, show, table
from benchmarks.jobs import halves
from benchmarks.roofline import work_of
from compiler.analysis.costs import total_cost
from compiler.elaborate.builder import load
from compiler.ir.graph import INPUT, OUTPUT, Graph
from compiler.language.config import SearchConfig
from compiler.ops import BYTES, steps
from runtime.processes.launch import Launch
from runtime.processes.world import ALONE, World
from runtime.search.supernet import Supernet
from runtime.training.heap import freed_memory_kept
from runtime.training.step import choose_device, set_precision

KINDS = ("weight", "gate")
HIDDEN = 2 / 3  # share of a weight step during which gradients can be sent: the backward pass

# -- predicted --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prediction:
    """A step of `processes` processes, each with a batch of its own."""

    step: str
    processes: int
    computing_ms: float
    sent_mb: float  # gradients that each process sends
    sending_ms: float
    messages: int  # whose latency nothing hides
    messages_ms: float
    efficiency: float
    efficiency_without_sync: float  # with sync_batch_norm false


def norms(graph: Graph) -> int:
    """Batch norms of the supernet."""
    nodes = [node for node in graph.nodes() if node.op not in (INPUT, OUTPUT)]
    return sum(step.op == "batch_norm" for node in nodes for step in steps(node.op, node.attrs))


def predict(graph: Graph, kind: str, processes: int, args: argparse.Namespace) -> Prediction:
    """See the module."""
    near = processes <= args.per_machine
    bandwidth, latency = (args.near_bandwidth, args.near_latency) if near else (args.far_bandwidth, args.far_latency)
    floor = work_of(graph, kind, args.precision, args.batch).floor(args.flops, args.memory)
    computing = floor / args.reached
    gradients = BYTES * (total_cost(graph).params if kind == "weight" else len(graph.gates()))
    sent = 2 * (processes - 1) / processes * gradients
    sending = sent / bandwidth
    shown = max(0.0, sending - HIDDEN * computing) if kind == "weight" else sending
    alone = processes == 1
    messages = 0 if alone else 1 + 2 * norms(graph)
    once = 0.0 if alone else latency
    return Prediction(
        kind,
        processes,
        1e3 * computing,
        sent / 1e6,
        1e3 * sending,
        messages,
        1e3 * messages * once,
        computing / (computing + shown + messages * once),
        computing / (computing + shown + once),
    )


def predicted(graph: Graph, args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """All predictions as a record and as a table."""
    rows = [predict(graph, kind, n, args) for kind in KINDS for n in args.processes]
    header = ["step", "processes", "computing ms", "sent MB", "sending ms", "messages", "messages ms", "efficiency"]
    cells = [list(asdict(row).values()) for row in rows]
    return {"predicted": [asdict(row) for row in rows]}, [table([*header, "without sync_batch_norm"], cells)]


# -- measured ---------------------------------------------------------------------------------------------------------


def make_step(graph: Graph, config: SearchConfig, kind: str, world: World) -> Callable[[], None]:
    """A step on this process's slice of a batch of random images, the optimizer included."""
    device = choose_device("auto")
    set_precision(config, device)
    net = Supernet.start(graph, config, device, seed=0, gate_init=1.0, world=world)
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
    """Predict or measure, and print."""
    options = parser(__doc__)
    options.add_argument("--spec", default="specs/dso_nas_cifar10_share.yaml")
    options.add_argument("--measure", action="store_true", help="under torchrun: time steps instead of predicting")
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--processes", type=int, nargs="+", default=[1, 2, 8, 16, 64])
    options.add_argument("--batch", type=int, default=128, help="images of each process")
    options.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    options.add_argument("--flops", type=float, default=700e12, help="of a matrix product, per second")
    options.add_argument("--memory", type=float, default=3.0e12, help="bytes per second of a copy")
    options.add_argument("--reached", type=float, default=0.5, help="share of the roofline that a step reaches")
    options.add_argument("--per-machine", type=int, default=8, help="processes joined by the near link")
    options.add_argument("--near-bandwidth", type=float, default=300e9, help="bytes per second")
    options.add_argument("--near-latency", type=float, default=20e-6, help="seconds of a small message")
    options.add_argument("--far-bandwidth", type=float, default=40e9)
    options.add_argument("--far-latency", type=float, default=50e-6)
    args = options.parse_args()
    spec, graph = load(args.spec)
    if not args.measure:
        record, tables = predicted(graph, args)
        show(args.json, record, tables)
        return
    if Launch.here().size == 1:
        options.error("--measure compares processes: torchrun --nproc-per-node 2 -m benchmarks.scale --measure")
    world = World.join(choose_device("auto"))
    rows = measured(graph, spec.config.search, world, args.rounds)
    if world.is_main:
        cells = [[row["step"], row["variant"], 1e3 * row["seconds"], row["speed"]] for row in rows]
        show(args.json, {"measured": rows}, [table(["step", "variant", "median ms", "speed"], cells)])


if __name__ == "__main__":
    main()
