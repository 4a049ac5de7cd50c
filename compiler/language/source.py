"""YAML text -> a tree of values that know where they were written.

Scalars follow YAML 1.2 (`on`, `yes` and `no` are texts, `1e-4` is a number), whatever the parser underneath thinks.
Files, nesting and alias expansion are bounded, and nothing is ever constructed from a tag. Mistakes that leave the
rest readable (duplicate keys, tags, infinities) are collected; a broken syntax ends the reading.
"""

from __future__ import annotations

import functools
import math
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias

import yaml

from compiler.errors import MAX_PROBLEMS, Diagnostic, GraphspecError, Place, SpecError, did_you_mean

MAX_BYTES = 8 * 2**20  # of one file
MAX_SIZE = 1_000_000  # YAML nodes of one file after alias expansion; long texts count more than once
MAX_DEPTH = 40  # of nested maps and lists
_CHARS_PER_NODE = 32  # a text counts one node for each of these many characters
_MAX_NUMBER = 40  # characters of a number

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_LINE_BREAK = re.compile("\r\n|[\r\n\x85\u2028\u2029]")  # what YAML counts as line breaks
_CONTROL = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ufffd\U00010000-\U0010ffff]")


class Origin(Protocol):
    """A text that values were read from."""

    def place(self, line: int, column: int) -> Place:
        """The place for a position of this text, both counted from 0."""


@dataclass(frozen=True)
class SpecText:
    """A spec file's name and content."""

    name: str
    text: str

    @functools.cached_property
    def _lines(self) -> list[str]:
        return _LINE_BREAK.split(self.text)

    def place(self, line: int, column: int) -> Place:
        """The place for a position of this file, both counted from 0."""
        if line >= len(self._lines):  # the end of the text, after the last line break
            line, column = len(self._lines) - 1, len(self._lines[-1])
        return Place(self.name, line + 1, column + 1, self._lines[line])

    def place_of(self, index: int) -> Place:
        """The place of the character at `index`."""
        before = _LINE_BREAK.split(self.text[:index])
        return self.place(len(before) - 1, len(before[-1]))


@dataclass(slots=True, eq=False)
class Tree:
    """A value as written: a scalar, a list of trees or a map, and its position (counted from 0)."""

    value: Value
    origin: Origin
    line: int
    column: int

    @property
    def place(self) -> Place:
        """Where the value begins."""
        return self.origin.place(self.line, self.column)

    def plain(self) -> Any:
        """The value without positions: dicts, lists and scalars."""
        if isinstance(self.value, dict):
            return {name: item.value.plain() for name, item in self.value.items()}
        if isinstance(self.value, list):
            return [item.plain() for item in self.value]
        return self.value

    def __str__(self) -> str:
        """What was found, for messages."""
        if isinstance(self.value, dict):
            return "a map"
        if isinstance(self.value, list):
            return "a list"
        if self.value is None:
            return "nothing"
        if isinstance(self.value, bool):
            return str(self.value).lower()
        text = repr(self.value)
        return text if len(text) <= 60 else f"{text[:56]}...{text[0]}"


class Item(NamedTuple):
    """An entry of a map."""

    key: Tree
    value: Tree


Value: TypeAlias = bool | int | float | str | list[Tree] | dict[str, Item] | None


# -- files ----------------------------------------------------------------------------------------------------------


class UnreadableFileError(GraphspecError):
    """A file is missing, too large or no text; `place` is where, without an excerpt of what it holds."""

    def __init__(self, message: str, place: Place) -> None:
        super().__init__(message)
        self.place = place


def read_text(path: str) -> str:
    """The text of a regular file of at most MAX_BYTES in UTF-8; UnreadableFileError otherwise."""
    start = Place(path, 1, 1)
    try:
        info = os.stat(path)
        if not stat.S_ISREG(info.st_mode):
            kind = "a folder" if stat.S_ISDIR(info.st_mode) else "not a regular file"
            raise UnreadableFileError(f"{path} is {kind}; a spec is a YAML file", start)
        if info.st_size > MAX_BYTES:
            raise UnreadableFileError(
                f"the file has {info.st_size / 2**20:.1f} MB; a spec may have at most {MAX_BYTES // 2**20} MB", start
            )
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES)
    except OSError as error:
        raise UnreadableFileError(f"cannot read {path}: {error.strerror}{_near_file(path)}", start) from error
    except ValueError as error:  # a zero byte in the path
        raise UnreadableFileError(f"cannot read {path!r}: {error}", start) from error
    return _decode(path, content)


def _near_file(path: str) -> str:
    folder, name = os.path.split(path)
    try:
        return did_you_mean(name, [n for n in os.listdir(folder or ".") if n.endswith((".yaml", ".yml"))])
    except OSError:
        return ""


