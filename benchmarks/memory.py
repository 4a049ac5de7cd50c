"""Peak memory of a training step, predicted and measured, and what recompute costs.

    python -m benchmarks.memory [--device cuda] [--precision bf16] [--rounds N] [--json]

Predicted is what `graphspec compile` prints. Measured is by how much a process grows from before its network is made:
its resident memory on the CPU, in a child process per variant; what torch has allocated on CUDA. A step of two images
goes before, so that libraries are loaded. Times are of steps that take turns in one process: trust the ratios.

On the CPU, resident memory includes what the C library holds back: freed memory that it cannot use again. With
MALLOC_MMAP_THRESHOLD_=65536 in the environment it gives every large piece back at once, and takes far longer.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import Bar, in_child, interleave, parser, resident, resident_peak, show, table
from compiler.elaborate import load
from compiler.ir import Graph
from compiler.lowering.memory import MemoryModel, Training
from graphspec.config import SearchConfig
from runtime.supernet import Supernet
from runtime.training import Batch, backward, classification_loss, training_only

Row = dict[str, Any]
Steps = dict[str, Callable[[], None]]
KINDS = ("weight", "gate")
CASES = (("digits", 64), ("cifar10_small", 64), ("cifar10_small", 128))
TOLERANCE, MOST_MEMORY, MOST_TIME = 0.2, 0.5, 1.4


@dataclass(frozen=True)
class Variant:
    """One way to run a step."""

    spec: str
    batch: int
    lowering: str = "fused"
    recompute: bool = False
    precision: str = "fp32"

    def settings(self) -> tuple[Graph, SearchConfig]:
        """The space and how it is searched."""
        spec, graph = load(Path("specs") / f"{self.spec}.yaml")
        changed = {key: value for key, value in asdict(self).items() if key not in ("spec", "batch")}
        return graph, spec.config.search.model_copy(update={**changed, "batch_size": self.batch})


def variants(precision: str) -> Iterator[Variant]:
    """All of them, recompute after the same without it."""
    for spec, batch in CASES:
        for lowering in ("fused", "reference"):
            for recompute in (False, True):
                yield Variant(spec, batch, lowering, recompute, precision)


def make_steps(graph: Graph, config: SearchConfig, batch: int, device: torch.device) -> Steps:
    """A weight step and a gate step of a fresh supernet on a batch of noise."""
    net = Supernet.start(graph, config, device, seed=0, gate_init=1.0)
    weights, gates = list(net.weight_params.values()), list(net.gate_vectors.values())
    x = torch.randn(batch, *graph.node("input").shape, generator=torch.Generator().manual_seed(0))
    images: Batch = (x.to(device, memory_format=torch.channels_last), torch.zeros(batch, dtype=torch.int64).to(device))
    loss_fn = classification_loss(net.module, config, device)

    def weight_step() -> None:
        with training_only(weights, gates):
            backward(loss_fn, images, weights, config)
        net.weights.step()

    def gate_step() -> None:
        with training_only(gates, weights):
            backward(loss_fn, images, gates, config)
        net.gates.step()

    return {"weight": weight_step, "gate": gate_step}


# -- memory -----------------------------------------------------------------------------------------------------------


def measured(variant: Variant, device: torch.device) -> dict[str, float]:
    """By how many MiB memory grows at the peak of each kind of step; weights have gradients and momenta by then."""
    graph, config = variant.settings()
    for step in make_steps(graph, config, 2, device).values():
        step()
    _settle()
    before = _in_use(device)
    steps = make_steps(graph, config, variant.batch, device)
    steps["weight"]()
    found = {}
    for kind in KINDS:
        _settle()
        found[kind] = _peak(steps[kind], device) - before
    return found


def _settle() -> None:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def _in_use(device: torch.device) -> float:
    return torch.cuda.memory_allocated(device) / 2**20 if device.type == "cuda" else resident()


def _peak(step: Callable[[], None], device: torch.device) -> float:
    if device.type == "cpu":
        return resident_peak(step, times=2)
    torch.cuda.reset_peak_memory_stats(device)
    for _ in range(2):
        step()
    return torch.cuda.max_memory_allocated(device) / 2**20


def predicted(variant: Variant, device: torch.device) -> dict[str, float]:
    """The peaks in MiB that the model gives."""
    graph, config = variant.settings()
    memory = MemoryModel(graph, Training.of(config, on_cpu=device.type == "cpu")).at(variant.batch)
    return {"weight": memory.weight_step / 2**20, "gate": memory.gate_step / 2**20}


def memory_rows(found: Sequence[Variant], device: torch.device) -> list[Row]:
    """A row per variant and kind of step."""
    rows = []
    for variant in found:
        measure = in_child("benchmarks.memory", ["--device", str(device), "--child", json.dumps(asdict(variant))])
        model = predicted(variant, device)
        for kind in KINDS:
            ratio = model[kind] / measure[kind]
            rows.append(
                {**asdict(variant), "step": kind, "predicted_mib": model[kind], "measured_mib": measure[kind]}
                | {"predicted_over_measured": ratio}
            )
    return rows


# -- time -------------------------------------------------------------------------------------------------------------


def time_rows(spec: str, batch: int, precision: str, rounds: int, device: torch.device) -> list[Row]:
    """What recompute costs in the fused lowering: a row per kind of step."""
    pair = {on: Variant(spec, batch, recompute=on, precision=precision).settings() for on in (False, True)}
    made = {on: make_steps(graph, config, batch, device) for on, (graph, config) in pair.items()}
    rows = []
    for kind in KINDS:
        timings = interleave({str(on): _waited(made[on][kind], device) for on in made}, rounds, warmup=1)
        plain, again = timings["False"], timings["True"]
        rows.append(
            {
                "spec": spec,
                "batch": batch,
                "step": kind,
                "plain_ms": 1000 * plain.median,
                "recompute_ms": 1000 * again.median,
                "time_ratio": plain.speedup_over(again),
            }
        )
    return rows


def _waited(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    def run() -> None:
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run


# -- the report -------------------------------------------------------------------------------------------------------


def bars(memory: Sequence[Row], times: Sequence[Row]) -> list[Bar]:
    """What prediction and recompute are held to, for every spec and batch size; of predictions the worst case."""
    found = []
    for spec, batch in CASES:
        name = f"{spec} {batch}"
        own = [row for row in memory if (row["spec"], row["batch"]) == (spec, batch)]
        errors = [abs(row["predicted_over_measured"] - 1) for row in own]
        found.append(Bar(f"{name}: prediction, relative error", max(errors), TOLERANCE))
        for kind in KINDS:
            fused = [row for row in own if (row["lowering"], row["step"]) == ("fused", kind)]
            sizes = {row["recompute"]: row["measured_mib"] for row in fused}
            found.append(Bar(f"{name}: recompute, memory of a {kind} step", sizes[True] / sizes[False], MOST_MEMORY))
        for row in times:
            if (row["spec"], row["batch"]) == (spec, batch):
                found.append(Bar(f"{name}: recompute, time of a {row['step']} step", row["time_ratio"], MOST_TIME))
    return found


def report(memory: Sequence[Row], times: Sequence[Row]) -> list[str]:
    """A table of memory and one of times."""
    cells = [
        [
            row["spec"],
            row["batch"],
            row["lowering"],
            "yes" if row["recompute"] else "no",
            row["step"],
            *(row[key] for key in ("predicted_mib", "measured_mib", "predicted_over_measured")),
        ]
        for row in memory
    ]
    header = ["spec", "batch", "lowering", "recompute", "step", "predicted MiB", "measured MiB", "predicted / measured"]
    time_header = ["spec", "batch", "step", "ms", "ms with recompute", "recompute / plain"]
    return [table(header, cells), *([table(time_header, [list(row.values()) for row in times])] if times else [])]


def main() -> None:
    """Measure and print."""
    options = parser(__doc__)
    options.add_argument("--device", default="cpu", help="cpu or cuda")
    options.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    options.add_argument("--rounds", type=int, default=5, help="rounds of timing; 0 leaves the times out")
    options.add_argument("--child", help=argparse.SUPPRESS)  # child: print the peaks of this variant
    args = options.parse_args()
    device = torch.device(args.device)
    if args.child:
        print(json.dumps(measured(Variant(**json.loads(args.child)), device)))
        return
    memory = memory_rows(list(variants(args.precision)), device)
    cases = CASES if args.rounds else ()
    times = [row for case in cases for row in time_rows(*case, args.precision, args.rounds, device)]
    show(args.json, {"memory": memory, "times": times}, report(memory, times), bars(memory, times))


if __name__ == "__main__":
    main()
