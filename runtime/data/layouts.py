"""Where the parts of a set lie: which image files are for training, validation and test, and of which class.

A layout is a function in `LAYOUTS` that gives `Parts`. It must not import torch: `graphspec compile` asks this.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from compiler.errors import RunError, one_line
from compiler.language.config import DataConfig
from runtime.data.archives import Member, files_in
from runtime.data.folders import (
    IGNORED,
    Listing,
    Passed,
    is_hidden,
    kind_of,
    list_images,
    refuse_empty,
    refuse_other_classes,
)
from runtime.data.tables import TABLES, Row, read_table
from runtime.rundir.files import guarded, refuse_pipe
from runtime.tasks.base import refuse_unknown

TRAIN, VALIDATION, TEST = "train", "validation", "test"
PART_NAMES = {"train": TRAIN, "val": VALIDATION, "valid": VALIDATION, "validation": VALIDATION, "test": TEST}


class Parts(NamedTuple):
    """The images of a set by part, all of them under the same classes."""

    train: Listing  # all images, where there is no test part: the set is divided then
    validation: Listing | None = None
    test: Listing | None = None
    note: str = ""  # what is used as something that its name does not say

    @property
    def listings(self) -> tuple[Listing, ...]:
        """Those there are, training first."""
        return tuple(part for part in (self.train, self.validation, self.test) if part is not None)


def find_parts(config: DataConfig, most: int | None = None) -> Parts:
    """The files of the set that `config` names; where training has more than `most` images, not all are listed.

    RunError if the set is not there, has no images or its parts do not hold the same classes.
    """
    parts = LAYOUTS[config.name](config, most)
    found = {name for one in parts.listings for name in one.passed.names[IGNORED]}
    refuse_unknown("data.ignore", set(map(one_line, config.ignore)) - found, list(parts.train.images))
    return parts


def settings_for(path: Path) -> dict[str, Any]:
    """The section `data` of a spec that reads what lies at a path."""
    if path.suffix.lower() in TABLES:
        return {"name": "table", "file": str(path)}
    is_arrays = path.suffix.lower() == ".npz" or (path.is_dir() and any(path.glob("*.np[yz]")))
    return {"name": "arrays" if is_arrays else "folder", "root": str(path)}


def data_root(config: DataConfig) -> Path:
    """The folder that the set lies in."""
    if config.file is not None and not config.root:
        return Path(config.file).expanduser().absolute().parent
    return Path(config.root or os.environ.get("GRAPHSPEC_DATA") or "data").expanduser().absolute()


def _in_folder(config: DataConfig, most: int | None) -> Parts:
    """Folders `train`, `val` and `test` with a folder per class, folders of classes only, or those in an archive."""
    root = data_root(config)
    with guarded(root, "read"):
        if root.is_file():
            return _of_rows(root, *_rows_of(root, nested=config.nested), config.ignore)
        refuse_pipe(root)
        names = sorted(entry.name for entry in os.scandir(root) if os.path.isdir(entry.path)) if root.is_dir() else []
    parts = _named_parts(root, names)
    if set(parts) == {TRAIN, VALIDATION} or (config.name == "imagenet" and VALIDATION in parts):
        parts[TEST] = parts.pop(VALIDATION)  # the test images of ImageNet have no labels
    whole = config.name == "folder" and not parts
    train = list_images(root, nested=config.nested, most=most, ignore=config.ignore) if whole and names else None
    if train is not None and train.paths:
        return Parts(refuse_empty(train))
    if not {TRAIN, TEST} <= set(parts):
        other = f"; passed over: {train.passed}" if train is not None and train.passed.counts else ""
        other = other if root.exists() else "; there is no such folder"
        raise RunError(
            f"data set {config.name!r}: {one_line(root)} must hold the folders train/ and test/ (or val/) with one "
            f"folder of images per class; or, of `folder`, only folders of images, one per class, and the set is "
            f"divided here{other}\n"
            f"  try: data.root: the folder that holds them"
        )
    return _of_folders(root, parts, config, most)


def _named_parts(root: Path, names: Iterable[str]) -> dict[str, str]:
    """Names of the folders that are parts, by part; RunError if two are the same one."""
    parts: dict[str, str] = {}
    for name in names:
        if (part := PART_NAMES.get(name)) and parts.setdefault(part, name) != name:
            raise RunError(f"{root}: {parts[part]}/ and {name}/ are both for {part}\n  try: put them together")
    return parts


def _of_folders(root: Path, names: dict[str, str], config: DataConfig, most: int | None) -> Parts:
    few = None if most is None else -1  # of the test images the classes are enough

    def listed(part: str) -> Listing | None:
        if part not in names:
            return None
        limit = few if part == TEST else most
        return refuse_empty(list_images(root / names[part], nested=config.nested, most=limit, ignore=config.ignore))

    train, validation, test = map(listed, (TRAIN, VALIDATION, TEST))
    assert train is not None
    for other in filter(None, (validation, test)):
        refuse_other_classes(train.folder, other.folder, list(train.images), list(other.images))
    note = f"there is no test/, so {names[TEST]}/ is the test set" if names[TEST] != TEST else ""
    return Parts(train, validation, test, "" if config.name == "imagenet" else note)


def _rows_of(root: Path, *, nested: bool) -> tuple[list[Row], Passed]:
    """The images of an archive, whose folders are named as those of a set on disk, perhaps below one more folder."""
    passed: Passed = Passed()
    found: list[tuple[Member, list[str]]] = []
    for path, name in files_in(root, passed):
        *folders, last = name.split("/")
        hidden = next((folder for folder in folders if is_hidden(folder)), "")
        if kind := f"folder {one_line(hidden)}" if hidden else kind_of(last):
            passed.add(kind)
        else:
            found.append((path, folders))
    while _have_a_wrapper(found):
        found = [(path, folders[1:]) for path, folders in found]
    parts = bool(found) and any(folders[0] in PART_NAMES for _, folders in found if folders)
    rows = []
    for path, folders in found:
        part = PART_NAMES.get(folders[0], "") if parts and folders else ""
        names = folders[1:] if parts else folders
        if names and bool(part) == parts:
            rows.append(Row(path, "/".join(names) if nested else names[0], part))
        else:
            passed.add("image beside the class folders")
    return rows, passed


def _have_a_wrapper(found: list[tuple[Member, list[str]]]) -> bool:
    """Whether all images lie in one folder, which is neither a part nor a class."""
    if not found or min(len(folders) for _, folders in found) < 2:
        return False
    return found[0][1][0] not in PART_NAMES and len({folders[0] for _, folders in found}) == 1


def _in_table(config: DataConfig, _: int | None) -> Parts:
    """A table with a line for each image."""
    if config.file is None:
        raise RunError("data.name: table needs `data.file`, a CSV, TSV or JSON lines file")
    file = data_root(config) / config.file
    if not config.root or not file.exists():  # a run knows the folder only, and that as its root
        file = data_root(config) / Path(config.file).name
    names = {**PART_NAMES, "training": TRAIN, "dev": VALIDATION} if config.part else {}
    columns, unlabelled = (config.image, config.label, config.part), "" in config.ignore
    rows = list(read_table(file, data_root(config), *columns, names, unlabelled=unlabelled))
    if not rows:
        raise RunError(f"{file}: holds no image\n  try: a line with the names of the columns, and one for each image")
    if missing := [row.path for row in rows if not os.path.exists(row.path)]:
        raise RunError(
            f"{file}: {len(missing):,} of {len(rows):,} images are not there, such as {one_line(missing[0])}\n"
            f"  try: data.root: the folder that the paths in {config.image!r} begin in"
        )
    return _of_rows(file, rows, Passed(), config.ignore)


def _of_rows(where: Path, rows: Iterable[Row], passed: Passed, ignore: Sequence[str]) -> Parts:
    """Parts of the same classes; RunError if a class has no training image."""
    by_part: dict[str, dict[str, list[str]]] = {}
    for row in rows:
        by_part.setdefault(row.part, {}).setdefault(row.name, []).append(row.path)
    for images in by_part.values():
        passed.leave_out(images, ignore)
    classes = {name for images in by_part.values() for name in images}
    names = sorted(classes, key=lambda name: (0, int(name), name) if name.isdecimal() else (1, 0, name))

    def listing(part: str, passed: Passed) -> Listing:
        images = {name: sorted(by_part[part].get(name, []), key=os.path.split) for name in names}
        return Listing(where, images, passed, part=part or where.name)

    note = ""
    if set(by_part) == {TRAIN, VALIDATION}:
        by_part[TEST] = by_part.pop(VALIDATION)
        note = f"{where.name} has no test images, so those for validation are the test set"
    if not by_part.keys() & {TRAIN, ""}:
        refuse_empty(Listing(where, {}, passed))
    train = refuse_empty(listing(TRAIN if TRAIN in by_part else "", passed))
    validation, test = (listing(part, Passed()) if part in by_part else None for part in (VALIDATION, TEST))
    return Parts(train, validation, test, note)


LAYOUTS: dict[str, Callable[[DataConfig, int | None], Parts]] = {
    "folder": _in_folder,
    "imagenet": _in_folder,
    "table": _in_table,
}
