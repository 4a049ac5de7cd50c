"""Block templates: a block as written, with sugar expanded and names resolved, before any size is known.

Levels, choices and patterns become plain nodes and edges here; unknown ops, attributes and names, cycles, unreachable
nodes and misplaced gates are found here, once per block and not once per instance.
"""

from __future__ import annotations

import functools
import operator
import re
import typing
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from pydantic import ValidationError

from compiler.errors import Diagnostic, Place, did_you_mean
from compiler.ir.graph import Graph, Node, attrs_of
from compiler.language.dims import Dim, DimError
from compiler.language.source import Path
from compiler.language.spec import BlockSpec, Gated, LevelsSpec, NodeSpec, OpSpec, Spec
from compiler.ops import OpAttrs, Reads, Traits, UnknownOpError, Values, chain_of, explain_attr_errors, known_ops, op
from compiler.passes.draft import free_id

OUT = "out"
MAX_EDGES = 300_000  # of one block, and of the elaborated network
_ANY_SIZE = Dim("1")  # stands in for a size that cannot be read
_SIZED = re.compile(r"(?P<op>.+)_(?P<rows>\d+)(?:x(?P<columns>\d+))?")


@dataclass(frozen=True)
class Source:
    """An edge of a template: the local name it reads, whether it is gated, and where it is written."""

    name: str
    gated: bool
    path: Path
    choice: str = ""  # of an alternative of a `choose`: the name that all its alternatives read


@dataclass(frozen=True)
class TemplateNode:
    """A node of a template; sizes among `attrs` may still be expressions (`Dim`)."""

    name: str
    op: str
    attrs: Mapping[str, Any]
    sources: tuple[Source, ...]
    path: Path
    gate: Gated | None = None  # behind the node

    @property
    def chain(self) -> tuple[Traits, ...]:
        """The traits of its steps, which hold whatever the sizes among the attributes are."""
        return chain_of(self.op, attrs_of(_with_any_size(self.attrs)))


@dataclass(frozen=True)
class Template:
    """A block's nodes, each after the nodes it reads; `inputs` are the names of the values the block takes."""

    block: BlockSpec
    inputs: tuple[str, ...]
    nodes: tuple[TemplateNode, ...]


class Reporter:
    """Collects diagnostics: a wrong piece is reported and left out, the rest goes on."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.found: list[Diagnostic] = []

    def error(self, path: Path, message: str, follows_from: Iterable[Path] = ()) -> None:
        """Note a mistake at this place, or at the first override among the pieces that it follows from."""
        place: Place = self.spec.place(*path)
        overrides = (self.spec.root.override_in(piece) for piece in follows_from)
        override = next((found for found in overrides if found is not None), None)
        if override is not None and place.file != override.file:
            place, message = override, f"{message} (at {place})"
        self.found.append(Diagnostic(place, message))


def make_template(block: BlockSpec, report: Reporter) -> Template | None:
    """The block's template; None if anything in it is wrong (reported)."""
    before = len(report.found)
    count = len(block.type.inputs)
    inputs = ("in",) if count == 1 else tuple(f"in{i}" for i in range(count))
    if block.levels is not None and not _levels_fit(block.levels, report):
        return None
    nodes = _expand(block, inputs, report)
    if any(path[: len(block.path)] == block.path for path in report.spec.broken):
        return None  # reported while parsing; what its missing pieces lead to is no news
    if any(node.op not in known_ops() for node in nodes.values()):
        return None  # reported here, or the shorthand was left out
    if OUT not in nodes and len(report.found) == before:
        hint = did_you_mean(OUT, nodes)
        report.error(block.path, f"block {block.name!r} has no node {OUT!r}, which is its output{hint}")
    if len(report.found) > before:
        return None
    template = Template(block, inputs, _in_order(nodes, inputs, report))
    if len(report.found) == before:
        _check_reachable(template, report)
    if len(report.found) == before:
        _check_gates(template, report)
        _check_zeros(template, report)
    return template if len(report.found) == before else None


