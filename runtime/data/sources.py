"""Where images come from: held in memory, or decoded from files by worker processes batch by batch.

Pixels are uint8, or float32 in 0..255 where a file or an array has more than 8 bits. Both kinds answer the same
question, `fetch`: the pixels of these images, request by request. Neither shuffles, augments batches or keeps a place;
`runtime.data.dataset.Loader` does.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import InitVar, dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from compiler.errors import RunError, one_line
from runtime.data.decode import decode
from runtime.data.pixels import Found, Reading, UnreadableError
from runtime.data.workers import answers, processors
from runtime.training.free_memory import available_memory

_SHOWN = 10  # paths of unreadable images named in an error
_CHUNK = 64  # images a worker decodes at a time when a whole set is read into memory
_FEW = 1000  # below this many images, starting workers takes longer than decoding
NOTHING = Found()


@dataclass(frozen=True, slots=True)
class Request:
    """Images of one batch. `keys` decides each image's random part where the source makes one; None: no randomness."""

    rows: Tensor  # (N,) int64
    keys: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Fetched:
    """Answer to a request: image i is `pixels[rows[i]]`, and was number `kept[i]` of the request."""

    pixels: Tensor  # (M, H, W, C) or (M, T, C) on the device
    rows: Tensor  # (N,) int64 on the device
    kept: Tensor | None = None  # (N,) int64 on the CPU; None: all of them, in order


@dataclass(eq=False)
class MemoryImages:
    """Decoded images, copied to a device when first asked for there if they take at most half of its free memory."""

    random_parts: ClassVar[bool] = False  # whether training takes a random part of each
    pixels: InitVar[Tensor]  # (N, H, W, C) or (N, T, C), uint8 or float32, on the CPU
    targets: Tensor  # (N, ...) of the task, on the CPU
    skipped: dict[str, str] = field(default_factory=dict)  # unreadable images left out so far: path -> reason
    found: Found = NOTHING
    paths: Sequence[str] = ()  # of all files they were read from, also of those left out

    def __post_init__(self, pixels: Tensor) -> None:
        self._pixels = {torch.device("cpu"): pixels.contiguous()}

    def in_memory(self) -> MemoryImages:
        """These, which are there already."""
        return self

    @property
    def images(self) -> Tensor:
        """All images, (N, C, H, W) or (N, C, T) in channels-last memory."""
        return self._pixels[torch.device("cpu")].movedim(-1, 1)

    @property
    def size(self) -> tuple[int, ...]:
        """Height and width of images, length of signals."""
        return tuple(self.images.shape[2:])

    def lie_on(self, device: torch.device) -> bool:
        """Whether they are there, or have been copied there now; those that do not fit stay where they are."""
        if device not in self._pixels:  # to ask for the free memory reads files of the system
            pixels, free = self._pixels[torch.device("cpu")], available_memory(device)
            if free is None or 2 * pixels.nbytes <= free:
                self._pixels[device] = pixels.to(device)
        return device in self._pixels

    def fetch(self, requests: Iterable[Request], device: torch.device) -> Iterator[Fetched]:
        """An answer a request; where all images are on the device the answers share one tensor of pixels, so nothing is
        copied before a batch is cropped out.
        """
        lie_there = self.lie_on(device)
        for request in requests:
            if lie_there:
                yield Fetched(self._pixels[device], pushed(request.rows, device))
            else:
                picked = self._pixels[torch.device("cpu")].index_select(0, request.rows)
                yield Fetched(pushed(picked, device), torch.arange(len(picked), device=device))


