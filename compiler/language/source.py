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
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn, TypeAlias

import yaml

from compiler.errors import MAX_PROBLEMS, Diagnostic, Place, SpecError, did_you_mean, refusal
from compiler.language.findings import show

MAX_BYTES = 8 * 2**20  # of one file
MAX_SIZE = 1_000_000  # YAML nodes of one file after alias expansion; long texts count more than once
MAX_DEPTH = 40  # of nested maps and lists
_CHARS_PER_NODE = 32  # a text counts one node for each of these many characters
_MAX_NUMBER = 40  # characters of a number

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_LINE_BREAK = re.compile("\r\n|[\r\n\x85\u2028\u2029]")  # what YAML counts as line breaks
_CONTROL = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ufffd\U00010000-\U0010ffff]")


Path: TypeAlias = tuple[str | int, ...]  # the way from the root of a spec to a value: ("blocks", "stem", "nodes")


@dataclass(frozen=True)
class SpecText:
    """A text that values are read from: a spec file, or an override, whose number then stands for its line."""

    name: str
    text: str
    override: int = 0  # counted from 1; 0 for a file
    offset: int = 0  # column at which the part of an override that is read begins

    @functools.cached_property
    def _lines(self) -> list[str]:
        return _LINE_BREAK.split(self.text)

    def place(self, line: int, column: int) -> Place:
        """The place for a position of the text, both counted from 0."""
        if line >= len(self._lines):  # the end of the text, after the last line break
            line, column = len(self._lines) - 1, len(self._lines[-1])
        elif line == 0:
            column += self.offset
        return Place(self.name, self.override or line + 1, column + 1, self._lines[line])

    def place_of(self, index: int) -> Place:
        """The place of the character at `index`, without an excerpt."""
        before = _LINE_BREAK.split(self.text[:index])
        return Place(self.name, len(before), len(before[-1]) + 1)


@dataclass(slots=True, eq=False)
class Tree:
    """A value as written: a scalar, a list of trees or a map, and its position (counted from 0)."""

    value: Value
    origin: SpecText
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
        return show(self.value)

    @property
    def as_text(self) -> str:
        """The end of a message that wants a text and found this: how to write a text that reads as something else."""
        if not isinstance(self.value, (int, float)):
            return ""
        key, value = self.origin.text[: self.origin.offset], self.origin.text[self.origin.offset :].strip()
        alone = self.origin.name == "--set" and value[:1] not in ("[", "{")  # else the reader sees which item it is
        return "; put it in quotes" + f""", for a shell --set '{key}"{value}"'""" * alone

    def find(self, path: Path) -> tuple[Tree, Tree | None, int]:
        """The innermost value on the way along `path`, its key if it stands under one, and the steps to it."""
        tree, key = self, None
        for steps, part in enumerate(path):
            if isinstance(tree.value, dict) and part in tree.value:
                key, tree = tree.value[str(part)]
            elif isinstance(tree.value, list) and isinstance(part, int) and part < len(tree.value):
                key, tree = None, tree.value[part]
            else:
                return tree, key, steps
        return tree, key, len(path)

    def place_at(self, path: Path) -> Place:
        """Where the value at `path` is written, or the nearest enclosing one; for a map under a key the key."""
        tree, key, _ = self.find(path)
        return key.place if key is not None and isinstance(tree.value, dict) else tree.place

    def key_place(self, path: Path) -> Place:
        """Where the key at the end of `path` is written, or the nearest enclosing one."""
        tree, key, _ = self.find(path)
        return tree.place if key is None else key.place

    def override_in(self, path: Path) -> Place | None:
        """Where the first override of something at `path` or below it is written; None if there is none."""
        tree, _, steps = self.find(path)
        return tree._first_override() if steps == len(path) else None

    def _first_override(self) -> Place | None:
        if self.origin.override:
            return self.place
        value = self.value
        trees = [item.value for item in value.values()] if isinstance(value, dict) else value
        below = trees if isinstance(trees, list) else []
        return next((place for tree in below if (place := tree._first_override()) is not None), None)


class Item(NamedTuple):
    """An entry of a map."""

    key: Tree
    value: Tree


Value: TypeAlias = bool | int | float | str | list[Tree] | dict[str, Item] | None


