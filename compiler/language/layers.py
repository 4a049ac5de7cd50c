"""A spec's layers put on top of each other: the files it extends, the file itself, then the overrides.

Maps merge key by key; lists and scalars replace. Every value keeps the place where it was written. A file that turns
out not to be a spec is never quoted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from compiler.errors import Diagnostic, Place, SpecError, did_you_mean
from compiler.language.source import Item, SpecText, Tree, UnreadableFileError, compose, read_text
from compiler.language.spec import LANGUAGE_VERSION, Path

MAX_CHAIN = 16  # files in one chain of `extends`
_SPEC_LINE = re.compile(r"^graphspec[ \t]*:", re.MULTILINE)
_OWN_NAMES = ("blocks", "nodes", "ops", "symbols", "network")  # maps whose keys the user names


@dataclass(frozen=True)
class Layered:
    """The merged tree of a spec and the text of its file as given."""

    root: Tree
    text: str


@dataclass(frozen=True)
class TreePlaces:
    """Where the values of a tree are written."""

    root: Tree

    def plain(self) -> Any:
        """The tree without positions."""
        return self.root.plain()

    def place(self, path: Path) -> Place:
        """Where the value at `path` is written, or the nearest enclosing one; for a map under a key the key."""
        tree, key = self._find(path)
        return key.place if key is not None and isinstance(tree.value, dict) else tree.place

    def key_place(self, path: Path) -> Place:
        """Where the key at the end of `path` is written, or the nearest enclosing one."""
        tree, key = self._find(path)
        return key.place if key is not None else tree.place

    def _find(self, path: Path) -> tuple[Tree, Tree | None]:
        """The innermost value on the way along `path`, and its key if it stands under one."""
        tree: Tree = self.root
        key: Tree | None = None
        for part in path:
            if isinstance(tree.value, dict) and part in tree.value:
                key, tree = tree.value[str(part)]
            elif isinstance(tree.value, list) and isinstance(part, int) and part < len(tree.value):
                key, tree = None, tree.value[part]
            else:
                break
        return tree, key

    def override_in(self, path: Path) -> Place | None:
        """Where the first override of something at `path` or below it is written; None if there is none."""
        tree: Tree = self.root
        for part in path:
            if isinstance(tree.value, dict) and part in tree.value:
                tree = tree.value[str(part)].value
            elif isinstance(tree.value, list) and isinstance(part, int) and part < len(tree.value):
                tree = tree.value[part]
            else:
                return None
        return _first_override(tree)


def _first_override(tree: Tree) -> Place | None:
    if isinstance(tree.origin, OverrideText):
        return tree.place
    below: list[Tree] = []
    if isinstance(tree.value, dict):
        below = [item.value for item in tree.value.values()]
    elif isinstance(tree.value, list):
        below = tree.value
    return next((place for place in map(_first_override, below) if place is not None), None)


def load(path: str, overrides: Sequence[str], problems: list[Diagnostic]) -> Layered:
    """Read a spec with everything it extends and its overrides; SpecError if not even a tree can be made of it."""
    try:
        source = SpecText(path, read_text(path))
    except UnreadableFileError as error:
        raise SpecError([Diagnostic(error.place, str(error))]) from error
    root = _read_layer(source, problems)
    layers = [root]
    seen = {os.path.realpath(path)}
    while "extends" in _entries(layers[-1]):
        layers.append(_read_base(layers[-1], seen, problems))
    merged = layers.pop()
    while layers:
        merged = _merge(merged, layers.pop())
    merged = _without(merged, "extends")
    for number, override in enumerate(overrides, start=1):
        merged = _override(merged, OverrideText(number, override), problems)
    return Layered(merged, source.text)


def _entries(tree: Tree) -> dict[str, Item]:
    assert isinstance(tree.value, dict)
    return tree.value


def _read_layer(source: SpecText, problems: list[Diagnostic]) -> Tree:
    """One file's tree: a map that states the language version. SpecError if it is none."""
    tree = compose(source.text, source, problems)
    message = _version_problem(tree)
    if message:
        version = tree.value.get("graphspec") if isinstance(tree.value, dict) else None
        raise SpecError([*problems, Diagnostic(version.value.place if version else tree.place, message)])
    return tree


def _version_problem(tree: Tree) -> str:
    if not isinstance(tree.value, dict):
        return f"a spec is a map that begins with 'graphspec: {LANGUAGE_VERSION}', found {tree}"
    if "graphspec" not in tree.value:
        found = next((f", found {name!r}" for name in tree.value if did_you_mean(name, ("graphspec",))), "")
        return f"a spec begins with its language version: 'graphspec: {LANGUAGE_VERSION}'{found}"
    version = tree.value["graphspec"].value
    if type(version.value) is int and version.value == LANGUAGE_VERSION:
        return ""
    return f"this program reads language version {LANGUAGE_VERSION}, found {version}"


# -- extends --------------------------------------------------------------------------------------------------------


def _read_base(layer: Tree, seen: set[str], problems: list[Diagnostic]) -> Tree:
    """The tree of the file that `layer` extends; SpecError pointing at the `extends` value if there is none."""
    target = _entries(layer)["extends"].value

    def refuse(message: str) -> SpecError:
        return SpecError([*problems, Diagnostic(target.place, message)])

    if not isinstance(target.value, str) or not target.value:
        raise refuse(f"extends takes the path of a spec file, found {target}")
    path = os.path.join(os.path.dirname(target.place.file), target.value)
    if os.path.realpath(path) in seen:
        raise refuse(f"{target.value!r} extends itself, directly or through other files")
    if len(seen) == MAX_CHAIN:
        raise refuse(f"more than {MAX_CHAIN} files extend each other")
    seen.add(os.path.realpath(path))
    try:
        source = SpecText(path, read_text(path))
    except UnreadableFileError as error:
        raise refuse(f"cannot extend {target.value!r}: {error}") from error
    return _read_base_layer(source, problems, refuse(f"{target.value!r} is not a spec: it has no 'graphspec:' key"))


