"""The language as a JSON Schema, for editors: `graphspec schema`.

The tables of keys that the parser reads by say everything but the attributes of ops, which the catalogue brings. What
names mean, and which attribute goes with which op, only the compiler knows.
"""

from __future__ import annotations

from typing import Any

from compiler.language.config import Configuration
from compiler.language.grammar import BLOCK, EDGE, LEVELS, NODE, OP, SHARES
from compiler.language.parse import SPEC
from compiler.language.reader import Construct, Schema, text
from compiler.ops import known_ops

DRAFT = "https://json-schema.org/draft/2020-12/schema"
SAID_BY_DATA = ("input", "classes")  # keys that folders, tables and arrays answer where a spec leaves them out


def json_schema() -> Schema:
    """The schema of a spec file (draft 2020-12), with the attributes of all built-in and installed ops."""
    configuration = Configuration.model_json_schema(ref_template="#/$defs/{model}")
    sections = {name: {"anyOf": [schema, {"type": "null"}]} for name, schema in configuration["properties"].items()}
    needed = [key.name for key in SPEC.keys if key.missing and key.name not in SAID_BY_DATA]
    return {
        "$schema": DRAFT,
        "title": "graphspec",
        **SPEC.schema(sections),
        "required": ["graphspec"],
        # A file that extends another one may leave anything to it, pieces of blocks too.
        "if": {"not": {"required": ["extends"]}},
        "then": {"required": needed},
        "$defs": _definitions() | configuration["$defs"],
    }


def _definitions() -> Schema:
    attributes = _attributes()
    size = "Arithmetic on symbols, such as 2*C or H/2 (/ rounds up, // rounds down)."
    return {
        "size": {"anyOf": [{"type": "integer", "minimum": 1}, _text(size)]},
        "share": {"enum": list(SHARES)},
        "op": _or_map("An op's name, with a size if it has one: sep_conv_3x3.", OP, attributes),
        "edge": _or_map("A node, `in`, or a pattern such as levels.*", EDGE, required=["node"]),
        "node": NODE.schema(attributes),
        "levels": LEVELS.schema(),
        "block": BLOCK.schema(),
    }


def _text(description: str) -> Schema:
    return text("").schema | {"description": description}


def _or_map(description: str, construct: Construct, attributes: Schema | None = None, **more: Any) -> Schema:
    return {"anyOf": [_text(description), construct.schema(attributes) | more]}


def _attributes() -> Schema:
    """Attributes of all ops. Whole numbers may be expressions; an attribute of several ops may take what any takes."""
    found: dict[str, list[Schema]] = {}
    for row in (row for row in known_ops().values() if row.name not in ("input", "output")):  # the compiler's own
        for name, schema in row.attrs.model_json_schema()["properties"].items():
            allowed = {key: value for key, value in schema.items() if key not in ("default", "title")}
            variants = found.setdefault(name, [])
            if allowed not in variants:
                variants.append(allowed)
    return {name: {"anyOf": [*variants, *_expressions(variants)]} for name, variants in sorted(found.items())}


def _expressions(variants: list[Schema]) -> list[Schema]:
    branches = [branch for variant in variants for branch in variant.get("anyOf", [variant])]
    return [_text("Arithmetic on symbols.")] if any(branch.get("type") == "integer" for branch in branches) else []
