"""Typed reading of a tree: every method gives the value asked for, or notes what is wrong and gives None.

A `Construct` is the table of the keys that a map of the language takes. A reader reads maps by it, the JSON schema and
the documentation are written from it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from compiler.errors import MAX_PROBLEMS, Diagnostic, Place, SpecError, did_you_mean
from compiler.language.dims import Dim, DimError
from compiler.language.names import MAX_LENGTH, name_problem
from compiler.language.source import Path, Tree
from compiler.language.spec import BlockSpec, Share

Schema = dict[str, Any]


class Kind(NamedTuple):
    """What may stand under a key: how it is read (None: it is wrong, which is noted) and its JSON schema."""

    read: Callable[[Reader, At], Any]
    schema: Schema


class Key(NamedTuple):
    """A key of a construct; `missing` is what is said where it has to be given and is not, `{}` for the map's name."""

    name: str
    kind: Kind
    help: str
    default: Any = None
    missing: str = ""
    unless: str | None = None  # the key that makes this one needless

    @property
    def schema(self) -> Schema:
        """The JSON schema of what stands under it."""
        default = {} if self.missing or self.default in (None, (), {}) else {"default": self.default}
        return self.kind.schema | {"description": self.help} | default


@dataclass(frozen=True)
class Construct:
    """A map of the language: what it is called where something else stands, and its keys."""

    what: str
    help: str
    keys: tuple[Key, ...]
    takes_attributes: bool = False  # besides its keys those of an op
    may_misspell: bool = False  # no key is missing where a misspelt one explains it

    @functools.cached_property
    def names(self) -> list[str]:
        """Its keys in order."""
        return [key.name for key in self.keys]

    def schema(self, attributes: Schema | None = None) -> Schema:
        """The JSON schema; a key that `extends` or an override may bring is not required."""
        own = {key.name: key.schema for key in self.keys}
        found = {"type": "object", "properties": own | (attributes or {}), "additionalProperties": False}
        return found | {"description": self.help}


class At(NamedTuple):
    """A value of the tree, the way to it and the key it stands under."""

    tree: Tree
    path: Path
    key: Tree | None = None

    @property
    def place(self) -> Place:
        """Where to point for a mistake in this value: a map or a list under a key by its key."""
        by_key = self.key is not None and isinstance(self.tree.value, (dict, list))
        return self.key.place if by_key and self.key is not None else self.tree.place

    @property
    def name(self) -> str:
        """The last key of the path with what follows it, for messages: `input[0]`."""
        key = next((i for i in reversed(range(len(self.path))) if isinstance(self.path[i], str)), 0)
        name, *indices = self.path[key:] or ("the spec",)
        return f"{name}{''.join(f'[{i}]' for i in indices)}"


