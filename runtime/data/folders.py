"""Folders of images, one folder per class: which files are images of a set, and which are passed over.

It must not import torch, so that a set can be looked at quickly.
"""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from compiler.errors import RunError
from runtime.rundir.files import guarded

ENDINGS = (
    ".jpg", ".jpeg", ".jfif", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif", ".avif",
)  # fmt: skip
_MACOS, _MACOS_FOLDER = "._", "__MACOSX"  # what macOS leaves behind in archives and on foreign disks
_SHOWN = 10  # classes whose images are counted in a line, and kinds of other files


@dataclass(frozen=True)
class Listing:
    """The images of one part of a set."""

    folder: Path
    classes: tuple[str, ...]
    paths: list[str] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)  # of each image's class
    passed: Counter[str] = field(default_factory=Counter)  # what else lies there: kind -> how many

    @property
    def counts(self) -> Counter[str]:
        """Images per class."""
        return Counter(self.classes[number] for number in self.numbers)

    def line(self) -> str:
        """The images per class, for people."""
        counts, each = self.counts, ""
        if len(counts) > _SHOWN:
            each = f"{min(counts.values()):,} to {max(counts.values()):,} each"
        text = each or ", ".join(f"{name} {counts[name]:,}" for name in self.classes)
        return f"{self.folder.name}: {len(self.paths):,} images of {len(self.classes):,} classes ({text})"

    def passed_over(self) -> str:
        """What is passed over, the most frequent first; empty if nothing is."""
        shown = [f"{count:,} {kind}" for kind, count in self.passed.most_common(_SHOWN)]
        return ", ".join([*shown, "..."] if len(self.passed) > _SHOWN else shown)


def list_images(folder: Path) -> Listing:
    """All images of the class folders in `folder`, at whatever depth, in the order of their names.

    RunError if there is no class, one without images, or something that cannot be read.
    """
    with guarded(folder, "read"):
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        names, passed = _visible([entry.name for entry in entries if entry.is_dir()])
        listing = Listing(folder, tuple(names), passed=passed)
        beside = sum(entry.name.lower().endswith(ENDINGS) for entry in entries if entry.is_file())
        listing.passed.update({"images beside the class folders": beside} if beside else {})
        for number, name in enumerate(names):
            for path in _images_in(folder / name, listing.passed):
                listing.paths.append(path)
                listing.numbers.append(number)
    _refuse(listing)
    return listing


def refuse_other_classes(train: Path, test: Path, names: Sequence[str], test_names: Sequence[str]) -> None:
    """RunError if the two parts do not hold the same classes."""
    if differing := sorted(set(names) ^ set(test_names)):
        forms = {unicodedata.normalize("NFC", name) for name in differing}
        same = ", some only in the Unicode form of their names (NFC, NFD): rename those" * (len(forms) < len(differing))
        shown = ", ".join(differing[:5])
        raise RunError(f"{train} and {test} do not hold the same classes: {shown} differ{same}")


def _images_in(folder: Path, passed: Counter[str]) -> Iterator[str]:
    """The paths of the images in a class folder; everything else is counted."""
    found = []
    for root, folders, files in os.walk(folder, followlinks=True, onerror=_raise):
        folders[:], hidden = _visible(folders)
        passed.update(hidden)
        found.append((root, files))
    for root, files in sorted(found):
        for name in sorted(files):
            if name.startswith(_MACOS):
                passed["._* of macOS"] += 1
            elif name.lower().endswith(ENDINGS):
                yield os.path.join(root, name)
            else:
                passed[_kind(name)] += 1


def _visible(folders: list[str]) -> tuple[list[str], Counter[str]]:
    """Those that are not left behind by tools, and a count of the others."""
    hidden = [name for name in folders if name.startswith(".") or name == _MACOS_FOLDER]
    return [name for name in folders if name not in hidden], Counter(f"folder {name}" for name in hidden)


def _kind(name: str) -> str:
    return name if name.startswith(".") else os.path.splitext(name)[1].lower() or "without an ending"


def _raise(error: OSError) -> None:
    raise error


def _refuse(listing: Listing) -> None:
    empty = set(listing.classes) - set(listing.counts)
    if len({unicodedata.normalize("NFC", name) for name in listing.classes}) < len(listing.classes):
        reason = "names of its folders differ only in their Unicode form (NFC, NFD)"
    elif not listing.classes:
        reason = "there is no class folder in it"
    elif empty:
        reason = f"no image is in {', '.join(sorted(empty)[:5])}"
    else:
        return
    other = f"; passed over: {listing.passed_over()}" if listing.passed else ""
    raise RunError(
        f"{listing.folder} is no folder of images, one folder per class: {reason}{other}\n"
        f"  try: put images into every class folder ({' '.join(ENDINGS)}), or remove those without any"
    )
