"""All ops by name: the built-in rows, then those that installed packages offer. No torch, no onnx here."""

from __future__ import annotations

import functools
from importlib.metadata import entry_points
from typing import Any

from pydantic import ValidationError

from compiler.errors import GraphspecError, did_you_mean
from compiler.ir.graph import Attrs
from compiler.language.findings import describe
from compiler.ops.activations import ACTIVATIONS
from compiler.ops.definition import Op, Step
from compiler.ops.norms import NORMS
from compiler.ops.pools import POOLS
from compiler.ops.reshapes import RESHAPES
from compiler.ops.traits import Traits
from compiler.ops.weighted import LAYERS
from compiler.ops.weightless import PLAIN


class UnknownOpError(GraphspecError):
    """No op of that name is in the catalogue or offered by an installed package."""


_ROWS: dict[str, Op] = {row.name: row for row in (*LAYERS, *NORMS, *POOLS, *PLAIN, *ACTIVATIONS, *RESHAPES)}


def register(*rows: Op) -> None:
    """Add rows to the catalogue; ValueError if a name is taken by a different row."""
    for row in rows:
        if _ROWS.get(row.name, row) is not row:
            raise ValueError(f"an op called {row.name!r} is registered already")
        _ROWS[row.name] = row


@functools.cache
def _load_installed_ops() -> None:
    """Register the ops that installed packages offer under the entry point group `graphspec.ops`."""
    for entry in entry_points(group="graphspec.ops"):
        try:
            row = entry.load()
        except Exception as error:
            raise GraphspecError(
                f"the custom op {entry.name!r} ({entry.value}) cannot be imported: {error}\n"
                f"  try: mend or uninstall the package that offers it"
            ) from error
        if not isinstance(row, Op) or row.name != entry.name:
            raise GraphspecError(
                f"the entry point {entry.name!r} ({entry.value}) must be a compiler.ops.Op called {entry.name!r}, "
                f"not {row!r}"
            )
        if row.name in _ROWS:
            raise GraphspecError(
                f"the custom op {entry.name!r} ({entry.value}) has the name of an op that is there already\n"
                f"  try: rename it, or uninstall one of the packages that offer it"
            )
        register(row)


def known_ops() -> dict[str, Op]:
    """Every op by name: the built-in catalogue, then installed custom ops."""
    _load_installed_ops()
    return _ROWS


@functools.cache
def op(name: str) -> Op:
    """The row of this name; UnknownOpError with a suggestion if there is none."""
    if name not in known_ops():
        raise UnknownOpError(f"unknown op {name!r}{did_you_mean(name, _ROWS)}")
    return _ROWS[name]


@functools.lru_cache(maxsize=65536)
def read_attrs(name: str, attrs: Attrs) -> Any:
    """A node's attributes as its op's model (cached: graphs repeat the same few)."""
    return op(name).read_attrs(dict(attrs))


@functools.lru_cache(maxsize=65536)
def traits_of(name: str, attrs: Attrs) -> Traits:
    """What is true of a primitive op for these attributes; of a custom op that states nothing, nothing is."""
    stated = op(name).traits
    return stated if isinstance(stated, Traits) else stated(read_attrs(name, attrs))


@functools.lru_cache(maxsize=65536)
def parts(name: str, attrs: Attrs) -> tuple[Step, ...]:
    """The chain of primitive ops a node stands for; empty if the node is primitive itself.

    GraphspecError if a custom op is made of ops that have parts themselves, or has neither parts nor a shape rule.
    """
    found = op(name).parts(read_attrs(name, attrs))
    for step in found:
        if op(step.op).parts(read_attrs(step.op, step.attrs)):
            raise GraphspecError(
                f"the part {step.name!r} of the op {name!r} is made of parts itself\n"
                f"  try: primitive ops only; for {step.op}, norm and act `none` and steps of their own for both"
            )
    for primitive in [step.op for step in found] or [name]:
        if op(primitive).infer is None:
            raise GraphspecError(
                f"the op {primitive!r} has neither parts nor a shape rule\n  try: give its Op `infer` or `parts`"
            )
    return found


def steps(name: str, attrs: Attrs) -> tuple[Step, ...]:
    """The primitive ops a node runs: its parts, or itself as the only step (with an empty name)."""
    return parts(name, attrs) or (Step("", name, attrs),)


def explain_attr_errors(name: str, error: ValidationError) -> list[tuple[str, str]]:
    """Pydantic's findings as (attribute, message) pairs with suggestions for misspelt attributes."""
    known = list(op(name).attrs.model_fields)
    found, near = [], set()
    for item in error.errors():
        attr = str(item["loc"][0]) if item["loc"] else ""
        if item["type"] == "extra_forbidden":
            hint = did_you_mean(attr, known)
            near |= {other for other in known if hint == did_you_mean(attr, (other,))}
            allowed = f"; {name} takes {', '.join(known)}" if known else f"; {name} takes no attributes"
            found.append((attr, f"unknown attribute {attr!r}{hint or allowed}"))
        elif item["type"] != "missing":
            found.append((attr, f"{attr or name}: {describe(item)}"))
    missing = [str(item["loc"][0]) for item in error.errors() if item["type"] == "missing"]
    found += [("", f"{name} needs the attribute {attr!r}") for attr in missing if attr not in near]
    return found
