"""Steps on a GPU without a word from the CPU: captured once as a CUDA graph and replayed from then on.

A step starts thousands of small kernels, and starting them one by one takes longer than they do. What a captured step
reads must lie where it lay: batches are copied into one place, rates are tensors, and a network that has changed has
steps of its own. On the CPU, and where capturing fails, a step is called.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from compiler.language.config import TrainingConfig
from runtime.training.step import Batch

Run = Callable[[], Tensor]
_STREAM: Any = torch.cuda.Stream  # torch leaves them unannotated
_EVENT: Any = torch.cuda.Event
WARM_UP = 3  # steps that are called before one is captured: optimizers make their state, cuDNN looks for algorithms


class Graphs(Protocol):
    """What captures."""

    def warm(self, run: Run) -> Tensor:
        """Run as it will be captured."""

    def captured(self, run: Run) -> Run:
        """What `run` does, to be replayed; it is not done now. RuntimeError if it cannot be captured."""


class CudaGraphs:
    """CUDA graphs of one device. They share memory, because none runs beside another."""

    def __init__(self, device: torch.device) -> None:
        self.stream, self.pool = _STREAM(device), torch.cuda.graph_pool_handle()
        self.last: torch.cuda.CUDAGraph | None = None  # while one is there the pool stays the same

    def warm(self, run: Run) -> Tensor:
        """Run on the stream that is captured."""
        here = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(here)
        with torch.cuda.stream(self.stream):
            found = run()
        here.wait_stream(self.stream)
        return found

    def captured(self, run: Run) -> Run:
        """Kernels that `run` starts, as a graph; other threads, which load images, may go on meanwhile."""
        gc.collect()  # graphs of a network that is gone
        here, graph = torch.cuda.current_stream(self.stream.device), torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
                found = run()
        finally:
            torch.cuda.set_stream(here)  # torch stays on the other one after an error
        self.last = graph

        def replay() -> Tensor:
            graph.replay()
            return found.clone()  # the next replay writes there

        return replay


class Capture:
    """How a job runs its steps. `graphs`: None where they are called."""

    def __init__(self, graphs: Graphs | None = None, say: Callable[[str], None] = print) -> None:
        self.graphs, self.say = graphs, say
        self.wanted = graphs is not None  # then rates are tensors
        self.steps: weakref.WeakSet[Step] = weakref.WeakSet()

    @classmethod
    def on(cls, device: torch.device, config: TrainingConfig, processes: int, say: Callable[[str], None]) -> Capture:
        """As device and settings allow; on a GPU, why steps are not captured is said."""
        if device.type != "cuda":
            return CALLED
        why = "torch.compile runs them" if config.compile else ""
        why = "several processes share them (DistributedDataParallel)" if processes > 1 else why
        found = cls(None if why else CudaGraphs(device), say)
        if why:
            found.refuse(why)
        return found

    def refuse(self, why: str) -> None:
        """From now on call steps, which need the memory of graphs."""
        self.graphs = None
        for step in self.steps:
            step.forget()
        self.say(f"steps are started kernel by kernel, not as CUDA graphs: {why}")


CALLED = Capture()


class Step:
    """A step, from a batch to its loss (a scalar), of tensors that stay where they are."""

    def __init__(self, run: Callable[[Batch], Tensor], capture: Capture) -> None:
        self.run, self.capture = run, capture
        self.shapes: list[torch.Size] = []  # of the batches that it is or will be captured for
        self.warmed = 0
        self.forget()
        capture.steps.add(self)

    def forget(self) -> None:
        """Drop the graph."""
        self.inputs: Batch | None = None
        self.replay: Run | None = None

    def __call__(self, batch: Batch) -> Tensor:
        """The loss; a batch of another size is no reason to capture anew, so the step is called."""
        graphs, shapes = self.capture.graphs, [each.shape for each in batch]
        if graphs is None or (self.replay and shapes != self.shapes):
            return self.run(batch)
        if shapes != self.shapes:
            self.shapes, self.warmed = shapes, 0
        if self.replay is None and self.warmed < WARM_UP:
            self.warmed += 1
            return graphs.warm(lambda: self.run(batch))
        replay = self.replay or self._captured(graphs, batch)
        if replay is None or self.inputs is None:
            return self.run(batch)
        for place, given in zip(self.inputs, batch, strict=True):
            place.copy_(given)
        return replay()

    def _captured(self, graphs: Graphs, batch: Batch) -> Run | None:
        x, y = batch
        self.inputs = inputs = x.clone(), y.clone()
        try:
            self.replay = graphs.captured(lambda: self.run(inputs))
        except RuntimeError as error:  # of memory, too
            cause = error.__context__ or error  # the end of a capture fails after what went wrong
            self.capture.refuse(str(cause).strip().partition("\n")[0])
        return self.replay


class Early:
    """Numbers on their way from the device: who reads them waits for them, and not for what began after them."""

    def __init__(self, values: Tensor) -> None:
        self.values = values.to("cpu", non_blocking=True)
        self.there = _EVENT() if values.is_cuda else None
        if self.there:
            self.there.record(torch.cuda.current_stream(values.device))

    def read(self) -> list[float]:
        """The numbers."""
        if self.there:
            self.there.synchronize()
        found: list[float] = self.values.tolist()
        return found
