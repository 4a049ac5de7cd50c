"""Folders of images by class: which files are images of a set, and which are passed over. It must not import torch."""

from __future__ import annotations

import os
import stat
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from compiler.errors import RunError, one_line
from runtime.rundir.files import SPECIAL, guarded

_ALWAYS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".j2k", ".jpx", ".png", ".apng", ".gif", ".webp", ".avif"),
    *(".tif", ".tiff", ".bmp", ".dib", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".tga", ".qoi", ".pcx", ".sgi", ".npy"),
)
_HEIF = (".heic", ".heif")
ENDINGS = (*_ALWAYS, *(_HEIF if find_spec("pillow_heif") else ()))
WITH_PACKAGES = (*_ALWAYS, *_HEIF)
THERE = "link to what is there already"
IGNORED = "image of an ignored class"
_SHOWN = 10  # classes whose images are counted one by one
_NAMED = 5  # names of a kind


@dataclass
class Passed:
    """What lies in folders of images and is none of them: kind -> how many, and the names of those that surprise."""

    counts: Counter[str] = field(default_factory=Counter)
    names: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, kind: str, name: str = "") -> None:
        """One more of a kind, which is an ending or begins with a noun."""
        self.counts[kind] += 1
        self.names[kind] += [name] * bool(name)

    def leave_out(self, images: dict[str, list[str]], ignore: Sequence[str]) -> None:
        """Take the images of these classes out."""
        for name in [name for name in ignore if name in images]:
            self.counts[IGNORED] += len(images.pop(name))
            self.names[IGNORED].append(one_line(name))

    def __str__(self) -> str:
        """For people, the most frequent first; empty if there is nothing."""
        return ", ".join(f"{count:,} {self._kind(kind, count)}" for kind, count in self.counts.most_common())

    def _kind(self, kind: str, count: int) -> str:
        noun, space, rest = kind.partition(" ")
        names = self.names[kind]
        listed = ", ".join(names[:_NAMED]) + ", ..." * (len(names) > _NAMED)
        return f"{noun}{'s' * (count > 1 and noun.isalpha())}{space}{rest}" + (f" ({listed})" if listed else "")


@dataclass(frozen=True)
class Listing:
    """The images of one part of a set."""

    folder: Path
    images: dict[str, list[str]]  # paths by class, in the order of their names
    passed: Passed
    counted: bool = True  # otherwise there are classes that were not looked into
    part: str = ""  # what it is called; empty: as the folder

    @property
    def paths(self) -> list[str]:
        """All images, class by class."""
        return [path for paths in self.images.values() for path in paths]

    def line(self) -> str:
        """The images per class, for people."""
        counts = {one_line(name): len(paths) for name, paths in self.images.items()}
        each = ", ".join(f"{name} {count:,}" for name, count in counts.items())
        if len(counts) > _SHOWN:
            each = f"{min(counts.values()):,} to {max(counts.values()):,} each"
        return f"{self.part or self.folder.name}: {len(self.paths):,} images of {len(counts):,} classes ({each})"


def passed_over(listings: Iterable[Listing]) -> str:
    """What was passed over in these parts, for people; empty if there is nothing."""
    each = [f"{one.folder.name}/ ({one.passed})" for one in listings if one.passed.counts]
    return f"passed over in {', '.join(each)}" if each else ""


def list_images(folder: Path, *, nested: bool = False, most: int | None = None, ignore: Sequence[str] = ()) -> Listing:
    """All images of the class folders in `folder`, at whatever depth; `nested`: each folder with images is a class.

    Those of the classes in `ignore` are passed over. Of more than `most` images the classes that come after are named
    only. RunError if something cannot be read; see `refuse_empty`.
    """
    passed, images, found = Passed(), dict[str, list[str]](), 0
    walk = _Walk(folder, passed)
    for path in walk.classes():
        within = nested or most is None or found <= most
        paths = images[os.path.basename(path)] = walk.images_in(path) if within else []
        found += len(paths)
    if nested:
        images = _by_inner_folder(folder, images)
    passed.leave_out(images, ignore)
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
        shown = ", ".join(map(one_line, differing[:5]))
        raise RunError(f"{train} and {test} do not hold the same classes: {shown} differ{form}")


def _has_forms(names: Sequence[str]) -> bool:
    """Whether names differ only in their Unicode form."""
    return len({unicodedata.normalize("NFC", name) for name in names}) < len(names)


