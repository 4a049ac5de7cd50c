"""Image files for an exported model: which ones are meant, and their pixels by batches. It must not import torch."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from compiler.errors import RunError, one_line
from runtime.data.archives import source
from runtime.data.folders import ENDINGS, WITH_PACKAGES, walked
from runtime.data.pixels import Pixels, Reading, UnreadableError, read_pixels
from runtime.rundir.files import refuse_pipe

_TOLD = 5  # unreadable files that a message names


def find_images(names: Iterable[str]) -> list[str]:
    """The image files that files, folders (at whatever depth) and patterns name, in this order.

    RunError where one names nothing. A file that is named is taken whatever its ending.
    """
    return [path for name in names for path in _named(name)]


def _named(name: str) -> list[str]:
    if os.path.isdir(name):
        found = _inside(name)
        if not found:
            raise RunError(
                f"{name}: there is no image in it ({' '.join(ENDINGS)})\n  try: another folder, or the files"
            )
        return found
    if os.path.isfile(name):
        return [name]
    refuse_pipe(Path(name))
    matches = sorted(glob.glob(name, recursive=True)) if glob.has_magic(name) else []
    inside = [_inside(match) if os.path.isdir(match) else [match] for match in matches]
    files: dict[str, str] = {}
    for path in (path for some in inside for path in some if os.path.isfile(path)):
        files.setdefault(os.path.realpath(path), path)  # ** gives folders and what is in them, and follows links
    if not files:
        raise RunError(f"{name}: there is no such image, folder or pattern of images\n  try: a path that is there")
    return [path for path in files.values() if path.lower().endswith(WITH_PACKAGES)] or list(files.values())


def _inside(folder: str) -> list[str]:
    """The images in a folder, at whatever depth; what is hidden, and links to folders, are passed over."""
    found: list[str] = []
    for place, folders, files in walked(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        images = (name for name in files if name.lower().endswith(WITH_PACKAGES) and not name.startswith("."))
        found += filter(os.path.isfile, (os.path.join(place, name) for name in images))
    return sorted(found, key=os.path.split)


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
        return read_pixels(source(path), shape, reading)[0], ""
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
    shown = [f"{one_line(path)}: {reason}" for path, reason in list(failed.items())[:_TOLD]]
    return "; ".join([*shown, *[f"and {len(failed) - _TOLD} more"] * (len(failed) > _TOLD)])
