"""What is in a set of images: classes and counts, sizes, modes, ranges, near-duplicates, unreadable files.

It must not import torch.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from PIL import Image

from compiler.errors import RunError, one_line
from compiler.language.config import DataConfig
from runtime.data.archives import source
from runtime.data.arrays import read_arrays
from runtime.data.divide import said_alike
from runtime.data.layouts import LAYOUTS, data_root, find_parts
from runtime.data.looks import Look, array_looks, look_at_all, near_duplicates
from runtime.data.pictures import first_channels, read_picture
from runtime.data.pixels import Found, Reading
from runtime.data.remarks import CUT, range_doubt
from runtime.data.survey import class_doubt

_SHOWN = 3  # files named in a line


@dataclass(frozen=True)
class Item:
    """An image of a set."""

    path: str  # a file, or the number of an array
    label: str
    part: str  # empty where the set has no parts
    look: Look


@dataclass(frozen=True)
class Health:
    """What was found."""

    root: Path
    classes: tuple[str, ...]
    items: tuple[Item, ...]
    passed: str  # what else lies there
    groups: tuple[tuple[Item, ...], ...]  # near-duplicates
    picture: Callable[[str], Image.Image]  # of the image with this path, of 8 bits
    note: str = ""

    @property
    def parts(self) -> list[str]:
        """Names of the parts, training first."""
        return list(dict.fromkeys(item.part for item in self.items))

    @property
    def readable(self) -> list[Item]:
        """The images without those that cannot be read."""
        return [item for item in self.items if not item.look.error]

    @property
    def found(self) -> Found:
        """What a person should know of all images together."""
        return sum((item.look.found for item in self.items), Found())

    def counts(self) -> dict[str, dict[str, int]]:
        """Images by class and part."""
        found = Counter((item.label, item.part) for item in self.items)
        parts = self.parts
        return {name: {part: found[name, part] for part in parts} for name in self.classes}

    def as_json(self) -> dict[str, Any]:
        """For programs; lists are whole."""
        deep = self.found
        return {
            "root": str(self.root),
            "images": len(self.items),
            "counts": self.counts(),
            "sizes": [{"size": list(size), "images": count} for size, count in self._sizes().most_common()],
            "modes": dict(Counter(item.look.mode for item in self.readable).most_common()),
            "transparent": deep.transparent,
            "deep": {"images": deep.deep, "low": deep.low * deep.white, "high": deep.high * deep.white},
            "unreadable": {item.path: item.look.error for item in self.items if item.look.error},
            "near_duplicates": [[item.path for item in group] for group in self.groups],
            "across_parts": [[item.path for item in group] for group in self._differing("part")],
            "across_classes": [[item.path for item in group] for group in self._differing("label")],
            "passed_over": self.passed,
            "warnings": self.warnings(),
        }

    def _sizes(self) -> Counter[tuple[int, int]]:
        return Counter(item.look.size for item in self.readable)

    def _differing(self, key: str) -> list[tuple[Item, ...]]:
        """Groups of near-duplicates that are not all of one part or class."""
        return [group for group in self.groups if len({getattr(item, key) for item in group}) > 1]

    def warnings(self) -> list[str]:
        """What should be looked at before anything is trained."""
        first = {name: next(iter(counts.values())) for name, counts in self.counts().items()}
        found = [class_doubt(first), self.note, range_doubt(self.found, f"{self.found.deep:,} images")]
        if cut := self.found.cut:
            found.append(f"{cut:,} images {CUT}")
        if len(self.classes) == 1:
            found.append("there is one class: nothing can be told apart")
        for key, what in (("part", "parts"), ("label", "classes")):
            if groups := self._differing(key):
                found.append(f"near-duplicates in several {what}, {_counted(groups)}: {self._named(groups)}")
        bad = [f"{self._short(item.path)}: {item.look.error}" for item in self.items if item.look.error]
        if bad:
            found.append(f"unreadable, {len(bad):,}: {'; '.join(bad[:_SHOWN])}{' ...' * (len(bad) > _SHOWN)}")
        return [text for text in found if text]

    def lines(self) -> Iterator[tuple[str, str]]:
        """For people: names and texts."""
        total = Counter(item.part for item in self.items)
        parts = ", ".join(f"{part} {count:,}" for part, count in total.items() if part)
        yield "images", f"{len(self.items):,} of {len(self.classes):,} classes{f' ({parts})' if parts else ''}"
        if sizes := sorted(self._sizes().elements()):
            shorter = sorted(sizes, key=min)
            small, middle, large = (f"{w}x{h}" for w, h in (shorter[0], shorter[len(shorter) // 2], shorter[-1]))
            yield "sizes", f"all {small}" if sizes[0] == sizes[-1] else f"{small} to {large}, the middle one {middle}"
        said = self.as_json()
        yield "modes", ", ".join(f"{mode} {count:,}" for mode, count in said["modes"].items())
        if said["transparent"]:
            yield "transparent", f"{said['transparent']:,} images"
        if said["deep"]["images"]:
            yield "values", "{images:,} images of more than 8 bits, {low:g} to {high:g}".format(**said["deep"])
        if self.groups:
            yield "near-duplicates", f"{_counted(self.groups)}: {self._named(self.groups)}"
        if self.passed:
            yield "passed over", self.passed

    def _named(self, groups: Sequence[Sequence[Item]]) -> str:
        return said_alike([[self._short(item.path) for item in group] for group in groups])

    def _short(self, path: str) -> str:
        return one_line(path.removeprefix(f"{self.root}{os.sep}"))


def _counted(groups: Sequence[Sequence[Item]]) -> str:
    return f"{sum(map(len, groups)):,} images in {len(groups):,} group{'s' * (len(groups) > 1)}"


def examine(config: DataConfig, advance: Callable[[int], Any], begin: Callable[[int], Any]) -> Health:
    """Look at every image of a set; `begin` is told how many there are, `advance` of so many more that are done.

    RunError if the set is not there, or is not one of files or arrays.
    """
    root = data_root(config)
    if config.name == "arrays":
        return _of_arrays(config, root)
    if config.name not in LAYOUTS:
        raise RunError(
            f"data set {config.name!r} is not one of files or arrays\n  try: a folder, or a spec that names one"
        )
    parts = find_parts(config)
    names = [
        (path, label, "" if parts.test is None else listing.part or listing.folder.name)
        for listing in parts.listings
        for label, paths in listing.images.items()
        for path in paths
    ]
    begin(len(names))
    reading = Reading(config.background, config.range)
    looks = look_at_all([path for path, _, _ in names], reading, advance)
    items = tuple(Item(*name, look) for name, look in zip(names, looks, strict=True))
    passed = "; ".join(str(listing.passed) for listing in parts.listings if listing.passed.counts)

    def picture(path: str) -> Image.Image:
        return read_picture(source(path), reading).convert("RGB")

    return Health(root, tuple(parts.train.images), items, passed, _groups(items, config), picture, parts.note)


def _of_arrays(config: DataConfig, root: Path) -> Health:
    found, items = read_arrays(root, None, config.ignore), []
    arrays: dict[str, NDArray[Any]] = {}
    for part, (images, labels) in found.parts.items():
        for number, look in enumerate(array_looks(images, config.range)):
            path = f"{part or 'image'} {number}"
            arrays[path] = images[number]
            items.append(Item(path, found.names[labels[number]], part, look))

    def picture(path: str) -> Image.Image:
        return first_channels(arrays[path], Reading(range=config.range))[0].convert("RGB")

    return Health(root, found.names, tuple(items), "", _groups(items, config), picture, found.note)


def _groups(items: Sequence[Item], config: DataConfig) -> tuple[tuple[Item, ...], ...]:
    found: dict[int, list[Item]] = {}
    for item, name in zip(items, near_duplicates((one.look for one in items), config.near_duplicates), strict=True):
        found.setdefault(int(name), []).append(item)
    return tuple(tuple(group) for group in found.values() if len(group) > 1)
