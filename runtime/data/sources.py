"""Where images come from: held in memory as uint8, or decoded from files by worker processes batch by batch.

Both kinds answer the same question, `fetch`: the pixels of these images, request by request. Neither shuffles, augments
batches or keeps a place; `runtime.data.dataset.Loader` does.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from compiler.errors import RunError
from runtime.data.decode import UNREADABLE, View, decode

_SHOWN = 10  # paths of unreadable images named in an error
_CHUNK = 64  # images a worker decodes at a time when a whole set is read into memory
_FEW = 1000  # below this many images, starting workers takes longer than decoding


@dataclass(frozen=True, slots=True)
class Request:
    """Images of one batch. `keys` decides each image's random part where the source makes one; None: no randomness."""

    rows: Tensor  # (N,) int64
    keys: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Fetched:
    """Answer to a request: image i is `pixels[rows[i]]`, and was number `kept[i]` of the request."""

    pixels: Tensor  # (M, H, W, C) uint8 on the device
    rows: Tensor  # (N,) int64 on the device
    kept: Tensor | None = None  # (N,) int64 on the CPU; None: all of them, in order


class MemoryImages:
    """Decoded images, copied to a device when first asked for there."""

    streams: ClassVar[bool] = False  # whether images are decoded anew for every request

    def __init__(
        self, pixels: Tensor, targets: Tensor, skipped: dict[str, str] | None = None, paths: Sequence[str] = ()
    ) -> None:
        """`pixels`: (N, H, W, C) uint8, `targets`: (N, ...) as the task has them; both on the CPU."""
        self.targets = targets
        self.paths = paths  # of all files they were read from, also of those left out
        self.skipped = skipped or {}  # unreadable images left out so far: path -> reason
        self._pixels = {torch.device("cpu"): pixels.contiguous()}

    @property
    def images(self) -> Tensor:
        """All images, (N, C, H, W) uint8 in channels-last memory."""
        return self._pixels[torch.device("cpu")].permute(0, 3, 1, 2)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.images.shape[2], self.images.shape[3]

    def fetch(self, requests: Iterable[Request], device: torch.device) -> Iterator[Fetched]:
        """An answer a request; they share one tensor of pixels, so nothing is copied before a batch is cropped out."""
        if device not in self._pixels:
            self._pixels[device] = self._pixels[torch.device("cpu")].to(device)
        for request in requests:
            yield Fetched(self._pixels[device], request.rows.to(device, non_blocking=True))


@dataclass(frozen=True)
class FileImages:
    """Image files, decoded anew for every request by worker processes."""

    streams: ClassVar[bool] = True
    paths: Sequence[str]
    targets: Tensor
    shape: tuple[int, ...]  # (C, H, W) of what comes out
    view: View = "fit"
    workers: int = 0
    skip_corrupt: bool = False
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.shape[1], self.shape[2]

    def fetch(self, requests: Iterable[Request], device: torch.device) -> Iterator[Fetched]:
        """Decode request by request. An unreadable file is left out with `skip_corrupt`, else a RunError naming it."""
        for pixels, kept, failed in self._decoded(requests, self.workers, device.type == "cuda"):
            self._note(failed)
            if not kept:
                raise RunError(f"every image of a batch is unreadable: {_listed(failed)}")
            on_device = pixels.to(device, non_blocking=True)
            rows = torch.arange(len(kept), device=device)
            yield Fetched(on_device, rows, torch.tensor(kept) if failed else None)

    def in_memory(self) -> MemoryImages:
        """Decode every file once. All unreadable files are found before any is complained about."""
        count, (channels, height, width) = len(self.paths), self.shape
        pixels = torch.empty((count, height, width, channels), dtype=torch.uint8)
        read = torch.zeros(count, dtype=torch.bool)
        failures: dict[str, str] = {}
        chunks = torch.split(torch.arange(count), _CHUNK)
        workers = _processors() if self.workers and count >= _FEW else 0
        answers = self._decoded((Request(rows) for rows in chunks), workers, pin=False)
        for rows, (decoded, kept, failed) in zip(chunks, answers, strict=True):
            pixels[rows[kept]] = decoded
            read[rows[kept]] = True
            failures |= failed
        self._note(failures)
        if not failures:
            return MemoryImages(pixels, self.targets, self.skipped, self.paths)  # choosing rows copies them all
        return MemoryImages(pixels[read], self.targets[read], self.skipped, self.paths)

    def _decoded(self, requests: Iterable[Request], workers: int, pin: bool) -> Iterator[_Decoded]:
        workers = min(workers, _processors())
        loader: DataLoader[_Decoded] = DataLoader(
            _Decoder(self.paths, self.shape, self.view),
            batch_size=None,
            sampler=requests,
            num_workers=workers,
            collate_fn=_as_it_is,
            pin_memory=pin,
            generator=torch.Generator(),  # a seed for the workers is drawn from it, not from the run's random state
            worker_init_fn=_live_and_die_with_the_parent,
            # Forking a process that runs threads (torch's, CUDA's) can hang the child.
            multiprocessing_context=_worker_context() if workers else None,
        )
        if not workers:
            return iter(loader)
        with _interrupts_held_back():
            return iter(loader)

    def _note(self, failed: dict[str, str]) -> None:
        if failed and not self.skip_corrupt:
            raise RunError(
                f"cannot read {_listed(failed)}\n"
                "  mend or remove the files, or set data.skip_corrupt: true to leave them out"
            )
        self.skipped.update(failed)


Images = MemoryImages | FileImages  # a set of images of one shape with their targets
_Decoded = tuple[Tensor, list[int], dict[str, str]]  # pixels (N, H, W, C), positions kept, failures by path


@dataclass(frozen=True)
class _Decoder(TorchDataset[_Decoded]):
    """What a worker holds: it answers a whole request at a time, and reports failures instead of raising them."""

    paths: Sequence[str]
    shape: tuple[int, ...]
    view: View

    def __getitem__(self, request: Request) -> _Decoded:
        channels, height, width = self.shape
        pixels = np.empty((len(request.rows), height, width, channels), dtype=np.uint8)
        kept: list[int] = []
        failed: dict[str, str] = {}
        for position, row in enumerate(request.rows.tolist()):
            key = request.keys[position] if request.keys else None
            try:
                pixels[len(kept)] = decode(self.paths[row], self.shape, self.view, key)
                kept.append(position)
            except UNREADABLE as error:
                failed[self.paths[row]] = str(error) or type(error).__name__
        return torch.from_numpy(pixels[: len(kept)]), kept, failed


def _as_it_is(decoded: Any) -> Any:
    return decoded


@contextlib.contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """A Ctrl-C never reaches the processes started in here, which inherit the mask; for this one it waits."""
    resource_tracker.ensure_running()  # starting it would take interrupts out of the mask
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _live_and_die_with_the_parent(_: int) -> None:
    """Outlive Ctrl-C, which reaches every process of a terminal while the parent still needs batches, but not the
    parent: torch's own watch looks at the process that forked the worker, which here is the fork server.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # for a fork server that others started, with interrupts
    threading.Thread(target=_exit_after_the_parent, daemon=True).start()


def _exit_after_the_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _worker_context() -> multiprocessing.context.BaseContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "PIL.Image"])  # imported once, not once per worker
    return context


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _listed(failed: dict[str, str]) -> str:
    shown = [f"{path}: {reason}" for path, reason in list(failed.items())[:_SHOWN]]
    hidden = len(failed) - len(shown)
    return f"{len(failed)} image(s):\n  " + "\n  ".join([*shown, *([f"... and {hidden} more"] if hidden else [])])
