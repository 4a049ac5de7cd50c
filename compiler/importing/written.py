"""A network as a spec: blocks with types and nodes, equal ones once, and the entries that use them."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compiler.importing.blocks import Piece, cut, entrances, exits
from compiler.importing.calls import Array, Call, Network
from compiler.ir.graph import INPUT, attrs_of
from compiler.language.names import MAX_LENGTH, name_problem
from compiler.ops import Shape, op, read_attrs
from compiler.ops.attributes import BatchNormSettings
from compiler.ops.windows import Window
from compiler.passes.draft import free_id

OUT = "out"
_PLAIN = re.compile(r"[A-Za-z_][\w.-]*")  # texts that need no quotes in YAML
STYLE = ("kernel", "norm", "act", *BatchNormSettings.model_fields)
OFTEN = 3  # nodes that make a short name for an op worth its line


@dataclass(frozen=True)
class Written:
    """A spec as text, and the weights of its network by `<node id>.<param>`."""

    text: str
    weights: dict[str, Array]


@dataclass
class _Block:
    """One block of the spec: the type and the nodes as written, and the name of its first entry."""

    name: str
    inputs: list[Shape]
    output: str
    nodes: dict[str, dict[str, Any]]


def write(network: Network, name: str, settings: Mapping[str, Any], *, weights: str, gated: bool = False) -> Written:
    """The spec of a fused network; `settings` are further keys of it, `weights` the name of their file.

    With `gated`, there is a gate on each branch that is added to what a block takes.
    """
    writer = _Writer(network, gated)
    writer.run()
    classes = network.shape(network.output)[0]
    top = {"graphspec": 1, "name": name, "input": list(network.input), "classes": classes, "weights": weights}
    lines = [f"{key}: {_flow(value)}" for key, value in (top | dict(settings)).items()]
    lines += ["ops:", *(f"  {name}: {_flow(short)}" for name, short in writer.short.values())] if writer.short else []
    lines += ["blocks:", *(line for block in writer.blocks.values() for line in _block_lines(block)), "network:"]
    lines += [f"  {entry}: {_flow(value)}" for entry, value in writer.entries.items()]
    return Written("\n".join(lines) + "\n", writer.weights)


class _Writer:
    def __init__(self, network: Network, gated: bool) -> None:
        self.network, self.gated = network, gated
        self.short = _short_names(network)
        self.blocks: dict[str, _Block] = {}  # by what they hold
        self.entries: dict[str, dict[str, Any]] = {}
        self.weights: dict[str, Array] = {}

    def run(self) -> None:
        """Write all pieces of the network."""
        entry_of = {INPUT: "in"}
        taken: set[str] = set()
        pieces = cut(self.network)
        for number, piece in enumerate(pieces):
            end = "stem" if number == 0 else "head" if number == len(pieces) - 1 else ""
            path = (
                (end,) if piece.is_loose and end and len(pieces) > 1 else piece.path or self._call(piece.keys[0]).path
            )
            entry = _numbered(taken, as_name(path, "part"))
            names = self._names(piece)
            sources = entrances(self.network, piece.keys)
            block = self._block(entry, piece, names, sources, is_last=number == len(pieces) - 1)
            read = [entry_of[source] for source in sources]
            self.entries[entry] = {"block": block, "from": read[0] if len(read) == 1 else read}
            entry_of[exits(self.network, piece.keys)[0]] = entry
            for key in piece.keys:
                arrays = self._call(key).weights
                self.weights |= {f"{entry}.{names[key]}.{param}": array for param, array in arrays.items()}

    def _call(self, key: str) -> Call:
        return self.network.calls[key]

    def _names(self, piece: Piece) -> dict[str, str]:
        """What the nodes of a piece are called."""
        (last,) = exits(self.network, piece.keys)
        found, taken = {last: OUT}, {OUT}
        for key in piece.keys:
            if key != last:
                call = self._call(key)
                own = () if piece.is_way else call.path[len(piece.path) :]
                found[key] = _numbered(taken, as_name(own or (call.op,), call.op))
        return found

    def _block(self, entry: str, piece: Piece, names: dict[str, str], sources: list[str], *, is_last: bool) -> str:
        """The name of the block that holds what this piece does; a new one if there is none yet."""
        inside = {source: "in" if len(sources) == 1 else f"in{i}" for i, source in enumerate(sources)} | names
        nodes = {names[key]: self._node(self._call(key), inside, is_out=names[key] == OUT) for key in piece.keys}
        (last,) = exits(self.network, piece.keys)
        shape = self.network.shape(last)
        if is_last and op(self._call(last).op).sets_channels:
            nodes[OUT].pop("channels")
        output = "[" + ", ".join(["classes" if is_last else str(shape[0]), *map(str, shape[1:])]) + "]"
        block = _Block(entry, [self.network.shape(source) for source in sources], output, nodes)
        same = repr((block.inputs, block.output, block.nodes))
        return self.blocks.setdefault(same, block).name

    def _node(self, call: Call, inside: Mapping[str, str], *, is_out: bool) -> dict[str, Any]:
        sources: list[Any] = [inside[source] for source in call.inputs]
        if self.gated and is_out and call.op == "add" and "in" in sources and len(sources) > 1:
            sources = [source if source == "in" else {"node": source, "gated": True} for source in sources]
        return _as_written(call, self.short) | {"from": sources[0] if len(sources) == 1 else sources}


def as_name(path: tuple[str, ...], before_digits: str) -> str:
    """A path of modules as a name that a spec may give."""
    name = re.sub(r"[^a-z0-9]+", "_", "_".join(path).lower()).strip("_")
    name = name if name[:1].isalpha() else f"{before_digits}_{name}".strip("_")
    name = name[-MAX_LENGTH + 8 :].lstrip("_0123456789")  # with room for a number
    return f"{name}_" if name_problem(name) else name


def _numbered(taken: set[str], name: str) -> str:
    """The name, or with a number where it is taken; it is taken then."""
    number, joint = 1, "_" if name[-1].isdigit() else ""
    while (found := name if number == 1 else f"{name}{joint}{number}") in taken:
        number += 1
    taken.add(found)
    return found


def _as_written(call: Call, short: Mapping[tuple[str, str], tuple[str, Any]]) -> dict[str, Any]:
    """Op and attributes of a node, without those that are the defaults or that a short name stands for."""
    defaults = _defaults(call.op)
    if isinstance(read_attrs(call.op, attrs_of(call.attrs)), Window):
        defaults["padding"] = _usual_padding(call)
    if "bias" in call.attrs:
        defaults["bias"] = call.attrs.get("norm") == "none"
    own = sorted(call.attrs.items(), key=lambda item: item[0] in STYLE[1:])
    attrs = {key: value for key, value in own if value != defaults[key]}
    if (found := short.get((call.op, repr(_style(call))))) is None:
        return {"op": call.op, **attrs}
    return {"op": found[0], **{key: value for key, value in attrs.items() if key not in STYLE}}


def _defaults(kind: str) -> dict[str, Any]:
    return {name: field.default for name, field in op(kind).attrs.model_fields.items()}


def _usual_padding(call: Call) -> Any:
    plain = read_attrs(call.op, attrs_of({**call.attrs, "padding": None})).pad
    return list(plain) if isinstance(plain, tuple) else plain


def _style(call: Call) -> dict[str, Any]:
    return {key: call.attrs[key] for key in STYLE if key in call.attrs}


def _short_names(network: Network) -> dict[tuple[str, str], tuple[str, dict[str, Any]]]:
    """Short names for ops that often have the same window, norm and activation, by op and these."""
    normed = [call for call in network.calls.values() if call.attrs.get("norm") == "batch"]
    count = Counter((call.op, repr(_style(call))) for call in normed)
    found: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {}
    for call in normed:
        key, defaults = (call.op, repr(style := _style(call))), _defaults(call.op)
        if key not in found and count[key] >= OFTEN:
            sides = read_attrs(call.op, attrs_of(call.attrs)).kernels(call.shape) if "kernel" in style else ()
            window = "x".join(map(str, sides))
            words = (call.op, window, style["act"] if style["act"] != "none" else "norm")
            name = free_id({taken for taken, _ in found.values()}, "_".join(filter(None, words)))
            differs = {key: value for key, value in style.items() if value != defaults[key]}
            found[key] = name, {"op": call.op, **differs}
    return found


def _block_lines(block: _Block) -> list[str]:
    inputs = ", ".join(str(list(shape)) for shape in block.inputs)
    head = [f"  {block.name}:", f'    type: "{inputs} -> {block.output}"', "    nodes:"]
    return head + [f"      {name}: {_flow(node)}" for name, node in block.nodes.items()]


def _flow(value: Any) -> str:
    """A value on one line of YAML."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, str):
        return value if _PLAIN.fullmatch(value) else json.dumps(value)
    return json.dumps(value) if isinstance(value, bool | None) else str(value)
