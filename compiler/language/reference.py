"""The parts of the documentation that are written from the code: keys, settings, ops, rules and passes.

`python -m compiler.language.reference docs/*.md` rewrites what stands between `<!-- generated: NAME -->` and
`<!-- end of NAME -->` in these files; a test compares them with what this module says.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from compiler.errors import GraphspecError, did_you_mean
from compiler.ir.verify import rule_records
from compiler.language.config import Configuration, Schedule, Section
from compiler.language.grammar import BLOCK, ENTRY, LEVELS, NODE
from compiler.language.parse import GATES, SPEC
from compiler.language.reader import Construct, Key
from compiler.ops import Op, Reads, known_ops
from compiler.passes.pipeline import PASSES

_GENERATED = re.compile(r"(<!-- generated: ([a-z-]+) -->\n).*?(<!-- end of \2 -->)", re.DOTALL)
SETTING = ("key", "value", "default", "meaning")


_KINDS = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "boolean": "`true`, `false`",
    "null": "`null`",
    "object": "map",
}
READ = {Reads.SUM: "added first", Reads.APART: "kept apart", Reads.TOGETHER: "multiplied"}
_SIGNS = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}


def _kind(schema: Mapping[str, Any]) -> str:
    """What may be written for a value with this JSON schema."""
    if "anyOf" in schema:
        return " or ".join(map(_kind, schema["anyOf"]))
    if "enum" in schema:
        return ", ".join(f"`{word}`" for word in schema["enum"])
    if schema["type"] == "array":
        item = schema["items"]
        return f"list of {_kind(item) if 'anyOf' in item else _KINDS[item['type']] + 's'}"
    if "pattern" in schema:
        return "text such as `60k`, `3.0M`"
    return _KINDS[schema["type"]] + "".join(
        f" {sign} {schema[key]:.15g}" for key, sign in _SIGNS.items() if key in schema
    )


def _value(value: Any) -> str:
    """A default as one would write it in YAML."""
    if isinstance(value, tuple):
        return f"`[{', '.join(_value(item).strip('`') for item in value)}]`"
    if value is None or isinstance(value, bool):
        return f"`{str(value).lower().replace('none', 'null')}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = ([" ".join(value.split()).replace("|", "\\|") for value in row] for row in rows)
    lines = [header, ["---"] * len(header), *cells]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def keys(construct: Construct) -> str:
    """The keys of a map of the language."""
    return _table(["key", "default", "meaning"], [[f"`{k.name}`", _default(k), k.help] for k in construct.keys])


def _default(key: Key) -> str:
    return "required" if key.missing else "" if key.default in (None, (), {}) else _value(key.default)


def settings() -> str:
    """One table per section of the configuration, and one for schedules, which stand in several places."""
    default = Configuration()
    properties = Configuration.model_json_schema()["properties"]
    parts = [_table(SETTING, [_row(name, properties[name], getattr(default, name)) for name in ("seed", "task")])]
    for name, section in default:
        if isinstance(section, Section):
            parts.append(f"### `{name}`\n\n{type(section).__doc__}\n\n{_table(SETTING, _rows(section, f'{name}.'))}")
    parts.append(f"### Schedules\n\n{Schedule.__doc__}\n\n{_table(SETTING, _rows(Schedule(), ''))}")
    return "\n".join(parts)


def _rows(section: Section, prefix: str) -> Iterator[list[str]]:
    """A row per setting of a section, those of the sections inside it by their full key."""
    schemas = type(section).model_json_schema()["properties"]
    for name, value in section:
        written = type(section).model_fields[name].alias or name
        key = f"{prefix}{written}"
        if isinstance(value, Schedule):
            keys = f"Its keys: `{key}.kind` and so on, see [schedules](#schedules)."
            yield [f"`{key}`", "schedule", f"`{{kind: {value.kind}}}`", f"{schemas[written]['description']} {keys}"]
        elif isinstance(value, Section):
            yield from _rows(value, f"{key}.")
        else:
            yield _row(key, schemas[written], value)


def _row(key: str, schema: Mapping[str, Any], default: Any) -> list[str]:
    return [f"`{key}`", _kind(schema), _value(default), schema["description"]]


def ops() -> str:
    """The built-in catalogue: a table of ops, then the attributes of each."""
    rows = [row for row in known_ops().values() if row.name not in ("input", "output") and row.torch is None]
    listed = []
    for row in rows:
        names = ", ".join(f"`{name}`" for name in row.attrs.model_fields) or "none"
        listed.append([f"`{row.name}`", row.doc, READ[row.reads], names])
    parts = [_table(["op", "computes", "several inputs", "attributes"], listed)]
    for row in rows:
        if row.attrs.model_fields:
            parts.append(f"#### `{row.name}`\n\n{_attributes(row)}")
    return "\n".join(parts)


def _attributes(row: Op) -> str:
    rows = []
    for name, schema in row.attrs.model_json_schema()["properties"].items():
        field = row.attrs.model_fields[name]
        default = "required" if field.is_required() else _value(field.default)
        rows.append([f"`{name}`", _kind(schema), default, schema["description"]])
    return _table(["attribute", "value", "default", "meaning"], rows)


def traits() -> str:
    """What the rows of the built-in primitive ops state."""
    rows = [row for row in known_ops().values() if row.torch is None and row.infer is not None]
    return _table(["op", "states"], [[f"`{row.name}`", row.describe_traits()] for row in rows])


def rules() -> str:
    """The verification rules with the phases they hold in."""
    rows = [[f"`{name}`", ", ".join(p.name for p in phases), doc] for name, phases, doc in rule_records()]
    return _table(["rule", "phases", "meaning"], rows)


def passes() -> str:
    """The passes with the first line of their docstring."""
    rows = [[f"`{name}`", (kind.__doc__ or "").split("\n")[0]] for name, kind in PASSES.items()]
    return _table(["pass", "does"], rows)


CONSTRUCTS = {"spec": SPEC, "gates": GATES, "block": BLOCK, "node": NODE, "levels": LEVELS, "entry": ENTRY}
PARTS: dict[str, Callable[[], str]] = {part.__name__: part for part in (settings, ops, traits, rules, passes)}
PARTS |= {f"keys-of-{name}": partial(keys, construct) for name, construct in CONSTRUCTS.items()}


def rewritten(document: str) -> str:
    """The document with every generated part as the code says it now; GraphspecError at a part with no such name."""

    def part(match: re.Match[str]) -> str:
        name = match[2]
        if name not in PARTS:
            raise GraphspecError(f"no generated part is called {name!r}{did_you_mean(name, PARTS)}")
        return f"{match[1]}\n{PARTS[name]()}\n{match[3]}"

    return _GENERATED.sub(part, document)


def main(paths: Sequence[str]) -> None:
    """Rewrite these files where they differ."""
    for path in map(Path, paths):
        before = path.read_text(encoding="utf-8")
        after = rewritten(before)
        if after != before:
            path.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
