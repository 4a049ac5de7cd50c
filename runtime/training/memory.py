"""Whether training fits into the memory there is: real steps at small batches of noise tell, before it starts.

What a step takes grows linearly with its images. Afterwards all is as it was, to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.optim import Optimizer

from compiler.errors import RunError
from compiler.language.config import SearchConfig, TrainingConfig
from runtime.data.sources import MemoryImages
from runtime.jobs.runner import Workplace
from runtime.processes.launch import Launch
from runtime.tasks.base import Task
from runtime.training.allocated import OnCpu, OnCuda
from runtime.training.free_memory import available_memory
from runtime.training.step import Batch, evaluate

SMALL = 2  # images of a part of the first batch that is measured; the second has twice as many
IMAGES_OUTWEIGH = 3  # times what does not depend on the batch: else the peak is elsewhere, and both batches are doubled
EVALUATED = 64  # the most images that are evaluated to measure it


@dataclass(frozen=True)
class Trial:
    """A job, as far as its memory is asked for."""

    task: Task
    config: TrainingConfig
    module: nn.Module
    optimizers: Sequence[Optimizer]
    step: Callable[[Batch], object]  # one weight step, and one gate step where there are gates


@dataclass(frozen=True)
class Line:
    """Bytes by number of images."""

    fixed: float
    image: float

    @classmethod
    def through(cls, images: Sequence[int], found: Sequence[int]) -> Line:
        """The line through two measurements; a single one stands for every number."""
        image = max(0.0, (found[-1] - found[0]) / (images[-1] - images[0])) if len(images) > 1 else 0.0
        return cls(found[-1] - image * images[-1], image)

    def at(self, images: int) -> int:
        """Bytes for so many images."""
        return round(self.fixed + self.image * images)

    def most(self, free: int) -> int:
        """How many images fit; 0 if none does."""
        return max(0, math.floor((free - self.fixed) / self.image)) if self.image else 0


def require_memory(trial: Trial, place: Workplace) -> None:
    """RunError if the job's batch cannot fit, with the largest that would; of several processes, each asks for itself.

    A job that goes on from a checkpoint fitted before. Compiled code is not measured: it would be compiled twice more.
    """
    config, world, free = trial.config, place.world.size, available_memory(place.device)
    if free is None or config.compile or place.folder.has_results:
        return
    free = free // Launch.here().local_size if place.device.type == "cpu" else free - _copied(config, place)
    images = len(place.dataset.train.targets)
    validated = min(config.evaluation_batch, max(1, round(images * place.dataset.config.validation)))
    batch = -(-min(config.batch_size, images) // world)
    step, evaluation = measured(trial, place.device, place.opened.spec.input, batch)
    validation = evaluation.at(-(-validated // world))
    needed = max(step.at(batch), validation)
    if needed > free:
        job = "search" if isinstance(config, SearchConfig) else "retrain"
        hints = [f"--set {job}.{hint}" for hint in _hints(config, step, batch, free, world, validation <= free)]
        hints = hints or [f"a narrower network or smaller images: one image takes {_readable(step.at(1))}"]
        raise RunError(
            f"{job}.batch_size {config.batch_size} does not fit: training takes {_readable(needed)} at its peak, "
            f"{_readable(free)} are available ({place.device})\n"
            f"  try: {'; or '.join(hints)}"
        )


def _copied(config: TrainingConfig, place: Workplace) -> int:
    """Bytes of the images that will be copied to the GPU; a search sees no test images."""
    sets = (place.dataset.train,) if isinstance(config, SearchConfig) else (place.dataset.train, place.dataset.test)
    return sum(images.images.nbytes for images in sets if isinstance(images, MemoryImages))


def _hints(config: TrainingConfig, step: Line, batch: int, free: int, world: int, validates: bool) -> Iterator[str]:
    """Settings that fit, and one that may; none where not even one image fits."""
    most = step.most(free)
    if most and validates:
        yield f"batch_size={world * most}, the largest that fits"
    parts = max(2, math.ceil(batch * config.accumulate / most)) if most else math.inf
    if parts <= batch:
        yield f"accumulate={parts}, which takes a batch in parts"
    if most and not config.recompute:
        yield "recompute=true, which takes less memory and more time"


def measured(trial: Trial, device: torch.device, shape: Sequence[int], batch: int) -> tuple[Line, Line]:
    """What steps and evaluations take of inputs of this shape, besides what the job holds already."""
    module, optimizers = trial.module, trial.optimizers
    there = [*module.parameters(), *module.buffers()]
    meter = OnCuda(device) if device.type == "cuda" else OnCpu(there)

    def line(run: Callable[[Batch], object], images: int, most: int) -> Line:
        sizes = sorted({min(most, n) for n in (images, 2 * images)})
        batches = (partial(noise, n, shape, trial.task, device) for n in sizes)
        found = Line.through(sizes, [meter.peak(partial(lambda make: run(make()), make)) for make in batches])
        enough = found.image * sizes[-1] > IMAGES_OUTWEIGH * found.fixed
        return found if enough or sizes[-1] == most else line(run, 2 * images, most)

    with _put_back(module, optimizers, device):
        meter.peak(lambda: _start(optimizers))
        step = line(trial.step, SMALL * trial.config.accumulate, batch)
        return step, line(lambda images: evaluate(trial.task, module, [images]), SMALL, EVALUATED)


def noise(images: int, shape: Sequence[int], task: Task, device: torch.device) -> Batch:
    """A batch of inputs of this shape, (C, H, W) or (C, T), with made-up targets."""
    x = torch.rand(images, *shape, generator=torch.Generator().manual_seed(0))
    layout = torch.channels_last if x.dim() == 4 else torch.preserve_format
    return x.to(device, memory_format=layout), task.fake(torch.arange(images)).to(device)


def _start(optimizers: Sequence[Optimizer]) -> None:
    """Have the optimizers make what they keep, so that it is there in both steps."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()


@contextmanager
def _put_back(module: nn.Module, optimizers: Sequence[Optimizer], device: torch.device) -> Iterator[None]:
    """At the end of this context all numbers are as at its beginning, and there are no gradients."""
    tensors = [*module.parameters(), *module.buffers()]
    before = [tensor.detach().clone() for tensor in tensors]
    states = [{parameter: deepcopy(state) for parameter, state in o.state.items()} for o in optimizers]
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
    with torch.no_grad():
        for tensor, value in zip(tensors, before, strict=True):
            tensor.copy_(value)
            tensor.grad = None
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.state.clear()
        optimizer.state.update(state)


def _readable(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
