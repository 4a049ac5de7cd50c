"""Reads the `ops` and `blocks` sections: block types, levels, nodes and the edges they read."""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping
from typing import Any

from compiler.errors import did_you_mean
from compiler.language.dims import BlockType, DimError
from compiler.language.names import name_problem
from compiler.language.reader import At, Reader, key_place
from compiler.language.source import Tree
from compiler.language.spec import BlockSpec, EdgeSpec, LevelsSpec, NodeSpec, OpSpec, Path, Share

SHARES: dict[str, Share] = {"none": "none", "block": "block", "stage": "stage"}
BLOCK_KEYS = ("type", "share", "levels", "nodes")
LEVELS_KEYS = ("count", "ops", "from", "gated", "gate_input")
NODE_KEYS = ("op", "from", "gated", "choose")
EDGE_KEYS = ("node", "gated")
_SOURCE = re.compile(r"[a-z*][a-z0-9_*]*(\.[a-z0-9_*]+)*")
_OUT = "out"


def check_name(reader: Reader, at: At, what: str) -> bool:
    """Whether the key of this entry may name a `what`; noted if not."""
    problem = name_problem(at.name)
    if problem:
        reader.error(key_place(at), f"{at.name!r} cannot name {what}: {problem}")
    return not problem


def read_shorthands(reader: Reader, at: At) -> dict[str, OpSpec]:
    """The `ops` section: names for an op with attributes."""
    found = {}
    for name, entry in reader.entries(at, "a map of op names").items():
        before = len(reader.problems)
        check_name(reader, entry, "an op")
        op = read_op(reader, entry, label=name)
        if op is not None and len(reader.problems) == before:
            found[name] = op
        else:
            reader.broken.add(entry.path)
    return found


def read_blocks(reader: Reader, at: At, default_share: Share) -> dict[str, BlockSpec]:
    """The `blocks` section; a block that cannot be read is left out and counts as broken."""
    found = {}
    for name, entry in reader.entries(at, "a map of blocks").items():
        block = _read_block(reader, entry, default_share) if check_name(reader, entry, "a block") else None
        if block is not None:
            found[name] = block
        else:
            reader.broken.add(entry.path)
    if not found and not reader.broken:
        reader.error(at.place, "a spec needs at least one block")
    return found


def _read_block(reader: Reader, at: At, default_share: Share) -> BlockSpec | None:
    keys = reader.known_entries(at, "a block: a map with type and nodes", BLOCK_KEYS)
    if not isinstance(at.tree.value, dict):
        return None
    block_type = _read_type(reader, keys["type"]) if "type" in keys else None
    if "type" not in keys:
        reader.error(at.place, f'block {at.name!r} needs a type, for example type: "[C, H, W] -> [C, H, W]"')
    share = reader.one_of(keys["share"], SHARES) if "share" in keys else None
    levels = None
    if "levels" in keys:
        levels = _read_levels(reader, keys["levels"])
        if levels is None:
            reader.broken.add((*at.path, "levels"))
    nodes = _read_nodes(reader, keys["nodes"]) if "nodes" in keys else {}
    if "nodes" not in keys:
        reader.error(at.place, f"block {at.name!r} needs nodes, one of them called {_OUT!r}")
    if block_type is None or "nodes" not in keys:
        return None
    return BlockSpec(at.name, block_type, nodes, levels, share or default_share, at.path)


def _read_type(reader: Reader, at: At) -> BlockType | None:
    text = reader.text(at, 'a type in quotes such as "[C, H, W] -> [C, H, W]"')
    if text is None:
        return None
    try:
        block_type = BlockType.parse(text)
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


# -- levels ---------------------------------------------------------------------------------------------------------


def _read_levels(reader: Reader, at: At) -> LevelsSpec | None:
    before = len(reader.problems)
    keys = reader.known_entries(at, "levels: a map with count and ops", LEVELS_KEYS)
    if not isinstance(at.tree.value, dict):
        return None
    for needed in ("count", "ops"):
        if needed not in keys:
            reader.error(at.place, f"levels needs {needed!r}")
    count = reader.size(keys["count"]) if "count" in keys else None
    ops = _read_op_list(reader, keys["ops"]) if "ops" in keys else ()
    source = reader.text(keys["from"], "a node name") if "from" in keys else "in"
    gated = reader.boolean(keys["gated"]) if "gated" in keys else True
    gate_input = reader.boolean(keys["gate_input"]) if "gate_input" in keys else True
    if len(reader.problems) > before or count is None or source is None or gated is None or gate_input is None:
        return None
    return LevelsSpec(count, ops, source, gated, gate_input, at.path)


def _read_op_list(reader: Reader, at: At) -> tuple[OpSpec, ...]:
    """A list of ops with different labels."""
    found: dict[str, OpSpec] = {}
    items = reader.items(at, "a list of ops")
    for item in items:
        op = read_op(reader, item, label=None)
        if op is None:
            continue
        if op.label in found:
            message = f"two ops of this list are called {op.label!r}; name one of them: {{op: {op.op}, name: ...}}"
            reader.error(item.place, message)
        found[op.label] = op
    if not items and isinstance(at.tree.value, list):
        reader.error(at.place, "the list of ops is empty")
    return tuple(found.values())


# -- ops ------------------------------------------------------------------------------------------------------------


