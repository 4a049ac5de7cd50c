"""The data sets a spec can name, each opened as training images, test images and names of the outputs.

What can be known without decoding images is checked first: that the set is there and fits the spec and the task.
"""

from __future__ import annotations

import fcntl
import math
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compiler.errors import RunError, did_you_mean, one_line
from compiler.language.config import DataConfig
from runtime.data.arrays import ArrayPart, over_range, read_arrays
from runtime.data.decode import TEST_MARGIN
from runtime.data.divide import Division, divide
from runtime.data.folders import Listing, Passed
from runtime.data.layouts import TEST, TRAIN, VALIDATION, Parts, data_root, find_parts
from runtime.data.looks import Look, array_looks, look_at_all, near_duplicates
from runtime.data.pixels import Reading
from runtime.data.sources import NOTHING, FileImages, Images, MemoryImages
from runtime.data.split import stratified_order
from runtime.data.survey import BUILT_IN, check_files_fit, check_holding, check_shape
from runtime.installed import named
from runtime.seeds import generator
from runtime.tasks.base import Task

Shape = tuple[int, ...]  # (C, H, W), or (C, T) of signals

_IN_MEMORY_BYTES = 2 * 10**9
_DIGITS_TEST = 360  # of 1797


@dataclass(frozen=True, eq=False)
class Opened:
    """A data set whose shape is known to be the spec's and whose targets fit the task."""

    train: Images
    test: Images  # for the final figures only; nothing is chosen by it
    labels: tuple[str, ...]  # names of the outputs, as far as they have any
    listings: tuple[Listing, ...] = ()  # of the parts, where they are files
    notes: tuple[str, ...] = ()  # what is used for what, where it does not say so itself
    held: Tensor | None = None  # (N,) bool of the training images: the validation part, where the set has one
    division: Division | None = None  # where the set has no parts


def open_dataset(config: DataConfig, shape: Shape, task: Task, *, seed: int, trust_code: bool) -> Opened:
    """Open the set that `config.name` names, for a network that reads `shape` (C, H, W) or (C, T).

    Raises RunError when the set is missing, damaged, unknown or does not fit the spec.
    """
    check_holding(config)
    expected = _Expected(config, shape, task)
    if ":" in config.name:
        return _open_function(expected, trust_code)
    if config.name not in SETS:
        hint = did_you_mean(config.name, SETS) or f"; known: {', '.join(SETS)}, or package.module:function"
        raise RunError(f"data.name: no data set is called {config.name!r}{hint}")
    return SETS[config.name](expected, seed)


def reading_of(config: DataConfig) -> Reading:
    """How files become pixels, for the images of this set and for those the network is used on."""
    return Reading(config.background, config.range, TEST_MARGIN if config.name == "imagenet" else 1.0, config.resize)


@dataclass(frozen=True, slots=True)
class _Expected:
    """What the spec says about the data."""

    config: DataConfig
    shape: Shape
    task: Task

    def images(self, pixels: Any, targets: Any) -> MemoryImages:
        """`pixels`: (N, H, W) or (N, H, W, C) array, `targets`: what the set has of each image."""
        array, found = over_range(np.asarray(pixels), self.config.range)
        images = torch.from_numpy(np.ascontiguousarray(array))
        images = images if images.ndim > len(self.shape) else images[..., None]
        return MemoryImages(images, self.task.targets(torch.as_tensor(targets)), found=sum(found, NOTHING))

    def labels(self, train: Images, test: Images, classes: Sequence[str] | None) -> tuple[str, ...]:
        """Names of the outputs; RunError if the classes of the set do not fit the task."""
        return self.task.labels(self.config.name, train.targets, test.targets, classes)


def _opened(expected: _Expected, train: MemoryImages, test: MemoryImages, classes: Sequence[str] | None) -> Opened:
    name, found = expected.config.name, (test.images.shape[1], *test.size)
    check_shape(name, found, expected.shape)
    return Opened(train, test, expected.labels(train, test, classes))


