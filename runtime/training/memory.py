"""Whether training fits into the memory there is: asked once, before it starts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from compiler.errors import RunError
from compiler.ir.graph import Graph
from compiler.language.config import SearchConfig, TrainingConfig
from compiler.lowering.memory import MemoryModel, Training
from runtime.data.sources import MemoryImages
from runtime.jobs.runner import Workplace, has_results
from runtime.processes.launch import Launch
from runtime.training.heap import heap_here

ROOT = Path("/")
JEMALLOC = "LD_PRELOAD=libjemalloc.so.2"


# -- what there is ----------------------------------------------------------------------------------------------------


def available_memory(device: torch.device) -> int | None:
    """Bytes that can still be had on a device; None where the system does not say."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return host_memory(ROOT)


def host_memory(root: Path) -> int | None:
    """Bytes that a process of this machine can still get, swap and control groups taken into account."""
    sizes = _fields(root / "proc/meminfo")
    if "MemAvailable" in sizes:
        limits = [1024 * (sizes["MemAvailable"] + sizes.get("SwapFree", 0)), *_group_limits(root)]
        return max(0, min(limits))
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # no more than the machine has
    except (AttributeError, OSError, ValueError):
        return None


def _group_limits(root: Path) -> Iterator[int]:
    """What each control group that this process is in, of version 2 or 1, leaves of its limit."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mount, limit, usage, cache = root / "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            mount, limit, usage = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cache = "total_inactive_file"
        else:
            continue
        own = Path(path.lstrip("/"))
        for folder in (mount / part for part in (own, *own.parents)):
            most, used = _text(folder / limit).strip(), _text(folder / usage).strip()
            if most.isdigit() and used.isdigit():
                yield int(most) - int(used) + _fields(folder / "memory.stat").get(cache, 0)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def _fields(path: Path) -> dict[str, int]:
    """Lines of a name and a number."""
    words = [line.replace(":", " ").split() for line in _text(path).splitlines()]
    return {word[0]: int(word[1]) for word in words if len(word) > 1 and word[1].isdigit()}


# -- whether it fits --------------------------------------------------------------------------------------------------


def require_memory(graph: Graph, config: TrainingConfig, place: Workplace) -> None:
    """RunError if training `graph` is sure not to fit; with the largest batch that would.

    A job that goes on from a checkpoint fitted before, and may have become smaller since.
    """
    if not has_results(place.folder):
        images = len(place.dataset.train.targets)
        validation = round(images * place.dataset.validation_share)
        free = available_memory(place.device)
        if free is not None and place.device.type == "cpu":
            free //= Launch.here().local_size  # all processes of a machine share its memory
        check_memory(graph, config, place.device, images, validation, free, place.world.size, _copied(config, place))


def _copied(config: TrainingConfig, place: Workplace) -> int:
    """Bytes of the images that will be copied to the device; a search sees no test images."""
    if place.device.type == "cpu":
        return 0
    sets = (place.dataset.train,) if isinstance(config, SearchConfig) else (place.dataset.train, place.dataset.test)
    return sum(images.images.nbytes for images in sets if isinstance(images, MemoryImages))


def check_memory(
    graph: Graph,
    config: TrainingConfig,
    device: torch.device,
    images: int,
    validation_images: int,
    free: int | None,
    processes: int = 1,
    besides: int = 0,
) -> None:
    """RunError if a job needs more than the `free` bytes (None: not known); no batch is larger than its images.

    `free` is what one of the `processes` has for its slice of a batch; it takes the bytes `besides` for other things.
    Compiled code decides by itself what it keeps, so nothing is foretold about it.
    """
    if free is None or config.compile:
        return
    job = "search" if isinstance(config, SearchConfig) else "retrain"
    training = Training.of(config, on_cpu=device.type == "cpu")
    batch = -(-config.batch_size // processes)
    model = MemoryModel(graph, training)
    besides += model.params if processes > 1 else 0  # DistributedDataParallel sends gradients from memory of its own
    demand = _Demand(model, images, validation_images, besides)
    peak = demand.peak(batch)
    needed = max(peak, demand.growth(batch))
    if needed <= free:
        return
    largest = processes * demand.model.largest_batch(lambda size: demand.fits(size, free))
    hints = [f"--set {job}.batch_size={largest}, the largest that fits"] if largest else []
    if peak <= free:  # what is too much is what glibc cannot use again
        hints.append(f"{JEMALLOC} before the command, with which it takes {_readable(peak)}, and longer")
    for others in _leaner(training, batch):
        sizes = ((name, replace(demand, model=MemoryModel(graph, other)).needed(batch)) for name, other in others)
        first = next(((name, size) for name, size in sizes if size <= free), None)
        hints += [f"--set {job}.{first[0]}, which takes {_readable(first[1])}"] if first else []
    least = _readable(demand.needed(1))
    hints = hints or [f"a narrower network or smaller images: even a batch size of 1 takes {least}"]
    raise RunError(
        f"{job}.batch_size {config.batch_size} does not fit: training takes {_readable(needed)} at its peak, "
        f"{_readable(free)} are available ({device})\n"
        f"  try: {'; or '.join(hints)}"
    )


@dataclass(frozen=True)
class _Demand:
    """Bytes that training takes of a device, by batch size; no batch holds more images than there are."""

    model: MemoryModel
    images: int
    validation_images: int
    besides: int

    def needed(self, batch: int) -> int:
        """What has to be free."""
        return max(self.peak(batch), self.growth(batch))

    def fits(self, batch: int, free: int) -> bool:
        """Whether it is; the peak is found sooner than the growth, and often is too much already."""
        return self.peak(batch) <= free and self.growth(batch) <= free

    def peak(self, batch: int) -> int:
        """What is in use at most."""
        return self.besides + self.model.at(min(batch, self.images), self.validation_images).peak

    def growth(self, batch: int) -> int:
        """By how much this process grows on the CPU; 0 where that is no more than the peak, or not known."""
        heap = heap_here() if self.model.training.on_cpu else None
        if heap is None:
            return 0
        return self.besides + self.model.growth(heap, min(batch, self.images), self.validation_images)


def _leaner(training: Training, batch: int) -> Iterator[list[tuple[str, Training]]]:
    """Settings that need less memory at the same batch size; of each the mildest first."""
    if not training.recompute:
        yield [("recompute=true", replace(training, recompute=True))]
    if not training.half:
        yield [("precision=bf16", replace(training, half=True))]
    parts = (training.accumulate * 2**power for power in range(1, 32))
    yield [(f"accumulate={n}", replace(training, accumulate=n)) for n in parts if n <= batch]


def _readable(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