def _expand(block: BlockSpec, inputs: tuple[str, ...], report: Reporter) -> dict[str, TemplateNode]:
    """All nodes by name, levels and choices spelt out; mistakes are reported."""
    nodes = {node.name: node for node in _level_nodes(block, inputs, report)}
    broken = [path for path in report.spec.broken if path[:-1] == (*block.path, "nodes")]  # reported already
    names = dict.fromkeys([*nodes, *block.nodes, *(str(path[-1]) for path in broken)])
    edges = 0
    for name, node in block.nodes.items():
        sources = _sources(block, node, name, names, inputs, report)
        edges += len(sources) * max(1, len(node.choose))
        if edges > MAX_EDGES:
            report.error(block.path, f"block {block.name!r} has more than {MAX_EDGES} edges")
            break
        if node.choose:
            nodes |= {made.name: made for made in _choice_nodes(name, node, sources, report)}
        else:
            nodes[name] = TemplateNode(name, *resolve_op(node.op, report), sources, node.path, node.gate)
    return nodes


def _levels_fit(levels: LevelsSpec, report: Reporter) -> bool:
    """Whether the levels have few enough edges to be spelt out; reported if not."""
    nodes = levels.count * len(levels.ops)
    edges = nodes + nodes * (nodes - len(levels.ops)) // 2
    if edges > MAX_EDGES:
        message = f"{levels.count} levels of {len(levels.ops)} ops have {edges} edges; at most {MAX_EDGES} are allowed"
        report.error((*levels.path, "count"), message)
    return edges <= MAX_EDGES


def _level_nodes(block: BlockSpec, inputs: tuple[str, ...], report: Reporter) -> Iterable[TemplateNode]:
    levels = block.levels
    if levels is None:
        return
    is_broken = (*block.path, "nodes", levels.source) in report.spec.broken
    if levels.source not in inputs and levels.source not in block.nodes and not is_broken:
        known = [*inputs, *block.nodes]
        report.error((*levels.path, "from"), f"unknown node {levels.source!r}{did_you_mean(levels.source, known)}")
    resolved = [resolve_op(written, report) for written in levels.ops]
    earlier: list[str] = []
    for level in range(levels.count):
        first = Source(levels.source, levels.gated and (level > 0 or levels.gate_input), levels.path)
        sources = (first, *(Source(name, levels.gated, levels.path) for name in earlier))
        made = [f"level{level}.{written.label}" for written in levels.ops]
        for name, written, (op_name, attrs) in zip(made, levels.ops, resolved, strict=True):
            yield TemplateNode(name, op_name, attrs, sources, written.path)
        earlier += made


def _choice_nodes(name: str, node: NodeSpec, sources: tuple[Source, ...], report: Reporter) -> Iterable[TemplateNode]:
    """One node for every op of the choice on every edge, and the node that merges them through gates."""
    resolved = [(written, *resolve_op(written, report)) for written in node.choose]
    merged, read = [], {source.name for source in sources}
    for source in sources:
        segment = "from_in" if source.name == "in" else source.name.replace(".", "_")
        segment = segment if segment == source.name else free_id(read, segment)
        for written, op_name, attrs in resolved:
            made = f"{name}.{segment}.{written.label}"
            yield TemplateNode(made, op_name, attrs, (source,), written.path)
            merged.append(Source(made, True, node.path, source.name))
    yield TemplateNode(name, *resolve_op(node.op, report), tuple(merged), node.path, node.gate)


def _sources(
    block: BlockSpec, node: NodeSpec, name: str, names: Collection[str], inputs: tuple[str, ...], report: Reporter
) -> tuple[Source, ...]:
    """The node's edges with patterns spelt out (`levels.*` reads every level node)."""
    found: dict[str, Source] = {}
    levels = (*block.path, "levels")
    levels_are_broken = any(path[: len(levels)] == levels for path in report.spec.broken)  # their nodes are missing
    for edge in node.inputs:
        matches = _matches(edge.source, name, names, inputs)
        for source in matches:
            if source in found:
                report.error(edge.path, f"{name!r} reads {source!r} twice")
            found[source] = Source(source, edge.gated, edge.path)
        if not matches and not (levels_are_broken and edge.source.startswith("level")):
            what = "no node matches" if "*" in edge.source else "unknown node"
            hint = did_you_mean(edge.source, [*inputs, *names])
            if edge.source == "in" and len(inputs) > 1:
                hint = f"; this block takes {len(inputs)} values, called {', '.join(inputs)}"
            report.error(edge.path, f"{what} {edge.source!r}{hint}")
    return tuple(found.values())