class _Walk:
    """Goes through the folders of one part of a set, and through each once: a link to what is there adds nothing."""

    def __init__(self, folder: Path, passed: Passed) -> None:
        self._folder, self._passed = folder, passed
        self._homes = {_real(folder), _real(folder.parent)}  # the part may lie elsewhere
        self._seen: set[tuple[int, int]] = set()

    def classes(self) -> list[str]:
        """Paths of the class folders, which from now on count as there; RunError if they cannot be read."""
        with guarded(self._folder, "read"):
            entries = list(os.scandir(self._folder))
        for entry in entries:
            if os.path.isfile(entry.path) and not kind_of(entry.name):
                self._passed.add("image beside the class folders")
        names = self._entered(self._folder, [entry.name for entry in entries if os.path.isdir(entry.path)])
        found = [os.path.join(self._folder, name) for name in names]
        self._homes |= {_real(path) for path in found}
        return found

    def images_in(self, folder: str) -> list[str]:
        """The paths of the images in a class folder; everything else is counted."""
        found: list[str] = []
        for place, folders, files in walked(folder, onerror=self._unreadable, followlinks=True):
            info = os.stat(place)
            if (info.st_dev, info.st_ino) in self._seen:
                self._pass(THERE, place)
                folders.clear()
                continue
            self._seen.add((info.st_dev, info.st_ino))
            folders[:] = self._entered(place, folders)
            for name in sorted(files):
                path = os.path.join(place, name)
                if kind := kind_of(name):
                    self._passed.add(kind)
                elif kind := _special(path):
                    self._pass(kind, path)
                else:
                    found.append(path)
        return sorted(found, key=os.path.split)

    def _unreadable(self, error: OSError) -> None:
        self._pass("folder that cannot be read", error.filename)

    def _entered(self, place: str | Path, folders: Sequence[str]) -> list[str]:
        """Those of the folders in a place that are gone into, in order."""
        found = []
        for name in sorted(folders):
            path = os.path.join(place, name)
            if is_hidden(name):
                self._passed.add(f"folder {one_line(name)}")
            elif os.path.islink(path) and self._homes & {real := _real(path), *real.parents}:
                self._pass(THERE, path)
            else:
                found.append(name)
        return found

    def _pass(self, kind: str, path: str) -> None:
        self._passed.add(kind, one_line(os.path.relpath(path, self._folder)))


def walked(folder: str, **options: Any) -> Iterator[tuple[str, list[str], list[str]]]:
    """`os.walk`; RunError where folders lie deeper in each other than Python 3.11 can follow."""
    try:
        yield from os.walk(folder, **options)
    except RecursionError as error:
        raise RunError(f"{one_line(folder)}: too many folders in each other\n  try: the images in fewer") from error


def _real(path: str | Path) -> Path:
    return Path(os.path.realpath(path))


def _special(path: str) -> str:
    """Of what would be read for ever, or is not there; empty for a regular file."""
    try:
        return SPECIAL.get(stat.S_IFMT(os.stat(path).st_mode), "")
    except OSError:
        return "link to nothing"


def is_hidden(folder: str) -> bool:
    """Whether a folder was left behind by tools."""
    return folder.startswith(".") or folder == "__MACOSX"


def kind_of(name: str) -> str:
    """Of a file that is passed over; empty for an image."""
    if name.startswith("._"):
        return "._* of macOS"
    if name.lower().endswith(ENDINGS):
        return ""
    ending = one_line(name if name.startswith(".") else os.path.splitext(name)[1].lower())
    return f"{ending} until pip install pillow-heif" if ending in _HEIF else ending or "file without an ending"


def refuse_empty(listing: Listing) -> Listing:
    """The same; RunError if there is no class, or one without images as far as they were looked into."""
    empty = [name for name, paths in listing.images.items() if not paths and listing.counted]
    reason = f"no image is in {', '.join(map(one_line, empty[:5]))}" if empty else ""
    if not listing.images:
        reason = "there is no class folder in it"
    elif _has_forms(list(listing.images)):
        reason = "names of its folders differ only in their Unicode form (NFC, NFD)"
    if reason:
        other = f"; passed over: {listing.passed}" if listing.passed.counts else ""
        raise RunError(
            f"{listing.folder} is no folder of images, one folder per class: {reason}{other}\n"
            f"  try: put images into every class folder ({' '.join(ENDINGS)}), or remove those without any"
        )
    return listing
