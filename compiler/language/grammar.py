"""The grammar: ops, edges, nodes, levels, blocks and networks, the keys that each takes and how they are read."""

from __future__ import annotations

import keyword
import re
from collections import Counter
from dataclasses import replace
from typing import Any, get_args

from compiler.errors import did_you_mean
from compiler.language.dims import BlockType, DimError
from compiler.language.names import name_problem
from compiler.language.reader import (
    FLAG,
    NAMES,
    SIZE,
    At,
    Construct,
    Key,
    Kind,
    Reader,
    key_place,
    named,
    or_null,
    ref,
    text,
)
from compiler.language.source import Path
from compiler.language.spec import BlockSpec, EdgeSpec, Gated, LevelsSpec, NetworkEntry, NodeSpec, OpSpec, Share

_SOURCE = re.compile(r"[a-z*][a-z0-9_*]*(\.[a-z0-9_*]+)*")
SHARES = get_args(Share)


def one_of(words: tuple[str, ...], schema: Any = None) -> Kind:
    """One of these words."""

    def read(reader: Reader, at: At) -> Any:
        value = at.tree.value
        hint = did_you_mean(value, words) if isinstance(value, str) else ""
        return reader.expect(at, value in words, " or ".join(words), hint)

    return Kind(read, schema or {"enum": list(words)})


SHARE = one_of(SHARES, ref("share"))


def _read_label(reader: Reader, at: At) -> str | None:
    label = reader.text(at, "a name")
    problem = name_problem(label) if label else ""
    if problem:
        reader.error(at.place, f"{label!r} cannot name an op: {problem}")
    return label


OP = Construct(
    "an op: its name, or a map such as {op: conv, kernel: 3}",
    "An op and its attributes.",
    (
        Key("op", text("an op's name"), "An op's name.", missing="an op needs the key 'op'"),
        Key("name", Kind(_read_label, NAMES | {"type": "string"}), "Name of its nodes; default: the name of the op."),
    ),
    takes_attributes=True,
    may_misspell=True,
)
_SHORTHAND = replace(OP, keys=OP.keys[:1])  # which has its name already


def _read_op(reader: Reader, at: At, label: str = "") -> OpSpec | None:
    """An op as written: its name, or a map of `op`, attributes and (unless it has a `label` already) `name`."""
    value = at.tree.value
    if isinstance(value, str) and value:
        return OpSpec(label or value, value, {}, at.path)
    values = reader.record(at, _SHORTHAND if label else OP)
    if values is None:
        return None
    return OpSpec(label or values["name"] or values["op"], values["op"], values["attributes"], at.path)


def _read_op_list(reader: Reader, at: At) -> tuple[OpSpec, ...]:
    """A list of ops with different labels."""
    found: dict[str, OpSpec] = {}
    items = reader.items(at, "a list of ops")
    for item in items:
        op = _read_op(reader, item)
        if op is None:
            continue
        if op.label in found:
            message = f"two ops of this list are called {op.label!r}; name one of them: {{op: {op.op}, name: ...}}"
            reader.error(item.place, message)
        found[op.label] = op
    if not items and isinstance(at.tree.value, list):
        reader.error(at.place, "the list of ops is empty")
    return tuple(found.values())


_OPS = Kind(_read_op_list, {"type": "array", "items": ref("op"), "minItems": 1})
SHORTHANDS = named("a map of op names", "an op", Kind(lambda reader, at: _read_op(reader, at, at.name), ref("op")))


_Edge = tuple[str, bool | None, Path]  # source, whether it is gated where that is said, place of the source


def _read_source(reader: Reader, at: At) -> _Edge | None:
    source = reader.text(At(at.tree, at.path), "the name of a node")
    if source and (not _SOURCE.fullmatch(source) or (keyword.iskeyword(source) and source != "in")):
        reader.error(at.tree.place, f"{source!r} cannot be the name of a node")
        return None
    return (source, None, at.path) if source else None


_EDGE_NEEDS_NODE = "an edge needs the key 'node', the name of what it reads"
EDGE = Construct(
    "an edge",
    "An input edge with a `gated` of its own.",
    (
        Key(
            "node",
            Kind(_read_source, text("").schema),
            "Name of the node that the edge reads.",
            missing=_EDGE_NEEDS_NODE,
        ),
        Key("gated", FLAG, "Whether the edge has a gate."),
    ),
)


def _read_edge(reader: Reader, at: At) -> _Edge | None:
    if not isinstance(at.tree.value, dict):
        return _read_source(reader, at)
    values = reader.record(At(at.tree, at.path), EDGE)
    if values is None:
        return None
    source, _, path = values["node"]
    return source, values["gated"], path


def _read_edges(reader: Reader, at: At) -> list[_Edge]:
    edges = [_read_edge(reader, item) for item in reader.one_or_more(at, "a node")]
    return [edge for edge in edges if edge is not None]