def _matches(pattern: str, name: str, names: Collection[str], inputs: tuple[str, ...]) -> list[str]:
    if "*" not in pattern:
        return [pattern] if pattern in inputs or pattern in names else []
    if pattern == "levels.*":
        return [n for n in names if n.startswith("level") and "." in n]
    return [n for n in names if n != name and fnmatchcase(n, pattern)]


def resolve_op(written: OpSpec, report: Reporter) -> tuple[str, dict[str, Any]]:
    """Catalogue name and attributes of an op as written, shorthands and `_HxW` sizes resolved; mistakes reported."""
    spec, name, attrs = report.spec, written.op, dict(written.attrs)
    shorthand = spec.ops.get(name)
    if shorthand is not None:
        name, attrs = shorthand.op, {**shorthand.attrs, **attrs}
    sized = _SIZED.fullmatch(name)
    if sized and name not in known_ops() and sized["op"] in known_ops():
        sides = int(sized["rows"]), int(sized["columns"] or sized["rows"])
        name, attrs = sized["op"], {"kernel": sides[0] if sides[0] == sides[1] else list(sides), **attrs}
    try:
        row = op(name)
    except UnknownOpError:
        if ("ops", name) in spec.broken:
            return name, attrs
        hint = did_you_mean(name, [*spec.ops, *_op_spellings()]) or "; `graphspec ops` lists all ops"
        path = written.path if shorthand is None else shorthand.path
        report.error((*path, "op"), f"unknown op {name!r}{hint}")
        return name, attrs
    if name in ("input", "output"):
        report.error((*written.path, "op"), f"the op {name!r} is the compiler's own; read `in`, and call a node `out`")
        return name, attrs
    places = {attr: (*shorthand.path, attr) for attr in shorthand.attrs} if shorthand is not None else {}
    places |= {attr: (*written.path, attr) for attr in written.attrs}
    attrs = _read_sizes(row.attrs, attrs, places, report)
    _check_attrs(spec, name, attrs, written, places, report)
    return name, attrs


def _op_spellings() -> list[str]:
    windowed = [name for name, row in known_ops().items() if "kernel" in row.attrs.model_fields]
    sized = [f"{name}_{size}x{size}" for name in windowed for size in (1, 3, 5, 7)]
    return [*known_ops(), *sized]


def _takes_size(model: type[OpAttrs], attr: str) -> bool:
    annotation = model.model_fields[attr].annotation
    parts = [annotation, *typing.get_args(annotation)]
    return any(part is int or int in typing.get_args(part) for part in parts)


def _read_sizes(
    model: type[OpAttrs], attrs: dict[str, Any], places: Mapping[str, Path], report: Reporter
) -> dict[str, Any]:
    """Expressions among integer attributes as `Dim`."""
    read = dict(attrs)
    for attr, value in attrs.items():
        if isinstance(value, str) and attr in model.model_fields and _takes_size(model, attr):
            try:
                read[attr] = Dim.parse(value)
            except DimError as error:
                report.error(places[attr], f"{attr}: {error}")
                read[attr] = _ANY_SIZE
    return read