def read_text(path: str) -> str:
    """The text of a regular file of at most MAX_BYTES in UTF-8; SpecError, which quotes nothing of it, otherwise."""
    top = Place(path, 1, 1)
    try:
        info = os.stat(path)
        if not stat.S_ISREG(info.st_mode):
            kind = "a folder" if stat.S_ISDIR(info.st_mode) else "not a regular file"
            raise refusal(top, f"{path} is {kind}; a spec is a YAML file")
        if info.st_size > MAX_BYTES:
            size = f"the file has {info.st_size / 2**20:.1f} MB; a spec may have at most {MAX_BYTES // 2**20} MB"
            raise refusal(top, size)
        with open(path, "rb") as file:
            return _decode(path, file.read(MAX_BYTES))
    except OSError as error:
        raise refusal(top, f"cannot read {path}: {error.strerror}{_near_file(path)}") from error
    except ValueError as error:  # a zero byte in the path
        raise refusal(top, f"cannot read {path!r}: {error}") from error


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
        before = SpecText(path, error.object[: error.start].decode("utf-8", "replace"))
        byte = error.object[error.start]
        message = f"the file is not UTF-8 text: byte 0x{byte:02x}; save it as UTF-8"
        raise refusal(before.place_of(len(before.text)), message) from error
    control = _CONTROL.search(text)
    if control:
        message = f"a spec may not hold the control character U+{ord(control[0]):04X}"
        raise refusal(SpecText(path, text).place_of(control.start()), message)
    return text


def compose(text: str, origin: SpecText, problems: list[Diagnostic]) -> Tree:
    """Read one YAML document; mistakes that leave the rest readable go to `problems`, others raise SpecError."""
    try:
        root = _Composer(text, origin, problems).document()
    except yaml.MarkedYAMLError as error:
        raise SpecError([*problems, _syntax_error(error, text, origin)]) from error
    except yaml.YAMLError as error:
        raise refusal(origin.place(0, 0), f"cannot read this as YAML: {error}", problems) from error
    if root is None:
        raise refusal(origin.place(0, 0), "the file is empty; a spec begins with 'graphspec: 1'")
    return root


def _syntax_error(error: yaml.MarkedYAMLError, text: str, origin: SpecText) -> Diagnostic:
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