def _decode(path: str, content: bytes) -> str:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = _LINE_BREAK.split(error.object[: error.start].decode("utf-8", "replace"))
        place = Place(path, len(before), len(before[-1]) + 1)
        byte = error.object[error.start]
        raise UnreadableFileError(f"the file is not UTF-8 text: byte 0x{byte:02x}; save it as UTF-8", place) from error
    control = _CONTROL.search(text)
    if control:
        where = SpecText(path, text).place_of(control.start())
        raise UnreadableFileError(
            f"a spec may not hold the control character U+{ord(control[0]):04X}", Place(path, where.line, where.column)
        )
    return text


# -- YAML -----------------------------------------------------------------------------------------------------------


def compose(text: str, origin: Origin, problems: list[Diagnostic]) -> Tree:
    """Read one YAML document; mistakes that leave the rest readable go to `problems`, others raise SpecError."""
    composer = _Composer(origin, problems)
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            composer.take(event)
    except yaml.MarkedYAMLError as error:
        raise SpecError([*problems, _syntax_error(error, text, origin)]) from error
    except yaml.YAMLError as error:
        raise SpecError([*problems, Diagnostic(origin.place(0, 0), f"cannot read this as YAML: {error}")]) from error
    if composer.root is None:
        raise SpecError([Diagnostic(origin.place(0, 0), "the file is empty; a spec begins with 'graphspec: 1'")])
    return composer.root


def _syntax_error(error: yaml.MarkedYAMLError, text: str, origin: Origin) -> Diagnostic:
    mark = error.problem_mark or error.context_mark
    place = origin.place(mark.line, mark.column) if mark else origin.place(0, 0)
    before, after = place.excerpt[: place.column - 1], place.excerpt[place.column - 1 :]
    if after.startswith("\t") or (not before.strip() and "\t" in before):
        return Diagnostic(place, "a tab may not indent a line in YAML; use spaces")
    lines = _LINE_BREAK.split(text)[(error.context_mark or mark).line if mark else 0 :][:2]
    hint = ""
    if "->" in place.excerpt or any("->" in line for line in lines):
        hint = '; put a type in quotes: type: "[C, H, W] -> [C, H, W]"'
    problem = error.problem or "broken syntax"
    return Diagnostic(place, f"this is not YAML: {problem}{hint}")


class _Frame:
    """A map or list that is being read."""

    __slots__ = ("anchor", "key", "merges", "size", "tree")

    def __init__(self, tree: Tree, anchor: str | None) -> None:
        self.tree, self.anchor = tree, anchor
        self.size = 1
        self.key: Tree | None = None
        self.merges: list[Tree] = []


