"""The language as a JSON Schema, for editors: `graphspec schema`.

It belongs to the highest layer, because it lists the attributes of all known ops. It knows structure and the values of
settings; what names mean and which attribute goes with which op only the compiler knows.
"""

from __future__ import annotations

from typing import Any

from compiler.language.blocks import BLOCK_KEYS, SHARES
from compiler.language.config import Configuration
from compiler.language.names import MAX_LENGTH
from compiler.language.parse import REQUIRED
from compiler.language.spec import LANGUAGE_VERSION
from compiler.ops import known_ops

DRAFT = "https://json-schema.org/draft/2020-12/schema"
Schema = dict[str, Any]

_NAMES: Schema = {"pattern": "^[a-z][a-z0-9_]*$", "maxLength": MAX_LENGTH}


def _text(description: str) -> Schema:
    return {"type": "string", "minLength": 1, "description": description}


def _map(properties: Schema, required: tuple[str, ...] = (), description: str = "") -> Schema:
    found: Schema = {"type": "object", "properties": properties, "additionalProperties": False}
    if required:
        found["required"] = list(required)
    return found | ({"description": description} if description else {})


def _named(values: Schema, description: str, names: Schema = _NAMES) -> Schema:
    return {"type": "object", "propertyNames": names, "additionalProperties": values, "description": description}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name}"}


def json_schema() -> Schema:
    """The schema of a spec file (draft 2020-12), with the attributes of all built-in and installed ops."""
    configuration = Configuration.model_json_schema(ref_template="#/$defs/{model}")
    sections = {name: _or_null(section) for name, section in configuration["properties"].items()}
    properties = _properties() | sections
    # A file that extends another one may leave anything to it, pieces of blocks too.
    whole = {"if": {"not": {"required": ["extends"]}}, "then": {"required": list(REQUIRED)}}
    return {
        "$schema": DRAFT,
        "title": "graphspec",
        "description": "A search space: typed blocks, the network they make, and the settings of every command.",
        **_map(properties, ("graphspec",)),
        **whole,
        "$defs": _definitions() | configuration["$defs"],
    }


def _properties() -> Schema:
    return {
        "graphspec": {"const": LANGUAGE_VERSION, "description": "Version of the language."},
        "extends": _text("Path of the spec that this one changes, relative to this file."),
        "name": {
            "type": "string",
            "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
            "description": "Name of the search space.",
        },
        "input": {
            "type": "array",
            "items": _ref("size"),
            "minItems": 3,
            "maxItems": 3,
            "description": "Size of an image: [channels, height, width].",
        },
        "classes": _ref("size") | {"description": "Number of classes."},
        "symbols": _named(_ref("size"), "Constants for types and sizes.", {"pattern": "^[A-Za-z][A-Za-z0-9_]*$"}),
        "ops": _named(_ref("op"), "Short names for ops with attributes."),
        "gates": _map(
            {
                "share": _ref("share"),
                "init": {"type": "number", "minimum": 0, "description": "First value of every gate."},
            },
            description="How gates are shared and where they begin.",
        ),
        "blocks": _named(_ref("block"), "Typed graphs of nodes, by name."),
        "network": _network(),
    }


def _network() -> Schema:
    repeat = {"type": "object", "additionalProperties": _ref("size"), "minProperties": 1, "maxProperties": 1}
    sources = {"anyOf": [_text("An entry, or `in`."), {"type": "array", "items": _text("An entry."), "minItems": 1}]}
    entry = _map({"block": _text("A block's name."), "repeat": _or_null(_ref("size")), "from": sources})
    return {
        "description": "The blocks of the network: a chain as a list, or named entries wired freely.",
        "anyOf": [
            {"type": "array", "items": {"anyOf": [_text("A block's name."), repeat]}, "minItems": 1},
            _named(entry, "Entries by name."),
        ],
    }


# -- blocks ---------------------------------------------------------------------------------------------------------


def _definitions() -> Schema:
    size = {"type": "integer", "minimum": 1}
    expression = _text("Arithmetic on symbols, such as 2*C or H/2 (/ rounds up, // rounds down).")
    return {
        "size": {"anyOf": [size, expression]},
        "share": {"enum": list(SHARES), "description": "Which instances of a block have one set of gates."},
        "attribute": {"type": ["string", "number", "boolean", "null", "array"]},
        "op": {"anyOf": [_text("An op's name, with a size if it has one: sep_conv_3x3."), _op_map()]},
        "edge": {"anyOf": [_text("A node, `in`, or a pattern such as levels.*"), _edge_map()]},
        "node": _node(),
        "levels": _levels(),
        "block": _block(),
    }


def _edge_map() -> Schema:
    return _map({"node": _text("What the edge reads."), "gated": {"type": "boolean"}}, ("node",))


def _op_map() -> Schema:
    return _map({"op": _text("An op's name."), "name": _NAMES | {"type": "string"}} | _attributes())


def _node() -> Schema:
    edges = {"anyOf": [_ref("edge"), {"type": "array", "items": _ref("edge"), "minItems": 1}]}
    own = {
        "op": _text("The op; with `choose`, what merges the choices (add)."),
        "from": edges | {"description": "What the node reads."},
        "gated": {"type": "boolean", "description": "Gates on all edges that do not say otherwise."},
        "choose": {"type": "array", "items": _ref("op"), "minItems": 1, "description": "Ops to put on every edge."},
    }
    return _map(own | _attributes(), description="An op and the values it reads.")


def _levels() -> Schema:
    return _map(
        {
            "count": _ref("size") | {"description": "Number of levels."},
            "ops": {"type": "array", "items": _ref("op"), "minItems": 1, "description": "Ops of every level."},
            "from": _text("What the first level reads; default `in`."),
            "gated": {"type": "boolean", "description": "Gates between levels; default true."},
            "gate_input": {"type": "boolean", "description": "Gates on what the first level reads; default true."},
        },
        description="Each op reads the block's input and every op of every earlier level.",
    )


def _block() -> Schema:
    properties = {
        "type": _text('What the block takes and gives: "[C, H, W] -> [2*C, H/2, W/2]".'),
        "share": _ref("share"),
        "levels": _or_null(_ref("levels")),
        "nodes": _named(_ref("node"), "Nodes by name; `out` is what the block gives."),
    }
    assert tuple(properties) == BLOCK_KEYS
    return _map(properties, description="A typed graph of nodes.")


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