class _Composer:
    """Makes a tree of the events of PyYAML's parser, with our limits and checks."""

    def __init__(self, text: str, origin: SpecText, problems: list[Diagnostic]) -> None:
        parser: Any = _LOADER(text)
        self.take, self.peek, self.next_is = parser.get_event, parser.peek_event, parser.check_event
        self.origin, self.problems = origin, problems
        self.size = self.depth = self.end = 0  # the end of the last list or map that was read
        self.anchors: dict[str, tuple[Tree, int] | None] = {}  # trees and their sizes, None before their end

    def document(self) -> Tree | None:
        """The only document; None if there is none."""
        self.take()
        if self.next_is(yaml.StreamEndEvent):
            return None
        self.take()
        root = self.tree()
        if self.origin.override and self.origin.text[self.origin.offset + self.end :].strip() and self.end:
            self._error(self.origin.place(0, self.end), "the value ends here; put a text with brackets in quotes")
        self.take()
        if self.next_is(yaml.DocumentStartEvent):
            self._stop(self.peek(), "a spec is one YAML document; remove what follows the first '---'")
        return root

    def tree(self, is_key: bool = False) -> Tree:
        """The tree of the next node."""
        event = self.take()
        if self.origin.override and getattr(event, "anchor", None):
            self._stop(event, f"an override knows no anchors; put a text that holds {event.anchor!r} in quotes")
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event)
        if event.tag is not None and event.tag != "!":
            self._error(self._place(event), f"tags such as {event.tag!r} are not part of the language")
        before = self.size
        if event.anchor:
            self.anchors[event.anchor] = None
        value = self._scalar(event, is_key) if isinstance(event, yaml.ScalarEvent) else self._collection(event)
        tree = Tree(value, self.origin, event.start_mark.line, event.start_mark.column)
        if event.anchor:
            self.anchors[event.anchor] = tree, self.size - before
        return tree

    def _collection(self, event: Any) -> Value:
        self._grow(event, 1)
        if self.depth == MAX_DEPTH:
            self._stop(event, f"maps and lists are nested deeper than {MAX_DEPTH} levels")
        self.depth += 1
        value: Value = self._list() if isinstance(event, yaml.SequenceStartEvent) else self._map()
        self.end = self.take().end_mark.index
        self.depth -= 1
        return value

    def _list(self) -> list[Tree]:
        items = []
        while not self.next_is(yaml.SequenceEndEvent):
            items.append(self.tree())
        return items

    def _map(self) -> dict[str, Item]:
        own: dict[str, Item] = {}
        merged: dict[str, Item] = {}
        while not self.next_is(yaml.MappingEndEvent):
            key = self.tree(is_key=True)
            is_new = self._is_new(key, own)  # before the value, in which the syntax may break
            tree = self.tree()
            if key.value is None:
                for name, item in self._merged(tree):
                    merged.setdefault(name, item)
            elif is_new:
                own[str(key.value)] = Item(key, tree)
        return merged | own if merged else own

    def _is_new(self, key: Tree, own: Mapping[Any, Item]) -> bool:
        """Whether the key may stand in a map that has the keys `own` already; reported if not."""
        if key.value is not None and not isinstance(key.value, str):
            self._error(key.place, f"a key must be a name, found {key}")
        elif key.value in own:
            self._error(key.place, f"duplicate key {key.value!r}, written first at {own[key.value].key.place}")
        else:
            return True
        return False

    def _scalar(self, event: Any, is_key: bool) -> Value:
        text: str = event.value
        self._grow(event, 1 + len(text) // _CHARS_PER_NODE)
        if not event.implicit[0]:
            return text
        if is_key:
            return None if text == "<<" else text  # None is the merge key, which no text can be mistaken for
        try:
            return scalar(text)
        except ValueError as error:
            self._error(self._place(event), str(error))
            return 0

    def _alias(self, event: Any) -> Tree:
        if event.anchor not in self.anchors:
            self._stop(event, f"unknown alias '*{event.anchor}'{did_you_mean(event.anchor, self.anchors)}")
        named = self.anchors[event.anchor]
        if named is None:
            self._stop(event, f"the alias '*{event.anchor}' stands inside of what it names")
        tree, size = named
        self._grow(event, size)
        return tree

    def _merged(self, tree: Tree) -> Iterable[tuple[str, Item]]:
        """Entries of a map, or of a list of maps, under `<<`."""
        for source in tree.value if isinstance(tree.value, list) else [tree]:
            if isinstance(source.value, dict):
                yield from source.value.items()
            else:
                self._error(source.place, f"'<<' takes a map or a list of maps, found {source}")

    def _grow(self, event: Any, size: int) -> None:
        self.size += size
        if self.size > MAX_SIZE:
            self._stop(event, f"the spec has more than {MAX_SIZE} values once aliases are expanded")

    def _place(self, event: Any) -> Place:
        return self.origin.place(event.start_mark.line, event.start_mark.column)

    def _error(self, place: Place, message: str) -> None:
        self.problems.append(Diagnostic(place, message))
        if len(self.problems) >= MAX_PROBLEMS:
            raise SpecError(self.problems)

    def _stop(self, event: Any, message: str) -> NoReturn:
        self._error(self._place(event), message)
        raise SpecError(self.problems)


_CONSTANTS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
NUMBER_START = frozenset("+-.0123456789")
_INTEGER = re.compile(r"[-+]?[0-9]+|0x[0-9a-fA-F]+|0o[0-7]+")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
NUMBER = re.compile(rf"^({_INTEGER.pattern}|{_FLOAT.pattern})$")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF|nan|NaN|NAN)")


def scalar(text: str) -> bool | int | float | str | None:
    """What a text without quotes stands for; ValueError if it is a number that cannot be read."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    return _number(text) if text[0] in NUMBER_START else text


def _number(text: str) -> int | float | str:
    """The number a plain scalar stands for, or the text itself; ValueError with what is wrong with the number."""
    if _NOT_FINITE.fullmatch(text):
        raise ValueError(f"{text} is not a finite number")
    is_integer = _INTEGER.fullmatch(text)
    if not is_integer and not _FLOAT.fullmatch(text):
        return text
    if len(text) > _MAX_NUMBER:
        raise ValueError(f"a number of {len(text)} characters; at most {_MAX_NUMBER} are read")
    if _LEADING_ZERO.fullmatch(text):
        plain = text.lstrip("+-0") or "0"
        raise ValueError(f"{text} begins with a zero, which YAML versions read in two ways; write {plain}")
    value = int(text, 0) if is_integer else float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is too large for a number")
    return value
