"""Parse: YAML text -> Spec. Structure, kinds of values and names are checked here; what ops, attributes and references
mean is checked when the spec is elaborated. Every independent mistake is found in one run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from compiler.errors import Diagnostic, SpecError
from compiler.garbage import collector_paused
from compiler.language.grammar import BLOCKS, NETWORK, SHARE, SHORTHANDS, one_of
from compiler.language.layers import load
from compiler.language.names import symbol_problem
from compiler.language.overrides import Override
from compiler.language.reader import SIZE, At, Construct, Key, Kind, Reader, key_place, text
from compiler.language.sections import SECTIONS, read_sections
from compiler.language.source import Tree
from compiler.language.spec import LANGUAGE_VERSION, Spec
from compiler.language.values import LARGEST

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Parsed:
    """What could be read: a spec without its broken pieces (None if nothing could) and everything that is wrong."""

    spec: Spec | None
    diagnostics: tuple[Diagnostic, ...]


def parse_file(path: str | os.PathLike[str], overrides: Sequence[Override] = ()) -> Spec:
    """The spec of a file with its overrides; SpecError with every mistake in its structure."""
    parsed = parse(path, overrides)
    if parsed.diagnostics or parsed.spec is None:
        raise SpecError(parsed.diagnostics)
    return parsed.spec


def parse(path: str | os.PathLike[str], overrides: Sequence[Override] = ()) -> Parsed:
    """As `parse_file`, but gives what can be used besides what is wrong, so that elaboration can go on with it."""
    try:
        with collector_paused():
            return _parse(os.fspath(path), overrides)
    except SpecError as error:
        return Parsed(None, error.diagnostics)


def _parse(path: str, overrides: Sequence[Override]) -> Parsed:
    problems: list[Diagnostic] = []
    root, written = load(path, overrides, problems)
    unreadable = list(problems)
    spec = _read_spec(root, written, problems)
    spoilt = {problem.place for problem in unreadable}  # of which no second mistake is said
    found = [problem for problem in problems if problem.place not in spoilt]
    return Parsed(spec, SpecError([*unreadable, *found]).diagnostics)


def _read_name(reader: Reader, at: At) -> str | None:
    name = reader.text(at, "a name for the spec")
    if name is not None and not _NAME.fullmatch(name):
        reader.error(at.place, f"{name!r} cannot name a spec: use letters, digits, '.', '_' and '-' (at most 100)")
        return None
    return name


def _read_input(reader: Reader, at: At) -> tuple[int, ...] | None:
    items = reader.items(
        at, "the size of an image as a list [channels, height, width], or of a signal [channels, length]"
    )
    sizes = tuple(size for size in map(reader.size, items) if size is not None)
    if isinstance(at.tree.value, list) and len(items) not in (2, 3):
        wanted = "[channels, height, width] or [channels, length]"
        reader.error(at.place, f"input: expected {wanted}, found a list of {len(items)}")
    return sizes if len(items) == len(sizes) in (2, 3) else None


def _read_weights(reader: Reader, at: At) -> str | None:
    """A path relative to the file that it is written in; empty for none."""
    if at.tree.value is None:
        return ""
    path = reader.text(at, "the path of a file of weights")
    return path and os.path.join(os.path.dirname(at.place.file), path)


def _read_symbols(reader: Reader, at: At) -> dict[str, int]:
    """Constants, each an integer or arithmetic on those before it."""
    for name, entry in reader.entries(at, "a map of symbols").items():
        problem = "it is a symbol already" if name in reader.symbols else symbol_problem(name)
        if problem:
            reader.error(key_place(entry), f"{name!r} cannot name a symbol: {problem}")
        value = reader.size(entry)
        if value is None or problem:
            reader.broken.add(entry.path)
        reader.symbols.setdefault(name, value or 1)
    return reader.symbols


def _read_first_gate(reader: Reader, at: At) -> float | None:
    value = at.tree.value
    found = reader.expect(at, type(value) in (int, float), "a number")
    if found is not None and not 0 <= found <= LARGEST:
        reader.error(at.place, f"gates.init must be from 0 to {LARGEST:g}, found {found:g}")
    return None if found is None else float(found)


_SYMBOLS = {
    "type": "object",
    "propertyNames": {"pattern": "^[A-Za-z][A-Za-z0-9_]*$"},
    "additionalProperties": SIZE.schema,
}
FIRST_GATE = Kind(_read_first_gate, {"type": "number", "minimum": 0, "maximum": LARGEST})
WEIGHTS = Kind(_read_weights, {"type": ["string", "null"], "minLength": 1})
GATES = Construct(
    "gates: a map with share, init and channels",
    "How gates are shared, their initial value, and whether all channels have some.",
    (
        Key("share", SHARE, "Which blocks share gates; a block may override it.", default="none"),
        Key("init", FIRST_GATE, "Initial value of every gate.", default=1.0),
        Key("channels", one_of(("none", "auto")), "`auto`: gates on all channels that may go.", default="none"),
    ),
)
_NAMES = {"type": "string", "pattern": f"^{_NAME.pattern}$"}
_INPUT = {"type": "array", "items": SIZE.schema, "minItems": 2, "maxItems": 3}


def _needed(name: str, kind: Kind, meaning: str, stand_in: Any) -> Key:
    """A key that a spec must have; `stand_in` takes the place of a wrong value, so that the rest can be read."""
    return Key(name, kind, meaning, stand_in, missing=f"the spec needs a value for the key {name!r}")


SPEC = Construct(
    "a spec",
    "A search space: typed blocks, the network they form, and the settings of all commands.",
    (
        Key("graphspec", Kind(Reader.size, {"const": LANGUAGE_VERSION}), "Version of the language: `1`. Required."),
        Key("extends", text("a path"), "Path of a spec that this one extends, relative to this file."),
        Key("weights", WEIGHTS, "File of weights that training starts from, relative to this file.", ""),
        Key("symbols", Kind(_read_symbols, _SYMBOLS), "Constants for types and sizes.", {}),
        Key("ops", SHORTHANDS, "Short names for ops with attributes.", {}),
        Key("gates", Kind(lambda reader, at: reader.record(at, GATES), GATES.schema()), GATES.help, {}),
        _needed("name", Kind(_read_name, _NAMES), "Name of the search space and of its run directories.", ""),
        _needed(
            "input",
            Kind(_read_input, _INPUT),
            "Size of an image: [channels, height, width]; of a signal: [channels, length]. Left out, or with `auto` "
            "for the channels, as the data says.",
            (3, 32, 32),
        ),
        _needed("classes", SIZE, "Number of classes. Also a symbol. Left out as the data says.", 1),
        _needed("blocks", BLOCKS, "Typed graphs of nodes, by name.", {}),
        _needed("network", NETWORK, "The blocks of the network: a chain as a list, or named entries wired freely.", ()),
    ),
)


def _misfits(spec: Spec) -> Iterator[Diagnostic]:
    """Settings that the input does not allow."""
    data, channels = spec.config.data, spec.input[0]
    keys = ("crop_padding", "flip", "resized_crop", "augment", "colour_jitter", "erasing")
    paths = [("data", key) for key in keys] + [("retrain", key) for key in ("augment", "cutout", "cutmix")]
    for section, key in paths:
        if getattr(getattr(spec.config, section), key) in (0, None, "none"):
            continue
        message, off = "", "write none" if key == "augment" else "leave it out"
        if len(spec.input) == 2:
            message = f"{section}.{key} changes images, and the input is a signal: {off}"
        elif key in ("augment", "colour_jitter") and channels not in (1, 3):
            message = f"{section}.{key} changes images of 1 or 3 channels, the input has {channels}: {off}"
        if message:
            yield Diagnostic(spec.place(section, key), message)
    for name, given in (("mean", data.mean), ("std", data.std)):
        if given is not None and len(given) != channels:
            message = f"data.{name} has {len(given)} values, the input has {channels} channels: give one each"
            yield Diagnostic(spec.place("data", name), message)


def _read_spec(root: Tree, written: str, problems: list[Diagnostic]) -> Spec:
    reader = Reader(problems)
    given = reader.known_entries(At(root, ()), SPEC.what, [*SPEC.names, *SECTIONS])
    keys = {key.name: key for key in SPEC.keys}
    for key in SPEC.keys:
        if key.missing and key.name not in given:
            reader.broken.add((key.name,))
            reader.error(root.key_place((key.name,)), key.missing)

    def read(name: str) -> Any:
        if name not in given:
            return keys[name].default
        value = keys[name].kind.read(reader, given[name])
        if value is None:
            reader.broken.add((name,))
        return keys[name].default if value is None else value

    classes = reader.symbols["classes"] = read("classes")
    read("symbols")
    gates = {key.name: key.default for key in GATES.keys} | read("gates")
    reader.share = gates["share"]
    ops, blocks = read("ops"), read("blocks")
    reader.blocks = blocks
    spec = Spec(
        name=read("name"),
        input=read("input"),
        classes=classes,
        symbols=reader.symbols,
        ops=ops,
        blocks=blocks,
        network=read("network"),
        gate_init=gates["init"],
        gate_all_channels=gates["channels"] == "auto",
        config=read_sections(reader, given, root),
        weights=read("weights"),
        text=written,
        root=root,
        broken=frozenset(reader.broken),
    )
    problems += () if ("input",) in reader.broken else _misfits(spec)
    return spec
