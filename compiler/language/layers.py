"""A spec's layers put on top of each other: the files it extends, the file itself, then the overrides.

Maps merge key by key; lists and scalars replace. Every value keeps the place where it was written. A file that turns
out not to be a spec is never quoted.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import yaml

from compiler.errors import Diagnostic, SpecError, did_you_mean, refusal
from compiler.language.overrides import Override
from compiler.language.source import NUMBER, NUMBER_START, Item, SpecText, Tree, compose, read_text
from compiler.language.spec import LANGUAGE_VERSION

MAX_CHAIN = 16  # files in one chain of `extends`
_SPEC_LINE = re.compile(r"^graphspec[ \t]*:", re.MULTILINE)
_OWN_NAMES = ("blocks", "nodes", "ops", "symbols", "network")  # maps whose keys the user names


def load(path: str, overrides: Sequence[Override], problems: list[Diagnostic]) -> tuple[Tree, str]:
    """The tree of a spec, bases and overrides merged in, and its text; SpecError if no tree can be made of it."""
    source = SpecText(path, read_text(path))
    layers = [_checked(compose(source.text, source, problems), problems)]
    seen = {os.path.realpath(path)}
    while "extends" in _entries(layers[-1]):
        layers.append(_read_base(layers[-1], seen, problems))
    merged = functools.reduce(_merge, reversed(layers))
    merged = replace(merged, value={key: item for key, item in _entries(merged).items() if key != "extends"})
    for override in overrides:
        merged = _override(merged, override, problems)
    return merged, source.text


class _Dumper(yaml.SafeDumper):
    """Puts texts in quotes that are numbers to us and none to the YAML of the library."""


_Dumper.add_implicit_resolver("number", NUMBER, sorted(NUMBER_START))


def dump(plain: Any) -> str:
    """A spec without positions as YAML that `load` reads."""
    return str(yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def _entries(tree: Tree) -> dict[str, Item]:
    assert isinstance(tree.value, dict)
    return tree.value


def _checked(tree: Tree, problems: list[Diagnostic]) -> Tree:
    """The tree, a map that states the language version; SpecError if it is none."""
    item = tree.value.get("graphspec") if isinstance(tree.value, dict) else None
    if item and type(item.value.value) is int and item.value.value == LANGUAGE_VERSION:
        return tree
    if item:
        message = f"this program reads language version {LANGUAGE_VERSION}, found {item.value}"
    elif isinstance(tree.value, dict):
        found = next((f", found {name!r}" for name in tree.value if did_you_mean(name, ("graphspec",))), "")
        message = f"a spec begins with its language version: 'graphspec: {LANGUAGE_VERSION}'{found}"
    else:
        message = f"a spec is a map that begins with 'graphspec: {LANGUAGE_VERSION}', found {tree}"
    raise refusal(item.value.place if item else tree.place, message, problems)


def _read_base(layer: Tree, seen: set[str], problems: list[Diagnostic]) -> Tree:
    """The tree of the file that `layer` extends; SpecError pointing at the `extends` value if there is none."""
    target = _entries(layer)["extends"].value
    refuse = functools.partial(refusal, target.place, problems=tuple(problems))
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
    except SpecError as error:
        raise refuse(f"cannot extend {target.value!r}: {error.diagnostics[0].message}") from error
    return _read_base_layer(source, problems, refuse(f"{target.value!r} is not a spec: it has no 'graphspec:' key"))


def _read_base_layer(source: SpecText, problems: list[Diagnostic], refusal: SpecError) -> Tree:
    """The tree of a file that is extended, with nothing but `refusal` said of one that is no spec."""
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
    return _checked(tree, problems)


def _merge(base: Tree, top: Tree) -> Tree:
    if not isinstance(base.value, dict) or not isinstance(top.value, dict):
        return top
    merged = dict(base.value)
    for name, item in top.value.items():
        merged[name] = Item(item.key, _merge(merged[name].value, item.value)) if name in merged else item
    return replace(top, value=merged)


def _override(root: Tree, override: Override, problems: list[Diagnostic]) -> Tree:
    """`root` with one override applied; a wrong override goes to `problems`."""
    problems += override.mistakes
    try:
        return _set(root, override.keys, 0, override.value, ()) if override.path else root
    except SpecError as error:
        problems += error.diagnostics
        return root


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
            raise refusal(key.place, f"{'.'.join(path)} is a list; its items are called 0 to {len(items) - 1}")
        items[int(part)] = _set(items[int(part)], keys, depth + 1, value, below)
        return replace(tree, value=items)
    if tree.value is not None and not isinstance(tree.value, dict):
        raise refusal(key.place, f"{'.'.join(path)} is {tree} and has no key {part!r}")
    entries = dict(tree.value or {})
    if part not in entries and path and _names_are_the_users(path):
        raise refusal(key.place, f"{'.'.join(path)} has no {part!r}{did_you_mean(part, entries)}")
    old = entries[part].value if part in entries else Tree(None, key.origin, key.line, key.column)
    new = _set(old, keys, depth + 1, value, below)
    written_key = entries[part].key if part in entries and depth + 1 < len(keys) else key
    entries[part] = Item(written_key, new)
    return replace(tree, value=entries)


def _names_are_the_users(path: tuple[str, ...]) -> bool:
    """Whether the keys of the map at `path` are names that the spec gives (an override may not add one)."""
    return (len(path) == 1 and path[0] in _OWN_NAMES) or (len(path) == 3 and path[0] == "blocks" and path[2] == "nodes")
