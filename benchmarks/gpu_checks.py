"""Is what a GPU computes right? The supernet, APG-NAG, pruning and the data pipeline against float64 on the CPU.

Errors are norms of differences over norms of what is right. Bounds: float64 differs by the order of additions only,
float32 by some 1e-7 for every operation that follows another one, tf32 and bf16 round factors to 11 and 8 bits; the
network is deep, and ReLU and max pooling turn a small difference into a large one here and there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.common import reason
from benchmarks.jobs import TASK, halves, whole_steps
from benchmarks.supernet import Variant, start, thinned
from compiler.ir.graph import Graph, Model
from compiler.language.config import Configuration, DataConfig, RetrainConfig, SearchConfig
from compiler.passes.pipeline import TO_COMPACT
from runtime.data.dataset import Share, load_dataset
from runtime.search.supernet import Supernet
from runtime.strategies.apgnag import APGNAG
from runtime.strategies.dso import gate_optimizer, gate_tensors, restored_gates
from runtime.training.captured import WARM_UP, Capture, CudaGraphs, Graphs
from runtime.training.retrain_job import RetrainJob
from runtime.training.stages import Position
from runtime.training.step import Batch, set_rate

CPU = torch.device("cpu")
LOGITS = {"fp64": 1e-9, "fp32": 1e-4, "tf32": 1e-2, "bf16": 5e-2}
GRADIENTS = {"fp64": 1e-8, "fp32": 2e-2, "tf32": 1e-1, "bf16": 4e-1}


@dataclass(frozen=True)
class Check:
    """One comparison; a number that is not finite is wrong, whatever the bound."""

    name: str
    error: float
    bound: float

    @property
    def passed(self) -> bool:
        """Whether the error is within its bound."""
        return self.error <= self.bound


def all_checks(graph: Graph, config: SearchConfig, device: torch.device, batch: int) -> Iterator[Check]:
    """Every check, one after the other; `graph` should be small."""
    yield from _finished("APG-NAG", _optimizer(device))
    for name, space in (("full", graph), ("pruned", thinned(graph, 0.6))):
        right = _truth(space, config, batch)
        for lowering in ("reference", "fused"):
            for precision in ("fp64", "fp32", "tf32", "bf16") if device.type == "cuda" else ("fp64", "fp32", "bf16"):
                words = f"{name} space, {lowering}, {precision}"
                yield from _finished(words, _passes(words, right, lowering, precision, device))
    yield from _finished("8 steps with a pruning", _trajectory(graph, config, device, batch))
    yield from _finished("captured steps", captured_checks(graph, config, device, batch))
    yield from _finished("captured steps of retraining", retraining_checks(graph, device, batch))
    yield from _finished("a training batch", _data(device))


def _finished(name: str, checks: Iterator[Check]) -> Iterator[Check]:
    """The checks; what keeps them from their end is a wrong result, and others come after it."""
    try:
        yield from checks
    except RuntimeError as error:
        yield Check(f"{name}: {reason(error)}", math.nan, 0.0)


def relative(found: Tensor, right: Tensor) -> float:
    """Norm of the difference over the norm of what is right."""
    found, right = found.detach().double().cpu(), right.detach().double().cpu()
    return float((found - right).norm() / right.norm())


def random_batch(graph: Graph, size: int, device: torch.device, seed: int = 0) -> Batch:
    """Normal pixels and labels of 10 classes."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(size, *graph.node("input").shape, generator=random)
    y = torch.randint(0, 10, (size,), generator=random)
    return x.to(device, memory_format=torch.channels_last), y.to(device)