_EDGES = {"anyOf": [ref("edge"), {"type": "array", "items": ref("edge"), "minItems": 1}]}


NODE = Construct(
    "a node: a map such as {op: conv, kernel: 3, from: in}",
    "An op and its inputs.",
    (
        Key(
            "op",
            text("an op's name"),
            "An op; with `choose`, the op that merges the choices (default `add`).",
            default="add",
            missing="node {!r} needs an op: op: conv",
            unless="choose",
        ),
        Key("from", Kind(_read_edges, _EDGES), "Inputs: one name or a list.", (), "node {!r} needs inputs: from: in"),
        Key("gated", FLAG, "Put a gate on each input edge, unless the edge sets `gated` itself.", default=False),
        Key("choose", _OPS, "Candidate ops for every input edge.", default=()),
        Key("gate", one_of(get_args(Gated)), "`channels`: a gate on each output channel; `groups`: on each group."),
    ),
    takes_attributes=True,
    may_misspell=True,
)


def _read_node(reader: Reader, at: At) -> NodeSpec | None:
    values = reader.record(at, NODE)
    if values is None:
        return None
    op = OpSpec(values["op"], values["op"], values["attributes"], at.path)
    gated: bool = values["gated"]
    edges = tuple(EdgeSpec(source, gated if own is None else own, path) for source, own, path in values["from"])
    return NodeSpec(op, edges, values["choose"], values["gate"], at.path)


LEVELS = Construct(
    "levels: a map with count and ops",
    "Each op reads the block's input and every op of every earlier level.",
    (
        Key("count", SIZE, "Number of levels.", missing="levels needs 'count'"),
        Key(
            "ops",
            _OPS,
            "Ops of every level. If two would have the same name, write `{op: ..., name: ...}`.",
            missing="levels needs 'ops'",
        ),
        Key("from", text("a node name"), "The node that the levels read as their input.", default="in"),
        Key("gated", FLAG, "Gates on the edges.", default=True),
        Key(
            "gate_input",
            FLAG,
            "Gates on the inputs of the first level. The paper has them, the released code does not.",
            default=True,
        ),
    ),
)


def _read_levels(reader: Reader, at: At) -> LevelsSpec | None:
    values = reader.record(at, LEVELS)
    if values is None:
        reader.broken.add(at.path)
        return None
    return LevelsSpec(values["count"], values["ops"], values["from"], values["gated"], values["gate_input"], at.path)


def _read_type(reader: Reader, at: At) -> BlockType | None:
    written = reader.text(at, 'a type in quotes such as "[C, H, W] -> [C, H, W]"')
    if written is None:
        return None
    try:
        block_type = BlockType.parse(written)
        solved = _symbols_of(block_type.inputs) | reader.symbols.keys()
        unsolved = sorted(_symbols_of((block_type.output,)) - solved)
    except DimError as error:
        reader.error(at.place, str(error))
        return None
    if unsolved:
        hint = did_you_mean(unsolved[0], solved) or "; it must stand among the inputs or in symbols"
        reader.error(at.place, f"the output's symbol {unsolved[0]!r} is unknown{hint}")
        return None
    return block_type


def _symbols_of(shapes: tuple[tuple[Any, ...], ...]) -> set[str]:
    return {symbol for dims in shapes for dim in dims for symbol in dim.symbols()}


BLOCK = Construct(
    "a block: a map with type and nodes",
    "A typed graph of nodes.",
    (
        Key(
            "type",
            Kind(_read_type, text("").schema),
            'Shapes of the inputs and of the output: "[C, H, W] -> [2*C, H/2, W/2]".',
            missing='block {!r} needs a type, for example type: "[C, H, W] -> [C, H, W]"',
        ),
        Key("share", SHARE, "Which instances of the block share one set of gates; default: `gates.share`."),
        Key("levels", or_null(Kind(_read_levels, ref("levels"))), "Levels of ops that read each other."),
        Key(
            "nodes",
            named("a map of nodes", "a node", Kind(_read_node, ref("node"))),
            "Nodes by name; the node `out` is the output.",
            missing="block {!r} needs nodes, one of them called 'out'",
        ),
    ),
)


def _read_block(reader: Reader, at: At) -> BlockSpec | None:
    values = reader.partial_record(at, BLOCK)
    if values is None or values["type"] is None or values["nodes"] is None:
        return None
    share = values["share"] or reader.share
    return BlockSpec(at.name, values["type"], values["nodes"], values["levels"], share, at.path)


_NAMED_BLOCKS = named("a map of blocks", "a block", Kind(_read_block, ref("block")))


def _read_blocks(reader: Reader, at: At) -> dict[str, BlockSpec]:
    found: dict[str, BlockSpec] = _NAMED_BLOCKS.read(reader, at)
    if not found and not reader.broken:
        reader.error(at.place, "a spec needs at least one block")
    return found


