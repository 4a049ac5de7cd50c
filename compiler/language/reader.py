"""Typed reading of a tree: every method gives the value asked for, or notes what is wrong and gives None."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from compiler.errors import MAX_PROBLEMS, Diagnostic, Place, SpecError, did_you_mean
from compiler.language.dims import Dim, DimError
from compiler.language.source import Tree
from compiler.language.spec import Path

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class At:
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

    def error(self, place: Place, message: str) -> None:
        """Note a mistake; SpecError with all of them when there are so many that looking for more is no use."""
        self.problems.append(Diagnostic(place, message))
        if len(self.problems) >= MAX_PROBLEMS:
            raise SpecError(self.problems)

    # -- maps and lists ---------------------------------------------------------------------------------------------

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

    def items(self, at: At, what: str) -> list[At]:
        """The items of a list; empty if it is no list."""
        if isinstance(at.tree.value, list):
            return [At(item, (*at.path, i)) for i, item in enumerate(at.tree.value)]
        self.error(at.place, f"expected {what}, found {at.tree}")
        return []

    # -- scalars ----------------------------------------------------------------------------------------------------

    def text(self, at: At, what: str) -> str | None:
        """A text."""
        value = at.tree.value
        if isinstance(value, str) and value:
            return value
        quoted = "; put it in quotes" if isinstance(value, (int, float)) else ""
        self.error(at.place, f"expected {what}, found {at.tree}{quoted}")
        return None

    def boolean(self, at: At) -> bool | None:
        """`true` or `false`, and no other word."""
        if isinstance(at.tree.value, bool):
            return at.tree.value
        self.error(at.place, f"{at.name}: expected true or false, found {at.tree}")
        return None

    def number(self, at: At) -> float | None:
        """A number."""
        value = at.tree.value
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        self.error(at.place, f"{at.name}: expected a number, found {at.tree}")
        return None

    def size(self, at: At) -> int | None:
        """A whole number of at least 1, or arithmetic on symbols that gives one."""
        value = at.tree.value
        if isinstance(value, bool) or not isinstance(value, (int, str)):
            self.error(at.place, f"{at.name}: expected a whole number, found {at.tree}")
            return None
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

    def one_of(self, at: At, choices: Mapping[str, T]) -> T | None:
        """One of a few words."""
        value = at.tree.value
        if isinstance(value, str) and value in choices:
            return choices[value]
        hint = did_you_mean(value, choices) if isinstance(value, str) else ""
        self.error(at.place, f"{at.name}: expected {' or '.join(choices)}, found {at.tree}{hint}")
        return None


def key_place(at: At) -> Place:
    """Where the key is written under which the value stands."""
    return at.key.place if at.key is not None else at.tree.place
