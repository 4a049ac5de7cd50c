"""Parse: YAML text -> Spec. Structure, kinds of values and names are checked here; what ops, attributes and references
mean is checked when the spec is elaborated. Every independent mistake is found in one run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from compiler.errors import Diagnostic, SpecError
from compiler.garbage import collector_paused
from compiler.language.blocks import SHARES, read_blocks, read_shorthands
from compiler.language.layers import Layered, TreePlaces, load
from compiler.language.names import symbol_problem
from compiler.language.network import read_network
from compiler.language.reader import At, Reader, key_place
from compiler.language.sections import SECTIONS, read_sections
from compiler.language.spec import Share, Spec

REQUIRED = ("name", "input", "classes", "blocks", "network")
OPTIONAL = ("graphspec", "extends", "symbols", "ops", "gates")
TOP_KEYS = (*OPTIONAL, *REQUIRED, *SECTIONS)
STRUCTURE = tuple(key for key in TOP_KEYS if key not in SECTIONS)  # what a graph is made from, and `gates.init`
GATES_KEYS = ("share", "init")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_DEFAULT_INPUT = (3, 32, 32)  # stands in for a wrong input, so that the rest can be read
T = TypeVar("T")


@dataclass(frozen=True)
class Parsed:
    """What could be read: a spec without its broken pieces (None if nothing could) and everything that is wrong."""

    spec: Spec | None
    diagnostics: tuple[Diagnostic, ...]


def parse_file(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Spec:
    """The spec of a file with its overrides (`key.key=value`); SpecError with every mistake in its structure."""
    parsed = parse(path, overrides)
    if parsed.diagnostics or parsed.spec is None:
        raise SpecError(parsed.diagnostics)
    return parsed.spec


def parse(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Parsed:
    """As `parse_file`, but gives what can be used besides what is wrong, so that elaboration can go on with it."""
    try:
        with collector_paused():
            return _parse(os.fspath(path), overrides)
    except SpecError as error:
        return Parsed(None, error.diagnostics)


def _parse(path: str, overrides: Sequence[str]) -> Parsed:
    problems: list[Diagnostic] = []
    layered = load(path, overrides, problems)
    spoilt = {_position(d) for d in problems}
    before = len(problems)
    spec = _read_spec(layered, problems)
    found = [d for d in problems[before:] if _position(d) not in spoilt]  # no second mistake in an unreadable value
    return Parsed(spec, SpecError([*problems[:before], *found]).diagnostics)


def _position(diagnostic: Diagnostic) -> tuple[str, int, int]:
    return diagnostic.place.file, diagnostic.place.line, diagnostic.place.column


def _read_spec(layered: Layered, problems: list[Diagnostic]) -> Spec:
    reader = Reader(problems)
    places = TreePlaces(layered.root)
    keys = reader.known_entries(At(layered.root, ()), "a spec", TOP_KEYS)
    for needed in REQUIRED:
        if needed not in keys:
            reader.broken.add((needed,))
            reader.error(places.key_place((needed,)), f"the spec needs a value for the key {needed!r}")
    classes = _or_broken(reader, keys, "classes", reader.size) or 1
    reader.symbols = {"classes": classes}
    if "symbols" in keys:
        _read_symbols(reader, keys["symbols"])
    share, gate_init = _read_gates(reader, keys.get("gates"))
    ops = read_shorthands(reader, keys["ops"]) if "ops" in keys else {}
    blocks = read_blocks(reader, keys["blocks"], share) if "blocks" in keys else {}
    return Spec(
        name=_or_broken(reader, keys, "name", lambda at: _read_name(reader, at)) or "",
        input=_or_broken(reader, keys, "input", lambda at: _read_input(reader, at)) or _DEFAULT_INPUT,
        classes=classes,
        symbols=reader.symbols,
        ops=ops,
        blocks=blocks,
        network=read_network(reader, keys["network"], blocks) if "network" in keys else (),
        gate_init=gate_init,
        config=read_sections(reader, keys, places),
        text=layered.text,
        places=places,
        broken=frozenset(reader.broken),
    )


def _or_broken(reader: Reader, keys: Mapping[str, At], name: str, read: Callable[[At], T | None]) -> T | None:
    """What `read` makes of a top-level key; None, and the key counts as broken, if it has a mistake."""
    if name not in keys:
        return None
    found = read(keys[name])
    if found is None:
        reader.broken.add((name,))
    return found


def _read_name(reader: Reader, at: At) -> str | None:
    name = reader.text(at, "a name for the spec")
    if name is not None and not _NAME.fullmatch(name):
        reader.error(at.place, f"{name!r} cannot name a spec: use letters, digits, '.', '_' and '-' (at most 100)")
        return None
    return name


def _read_input(reader: Reader, at: At) -> tuple[int, int, int] | None:
    items = reader.items(at, "the image's size as a list [channels, height, width]")
    sizes = [size for size in map(reader.size, items) if size is not None]
    if isinstance(at.tree.value, list) and len(items) != 3:
        reader.error(at.place, f"input: expected [channels, height, width], found a list of {len(items)}")
    if len(items) != 3 or len(sizes) != 3:
        return None
    return sizes[0], sizes[1], sizes[2]


def _read_symbols(reader: Reader, at: At) -> None:
    """Constants, each an integer or arithmetic on those before it."""
    for name, entry in reader.entries(at, "a map of symbols").items():
        problem = "it is a symbol already" if name in reader.symbols else symbol_problem(name)
        if problem:
            reader.error(key_place(entry), f"{name!r} cannot name a symbol: {problem}")
        value = reader.size(entry)
        if value is None or problem:
            reader.broken.add(entry.path)
        reader.symbols.setdefault(name, value or 1)


def _read_gates(reader: Reader, at: At | None) -> tuple[Share, float]:
    """How gates are shared by default, and their first value."""
    keys = reader.known_entries(at, "gates: a map with share and init", GATES_KEYS) if at is not None else {}
    share = reader.one_of(keys["share"], SHARES) if "share" in keys else None
    init = reader.number(keys["init"]) if "init" in keys else 1.0
    if init is not None and init < 0:
        reader.error(keys["init"].place, f"gates.init must be at least 0, found {init:g}")
    return share or "none", init if init is not None else 1.0