BLOCKS = Kind(_read_blocks, _NAMED_BLOCKS.schema)


def _read_chain(reader: Reader, at: At) -> tuple[NetworkEntry, ...]:
    """`[stem, {normal: 2}, head]`: an entry reads what the entries before it give, most recent first."""
    written = []
    for item in reader.items(at, "a list of blocks"):
        found = _read_chain_item(reader, item)
        if found is None:
            reader.broken.add(item.path)
        else:
            written.append((item, *found))
    uses = Counter(block for _, block, repeat in written if repeat is None)
    entries: dict[str, NetworkEntry] = {}
    singles: Counter[str] = Counter()
    stages = 0
    for item, block, repeat in written:
        if repeat is not None:
            name, stages = f"stage{stages}", stages + 1
        else:
            name = f"{block}{singles[block]}" if uses[block] > 1 else block
            singles[block] += 1
        if name in entries:
            reader.error(item.place, f"two entries of the network are called {name!r}; use the map form to name them")
            reader.broken.add(item.path)
            continue
        count = len(reader.blocks[block].type.inputs) if block in reader.blocks else 1
        entries[name] = NetworkEntry(name, block, repeat, _latest(list(entries), count), item.path)
    return tuple(entries.values())


def _latest(earlier: list[str], count: int) -> tuple[str, ...]:
    """The last `count` of `earlier`, most recent first; the first one again where there are fewer."""
    if not earlier:
        return ("in",) * count
    return tuple(earlier[max(len(earlier) - 1 - i, 0)] for i in range(count))


def _read_chain_item(reader: Reader, at: At) -> tuple[str, int | None] | None:
    """Block name and repeat of `name` or `{name: repeat}`."""
    value = at.tree.value
    if isinstance(value, str) and value:
        return value, None
    if not isinstance(value, dict) or len(value) != 1:
        keys = f" with {len(value)} keys" if isinstance(value, dict) else ""
        reader.error(at.place, f"expected a block's name, or {{name: repeat}}, found {at.tree}{keys}")
        return None
    ((name, entry),) = reader.entries(at, "").items()
    repeat = reader.size(entry)
    return None if repeat is None else (name, repeat)


def _read_sources(reader: Reader, at: At) -> tuple[str, ...]:
    """Names of the entries whose values an entry reads."""
    what = "the name of an entry" if isinstance(at.tree.value, list) else "the name of an entry, or a list of names"
    names = [reader.text(item, what) for item in reader.one_or_more(at, "an entry")]
    return tuple(name for name in names if name is not None)


_TEXT = text("").schema
_SOURCES = {"anyOf": [_TEXT | {"description": "An entry, or `in`."}, {"type": "array", "items": _TEXT, "minItems": 1}]}
ENTRY = Construct(
    "an entry: a map with block and from",
    "A block, or a stage of several.",
    (
        Key("block", text("a block's name"), "A block's name.", missing="entry {!r} needs 'block'"),
        Key("repeat", or_null(SIZE), "Make the entry a stage: a chain of N blocks."),
        Key("from", Kind(_read_sources, _SOURCES), "Inputs: one name or a list.", missing="entry {!r} needs 'from'"),
    ),
    may_misspell=True,
)


def _read_entry(reader: Reader, at: At) -> NetworkEntry | None:
    values = reader.record(at, ENTRY)
    if values is None:
        return None
    shared = reader.blocks.get(at.name)
    if shared is not None and shared.share == "block" and values["block"] != at.name:
        message = f"{at.name!r} names the gates that all blocks {at.name!r} share; choose another name"
        reader.error(key_place(at), message)
        return None
    return NetworkEntry(at.name, values["block"], values["repeat"], values["from"], at.path)


_MAP = named(
    "a network: a list of blocks, or a map of entries", "an entry of the network", Kind(_read_entry, ENTRY.schema())
)
_ITEM = {"type": "object", "additionalProperties": ref("size"), "minProperties": 1, "maxProperties": 1}
_CHAIN = {"type": "array", "items": {"anyOf": [_TEXT | {"description": "A block's name."}, _ITEM]}, "minItems": 1}


def _read_network(reader: Reader, at: At) -> tuple[NetworkEntry, ...]:
    """The entries of the network; entries with a mistake are left out and count as broken."""
    value = at.tree.value
    entries = _read_chain(reader, at) if isinstance(value, list) else tuple(_MAP.read(reader, at).values())
    if not entries and not any(path[0] == "network" for path in reader.broken):
        reader.broken.add(at.path)
        reader.error(at.place, "the network is empty; list its blocks")
    return entries


NETWORK = Kind(_read_network, {"anyOf": [_CHAIN, _MAP.schema]})
