"""Text and JSON forms of a graph.

The text form has one line a node, for people and golden tests. The JSON form round-trips exactly, carries a format
version and is byte-identical for equal graphs; its SHA-256 is the graph's hash.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from compiler.errors import GraphspecError
from compiler.ir.graph import AttrValue, Block, Graph, Node, Phase, TensorType, attrs_of
from compiler.ir.verify import verify

FORMAT = "graphspec-graph"
FORMAT_VERSION = 1
_dump = json.JSONEncoder(ensure_ascii=True, allow_nan=False).encode


def text(graph: Graph) -> str:
    """One line a node: `%id = op(%source[gate], ...) attr=value : type`."""
    lines = [f"graph @{graph.name} ({graph.phase.value}) {{"]
    lines += [f"  {_line(graph, node)}" for node in graph.nodes()]
    return "\n".join([*lines, "}", ""])


def _line(graph: Graph, node: Node) -> str:
    reads = ", ".join(f"%{e.src}" + (f"[{e.gate}]" if e.gate else "") for e in graph.inputs(node.id))
    attrs = "".join(f" {key}={_show(value)}" for key, value in node.attrs)
    return f"%{node.id} = {node.op}({reads}){attrs} : {node.type or '?'}"


def _show(value: AttrValue) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def to_json(graph: Graph) -> str:
    """The JSON form: one line a node, keys in a fixed order."""
    gates = {gate: index for index, gate in enumerate(graph.gates())}
    nodes = [_node_record(graph, node, gates) for node in graph.nodes()]
    head: dict[str, Any] = {"format": FORMAT, "version": FORMAT_VERSION, "name": graph.name, "phase": graph.phase.value}
    blocks = [[b.id, b.kind, b.stage, list(b.inputs), b.output] for b in graph.blocks]
    parts = [f"{_dump(key)}: {_dump(value)}" for key, value in head.items()]
    parts += [
        f"{_dump(key)}: {_lines(rows)}" for key, rows in (("blocks", blocks), ("gates", list(gates)), ("nodes", nodes))
    ]
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _lines(rows: list[Any]) -> str:
    return "[\n" + ",\n".join(map(_dump, rows)) + "\n]" if rows else "[]"


def _node_record(graph: Graph, node: Node, gates: dict[str, int]) -> list[Any]:
    """`[id, op, attrs, shape, [[source, gate index or null], ...]]`."""
    reads = [[e.src, None if e.gate is None else gates[e.gate]] for e in graph.inputs(node.id)]
    return [node.id, node.op, dict(node.attrs), list(node.type.shape) if node.type else None, reads]


class GraphFormatError(GraphspecError):
    """A file is no graph that this version can read."""


def from_json(source: str) -> Graph:
    """The graph of a JSON form, verified; GraphFormatError if it is none, RuleError if it breaks its phase's rules."""
    try:
        record = json.loads(source)
        if record["format"] != FORMAT:
            raise ValueError(f"format is {record['format']!r}")
    except (ValueError, TypeError, KeyError) as error:
        raise GraphFormatError(f"this is no {FORMAT} file ({error}); `graphspec compile` writes them") from error
    if record.get("version") != FORMAT_VERSION:
        raise GraphFormatError(
            f"the graph has format version {record.get('version')!r}, this graphspec reads {FORMAT_VERSION}; "
            f"compile again"
        )
    try:
        graph = _graph_of(record)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise GraphFormatError(f"the graph file is damaged ({error!r}); compile again") from error
    verify(graph)
    return graph


def _graph_of(record: dict[str, Any]) -> Graph:
    blocks = [Block(i, kind, stage, tuple(inputs), output) for i, kind, stage, inputs, output in record["blocks"]]
    graph = Graph(record["name"], Phase(record["phase"]), blocks)
    for node_id, op, attrs, shape, _ in record["nodes"]:
        graph.add(Node(node_id, op, attrs_of(attrs), None if shape is None else TensorType(tuple(shape))))
    for node_id, *_, reads in record["nodes"]:
        for source, gate in reads:
            graph.connect(source, node_id, None if gate is None else record["gates"][gate])
    return graph


def graph_hash(graph: Graph) -> str:
    """SHA-256 of the JSON form, as 64 hex digits."""
    return json_hash(to_json(graph))


def json_hash(graph_json: str) -> str:
    """The hash of the graph whose JSON form this is."""
    return hashlib.sha256(graph_json.encode()).hexdigest()