def _open_digits(expected: _Expected, _: int) -> Opened:
    """scikit-learn's bundled digits, 8x8, 16 grey levels; the same stratified test images whatever the seed."""
    from sklearn.datasets import load_digits

    pixels, numbers = load_digits(return_X_y=True)
    images = np.rint(pixels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    order = stratified_order(torch.from_numpy(numbers), generator(0, "digits test images")).numpy()
    test, train = np.sort(order[:_DIGITS_TEST]), np.sort(order[_DIGITS_TEST:])
    names = [str(digit) for digit in range(10)]
    first, last = (expected.images(images[rows], numbers[rows]) for rows in (train, test))
    return _opened(expected, first, last, names)


def _open_fake(expected: _Expected, seed: int) -> Opened:
    """Random images or signals of the spec's shape, with targets that the task makes up."""

    def images(purpose: str, count: int) -> MemoryImages:
        channels, *sizes = expected.shape
        random = generator(seed, purpose)
        pixels = torch.randint(0, 256, (count, *sizes, channels), dtype=torch.uint8, generator=random)
        return MemoryImages(pixels, expected.task.fake(torch.arange(count)))

    size = expected.config.fake_size
    names = [f"class{number}" for number in range(expected.task.outputs)]
    test = images("fake test images", max(1, size // 2))
    return _opened(expected, images("fake training images", size), test, names)


def _open_torchvision(expected: _Expected, _: int) -> Opened:
    """A set that torchvision knows."""
    kind = BUILT_IN[expected.config.name].torchvision
    halves = [{"split": "train"}, {"split": "test"}] if kind == "SVHN" else [{"train": True}, {"train": False}]
    train, test = (_half(expected, kind, half) for half in halves)
    names = getattr(train, "classes", [str(digit) for digit in range(10)])
    if kind == "SVHN":  # the only one that keeps (N, C, H, W)
        first, last = (expected.images(np.moveaxis(half.data, 1, -1), half.labels) for half in (train, test))
    else:
        first, last = (expected.images(half.data, half.targets) for half in (train, test))
    return _opened(expected, first, last, names)


def _half(expected: _Expected, kind: str, half: dict[str, Any]) -> Any:
    from torchvision import datasets

    name, root, download = expected.config.name, data_root(expected.config), expected.config.download
    damaged = (RuntimeError, OSError, ValueError, KeyError, EOFError, AssertionError, tarfile.TarError)
    try:
        with _others_wait(root) if download else nullcontext():
            return getattr(datasets, kind)(root=str(root), download=download, **half)
    except damaged as error:  # its readers assert
        looked = one_line(f"{root} (looked for {root / BUILT_IN[name].lies_at})")
        if download:
            raise RunError(f"data set {name!r} could not be fetched to {looked}: {error}") from error
        raise RunError(
            f"data set {name!r} is missing or damaged in {looked}: "
            "set data.download: true to fetch it, or data.root (or GRAPHSPEC_DATA) to the folder it lies in"
        ) from error


@contextmanager
def _others_wait(root: Path) -> Iterator[None]:
    """One process at a time fetches to a folder: those that start together would write over each other's files."""
    with ExitStack() as stack:
        with suppress(OSError):  # a folder that holds the set may be read-only, and some network disks have no locks
            root.mkdir(parents=True, exist_ok=True)
            fcntl.flock(stack.enter_context((root / ".graphspec-fetch.lock").open("w")), fcntl.LOCK_EX)
        yield


def _open_files(expected: _Expected, _: int) -> Opened:
    """Image files in one of the layouts, brought to the spec's input."""
    opened, hold = _find_files(expected), expected.config.in_memory
    needed = (len(opened.train.targets) + len(opened.test.targets)) * math.prod(expected.shape)
    if hold is None:
        hold = needed < _IN_MEMORY_BYTES and expected.config.name != "imagenet"
    if hold:
        train, held = opened.train.in_memory(), opened.held
        if held is not None:
            held = held[torch.tensor([path not in train.skipped for path in train.paths])]
        return replace(opened, train=train, test=opened.test.in_memory(), held=held)
    return opened


def _find_files(expected: _Expected) -> Opened:
    config = expected.config
    check_files_fit(config.name, expected.shape)
    parts, division = find_parts(config), None
    check_files_fit(config.name, expected.shape, parts.train.paths[:1])
    if parts.test is None:
        parts, division = _divided(parts.train, config)
    names = tuple(parts.train.images)

    def images(*listings: Listing) -> FileImages:
        numbered = [(path, at) for at, name in enumerate(names) for one in listings for path in one.images[name]]
        paths, numbers = [path for path, _ in numbered], torch.tensor([number for _, number in numbered])
        targets, skip, reading = expected.task.targets(numbers), config.skip_corrupt, reading_of(config)
        streamed = config.name == "imagenet"
        return FileImages(paths, targets, expected.shape, streamed, config.workers, skip, reading=reading)

    *first, last = parts.listings
    train, test, held = images(*first), images(last), None
    if parts.validation is not None:
        kept = set(parts.validation.paths)
        held = torch.tensor([path in kept for path in train.paths])
    labels, note = expected.labels(train, test, names), parts.note
    return Opened(train, test, labels, parts.listings, (note,) * bool(note), held, division)


def _divided(whole: Listing, config: DataConfig) -> tuple[Parts, Division]:
    """A set without parts, divided; files that cannot be read are near-duplicates of none."""
    paths = whole.paths
    labels = np.repeat(np.arange(len(whole.images)), [len(paths) for paths in whole.images.values()])
    looks = [Look()] * len(paths) if config.near_duplicates is None else look_at_all(paths, reading_of(config))
    same = near_duplicates(looks, config.near_duplicates)
    division = divide(labels, same, config)

    def listing(part: str) -> Listing:
        passed = whole.passed if part == TRAIN else Passed()
        images: dict[str, list[str]] = {name: [] for name in whole.images}
        names = list(images)
        for row in division.rows[part].tolist():
            images[names[labels[row]]].append(paths[row])
        return Listing(whole.folder, images, passed, part=part)

    root = data_root(config)
    note = division.says([path.removeprefix(f"{root}/") for path in paths])
    return Parts(listing(TRAIN), listing(VALIDATION), listing(TEST), note), division


def _open_arrays(expected: _Expected, _: int) -> Opened:
    """Arrays of images or signals; of more than 8 bits over `data.range`."""
    root = data_root(expected.config)
    found = read_arrays(root, expected.shape, expected.config.ignore)
    parts, notes, division, held = found.parts, [found.note] * bool(found.note), None, None
    for part in parts.values():
        check_shape(expected.config.name, part.shape, expected.shape)
    try:
        if "" in parts:
            division = _division_of(parts[""], expected)
            notes.append(division.says([f"image {number}" for number in range(len(parts[""].labels))]))
            whole = parts[""]
            parts = {part: ArrayPart(whole.images[rows], whole.labels[rows]) for part, rows in division.rows.items()}
        first, last = parts[TRAIN], parts.get(VALIDATION)
        if last is not None:
            held = torch.arange(len(first.labels) + len(last.labels)) >= len(first.labels)
            images, labels = np.concatenate((first.images, last.images)), np.concatenate((first.labels, last.labels))
            first = ArrayPart(images, labels)
        train, test = (expected.images(part.images, part.labels) for part in (first, parts[TEST]))
    except ValueError as error:
        raise RunError(f"{root}: {error}") from error
    names = expected.labels(train, test, found.names)
    return Opened(train, test, names, notes=tuple(notes), held=held, division=division)


def _division_of(part: ArrayPart, expected: _Expected) -> Division:
    """Signals are not compared."""
    config, same = expected.config, np.arange(len(part.labels))
    if config.near_duplicates is not None and len(expected.shape) == 3:
        same = near_duplicates(array_looks(part.images, config.range), config.near_duplicates)
    return divide(part.labels, same, config)


def _open_function(expected: _Expected, trust_code: bool) -> Opened:
    """Call the user's function with the data section.

    It returns ((training images, targets), (test images, targets)): images (N, C, H, W) or signals (N, C, T), uint8 or
    of another type over `data.range`, targets as the task wants them (classification: integers from 0, (N,)), all
    arrays or tensors.
    """
    name, shown = expected.config.name, one_line(expected.config.name)
    if not trust_code:
        raise RunError(
            f"data.name: {shown} runs Python code, which a spec file alone may not do; "
            "add --trust-code to the command if you trust it"
        )
    try:
        function = named(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise RunError(
            f"data.name: {shown} cannot be imported: {error}; install the package or put its folder on PYTHONPATH"
        ) from error
    try:
        halves = function(expected.config)
    except Exception as error:  # whatever the user's code raises, the message must name it
        raise RunError(f"data.name: {shown} raised {type(error).__name__}: {error}") from error
    try:
        train, test = (_checked(expected, *half) for half in halves)
    except (TypeError, ValueError) as error:
        raise RunError(
            f"data.name: {shown} must return ((training images, targets), (test images, targets)) with images "
            f"(N, C, H, W), or signals (N, C, T), and a target for each: {error}"
        ) from error
    return _opened(expected, train, test, None)


def _checked(expected: _Expected, images: Any, given: Any) -> MemoryImages:
    """Raises ValueError that says what is wrong with the user's arrays."""
    pixels = np.asarray(images)
    if pixels.ndim not in (3, 4) or pixels.dtype.kind not in "uif":
        raise ValueError(f"images are {pixels.shape} {pixels.dtype}")
    checked = expected.images(np.moveaxis(pixels, 1, -1), given)
    if len(checked.targets) != len(pixels) or len(pixels) == 0:
        raise ValueError(f"{len(pixels)} images come with targets {tuple(checked.targets.shape)}")
    return checked


SETS: dict[str, Callable[[_Expected, int], Opened]] = {
    "digits": _open_digits,
    **{name: _open_torchvision for name, known in BUILT_IN.items() if known.torchvision},
    "folder": _open_files,
    "table": _open_files,
    "arrays": _open_arrays,
    "imagenet": _open_files,
    "fake": _open_fake,
}
