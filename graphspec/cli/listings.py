"""What `graphspec ops` and `graphspec rules` print."""

from __future__ import annotations

import textwrap
from typing import Any

from compiler.docstrings import attribute_docstrings
from compiler.ir.verify import rule_records
from compiler.ops import Op, Reads, known_ops


def _attrs(row: Op) -> list[dict[str, Any]]:
    fields, docs = row.attrs.model_fields, attribute_docstrings(row.attrs)
    return [
        {
            "name": name,
            "required": f.is_required(),
            "default": None if f.is_required() else f.default,
            "help": docs.get(name),
        }
        for name, f in fields.items()
    ]


def op_records() -> list[dict[str, Any]]:
    """The catalogue as data."""
    return [
        {
            "name": row.name,
            "doc": row.doc,
            "reads": row.reads.value,
            "attributes": _attrs(row),
            "traits": row.describe_traits(),
        }
        for row in known_ops().values()
        if row.name not in ("input", "output")
    ]


INTRODUCTION = """\
The kernel size may be part of an op's name: sep_conv_3x3, conv_1x7. Several
inputs of an op are added first, unless it `reads apart` (and may lose some) or
`reads together` (and needs all).
"""


def op_listing() -> str:
    """The catalogue for people."""
    lines = [INTRODUCTION]
    for record in op_records():
        reads = "" if record["reads"] == Reads.SUM.value else f"  (reads {record['reads']})"
        lines.append(_wrapped(record["name"], f"{record['doc']}{reads}", 0))
        for attr in record["attributes"]:
            default = "required" if attr["required"] else f"default {_show(attr['default'])}"
            lines.append(_wrapped(attr["name"], f"{attr['help']} [{default}]", 4))
        lines.append(_wrapped("traits", record["traits"], 4))
    return "\n".join(lines)


def _wrapped(name: str, meaning: str, indent: int) -> str:
    head = f"{'':{indent}}{name:<17} "
    return textwrap.fill(meaning, 80, initial_indent=head, subsequent_indent=" " * len(head))


def _show(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def rule_listing() -> str:
    """The rules for people."""
    return "\n".join(
        f"{name}  ({', '.join(phase.value for phase in phases)})\n    {doc}" for name, phases, doc in rule_records()
    )
