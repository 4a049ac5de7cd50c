"""Text and JSON forms of a graph.

The text form has one line a node, for people and golden tests. The JSON form round-trips exactly, carries a format
version and is byte-identical for equal graphs. The graph's hash is the SHA-256 of this form as version 1 had it, which
knows no choices: they follow from the spec, and runs and architectures of version 1 keep their hashes.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from compiler.errors import GraphspecError
from compiler.ir.graph import AttrValue, Block, Choice, Graph, Node, Phase, TensorType, attrs_of
from compiler.ir.verify import verify
from compiler.language.findings import first_of

FORMAT = "graphspec-graph"
FORMAT_VERSION = 2
READABLE = (1, 2)  # version 1 has neither gates of channels nor choices
HASHED_VERSION = 1
_dump = json.JSONEncoder(ensure_ascii=True, allow_nan=False).encode


def text(graph: Graph) -> str:
    """One line a node: `%id = op(%source[gate], ...) attr=value : type`; then gates of channels and choices."""
    lines = [f"graph @{graph.name} ({graph.phase.value}) {{"]
    lines += [f"  {_line(graph, node)}" for node in graph.nodes()]
    for node_id, ids in graph.channel_gates.items():
        lines.append(f"  behind %{node_id} : {', '.join(gate or '1' for gate in ids)}")
    for choice in graph.choices:
        lines.append(f"  choice {choice.id} : {choice.most or 'any'} of {', '.join(choice.gates)}")
    return "\n".join([*lines, "}", ""])


def _line(graph: Graph, node: Node) -> str:
    reads = ", ".join(f"%{e.src}" + (f"[{e.gate}]" if e.gate else "") for e in graph.inputs(node.id))
    attrs = "".join(f" {key}={shown(value)}" for key, value in node.attrs)
    return f"%{node.id} = {node.op}({reads}){attrs} : {node.type or '?'}"


def shown(value: AttrValue) -> str:
    """An attribute for people: sizes as `3x5`."""
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def to_json(graph: Graph) -> str:
    """The JSON form: one line a node, keys in a fixed order."""
    return _joined(_parts(graph))


def _parts(graph: Graph) -> dict[str, str]:
    """The JSON form by key; gates of channels and choices only where there are some."""
    gates = {gate: index for index, gate in enumerate(graph.gates())}
    rows: dict[str, list[Any]] = {
        "blocks": [[b.id, b.kind, b.stage, list(b.inputs), b.output] for b in graph.blocks],
        "gates": graph.gates(),
        "channel_gates": [
            [node_id, [None if gate is None else gates[gate] for gate in ids]]
            for node_id, ids in graph.channel_gates.items()
        ],
        "choices": [[c.id, [gates[gate] for gate in c.gates], c.most] for c in graph.choices],
        "nodes": [_node_record(graph, node, gates) for node in graph.nodes()],
    }
    head: dict[str, Any] = {"format": FORMAT, "version": FORMAT_VERSION, "name": graph.name, "phase": graph.phase.value}
    parts = {key: _dump(value) for key, value in head.items()}
    return parts | {key: _lines(rows[key]) for key in rows if rows[key] or key not in ("channel_gates", "choices")}


def _joined(parts: dict[str, str]) -> str:
    return "{\n" + ",\n".join(f"{_dump(key)}: {value}" for key, value in parts.items()) + "\n}\n"


def _lines(rows: list[Any]) -> str:
    return "[\n" + ",\n".join(map(_dump, rows)) + "\n]" if rows else "[]"


def _node_record(graph: Graph, node: Node, gates: dict[str, int]) -> list[Any]:
    """`[id, op, attrs, shape, [[source, gate index or null], ...]]`."""
    reads = [[e.src, None if e.gate is None else gates[e.gate]] for e in graph.inputs(node.id)]
    return [node.id, node.op, dict(node.attrs), list(node.type.shape) if node.type else None, reads]


_Sizes = list[Annotated[int, Field(gt=0)]] | None
_Index = Annotated[int, Field(ge=0)]
_Value = bool | int | float | str | list[int | list[int]] | list[float] | None


class _Head(BaseModel, strict=True):
    """What every version says."""

    format: Literal["graphspec-graph"]
    version: int


class _Record(BaseModel, strict=True, allow_inf_nan=False):
    """The JSON form, of version 1 too."""

    name: str
    phase: Phase
    blocks: list[tuple[str, str, str, list[str], str]]
    gates: list[str]
    channel_gates: list[tuple[str, list[_Index | None]]] = []
    choices: list[tuple[str, list[_Index], _Index | None]] = []
    nodes: list[tuple[str, str, dict[str, _Value], _Sizes, list[tuple[str, _Index | None]]]]


class GraphFormatError(GraphspecError):
    """A file is no graph that this version can read."""


def from_json(source: str) -> Graph:
    """The graph of a JSON form, verified; GraphFormatError if it is none, RuleError if it breaks its phase's rules."""
    return graph_and_version(source)[0]


def graph_and_version(source: str) -> tuple[Graph, int]:
    """As `from_json`, with the version of the format that the graph was written in."""
    try:
        version = _Head.model_validate_json(source).version
        if version not in READABLE:
            raise GraphFormatError(
                f"the graph has format version {version!r}, this graphspec reads {FORMAT_VERSION} and older ones; "
                f"compile again"
            )
        graph = _graph_of(_Record.model_validate_json(source))
    except ValidationError as error:
        raise GraphFormatError(f"this is no {FORMAT} file, or damaged ({first_of(error)}); compile again") from error
    except (ValueError, IndexError) as error:
        raise GraphFormatError(f"the graph file is damaged ({error}); compile again") from error
    verify(graph)
    return graph, version


def _graph_of(record: _Record) -> Graph:
    blocks = [Block(i, kind, stage, tuple(inputs), output) for i, kind, stage, inputs, output in record.blocks]
    graph = Graph(record.name, record.phase, blocks)
    for node_id, op, attrs, shape, _ in record.nodes:
        graph.add(Node(node_id, op, attrs_of(attrs), None if shape is None else TensorType(tuple(shape))))
    for node_id, *_, reads in record.nodes:
        for source, gate in reads:
            graph.connect(source, node_id, None if gate is None else record.gates[gate])
    for node_id, behind in record.channel_gates:
        graph.channel_gates[node_id] = tuple(None if gate is None else record.gates[gate] for gate in behind)
    graph.choices = tuple(Choice(i, tuple(record.gates[g] for g in of), most) for i, of, most in record.choices)
    return graph


def graph_hash(graph: Graph) -> str:
    """The graph's hash, as 64 hex digits."""
    return _hash(_parts(graph))


def json_and_hash(graph: Graph) -> tuple[str, str]:
    """Both at once, since the JSON form is most of the work of either."""
    parts = _parts(graph)
    return _joined(parts), _hash(parts)


def _hash(parts: dict[str, str]) -> str:
    hashed = parts | {"version": _dump(HASHED_VERSION)}
    hashed.pop("choices", None)
    return hashlib.sha256(_joined(hashed).encode()).hexdigest()
