"""What is known of a data set before it is opened: whether it is there, its classes, how many images it has.

It must not import torch: `graphspec compile` asks this, and is quick.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from compiler.errors import RunError, one_line
from compiler.ir.graph import TensorType
from compiler.language.config import DataConfig
from runtime.data.layouts import LAYOUTS, TRAIN, VALIDATION, data_root, find_parts
from runtime.rundir.files import as_utf8
from runtime.tasks.base import Task, refuse_classes, refuse_unknown

COUNTED = 100_000
"""So many files are counted; of a larger set only the classes are looked at."""
PARTS = 3
"""Weights, gates and validation need an image each of every class."""
UNEVEN = 20
"""A class that has so many times the images of another is told of: of the two, who always says it is right for 95%."""
LARGER, LOOKED_AT = 8, 16
"""Of so many images the middle one is told of if it has so many times as many pixels on a side as the input."""


class BuiltIn(NamedTuple):
    """A set whose contents never change."""

    training: int  # images, without those for the test
    classes: int
    shape: tuple[int, ...]  # (C, H, W)
    lies_at: str = ""  # what of it is below the root; empty: it comes with a package
    torchvision: str = ""  # its class there


BUILT_IN = {
    "digits": BuiltIn(1437, 10, (1, 8, 8)),
    "cifar10": BuiltIn(50_000, 10, (3, 32, 32), "cifar-10-batches-py", "CIFAR10"),
    "cifar100": BuiltIn(50_000, 100, (3, 32, 32), "cifar-100-python", "CIFAR100"),
    "fashion_mnist": BuiltIn(60_000, 10, (1, 28, 28), "FashionMNIST/raw", "FashionMNIST"),
    "mnist": BuiltIn(60_000, 10, (1, 28, 28), "MNIST/raw", "MNIST"),
    "svhn": BuiltIn(73_257, 10, (3, 32, 32), "train_32x32.mat", "SVHN"),
}


class Survey(NamedTuple):
    """What was found."""

    says: str  # one line for people, with what was not looked at
    training: int | None = None  # images to train and validate with; None: not known
    warnings: tuple[str, ...] = ()


def survey(config: DataConfig, shape: tuple[int, ...], task: Task) -> Survey:
    """Look at the set of a spec, whose network reads `shape` (C, H, W); RunError if it is there and does not fit."""
    name, root = one_line(config.name), data_root(config)
    check_holding(config)
    if name == "fake":
        return Survey(f"{config.fake_size} random images", config.fake_size)
    if known := BUILT_IN.get(name):
        check_shape(name, known.shape, shape)
        refuse_classes(name, known.classes, task)
        missing = bool(known.lies_at) and not (root / known.lies_at).exists() and not config.download
        warnings = (f"data set {name!r} is not in {one_line(root)}: set data.download or data.root before the search",)
        says = f"{name}, {known.training:,} training images; its files were not read"
        return Survey(says, known.training, warnings * missing)
    if name not in (*LAYOUTS, "arrays"):
        return Survey(f"{name} was not looked at; the search opens it")
    if name != "arrays":
        check_files_fit(name, shape)
    if not root.exists():
        says = f"{name} was not looked at: there is no folder {one_line(root)}"
        return Survey(says, warnings=(f"{says}; set data.root or make it before the search",))
    return _in_arrays(config, shape, task) if name == "arrays" else _in_files(config, shape, task)


def check_holding(config: DataConfig) -> None:
    """RunError if the images cannot be held in memory, or not be read one by one, as the settings say."""
    reason, held, name = "", config.in_memory, config.name
    if held and name == "imagenet":
        reason = "whose random crops are cut out of the original files"
    elif held is False and name not in LAYOUTS:
        reason = "which is never read from single image files"
    if config.ignore and name not in (*LAYOUTS, "arrays"):
        raise RunError(f"data.ignore: the classes of {name!r} cannot be left out\n  try: `folder`, `table` or `arrays`")
    if name == "imagenet" and config.resize != "crop":
        raise RunError(f"data.resize: {config.resize} cannot be had for 'imagenet', which is cropped\n  try: `folder`")
    if reason:
        raise RunError(
            f"data.in_memory: {str(held).lower()} cannot be had for {name!r}, {reason}\n  try: without data.in_memory"
        )


def check_shape(name: str, found: Sequence[int], wanted: Sequence[int]) -> None:
    """RunError if the images of the set are not those that the spec's network reads; both (C, H, W)."""
    if tuple(found) != tuple(wanted):
        raise RunError(
            f"images of data set {name!r} are {TensorType(tuple(found))} (channels first), the spec's input "
            f"is {TensorType(tuple(wanted))}\n  try: `input: {list(found)}` in the spec, or other data with data.name"
        )