def read_op(reader: Reader, at: At, label: str | None) -> OpSpec | None:
    """An op as written: its name, or a map of `op`, attributes and (unless it has a `label` already) `name`."""
    if isinstance(at.tree.value, str) and at.tree.value:
        return OpSpec(label or at.tree.value, at.tree.value, {}, at.path)
    keys = reader.entries(at, "an op: its name, or a map such as {op: conv, kernel: 3}")
    if not isinstance(at.tree.value, dict):
        return None
    name = keys.pop("name", None) if label is None else None
    op = keys.pop("op", None)
    if op is None:
        reader.error(at.place, f"an op needs the key 'op'{did_you_mean('op', keys)}")
        return None
    op_name = reader.text(op, "an op's name")
    if name is not None:
        label = reader.text(name, "a name")
        problem = name_problem(label) if label else ""
        if problem:
            reader.error(name.place, f"{label!r} cannot name an op: {problem}")
    attrs = _read_attrs(reader, keys)
    return OpSpec(label or op_name or "", op_name, attrs, at.path) if op_name else None


def _read_attrs(reader: Reader, keys: Mapping[str, At]) -> dict[str, Any]:
    attrs: dict[str, Any] = {}
    for name, at in keys.items():
        value = at.tree.value
        if isinstance(value, list) and all(isinstance(i.value, (int, float)) for i in value):
            attrs[name] = tuple(item.value for item in value)
        elif isinstance(value, (dict, list)):
            reader.error(at.place, f"{name}: expected a number, a word or a list of numbers, found {at.tree}")
        else:
            attrs[name] = value
    return attrs


# -- nodes and edges ------------------------------------------------------------------------------------------------


def _read_nodes(reader: Reader, at: At) -> dict[str, NodeSpec]:
    """The nodes of a block; a node with a mistake is left out and counts as broken."""
    found = {}
    if not isinstance(at.tree.value, dict):
        reader.broken.add(at.path)
    for name, entry in reader.entries(at, "a map of nodes").items():
        before = len(reader.problems)
        check_name(reader, entry, "a node")
        node = _read_node(reader, entry)
        if node is not None and len(reader.problems) == before:
            found[name] = node
        else:
            reader.broken.add(entry.path)
    return found


def _read_node(reader: Reader, at: At) -> NodeSpec | None:
    keys = reader.entries(at, "a node: a map such as {op: conv, kernel: 3, from: in}")
    if not isinstance(at.tree.value, dict):
        return None
    sources, gated, choose = keys.pop("from", None), keys.pop("gated", None), keys.pop("choose", None)
    op = keys.pop("op", None)
    all_gated = reader.boolean(gated) if gated is not None else False
    ops = _read_op_list(reader, choose) if choose is not None else ()
    if op is None and choose is None:
        _missing(reader, at, keys, "op", "an op: op: conv")
    op_name = reader.text(op, "an op's name") if op is not None else "add"
    inputs: tuple[EdgeSpec, ...] = ()
    if sources is None:
        _missing(reader, at, keys, "from", "inputs: from: in")
    else:
        inputs = _read_edges(reader, sources, bool(all_gated))
    attrs = _read_attrs(reader, keys)
    if op_name is None:
        return None
    return NodeSpec(OpSpec(op_name, op_name, attrs, at.path), inputs, ops, at.path)


def _missing(reader: Reader, at: At, keys: Mapping[str, At], needed: str, example: str) -> None:
    """Note a missing key of a node: the misspelt one, where there is one."""
    for name, entry in keys.items():
        if did_you_mean(name, (needed,)):
            reader.error(key_place(entry), f"unknown key {name!r}; did you mean {needed!r}?")
            return
    reader.error(at.place, f"node {at.name!r} needs {example}")


def _read_edges(reader: Reader, at: At, gated: bool) -> tuple[EdgeSpec, ...]:
    value = at.tree.value
    if isinstance(value, list):
        edges = [_read_edge(reader, item, (*at.path, i), gated) for i, item in enumerate(value)]
        if not edges:
            reader.error(at.place, "from is an empty list; a node reads at least one value")
        return tuple(edge for edge in edges if edge is not None)
    edge = _read_edge(reader, at.tree, at.path, gated)
    return () if edge is None else (edge,)


def _read_edge(reader: Reader, tree: Tree, path: Path, gated: bool) -> EdgeSpec | None:
    if isinstance(tree.value, dict):
        keys = reader.known_entries(At(tree, path), "an edge", EDGE_KEYS)
        own = reader.boolean(keys["gated"]) if "gated" in keys else gated
        if "node" not in keys:
            reader.error(tree.place, "an edge needs the key 'node', the name of what it reads")
            return None
        tree, path, gated = keys["node"].tree, keys["node"].path, bool(own)
    if not isinstance(tree.value, str) or not tree.value:
        quoted = "; put it in quotes" if isinstance(tree.value, (bool, int, float)) else ""
        reader.error(tree.place, f"expected the name of a node, found {tree}{quoted}")
        return None
    if not _SOURCE.fullmatch(tree.value) or (keyword.iskeyword(tree.value) and tree.value != "in"):
        reader.error(tree.place, f"{tree.value!r} cannot be the name of a node")
        return None
    return EdgeSpec(tree.value, gated, path)