class _Composer:
    """Builds the tree from parser events, without recursion, so that nesting cannot exhaust the stack."""

    def __init__(self, origin: Origin, problems: list[Diagnostic]) -> None:
        self.origin, self.problems = origin, problems
        self.root: Tree | None = None
        self.stack: list[_Frame] = []
        self.anchors: dict[str, tuple[Tree, int]] = {}
        self.open_anchors: set[str] = set()
        self.size = 0
        self.documents = 0

    def take(self, event: Any) -> None:
        """Take the next event of the parser."""
        if len(self.problems) >= MAX_PROBLEMS:
            raise SpecError(self.problems)
        if isinstance(event, yaml.ScalarEvent):
            self._scalar(event)
        elif isinstance(event, yaml.CollectionStartEvent):
            self._open(event)
        elif isinstance(event, yaml.CollectionEndEvent):
            self._close()
        elif isinstance(event, yaml.AliasEvent):
            self._alias(event)
        elif isinstance(event, yaml.DocumentStartEvent):
            self.documents += 1
            if self.documents > 1:
                self._stop(event, "a spec is one YAML document; remove what follows the first '---'")

    def _error(self, event: Any, message: str) -> None:
        mark = event.start_mark
        self.problems.append(Diagnostic(self.origin.place(mark.line, mark.column), message))

    def _stop(self, event: Any, message: str) -> None:
        self._error(event, message)
        raise SpecError(self.problems)

    def _grow(self, event: Any, size: int) -> None:
        self.size += size
        if self.size > MAX_SIZE:
            self._stop(event, f"the spec has more than {MAX_SIZE} values once aliases are expanded")

    def _tree(self, event: Any, value: Value) -> Tree:
        mark = event.start_mark
        return Tree(value, self.origin, mark.line, mark.column)

    def _scalar(self, event: Any) -> None:
        text: str = event.value
        size = 1 + len(text) // _CHARS_PER_NODE
        self._grow(event, size)
        if event.tag is not None and event.tag != "!":
            self._error(event, f"tags such as {event.tag!r} are not part of the language")
        frame = self.stack[-1] if self.stack else None
        is_key = frame is not None and frame.key is None and isinstance(frame.tree.value, dict)
        plain = event.implicit[0]
        is_text = is_key or not plain
        tree = self._tree(event, text if is_text else self._resolve(event, text))
        if event.anchor:
            self.anchors[event.anchor] = tree, size
        if is_key and plain and text == "<<":
            tree.value = None  # stands for the merge key, which no text can be mistaken for
        self._add(tree, size)

    def _resolve(self, event: Any, text: str) -> Value:
        if text in _CONSTANTS:
            return _CONSTANTS[text]
        if text[0] not in _NUMBER_START:
            return text
        try:
            return _number(text)
        except ValueError as error:
            self._error(event, str(error))
            return 0

    def _open(self, event: Any) -> None:
        self._grow(event, 1)
        if len(self.stack) == MAX_DEPTH:
            self._stop(event, f"maps and lists are nested deeper than {MAX_DEPTH} levels")
        if event.tag is not None and event.tag != "!":
            self._error(event, f"tags such as {event.tag!r} are not part of the language")
        value: Value = {} if isinstance(event, yaml.MappingStartEvent) else []
        self.stack.append(_Frame(self._tree(event, value), event.anchor))
        if event.anchor:
            self.open_anchors.add(event.anchor)

    def _close(self) -> None:
        frame = self.stack.pop()
        if frame.merges:
            self._merge(frame)
        if frame.anchor:
            self.open_anchors.discard(frame.anchor)
            self.anchors[frame.anchor] = frame.tree, frame.size
        self._add(frame.tree, frame.size)

    def _alias(self, event: Any) -> None:
        if event.anchor in self.open_anchors:
            self._stop(event, f"the alias '*{event.anchor}' stands inside of what it names")
        if event.anchor not in self.anchors:
            self._stop(event, f"unknown alias '*{event.anchor}'{did_you_mean(event.anchor, self.anchors)}")
        tree, size = self.anchors[event.anchor]
        self._grow(event, size)
        self._add(tree, size)

    def _add(self, tree: Tree, size: int) -> None:
        if not self.stack:
            self.root = tree
            return
        frame = self.stack[-1]
        frame.size += size
        value = frame.tree.value
        if isinstance(value, list):
            value.append(tree)
        elif frame.key is None:
            frame.key = tree
        else:
            key, frame.key = frame.key, None
            self._insert(frame, key, tree)

    def _insert(self, frame: _Frame, key: Tree, tree: Tree) -> None:
        entries = frame.tree.value
        assert isinstance(entries, dict)
        if key.value is None:
            frame.merges.append(tree)
        elif not isinstance(key.value, str):
            self.problems.append(Diagnostic(key.place, f"a key must be a name, found {key}"))
        elif key.value in entries:
            first = entries[key.value].key.place
            self.problems.append(Diagnostic(key.place, f"duplicate key {key.value!r}, written first at {first}"))
        else:
            entries[key.value] = Item(key, tree)

    def _merge(self, frame: _Frame) -> None:
        own = frame.tree.value
        assert isinstance(own, dict)
        merged: dict[str, Item] = {}
        for source in self._merge_sources(frame.merges):
            for name, item in source.items():
                merged.setdefault(name, item)
        frame.tree.value = merged | own

    def _merge_sources(self, merges: list[Tree]) -> Iterator[dict[str, Item]]:
        for merge in merges:
            for source in merge.value if isinstance(merge.value, list) else [merge]:
                if isinstance(source.value, dict):
                    yield source.value
                else:
                    self.problems.append(
                        Diagnostic(source.place, f"'<<' takes a map or a list of maps, found {source}")
                    )


# -- scalars --------------------------------------------------------------------------------------------------------

_CONSTANTS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_NUMBER_START = frozenset("+-.0123456789")
_INTEGER = re.compile(r"[-+]?[0-9]+|0x[0-9a-fA-F]+|0o[0-7]+")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF|nan|NaN|NAN)")


def _number(text: str) -> int | float | str:
    """The number a plain scalar stands for, or the text itself; ValueError with what is wrong with the number."""
    if _INTEGER.fullmatch(text):
        if len(text) > _MAX_NUMBER:
            raise ValueError(f"a number of {len(text)} characters; at most {_MAX_NUMBER} are read")
        if _LEADING_ZERO.fullmatch(text):
            plain = text.lstrip("+-0") or "0"
            raise ValueError(f"{text} begins with a zero, which YAML versions read in two ways; write {plain}")
        return int(text, 0)
    if _FLOAT.fullmatch(text):
        if len(text) > _MAX_NUMBER:
            raise ValueError(f"a number of {len(text)} characters; at most {_MAX_NUMBER} are read")
        value = float(text)
        if math.isinf(value):
            raise ValueError(f"{text} is too large for a number")
        return value
    if _NOT_FINITE.fullmatch(text):
        raise ValueError(f"{text} is not a finite number")
    return text