def _with_any_size(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes with 1 for every size that follows from symbols."""
    return {key: 1 if isinstance(value, Dim) else value for key, value in attrs.items()}


def _check_attrs(
    spec: Spec, name: str, attrs: Mapping[str, Any], written: OpSpec, places: Mapping[str, Path], report: Reporter
) -> None:
    try:
        op(name).read_attrs(_with_any_size(attrs))
    except ValidationError as error:
        for attr, message in explain_attr_errors(name, error):
            is_unknown = attr in places and attr not in op(name).attrs.model_fields
            place = spec.root.key_place(places[attr]) if is_unknown else spec.place(*places.get(attr, written.path))
            report.found.append(Diagnostic(place, message))


def _in_order(nodes: Mapping[str, TemplateNode], inputs: tuple[str, ...], report: Reporter) -> tuple[TemplateNode, ...]:
    """Nodes after the nodes they read, ties as written; none (reported) if there is a cycle."""
    graph = Graph("template")
    for name in (*inputs, *nodes):
        graph.add(Node(name, "add"))
    for name, node in nodes.items():
        for source in node.sources:
            graph.connect(source.name, name)
    cycle = graph.find_cycle()[1:]  # whose first id is repeated at its end
    if cycle:
        message = f"these nodes read each other in a cycle: {' -> '.join([*cycle, cycle[0]])}"
        report.error(nodes[cycle[0]].path, message, [nodes[name].path for name in cycle])
        return ()
    return tuple(nodes[node.id] for node in graph.nodes() if node.id in nodes)


def _check_reachable(template: Template, report: Reporter) -> None:
    """Every node must reach `out`, and every input must be read."""
    needed = {OUT}
    for node in reversed(template.nodes):
        if node.name in needed:
            needed.update(source.name for source in node.sources)
    for node in template.nodes:
        if node.name not in needed:
            message = f"node {node.name!r} does not reach {OUT!r}: nothing that {OUT!r} needs reads it"
            report.error(node.path, message, [template.block.path])
    for name in template.inputs:
        if name not in needed:
            message = f"block {template.block.name!r} never reads its input {name!r}"
            report.error((*template.block.path, "type"), message, [template.block.path])


def _check_gates(template: Template, report: Reporter) -> None:
    products = {node.name for node in template.nodes if op(node.op).reads is Reads.TOGETHER}
    for node, source in needed_gates(template):
        if node.name in products:
            message = f"an input of {node.op} may not have a gate: closed, it makes the product zero, not a product of "
            message += f"the others; put the gate behind {node.name!r}"
        else:
            message = f"the edge from {source.name!r} to {node.name!r} "
            message += "may not have a gate: the block cannot do without it, so closing it would cut the network; "
            message += "leave it ungated or add a path beside it"
        report.error(source.path, message, [template.block.path])


def _check_zeros(template: Template, report: Reporter) -> None:
    """Something must reach `out` that passes no `zero` op; a product needs all that it reads."""
    carrying = set(template.inputs)
    for node in template.nodes:
        fed = [source.name in carrying for source in node.sources]
        is_zero = any(traits.values is Values.ZERO for traits in node.chain)
        if not is_zero and (all(fed) if op(node.op).reads is Reads.TOGETHER else any(fed)):
            carrying.add(node.name)
    if OUT not in carrying:
        message = f"every path to {OUT!r} passes an op `zero`, so the block gives a constant; add a path without one"
        report.error(template.nodes[-1].path, message, [template.block.path])


def needed_gates(template: Template) -> list[tuple[TemplateNode, Source]]:
    """Gated edges that the block cannot do without: closed, one would cut `out` off, or make a product zero.

    A product is cut off with any of its inputs, any other node with all of them. What cuts a node off are the bits of
    a number: those of any input of a product, else those that all inputs share, and the one of an only input's gate.
    """
    found, lone = list[tuple[TemplateNode, Source]](), list[tuple[TemplateNode, Source]]()
    cuts = dict.fromkeys(template.inputs, 0)
    for node in template.nodes:
        is_product = op(node.op).reads is Reads.TOGETHER
        gated = [(node, source) for source in node.sources if source.gated]
        own = 0
        if is_product:
            found += gated
        elif gated and len(node.sources) == 1:
            own = 1 << len(lone)
            lone += gated
        read = (cuts[source.name] for source in node.sources)
        cuts[node.name] = own | functools.reduce(operator.or_ if is_product else operator.and_, read)
    return found + [edge for edge, bit in zip(lone, reversed(f"{cuts[OUT]:b}"), strict=False) if bit == "1"]
