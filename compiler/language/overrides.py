"""Overrides: typed values that replace values of a spec, with the text that they were written as.

They are made once, from `--set`, another option or Python, and are merged into the spec by `compiler.language.layers`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from compiler.errors import Diagnostic, Place, SpecError, refusal
from compiler.language.source import MAX_DEPTH, Item, SpecText, Tree, compose, scalar

_QUOTED = re.compile(r'"([^"\\]|\\.)*"|\'([^\']|\'\')*\'', re.DOTALL)
_LINE_BREAK = re.compile("[\r\n\x85\u2028\u2029]")


@dataclass(frozen=True)
class Override:
    """A value for the key at `path`; a text that states none has an empty path.

    `text.name` says where it comes from (`--set`, `--seed`, ...). `mistakes` are told with those of the spec.
    """

    path: tuple[str, ...]
    value: Tree
    text: SpecText
    mistakes: tuple[Diagnostic, ...] = ()

    @classmethod
    def parse(cls, written: str, number: int = 1, source: str = "--set") -> Override:
        """The override that is written as `key.key=value`, the n-th of its source."""
        text = SpecText(source, written, number)
        name, _, value = written.partition("=")
        nothing = Tree(None, replace(text, offset=len(name) + 1), 0, 0)
        found: list[Diagnostic] = []
        try:
            return cls(_path(text), _value(value, nothing.origin, found), text, tuple(found))
        except SpecError as error:
            return cls((), nothing, text, error.diagnostics)

    @classmethod
    def of(cls, key: str, value: Any, source: str = "overrides", number: int = 1) -> Override:
        """The override of a dotted key by a Python value; SpecError if it is no key, TypeError if it is not JSON."""
        text = SpecText(source, f"{key}={_written(value)}", number)
        return cls(_path(text), _tree(value, replace(text, offset=len(key) + 1)), text)

    @property
    def keys(self) -> list[Tree]:
        """The parts of the path, each with its place in the text."""
        return [Tree(part, self.text, 0, len(".".join((*self.path[:i], "")))) for i, part in enumerate(self.path)]

    @property
    def key(self) -> str:
        """The path as one writes it."""
        return ".".join(self.path)

    @property
    def words(self) -> tuple[str, str]:
        """The words of a command line that state it."""
        return "--set", f"{self.key}={_written(self.value.plain())}"

    def __str__(self) -> str:
        """As it was written."""
        return self.text.text


Overrides: TypeAlias = Mapping[str, Any] | Sequence[str | Override]
"""How Python functions take overrides: values by dotted key, or texts as `--set` takes them."""


def overrides_of(given: Overrides) -> tuple[Override, ...]:
    """What is given as typed values; those that are stay as they are."""
    if isinstance(given, Mapping):
        return tuple(Override.of(key, value, number=n) for n, (key, value) in enumerate(given.items(), start=1))
    return tuple(each if isinstance(each, Override) else Override.parse(each, n) for n, each in enumerate(given, 1))


def changes(before: Any, after: Any, prefix: str = "") -> list[Override]:
    """The overrides that make one nested dict of settings the other."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = dict.fromkeys([*before, *after])
        return [each for key in keys for each in changes(before.get(key), after.get(key), f"{prefix}{key}.")]
    return [] if before == after else [Override.of(prefix.removesuffix("."), after)]


def _path(text: SpecText) -> tuple[str, ...]:
    """The parts of the key before the sign; SpecError that points at what is wrong with it."""
    name, sign, _ = text.text.partition("=")
    try:
        text.text.encode()
    except UnicodeEncodeError as error:
        raise refusal(Place(text.name, text.override, 1), "an override must be UTF-8 text") from error
    if not sign:
        raise refusal(text.place(0, 0), "an override is written key=value, for example search.epochs=20")
    parts, column = name.split("."), 0
    if len(parts) > MAX_DEPTH:
        raise refusal(text.place(0, 0), f"the key has more than {MAX_DEPTH} parts")
    for part in parts:
        if not re.fullmatch(r"\w+", part):
            raise refusal(text.place(0, column), f"the key {name!r} has an empty or unreadable part")
        column += len(part) + 1
    if name in ("graphspec", "extends"):
        message = f"{name!r} is read before overrides are applied and cannot be overridden"
        raise refusal(text.place(0, 0), message)
    return tuple(parts)


def _value(written: str, origin: SpecText, found: list[Diagnostic]) -> Tree:
    """A list or map in brackets, a text in quotes, or a scalar, in which no character has a meaning of its own."""
    text = written.strip()
    if text[:1] in ("[", "{") or _QUOTED.fullmatch(text):
        return compose(_LINE_BREAK.sub(" ", written), origin, found)  # in one line no comment goes unnoticed
    tree = Tree(written, origin, 0, len(written) - len(written.lstrip()))
    try:
        value = scalar(text)
        tree.value = written if isinstance(value, str) else value
    except ValueError as error:
        found.append(Diagnostic(tree.place, str(error)))
    return tree


def _written(value: Any) -> str:
    """A Python value so that `_value` reads it, whatever is in it; TypeError if it is not JSON."""
    text = json.dumps(value, ensure_ascii=False)
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in text)


def _tree(value: Any, origin: SpecText) -> Tree:
    """A Python value as if it had been written at the beginning of the text."""
    if isinstance(value, Mapping):
        items = {str(key): Item(_tree(str(key), origin), _tree(item, origin)) for key, item in value.items()}
        return Tree(items, origin, 0, 0)
    if isinstance(value, list | tuple):
        return Tree([_tree(item, origin) for item in value], origin, 0, 0)
    return Tree(value, origin, 0, 0)