def _read_base_layer(source: SpecText, problems: list[Diagnostic], refusal: SpecError) -> Tree:
    """As `_read_layer`, but with nothing but `refusal` said of a file that is no spec."""
    found: list[Diagnostic] = []
    try:
        tree = compose(source.text, source, found)
    except SpecError as error:
        if not _SPEC_LINE.search(source.text):
            raise refusal from None
        raise SpecError([*problems, *error.diagnostics]) from error
    if not isinstance(tree.value, dict) or "graphspec" not in tree.value:
        raise refusal
    problems.extend(found)
    message = _version_problem(tree)
    if message:
        raise SpecError([*problems, Diagnostic(tree.value["graphspec"].value.place, message)])
    return tree


def _merge(base: Tree, top: Tree) -> Tree:
    if not isinstance(base.value, dict) or not isinstance(top.value, dict):
        return top
    merged = dict(base.value)
    for name, item in top.value.items():
        merged[name] = Item(item.key, _merge(merged[name].value, item.value)) if name in merged else item
    return Tree(merged, top.origin, top.line, top.column)


def _without(tree: Tree, name: str) -> Tree:
    kept = {key: item for key, item in _entries(tree).items() if key != name}
    return Tree(kept, tree.origin, tree.line, tree.column)


# -- overrides ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OverrideText:
    """The text of the n-th `--set key=value`, counted from 1."""

    number: int
    text: str
    offset: int = 0  # column at which the part that is being read begins

    def place(self, line: int, column: int) -> Place:
        """The place for a position of this override, both counted from 0."""
        lines = self.text.splitlines() or [""]
        if line >= len(lines):  # the end of the text
            return Place("--set", self.number, len(lines[-1]) + 1, lines[-1])
        return Place("--set", self.number, column + 1 + (self.offset if line == 0 else 0), lines[line])


class _RefusedError(Exception):
    """An override cannot be applied; holds the diagnostic."""

    def __init__(self, place: Place, message: str) -> None:
        super().__init__(message)
        self.diagnostic = Diagnostic(place, message)


def _override(root: Tree, source: OverrideText, problems: list[Diagnostic]) -> Tree:
    """`root` with one override applied; a wrong override goes to `problems`."""
    try:
        keys = _override_keys(source)
        text = source.text.partition("=")[2]
        value = _override_value(source, text, problems)
        return _set(root, keys, 0, value, ())
    except _RefusedError as refused:
        problems.append(refused.diagnostic)
    except SpecError as error:
        problems.extend(d for d in error.diagnostics if d not in problems)
    return root


def _override_keys(source: OverrideText) -> list[Tree]:
    """The segments of `a.b=c` before the sign, each with its place."""
    name, sign, _ = source.text.partition("=")
    try:
        source.text.encode()
    except UnicodeEncodeError as error:
        raise _RefusedError(Place("--set", source.number, 1), "an override must be UTF-8 text") from error
    if not sign:
        raise _RefusedError(source.place(0, 0), "an override is written key=value, for example search.epochs=20")
    keys, column = [], 0
    for part in name.split("."):
        if not re.fullmatch(r"\w+", part):
            raise _RefusedError(source.place(0, column), f"the key {name!r} has an empty or unreadable part")
        keys.append(Tree(part, source, 0, column))
        column += len(part) + 1
    if name in ("graphspec", "extends"):
        raise _RefusedError(
            source.place(0, 0), f"{name!r} is read before overrides are applied and cannot be overridden"
        )
    return keys


def _override_value(source: OverrideText, text: str, problems: list[Diagnostic]) -> Tree:
    origin = OverrideText(source.number, source.text, len(source.text) - len(text))
    if not text.strip():
        return Tree(None, origin, 0, 0)
    return compose(text, origin, problems)


def _set(tree: Tree, keys: list[Tree], depth: int, value: Tree, path: tuple[str, ...]) -> Tree:
    """A copy of `tree` in which the value at `keys[depth:]` is `value`; aliased values elsewhere stay as they are."""
    if depth == len(keys):
        return value
    key = keys[depth]
    part = str(key.value)
    below = (*path, part)
    if isinstance(tree.value, list):
        items = list(tree.value)
        if not part.isdecimal() or int(part) >= len(items):
            raise _RefusedError(key.place, f"{'.'.join(path)} is a list; its items are called 0 to {len(items) - 1}")
        items[int(part)] = _set(items[int(part)], keys, depth + 1, value, below)
        return Tree(items, tree.origin, tree.line, tree.column)
    if tree.value is not None and not isinstance(tree.value, dict):
        raise _RefusedError(key.place, f"{'.'.join(path)} is {tree} and has no key {part!r}")
    entries = dict(tree.value or {})
    if part not in entries and path and _names_are_the_users(path):
        raise _RefusedError(key.place, f"{'.'.join(path)} has no {part!r}{did_you_mean(part, entries)}")
    old = entries[part].value if part in entries else Tree(None, key.origin, key.line, key.column)
    new = _set(old, keys, depth + 1, value, below)
    written_key = entries[part].key if part in entries and depth + 1 < len(keys) else key
    entries[part] = Item(written_key, new)
    return Tree(entries, tree.origin, tree.line, tree.column)


def _names_are_the_users(path: tuple[str, ...]) -> bool:
    """Whether the keys of the map at `path` are names that the spec gives (an override may not add one)."""
    return (len(path) == 1 and path[0] in _OWN_NAMES) or (len(path) == 3 and path[0] == "blocks" and path[2] == "nodes")
