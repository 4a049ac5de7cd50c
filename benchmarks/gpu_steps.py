"""What `benchmarks.gpu` measures: a training step of the supernet in every form, and what one step does on the GPU."""

from __future__ import annotations

import functools
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Parameter

from benchmarks.common import Step, dispatched_ops, seconds_for, wait_for
from benchmarks.jobs import Gradients, halves
from benchmarks.supernet import thinned
from compiler.ir.graph import Graph
from compiler.language.config import SearchConfig
from runtime.search.supernet import Supernet
from runtime.strategies.apgnag import APGNAG
from runtime.strategies.penalties import Penalty, set_gammas
from runtime.training.step import Batch, set_precision

KINDS = ("weight", "gate")
WARM_UP = 3


@dataclass(frozen=True)
class Variant:
    """One way to run the supernet's steps."""

    lowering: str = "fused"
    precision: str = "fp32"
    channels_last: bool = True
    graphed: bool = False  # forward and backward pass replayed as a CUDA graph
    compiled: bool = False
    searched: bool = False  # cuDNN tries its algorithms out and takes the fastest
    pruned: float = 0.0  # share of the gated edges taken away

    @property
    def name(self) -> str:
        """Its settings in words."""
        extras = {
            "CUDA graph": self.graphed,
            "torch.compile": self.compiled,
            "cuDNN searched": self.searched,
            "default layout": not self.channels_last,
            f"{self.pruned:.0%} pruned": self.pruned > 0,
        }
        return ", ".join([self.lowering, self.precision, *(word for word, true in extras.items() if true)])

    def graph(self, full: Graph) -> Graph:
        """What is left of the whole graph."""
        return thinned(full, self.pruned) if self.pruned else full

    def settings(self, config: SearchConfig) -> SearchConfig:
        """A search's settings with its own."""
        own = {"lowering": self.lowering, "precision": self.precision, "compile": self.compiled}
        return config.model_copy(update=own)

    def needs_cuda(self) -> bool:
        """Whether it says something on a GPU only."""
        return self.graphed or self.searched or self.precision == "tf32"


@dataclass(frozen=True)
class Taken:
    """What a step takes."""

    seconds: tuple[float, ...]
    peak_bytes: int | None  # of GPU memory, the network's and the step's

    @property
    def median(self) -> float:
        """Median seconds."""
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class Profile:
    """What one step does."""

    kernels: int  # started on the GPU, copies and fills included; operators sent to the backend on a CPU
    busy_seconds: float | None  # of the GPU
    by_kernel: dict[str, float]  # GPU seconds by the kernel's name


class Graphed:
    """Gradients of batches of one size, captured once as a CUDA graph: a call replays its kernels."""

    def __init__(self, gradients: Gradients, batch: Batch, params: Sequence[Parameter]) -> None:
        x, y = batch
        self._params, self._batch = params, (x.clone(), y.clone())
        stream = _side_stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # what is made once, such as index tensors, must be there before the capture
            for _ in range(WARM_UP):
                gradients(self._batch)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._loss = gradients(self._batch)
        self._grads = [p.grad for p in params]

    def __call__(self, batch: Batch) -> Tensor:
        """The loss; the gradients are in the parameters, all of it valid until the next call."""
        for mine, new in zip(self._batch, batch, strict=True):
            mine.copy_(new)
        self._graph.replay()
        for p, grad in zip(self._params, self._grads, strict=True):
            p.grad = grad
        return self._loss


@functools.cache
def _side_stream() -> torch.cuda.Stream:
    """One for all graphs: a stream's work space stays with the process."""
    return torch.cuda.Stream()


def random_batch(graph: Graph, size: int, device: torch.device, channels_last: bool = True) -> Batch:
    """Normal pixels and labels of 10 classes."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(size, *graph.node("input").shape, generator=random)
    y = torch.randint(0, 10, (size,), generator=random)
    return x.to(device, memory_format=torch.channels_last if channels_last else torch.contiguous_format), y.to(device)


def start(variant: Variant, graph: Graph, config: SearchConfig, device: torch.device) -> Supernet:
    """A fresh supernet; also sets the process's precision."""
    config = variant.settings(config)
    set_precision(config, device)
    torch.backends.cudnn.benchmark = variant.searched
    net = Supernet.start(variant.graph(graph), config, device, 0, 1.0)
    if not variant.channels_last:
        net.module.to(memory_format=torch.contiguous_format)
    return net


def step_of(net: Supernet, kind: str, batch: Batch, graphed: bool = False, gates: APGNAG | None = None) -> Step:
    """A weight or gate step as the search takes it, always on the same batch."""
    gradients, optimizer = halves(net, gates)[kind]
    penalty = Penalty(net.graph, net.graph, net.config.gates)
    if graphed:
        params = net.weight_params if kind == "weight" else net.gate_vectors
        gradients = Graphed(gradients, batch, list(params.values()))

    def step() -> None:
        if isinstance(optimizer, APGNAG):
            set_gammas(penalty, optimizer, net.gate_vectors)
        gradients(batch)
        optimizer.step()

    return step


def measure(net: Supernet, kind: str, batch: Batch, variant: Variant, seconds: float, least: int) -> Taken:
    """Run a kind of step for about so many seconds, at least `least` times."""
    device = net.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    step = _warm(net, kind, batch, variant)
    found: list[float] = []
    until = time.perf_counter() + seconds
    while len(found) < least or (time.perf_counter() < until and len(found) < 50):
        found.append(seconds_for(step, device))
    return Taken(tuple(found), torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None)


def profiled(net: Supernet, kind: str, batch: Batch, variant: Variant) -> Profile:
    """What a kind of step does. Under CUDA it may slow down all that this process does after it."""
    step = _warm(net, kind, batch, variant)
    if net.device.type != "cuda":
        return Profile(dispatched_ops(step), None, {})
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    wait_for(net.device)
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
        step()
        wait_for(net.device)
    events = [event for event in profiler.events() if event.device_type == DeviceType.CUDA]
    seconds: Counter[str] = Counter()
    for event in events:
        seconds[event.name] += event.time_range.elapsed_us() / 1e6
    return Profile(len(events), sum(seconds.values()), dict(seconds.most_common(20)))


def _warm(net: Supernet, kind: str, batch: Batch, variant: Variant) -> Step:
    step = step_of(net, kind, batch, variant.graphed)
    for _ in range(WARM_UP):
        step()
    return step
