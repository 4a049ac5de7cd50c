"""Folders of images by class: which files are images of a set, and which are passed over. It must not import torch."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compiler.errors import RunError
from runtime.rundir.files import guarded

ENDINGS = (".jpg", ".jpeg", ".jfif", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif", ".avif")
_SHOWN = 10  # classes whose images are counted one by one


@dataclass(frozen=True)
class Listing:
    """The images of one part of a set."""

    folder: Path
    images: dict[str, list[str]]  # paths by class, in the order of their names
    passed: Counter[str]  # what else lies there: kind -> how many
    counted: bool = True  # otherwise there are classes that were not looked into
    part: str = ""  # what it is called; empty: as the folder

    @property
    def total(self) -> int:
        """How many images were found."""
        return sum(map(len, self.images.values()))

    def line(self) -> str:
        """The images per class, for people."""
        counts = {name: len(paths) for name, paths in self.images.items()}
        each = ", ".join(f"{name} {count:,}" for name, count in counts.items())
        if len(counts) > _SHOWN:
            each = f"{min(counts.values()):,} to {max(counts.values()):,} each"
        return f"{self.part or self.folder.name}: {self.total:,} images of {len(counts):,} classes ({each})"

    def passed_over(self) -> str:
        """What is passed over, the most frequent first; empty if nothing is."""
        return ", ".join(f"{count:,} {kind}" for kind, count in self.passed.most_common())


def list_images(folder: Path, *, nested: bool = False, most: int | None = None) -> Listing:
    """All images of the class folders in `folder`, at whatever depth; `nested`: each folder with images is a class.

    Of more than `most` images the classes that come after are named only. RunError if there is no class, one without
    images, or something that cannot be read.
    """
    listing = scan_images(folder, nested=nested, most=most)
    refuse_empty(listing)
    return listing


def scan_images(folder: Path, *, nested: bool = False, most: int | None = None) -> Listing:
    """As `list_images`, whether there are any or not."""
    with guarded(folder, "read"):
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        names, passed = visible([entry.name for entry in entries if entry.is_dir()])
        beside = [entry for entry in entries if entry.is_file() and not kind_of(entry.name)]
        passed.update("images beside the class folders" for _ in beside)
        images: dict[str, list[str]] = {}
        found = 0
        for name in names:
            counted = nested or most is None or found <= most
            images[name] = images_in(folder / name, passed) if counted else []
            found += len(images[name])
    if nested:
        images = _by_inner_folder(folder, images)
    return Listing(folder, images, passed, nested or most is None or found <= most)


def _by_inner_folder(folder: Path, images: dict[str, list[str]]) -> dict[str, list[str]]:
    """The same images by the folders that hold them, below `folder`."""
    found: dict[str, list[str]] = {}
    for path in (path for paths in images.values() for path in paths):
        found.setdefault(Path(os.path.dirname(path)).relative_to(folder).as_posix(), []).append(path)
    return dict(sorted(found.items()))


def refuse_other_classes(train: Path, test: Path, names: Sequence[str], test_names: Sequence[str]) -> None:
    """RunError if the two parts do not hold the same classes."""
    if differing := sorted(set(names) ^ set(test_names)):
        form = ", some only in the Unicode form of their names (NFC, NFD): rename those" * _has_forms(differing)
        shown = ", ".join(differing[:5])
        raise RunError(f"{train} and {test} do not hold the same classes: {shown} differ{form}")


def _has_forms(names: Sequence[str]) -> bool:
    """Whether names differ only in their Unicode form."""
    return len({unicodedata.normalize("NFC", name) for name in names}) < len(names)


def images_in(folder: Path, passed: Counter[str]) -> list[str]:
    """The paths of the images in a class folder, in torchvision's order; everything else is counted."""
    found: list[str] = []
    left, seen = [str(folder)], set[tuple[int, int]]()
    while left:
        place = left.pop()
        try:
            info, entries = os.stat(place), sorted(os.scandir(place), key=lambda entry: entry.name)
        except OSError:
            passed["unreadable folders"] += 1
            continue
        if (info.st_dev, info.st_ino) in seen:  # a link leads back
            passed["links to folders that are there already"] += 1
            continue
        seen.add((info.st_dev, info.st_ino))
        names, hidden = visible([entry.name for entry in entries if entry.is_dir()])
        passed.update(hidden)
        left += [os.path.join(place, name) for name in reversed(names)]
        files = [entry for entry in entries if not entry.is_dir()]
        passed.update(kind for entry in files if (kind := kind_of(entry.name) or _special(entry)))
        found += [entry.path for entry in files if not kind_of(entry.name) and not _special(entry)]
    return sorted(found, key=os.path.split)


def _special(entry: os.DirEntry[str]) -> str:
    """Of what would be read for ever, or is not there; empty for a regular file."""
    return "" if entry.is_file() else "links to nothing" if entry.is_symlink() else "pipes and devices"


def visible(folders: list[str]) -> tuple[list[str], Counter[str]]:
    """Those that are not left behind by tools, and a count of the others."""
    hidden = [name for name in folders if name.startswith(".") or name == "__MACOSX"]
    return [name for name in folders if name not in hidden], Counter(f"folder {name}" for name in hidden)


def kind_of(name: str) -> str:
    """Of a file that is passed over; empty for an image."""
    if name.startswith("._"):
        return "._* of macOS"
    if name.lower().endswith(ENDINGS):
        return ""
    return name if name.startswith(".") else os.path.splitext(name)[1].lower() or "without an ending"


def refuse_empty(listing: Listing) -> None:
    """RunError if there is no class, or one without images as far as they were looked into."""
    empty = [name for name, paths in listing.images.items() if not paths and listing.counted]
    reason = f"no image is in {', '.join(empty[:5])}" if empty else ""
    if not listing.images:
        reason = "there is no class folder in it"
    elif _has_forms(list(listing.images)):
        reason = "names of its folders differ only in their Unicode form (NFC, NFD)"
    if reason:
        other = f"; passed over: {listing.passed_over()}" if listing.passed else ""
        raise RunError(
            f"{listing.folder} is no folder of images, one folder per class: {reason}{other}\n"
            f"  try: put images into every class folder ({' '.join(ENDINGS)}), or remove those without any"
        )