def check_files_fit(name: str, shape: Sequence[int], first: Sequence[str] = ()) -> None:
    """RunError if image files, such as the `first` of them, cannot be what the spec's network reads."""
    found, usual = TensorType(tuple(shape)), shape[0] in (1, 3)
    if len(shape) != 3 or (name == "imagenet" and not usual):
        raise RunError(f"image files have 1 or 3 channels, the spec's input is {found}\n  try: another `input`")
    if usual or not first:
        return
    from runtime.data.archives import source  # and with them numpy
    from runtime.data.pixels import READING, ChannelsError, UnreadableError, read_planes

    with suppress(UnreadableError):  # damaged ones are told of where all are read
        try:
            read_planes(source(first[0]), shape[0], READING)
        except ChannelsError as error:
            raise RunError(f"{first[0]} {error}; the spec's input is {found}\n  try: another `input`") from error


def _in_files(config: DataConfig, shape: tuple[int, ...], task: Task) -> Survey:
    """Classes of all parts, and the training images of each where there are not too many."""
    parts, root = find_parts(config, COUNTED), one_line(data_root(config))
    paths = parts.train.paths
    as_utf8("\n".join((str(data_root(config)), *parts.train.images)))  # a run has to record them
    check_files_fit(config.name, shape, paths[:1])
    counts = {name: len(paths) for name, paths in parts.train.images.items()}
    refuse_classes(config.name, len(counts), task)
    if not parts.train.counted:
        return Survey(f"{len(counts)} classes in {root}; their images were neither counted nor read")
    held = len(parts.validation.paths) if parts.validation is not None else 0
    found = _found(config, counts, held, divided=parts.test is None, note=parts.note)
    doubt = _size_doubt(paths[:: -(-len(paths) // LOOKED_AT)], shape)
    return found._replace(warnings=(*found.warnings, *[doubt] * bool(doubt)))


def _size_doubt(paths: Sequence[str], shape: tuple[int, ...]) -> str:
    """What is doubtful about the sizes that these files say they have; empty if nothing is."""
    from PIL import Image

    from runtime.data.archives import source

    sides = []
    for path in paths:
        with suppress(Exception), Image.open(source(path)) as file:  # damaged ones are told of where they are read
            sides.append(min(file.size))
    middle = sorted(sides)[len(sides) // 2] if sides else 0
    says = f"images are much larger than the input: {middle} pixels on the shorter side of the middle one"
    return f"{says}; what is small in them is lost, so try a larger input" * (middle >= LARGER * max(shape[1:]))


def _in_arrays(config: DataConfig, shape: tuple[int, ...], task: Task) -> Survey:
    from runtime.data.arrays import read_arrays  # and with it numpy

    found = read_arrays(data_root(config), shape, config.ignore, look=True)
    for part in found.parts.values():
        check_shape(config.name, part.shape, shape)
    refuse_classes(config.name, len(found.names), task)
    first = found.parts["" if "" in found.parts else TRAIN]
    held = len(found.parts[VALIDATION].labels) if VALIDATION in found.parts else 0
    numbers = Counter(first.labels.tolist())
    counts = {name: numbers[label] for label, name in enumerate(found.names)}
    return _found(config, counts, held, divided="" in found.parts, note=found.note)


def _found(config: DataConfig, counts: Mapping[str, int], held: int, *, divided: bool, note: str) -> Survey:
    """What is said of these images by class, besides which `held` are for validation."""
    weights = config.class_weights if isinstance(config.class_weights, dict) else {}
    refuse_unknown("data.class_weights", weights, list(counts))
    total, root, images = sum(counts.values()), one_line(data_root(config)), "images" if divided else "training images"
    says = f"{total:,} {images} of {len(counts)} classes in {root}; none was read"
    if divided:
        says += f"; they are divided when the search opens them, {config.test:.0%} of them for the test"
        total = round(total * (1 - config.test))
    notes = (f"{root}: {note}" if note else "", class_doubt(counts))
    return Survey(says, total + held, tuple(filter(None, notes)))


def class_doubt(counts: Mapping[str, int]) -> str:
    """What is doubtful about these numbers of training images by class; empty if nothing is."""
    (few, fewest), (many, most) = (pick(counts.items(), key=lambda item: item[1]) for pick in (min, max))
    short = sum(count < PARTS for count in counts.values())
    if short:
        return (
            f"{short} of {len(counts)} classes have fewer than {PARTS} training images ({few!r}: {fewest}): weights, "
            f"gates and validation cannot have one each, so such a class is learned or checked, not both"
        )
    uneven = (
        f"the classes are uneven: {many!r} has {most:,} training images, {few!r} {fewest:,}; figures over all images "
        f"then say little of {few!r}"
    )
    return uneven * (most >= UNEVEN * fewest)