@dataclass
class Reader:
    """Collects diagnostics, and the paths of pieces left out because of them."""

    problems: list[Diagnostic]
    broken: set[Path] = field(default_factory=set)
    symbols: dict[str, int] = field(default_factory=dict)
    share: Share = "none"  # of blocks that do not say
    blocks: Mapping[str, BlockSpec] = field(default_factory=dict)

    def error(self, place: Place, message: str) -> None:
        """Note a mistake; SpecError with all of them when there are so many that looking for more is no use."""
        self.problems.append(Diagnostic(place, message))
        if len(self.problems) >= MAX_PROBLEMS:
            raise SpecError(self.problems)

    def entries(self, at: At, what: str) -> dict[str, At]:
        """The entries of a map; `what` says what the map is for messages. Empty if it is no map."""
        value = at.tree.value
        if isinstance(value, dict):
            return {name: At(item.value, (*at.path, name), item.key) for name, item in value.items()}
        self.error(at.place, f"expected {what}, found {at.tree}")
        return {}

    def known_entries(self, at: At, what: str, known: Iterable[str]) -> dict[str, At]:
        """As `entries`, with keys outside of `known` reported and left out, and empty values left out."""
        found = self.entries(at, what)
        known = tuple(known)
        for name in [name for name in found if name not in known]:
            hint = did_you_mean(name, known) or f"; expected one of {', '.join(known)}"
            self.error(key_place(found.pop(name)), f"unknown key {name!r}{hint}")
        return {name: entry for name, entry in found.items() if entry.tree.value is not None}

    def record(self, at: At, construct: Construct) -> dict[str, Any] | None:
        """The values of the keys, given or default, and of all others under `attributes`; None if any is wrong."""
        before = len(self.problems)
        values = self.partial_record(at, construct)
        return values if len(self.problems) == before else None

    def partial_record(self, at: At, construct: Construct) -> dict[str, Any] | None:
        """As `record`, with None for what is wrong; None if it is no map."""
        known = None if construct.takes_attributes else construct.names
        given = self.entries(at, construct.what) if known is None else self.known_entries(at, construct.what, known)
        if not isinstance(at.tree.value, dict):
            return None
        values: dict[str, Any] = {}
        for key in construct.keys:
            entry = given.get(key.name)
            values[key.name] = key.default if entry is None else key.kind.read(self, entry)
            if entry is None and key.missing and key.unless not in given:
                self._missing(at, key, construct)
        return values | {"attributes": {n: self.attribute(entry) for n, entry in given.items() if n not in values}}

    def _missing(self, at: At, key: Key, construct: Construct) -> None:
        """Note a missing key; where a misspelt one explains it, that one."""
        entries = self.entries(at, "") if construct.may_misspell else {}
        near = next((n for n in entries if n not in construct.names and did_you_mean(n, (key.name,))), None)
        if near is None:
            self.error(at.place, key.missing.format(at.name))
        elif construct.takes_attributes:  # else it is an unknown key, which is noted
            self.error(key_place(entries[near]), f"unknown key {near!r}; did you mean {key.name!r}?")

    def items(self, at: At, what: str) -> list[At]:
        """The items of a list; empty if it is no list."""
        if isinstance(at.tree.value, list):
            return [At(item, (*at.path, i)) for i, item in enumerate(at.tree.value)]
        self.error(at.place, f"expected {what}, found {at.tree}")
        return []

    def one_or_more(self, at: At, what: str) -> list[At]:
        """The items of a list, or a value by itself; a list without any is noted, `what` says what it is of."""
        items = self.items(at, "") if isinstance(at.tree.value, list) else [at]
        if not items:
            self.error(at.place, f"from is an empty list; {what} reads at least one value")
        return items

    def text(self, at: At, what: str) -> str | None:
        """A text."""
        value = at.tree.value
        if isinstance(value, str) and value:
            return value
        self.error(at.place, f"expected {what}, found {at.tree}{at.tree.as_text}")
        return None

    def expect(self, at: At, fits: bool, expected: str, hint: str = "") -> Any:
        """The value if it fits; `expected` says what does."""
        if fits:
            return at.tree.value
        self.error(at.place, f"{at.name}: expected {expected}, found {at.tree}{hint}")
        return None

    def size(self, at: At) -> int | None:
        """A whole number of at least 1, or arithmetic on symbols that gives one."""
        value = at.tree.value
        if isinstance(value, bool) or not isinstance(value, (int, str)):
            return self.expect(at, False, "a whole number")  # type: ignore[no-any-return]
        try:
            size = Dim.parse(value).evaluate(self.symbols)
        except DimError as error:
            hint = did_you_mean(str(value), self.symbols)
            self.error(at.place, f"{at.name}: {error}{hint}")
            return None
        if size < 1:
            found = str(size) if isinstance(value, int) else f"{value} = {size}"
            self.error(at.place, f"{at.name} must be at least 1, found {found}")
            return None
        return size

    def attribute(self, at: At) -> Any:
        """A scalar, or a list of numbers or of lists of them."""
        value = at.tree.value
        found = _numbers(at.tree)
        if isinstance(found, tuple):
            return found
        return self.expect(at, not isinstance(value, (dict, list)), "a number, a word or a list of numbers")


def _numbers(tree: Tree) -> Any:
    """A number, or lists of numbers as tuples; None for anything else."""
    if not isinstance(tree.value, list):
        return tree.value if isinstance(tree.value, (int, float)) else None
    items = tuple(map(_numbers, tree.value))
    return None if None in items else items


def key_place(at: At) -> Place:
    """Where the key is written under which the value stands."""
    return at.key.place if at.key is not None else at.tree.place


NAMES: Schema = {"pattern": "^[a-z][a-z0-9_]*$", "maxLength": MAX_LENGTH}


def text(what: str) -> Kind:
    """A text, called `what` in messages."""
    return Kind(lambda reader, at: reader.text(at, what), {"type": "string", "minLength": 1})


def ref(name: str) -> Schema:
    """The schema of this name."""
    return {"$ref": f"#/$defs/{name}"}


def or_null(kind: Kind) -> Kind:
    """As `kind`; null takes the default."""
    return Kind(kind.read, {"anyOf": [kind.schema, {"type": "null"}]})


def named(what: str, member: str, kind: Kind) -> Kind:
    """A map of values with names of their own, each called `member` in messages; wrong ones are broken and left out."""

    def read(reader: Reader, at: At) -> dict[str, Any]:
        found = {}
        if not isinstance(at.tree.value, dict):
            reader.broken.add(at.path)
        for name, entry in reader.entries(at, what).items():
            problem = name_problem(name)
            if problem:
                reader.error(key_place(entry), f"{name!r} cannot name {member}: {problem}")
            value = kind.read(reader, entry)
            if value is None or problem:
                reader.broken.add(entry.path)
            else:
                found[name] = value
        return found

    return Kind(read, {"type": "object", "propertyNames": NAMES, "additionalProperties": kind.schema})


SIZE = Kind(Reader.size, ref("size"))
FLAG = Kind(lambda reader, at: reader.expect(at, isinstance(at.tree.value, bool), "true or false"), {"type": "boolean"})