@dataclass(frozen=True)
class FileImages:
    """Image files, decoded anew for every request by worker processes."""

    paths: Sequence[str]
    targets: Tensor
    shape: tuple[int, ...]  # (C, H, W) of what comes out
    random_parts: bool = False
    workers: int = 0
    skip_corrupt: bool = False
    skipped: dict[str, str] = field(default_factory=dict)
    reading: Reading = field(default_factory=Reading)
    noted: dict[int, Found] = field(default_factory=dict)  # of the images read so far: number -> what is worth telling

    @property
    def found(self) -> Found:
        """What the images read so far have, all together."""
        return sum(self.noted.values(), NOTHING)

    @property
    def size(self) -> tuple[int, ...]:
        """Height and width."""
        return self.shape[1:]

    def fetch(self, requests: Iterable[Request], device: torch.device) -> Iterator[Fetched]:
        """Decode request by request. An unreadable file is left out with `skip_corrupt`, else a RunError naming it."""
        for pixels, kept, failed, noted in self._decoded(requests, self.workers, device.type == "cuda"):
            self.noted.update(noted)
            self._leave_out(failed)
            on_device = pixels.to(device, non_blocking=True)
            rows = torch.arange(len(kept), device=device)
            yield Fetched(on_device, rows, torch.tensor(kept, dtype=torch.int64) if failed else None)

    def in_memory(self) -> MemoryImages:
        """Decode every file once. All unreadable files are found before any is complained about."""
        count, (channels, height, width) = len(self.paths), self.shape
        pixels = torch.empty((count, height, width, channels), dtype=torch.uint8)
        failures: dict[int, str] = {}
        chunks = torch.split(torch.arange(count), _CHUNK)
        workers = processors() if self.workers and count >= _FEW else 0
        answers = self._decoded((Request(rows) for rows in chunks), workers, pin=False)
        for rows, (decoded, kept, failed, noted) in zip(chunks, answers, strict=True):
            pixels = pixels.to(torch.promote_types(pixels.dtype, decoded.dtype))
            pixels[rows[kept]] = decoded.to(pixels.dtype)
            failures |= failed
            self.noted.update(noted)
        self._leave_out(failures)
        targets = self.targets
        if failures:  # choosing rows copies them all
            read = torch.tensor([row not in failures for row in range(count)])
            pixels, targets = pixels[read], targets[read]
        return MemoryImages(pixels, targets, self.skipped, self.found, self.paths)

    def _decoded(self, requests: Iterable[Request], workers: int, pin: bool) -> Iterator[_Decoded]:
        first = next(iter(requests := iter(requests)), None)
        if first is None:
            return iter(())
        most = 4 * len(first.rows) * math.prod(self.shape)  # bytes of an answer, as float32
        decoder = _Decoder(self.paths, self.shape, self.reading)
        return answers(decoder, itertools.chain([first], requests), min(workers, processors()), most, pin=pin)

    def _leave_out(self, failed: dict[int, str]) -> None:
        if not failed:
            return
        named = {self.paths[row]: reason for row, reason in failed.items()}
        if not self.skip_corrupt:
            raise RunError(
                f"cannot read {_listed(named)}\n"
                "  try: mend or remove them, or data.skip_corrupt: true (--set data.skip_corrupt=true) leaves them out"
            )
        self.skipped.update(named)
        left = self.targets[torch.tensor([path not in self.skipped for path in self.paths])]
        for row, reason in failed.items():
            if not (left == self.targets[row])[..., None].flatten(1).all(1).any():
                raise RunError(
                    f"every image of a class is unreadable, as {one_line(self.paths[row])}: {reason}\n"
                    "  try: mend the files, or remove the class from training and test images"
                )


def pushed(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on a device, without waiting for what that is doing."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


Images = MemoryImages | FileImages  # a set of images of one shape with their targets
_Decoded = tuple[Any, list[int], dict[int, str], dict[int, Found]]  # pixels, positions kept, by row: failures, notes


@dataclass(frozen=True)
class _Decoder:
    """What a worker holds: it answers a whole request at a time, and reports failures instead of raising them."""

    paths: Sequence[str]
    shape: tuple[int, ...]
    reading: Reading

    def __getitem__(self, request: Request) -> _Decoded:
        channels, height, width = self.shape
        images = [np.empty((0, height, width, channels), dtype=np.uint8)]
        kept: list[int] = []
        failed: dict[int, str] = {}
        noted: dict[int, Found] = {}
        for position, row in enumerate(request.rows.tolist()):
            key = request.keys[position] if request.keys else None
            try:
                pixels, found = decode(self.paths[row], self.shape, self.reading, key)
            except UnreadableError as error:
                failed[row] = str(error)
                continue
            images.append(pixels[None])
            kept.append(position)
            if found != NOTHING:
                noted[row] = found
        return np.concatenate(images), kept, failed, noted


def _listed(failed: dict[str, str]) -> str:
    shown = [f"{one_line(path)}: {reason}" for path, reason in list(failed.items())[:_SHOWN]]
    hidden = len(failed) - len(shown)
    return f"{len(failed)} image(s):\n  " + "\n  ".join([*shown, *([f"... and {hidden} more"] if hidden else [])])
