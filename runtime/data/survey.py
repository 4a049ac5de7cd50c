"""What is known of a data set before it is opened: whether it is there, its classes, how many images it has.

It must not import torch: `graphspec compile` asks this, and is quick.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from compiler.errors import RunError, one_line
from compiler.ir.graph import TensorType
from compiler.language.config import DataConfig
from runtime.data.folders import Passed, class_names, images_by_class, refuse_other_classes
from runtime.rundir.files import guarded
from runtime.tasks.base import Task, refuse_classes

COUNTED = 100_000
"""So many files are counted; of a larger set only the classes are looked at."""
PARTS = 3
"""Weights, gates and validation need an image each of every class."""
UNEVEN = 10
"""A class that has so many times the images of another is told of: a network that knows no other reaches 91%."""


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
TEST_FOLDERS = {"folder": ("test", "val"), "imagenet": ("val", "test")}  # names of the sets that lie in folders


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
    if name not in TEST_FOLDERS:
        return Survey(f"{name} was not looked at; the search opens it")
    check_files_fit(shape)
    if not root.is_dir():
        says = f"{name} was not looked at: there is no folder {one_line(root)}"
        return Survey(says, warnings=(f"{says}; set data.root or make it before the search",))
    return _in_folders(config, root, task)


def data_root(config: DataConfig) -> Path:
    """The folder that the set lies in."""
    return Path(config.root or os.environ.get("GRAPHSPEC_DATA") or "data").expanduser().absolute()


def check_holding(config: DataConfig) -> None:
    """RunError if the images cannot be held in memory, or not be read one by one, as the settings say."""
    reason, held, name = "", config.in_memory, config.name
    if held and name == "imagenet":
        reason = "whose random crops are cut out of the original files"
    elif held is False and name not in TEST_FOLDERS:
        reason = "which is never read from single image files"
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


def check_files_fit(shape: Sequence[int]) -> None:
    """RunError if image files cannot be what the spec's network reads."""
    if len(shape) != 3 or shape[0] not in (1, 3):
        found = TensorType(tuple(shape))
        raise RunError(f"image files have 1 or 3 channels, the spec's input is {found}\n  try: another `input`")


def part_folders(config: DataConfig) -> tuple[Path, Path]:
    """The folders of training and test images; RunError if one is missing."""
    root, names = data_root(config), TEST_FOLDERS[config.name]
    with guarded(root, "read"):
        test = next((root / name for name in names if (root / name).is_dir()), None)
        if test is None or not (root / "train").is_dir():
            raise RunError(
                f"data set {config.name!r}: {one_line(root)} must hold the folders train/ and {names[0]}/ "
                f"(or {names[1]}/) with one folder of images per class; set data.root to the folder that holds them"
            )
    return root / "train", test


def _in_folders(config: DataConfig, root: Path, task: Task) -> Survey:
    """Classes of both parts, and the images of each where there are not too many."""
    train, test = part_folders(config)
    names, test_names = class_names(train), class_names(test)
    refuse_other_classes(train, test, names, test_names)
    refuse_classes(config.name, len(names), task)
    counts: dict[str, int] = {}
    for name, paths in images_by_class(train, Passed()):
        counts[name] = len(paths)
        if sum(counts.values()) > COUNTED:
            return Survey(f"{len(names)} classes in {one_line(root)}; their images were neither counted nor read")
    says = f"{sum(counts.values()):,} training images of {len(names)} classes in {one_line(root)}; none was read"
    return Survey(says, sum(counts.values()), tuple(filter(None, [class_doubt(counts)])))


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
