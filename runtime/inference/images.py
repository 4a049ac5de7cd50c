"""Image files for an exported model: which ones are meant, and their pixels by batches. It must not import torch."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from compiler.errors import RunError
from runtime.data.folders import ENDINGS, images_in
from runtime.data.pixels import Pixels, Reading, UnreadableError, read_pixels

_TOLD = 5  # unreadable files that a message names


def find_images(names: Iterable[str]) -> list[str]:
    """The image files that files, folders (at whatever depth) and patterns name, in this order.

    RunError where one names nothing. A file that is named is taken whatever its ending.
    """
    return [path for name in names for path in _named(name)]


def _named(name: str) -> list[str]:
    if os.path.isdir(name):
        found = images_in(Path(name), Counter())
        if not found:
            raise RunError(
                f"{name}: there is no image in it ({' '.join(ENDINGS)})\n  try: another folder, or the files"
            )
        return found
    if os.path.exists(name):
        return [name]
    matches = sorted(glob.glob(name, recursive=True)) if glob.has_magic(name) else []
    inside = [images_in(Path(match), Counter()) if os.path.isdir(match) else [match] for match in matches]
    paths = list(dict.fromkeys(path for some in inside for path in some))  # ** gives folders and what is in them
    if not paths:
        raise RunError(f"{name}: there is no such image, folder or pattern of images\n  try: a path that is there")
    return [path for path in paths if path.lower().endswith(ENDINGS)] or paths


@dataclass(frozen=True)
class Batch:
    """Some of the images, in order."""

    rows: Sequence[int]  # the numbers of those that could be read
    pixels: Pixels  # (N, H, W, C), or (N, T, C) of signals
    failed: dict[int, str]  # why others could not be read, by number


def read_batches(paths: Sequence[str], shape: tuple[int, ...], reading: Reading, batch: int) -> Iterator[Batch]:
    """All these files as `read_pixels` gives them for `shape` (C, H, W); the next batch is read while one is used."""
    read = partial(_read, shape=shape, reading=reading)
    pool = ThreadPoolExecutor()
    submitted = (pool.map(read, paths[start : start + batch]) for start in range(0, len(paths), batch))
    now, start = next(submitted, None), 0
    try:
        while now is not None:
            coming = next(submitted, None)
            yield _batch(start, list(now), shape)
            now, start = coming, start + batch
    finally:
        pool.shutdown(cancel_futures=True)


def _read(path: str, shape: tuple[int, ...], reading: Reading) -> tuple[Pixels | None, str]:
    try:
        return read_pixels(path, shape, reading)[0], ""
    except UnreadableError as error:
        return None, str(error)


def _batch(start: int, answers: Sequence[tuple[Pixels | None, str]], shape: tuple[int, ...]) -> Batch:
    channels, *sizes = shape
    numbered = list(enumerate(answers, start))
    read = [(row, pixels) for row, (pixels, _) in numbered if pixels is not None]
    pixels = np.stack([pixels for _, pixels in read]) if read else np.empty((0, *sizes, channels), np.uint8)
    return Batch([row for row, _ in read], pixels, {row: why for row, (found, why) in numbered if found is None})


def listed(failed: dict[str, str]) -> str:
    """Unreadable files with the reasons, the first few of many."""
    shown = [f"{path}: {reason}" for path, reason in list(failed.items())[:_TOLD]]
    return "; ".join([*shown, *[f"and {len(failed) - _TOLD} more"] * (len(failed) > _TOLD)])
