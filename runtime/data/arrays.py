"""Images or signals in .npy and .npz files: `x_train`, `y_train`, `x_val`, `y_val`, `x_test`, `y_test`, or `x` and `y`
without parts. Pickled objects are never loaded. It must not import torch.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from compiler.errors import RunError
from runtime.data.layouts import TEST, TRAIN, VALIDATION
from runtime.data.pixels import ARRAY_KINDS, Found, Reading, in_range
from runtime.rundir.files import checked, guarded
from runtime.tasks.base import refuse_unknown

MOST = 10**6  # the highest number of a class: those below it have names too
_SUFFIXES = {TRAIN: "_train", VALIDATION: "_val", TEST: "_test", "": ""}


class ArrayPart(NamedTuple):
    """A part of a set."""

    images: NDArray[Any]  # (N, H, W, C) or (N, T, C)
    labels: NDArray[np.int64]  # (N,)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) or (C, T)."""
        return (self.images.shape[-1], *self.images.shape[1:-1])


class ArraySet(NamedTuple):
    """All parts, TRAIN and perhaps VALIDATION and TEST, or one called "" that has none; and the classes by number."""

    parts: dict[str, ArrayPart]
    names: tuple[str, ...]
    note: str = ""


def read_arrays(
    root: Path, shape: Sequence[int] | None, ignore: Sequence[str], *, look: bool = False, all_there: bool = True
) -> ArraySet:
    """The arrays in an .npz file or in a folder of .npy files, or of one .npz file; `look`: without the values of the
    images. Those of the classes in `ignore` are left out; RunError if one is not there and `all_there` says so.

    `shape` is the input of the network, (C, H, W) or (C, T), as far as it is known. Images are (N, H, W), (N, H, W, C)
    or, where the input says so or the second axis is the shorter one, (N, C, H, W). Signals are (N, T) or (N, C, T).
    RunError if something is missing, damaged or of another kind.
    """
    files = _files(root)
    parts = {part: suffix for part, suffix in _SUFFIXES.items() if f"x{suffix}" in files}
    if "" in parts or TRAIN not in parts or not {VALIDATION, TEST} & set(parts):
        parts = {"": ""}
    labels = {part: _labels(files, f"y{suffix}") for part, suffix in parts.items()}
    names, numbers = _numbered(root, labels, ignore, all_there=all_there)
    found = {}
    for part, suffix in parts.items():
        images = _images(files, f"x{suffix}", shape, look=look)
        if len(images) != len(numbers[part]) or not len(images):
            raise RunError(f"{root}: x{suffix} has {len(images)} images, y{suffix} {len(numbers[part])} labels")
        rows = np.flatnonzero(numbers[part] >= 0)
        if ignore:
            images = images[: len(rows)] if look else images[rows]
        found[part] = ArrayPart(images, numbers[part][rows])
    if set(found) == {TRAIN, VALIDATION}:
        found[TEST] = found.pop(VALIDATION)
        return ArraySet(found, names, f"{root.name} has no x_test, so x_val is the test set")
    return ArraySet(found, names)


def over_range(images: NDArray[Any], white: float | None) -> tuple[NDArray[Any], list[Found]]:
    """Images (N, ...) as uint8, or as float32 in 0..255 of another type, with what each has; ValueError if one has
    values that are none.
    """
    if images.dtype == np.uint8:
        return images, [Found()] * len(images)
    parts = [in_range(image, Reading(range=white)) for image in images]
    return np.stack([pixels for pixels, _ in parts]), [found for _, found in parts]


_Files = dict[str, tuple[Path, str]]  # of each array its file, and its name in there where that is an .npz file


def _files(root: Path) -> _Files:
    with guarded(root, "read"):
        archives = sorted(root.glob("*.npz")) if root.is_dir() else [root]
        single = {path.stem: (path, "") for path in sorted(root.glob("*.npy"))} if root.is_dir() else {}
    if len(archives) == 1 and not single:
        with _explained(archives[0]), zipfile.ZipFile(archives[0]) as file:
            single = {name.removesuffix(".npy"): (archives[0], name) for name in file.namelist()}
    return single


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    with guarded(path, "read"):
        try:
            checked(path)
            yield
        except (ValueError, EOFError, zipfile.BadZipFile, SyntaxError) as error:
            raise RunError(
                f"{path} cannot be read as arrays: {error}\n"
                f"  try: np.savez with arrays of numbers; objects are not read"
            ) from error


def _array(files: _Files, name: str, *, look: bool = False) -> NDArray[Any]:
    """An array; with `look` one of the same shape and type without its values."""
    if name not in files:
        there = f"; there are {', '.join(files)}" if files else ""
        raise RunError(
            f"data set 'arrays': there is no array {name}{there}\n"
            f"  try: data.root: an .npz file or a folder of .npy files with x_train, y_train, x_test, y_test, or x, y"
        )
    path, inner = files[name]
    with _explained(path):
        if not inner:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            return array if look else np.array(array)
        with zipfile.ZipFile(path) as archive, archive.open(inner) as file:
            if not look:
                return np.lib.format.read_array(file, allow_pickle=False)
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, kind = read(file)
            return np.broadcast_to(np.zeros((), kind), shape)


def _labels(files: _Files, name: str) -> NDArray[Any]:
    labels = _array(files, name)
    labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if labels.ndim != 1 or labels.dtype.kind not in "iuU":
        raise RunError(f"{files[name][0]}: {name} is {labels.shape} {labels.dtype}, not one number or name an image")
    return labels


def _numbered(
    root: Path, labels: dict[str, NDArray[Any]], ignore: Sequence[str], *, all_there: bool
) -> tuple[tuple[str, ...], dict[str, NDArray[np.int64]]]:
    """Names of the classes in their order, and for each image the place of its own; -1 of those to `ignore`."""
    everything = np.unique(np.concatenate(list(labels.values())))
    if everything.dtype.kind != "U":
        known = everything[~np.isin(everything.astype(str), list(ignore))]
        if len(wrong := known[(known < 0) | (known > MOST)]):
            says = f"{root}: there is a label {wrong[0]}"
            raise RunError(f"{says}\n  try: numbers from 0 to {MOST:,}, names, or data.ignore")
        everything = np.union1d(everything.astype(np.int64), np.arange(int(known.max(initial=0)) + 1))  # without gaps
    names = everything.astype(str)
    refuse_unknown("data.ignore", ignore if all_there else (), names.tolist())
    known = ~np.isin(names, list(ignore))
    places = np.where(known, np.cumsum(known) - 1, -1)
    return tuple(map(str, names[known])), {
        part: places[np.searchsorted(everything, given)] for part, given in labels.items()
    }


def _images(files: _Files, name: str, shape: Sequence[int] | None, *, look: bool) -> NDArray[Any]:
    """An array with channels last."""
    images = _array(files, name, look=look)
    signals = shape is not None and len(shape) == 2
    if images.dtype.name not in ARRAY_KINDS or images.ndim not in ((2, 3) if signals else (3, 4)):
        wanted = "(N, T) or (N, C, T)" if signals else "(N, H, W), (N, H, W, C) or (N, C, H, W)"
        found = f"{name} is {images.shape} {images.dtype}"
        raise RunError(f"{files[name][0]}: {found}, not {wanted} of {', '.join(ARRAY_KINDS)}")
    if images.ndim == (2 if signals else 3):
        return images[..., None]
    given = tuple(shape or ())
    last = (images.shape[-1], *images.shape[1:-1])
    first = signals or (last != given and (images.shape[1:] == given or images.shape[1] < images.shape[-1]))
    return np.moveaxis(images, 1, -1) if first else images