@contextmanager
def float64() -> Iterator[None]:
    """Within, networks are made of float64 tensors."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


# -- one forward and backward pass ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Right:
    """A supernet with numbers to compare with."""

    graph: Graph
    config: SearchConfig
    batch: Batch
    state: dict[str, Tensor]
    found: dict[str, Tensor]  # logits, and gradients by kind


def _truth(graph: Graph, config: SearchConfig, size: int) -> _Right:
    """Logits and gradients in float64 on the CPU, edge by edge, with random gates."""
    random = torch.Generator().manual_seed(1)
    with float64():
        net = start(Variant("", "reference"), graph, config, CPU)
        with torch.no_grad():
            for vector in net.gate_vectors.values():  # at 0, ReLUs behind stand on their kinks
                vector.copy_(0.3 + torch.rand(vector.shape, generator=random))
        x, y = random_batch(graph, size, CPU)
        batch = x.double(), y
        state = {name: t.clone() for name, t in net.module.state_dict().items()}
        return _Right(graph, config, batch, state, _results(net, batch))


def _results(net: Supernet, batch: Batch) -> dict[str, Tensor]:
    kinds = {kind: dict(sorted(p.items())) for kind, p in (("weight", net.weight_params), ("gate", net.gate_vectors))}
    found = {}
    for kind, (gradients, _) in halves(net).items():
        gradients(batch)
        grads = [p.grad for p in kinds[kind].values()]
        found[kind] = torch.cat([grad.flatten().cpu().double() for grad in grads if grad is not None])
    with torch.no_grad():
        found["logits"] = net.module(batch[0])
    return found


def _passes(name: str, right: _Right, lowering: str, precision: str, device: torch.device) -> Iterator[Check]:
    variant = Variant("", lowering, precision="fp32" if precision == "fp64" else precision)
    x, y = right.batch
    if precision == "fp64":
        with float64():
            net = start(variant, right.graph, right.config, device)
    else:
        net, x = start(variant, right.graph, right.config, device), x.float()
    net.module.load_state_dict(right.state)
    x = x.to(device, memory_format=torch.channels_last)
    found = _results(net, (x, y.to(device)))
    if precision == "bf16":
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
            found["logits"] = net.module(x)
    yield Check(f"{name}: logits", relative(found["logits"], right.found["logits"]), LOGITS[precision])
    for kind in ("weight", "gate"):
        error = relative(found[kind], right.found[kind])
        yield Check(f"{name}: gradients of {kind}s", error, GRADIENTS[precision])


# -- the optimizer, training and pruning ------------------------------------------------------------------------------


def _optimizer(device: torch.device) -> Iterator[Check]:
    """60 steps of APG-NAG on the same gradients."""
    for name, dtype, bound in (("float64", torch.float64, 1e-13), ("float32", torch.float32, 1e-5)):
        ends = []
        for where, kind in ((CPU, torch.float64), (device, dtype)):
            random = torch.Generator().manual_seed(2)
            gates = torch.nn.Parameter(torch.ones(200, dtype=kind, device=where))
            optimizer = APGNAG([gates], lr=0.1, gamma=0.0)
            optimizer.set_gamma(gates, torch.linspace(0, 0.5, 200, dtype=kind))
            for _ in range(60):
                gates.grad = 3 * torch.randn(200, generator=random, dtype=torch.float64).to(where, kind)
                optimizer.step()
            ends.append((gates.detach(), optimizer.is_zero(gates).double()))
        yield Check(f"APG-NAG, {name}: gates after 60 steps", relative(ends[1][0], ends[0][0]), bound)
        yield Check(f"APG-NAG, {name}: which gates are zero", relative(ends[1][1], ends[0][1]), 0.0)


def _trajectory(graph: Graph, config: SearchConfig, device: torch.device, size: int) -> Iterator[Check]:
    """Weight and gate steps in turns, a pruning between them, in float64."""
    closed = set(graph.gates()) - set(thinned(graph, 0.6).gates())
    ends = []
    for where in (CPU, device):
        with float64():
            net = start(Variant(""), graph, config, where)
            gates = gate_optimizer(net)
            x, y = random_batch(graph, size, where)
            for prune_after in (True, False):
                for gradients, optimizer in 2 * list(halves(net, gates).values()):
                    gradients((x.double(), y))
                    optimizer.step()
                if prune_after:
                    state, before = gate_tensors(net, gates), net.graph
                    net = net.pruned(closed)
                    gates = restored_gates(net, state, before)
        ends.append({**net.tensors(), **gate_tensors(net, gates)})
    for part in ("model", "momentum", "gate_state"):
        found, right = (
            torch.cat([t.flatten().cpu() for n, t in end.items() if n.startswith(f"{part}/")]) for end in ends[::-1]
        )
        error = relative(found, right)
        yield Check(f"8 steps with a pruning, fused, float64: {part}", error, 1e-7)


def graphs_of(device: torch.device) -> Graphs | None:
    """What captures there; None on the CPU."""
    return CudaGraphs(device) if device.type == "cuda" else None


def captured_checks(graph: Graph, config: SearchConfig, device: torch.device, size: int) -> Iterator[Check]:
    """Steps that are captured, again after a pruning, beside such that are called: in float64, with changing rates."""
    closed, ends = set(graph.gates()) - set(thinned(graph, 0.6).gates()), []
    said: list[str] = []
    for graphs in (None, graphs_of(device)):
        capture = Capture(graphs, said.append)
        capture.wanted = True
        with float64():
            net = start(Variant(""), graph, config, device, capture)
            gates = gate_optimizer(net)
            for prune_after in (True, False):
                steps = whole_steps(net, gates)
                for seed in range(WARM_UP + 3):
                    x, y = random_batch(graph, size, device, seed)
                    set_rate(gates, config.gates.lr / (1 + seed))
                    for step in steps.values():
                        step((x.double(), y))
                if prune_after:
                    state, before = gate_tensors(net, gates), net.graph
                    net = net.pruned(closed)
                    gates = restored_gates(net, state, before)
        ends.append(torch.cat([t.flatten().double() for t in {**net.tensors(), **gate_tensors(net, gates)}.values()]))
    yield Check(f"captured steps with a pruning, float64{''.join(f': {why}' for why in said)}", relative(*ends), 1e-7)
    yield Check("captured steps: none was called instead", float(len(said)), 0.0)


def retraining_checks(graph: Graph, device: torch.device, size: int) -> Iterator[Check]:
    """The same of a retraining that uses what its steps may have; float32, the same kernels."""
    data = DataConfig(name="fake", fake_size=size * (WARM_UP + 3))
    settings = {"drop_path": 0.2, "ema": 0.9, "clip_norm": 1.0, "optimizer": "adamw", "lr": 0.001, "all_images": True}
    config = Configuration(data=data, retrain=RetrainConfig(batch_size=size, precision="fp32", **settings))
    compact, ends = TO_COMPACT.run(Model(graph)).graph, []
    for graphs in (None, graphs_of(device)):
        capture = Capture(graphs)
        capture.wanted = True
        dataset = load_dataset(data, graph.node("input").shape, TASK, seed=0)
        job = RetrainJob(compact, config, dataset, device, capture=capture)
        for step in range(WARM_UP + 3):
            torch.manual_seed(step)
            job.step(job.stages[0], Position(0, 0, step))
        ends.append(torch.cat([t.flatten().double() for t in job.tensors().values()]))
    yield Check("captured steps of retraining", relative(*ends), 1e-4)


def _data(device: torch.device) -> Iterator[Check]:
    """A training batch that was cropped, flipped, cut out and normalised there, with all others of its epoch."""
    config = DataConfig(name="fake", fake_size=64, crop_padding=4, flip=True)
    found = []
    for where, together in ((CPU, 1), (device, 2)):
        dataset = load_dataset(config, (3, 32, 32), TASK, seed=0)
        augment = replace(dataset.augment, cutout=8)
        loader = dataset.training_loader(torch.arange(64), 32, "weights", Share(where), augment)
        found.append(next(replace(loader, at_once=together).batches(1)))
    yield Check("a training batch: pixels", relative(found[1][0], found[0][0]), 1e-6)
    yield Check("a training batch: labels", relative(found[1][1], found[0][1]), 0.0)
