"""Elaborate: Spec -> Graph. Instantiates every block template of the network with concrete sizes.

Symbols of a block's type are solved from the values it reads; channels that are not written follow from the declared
output type (`out` and what merely passes its channels on), else from the input. All mistakes of the spec are
collected and raised together as one SpecError.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from pydantic import ValidationError

from compiler.elaborate.channel_gates import Gates, place_gates
from compiler.elaborate.template import MAX_EDGES, OUT, Reporter, Template, TemplateNode, make_template, resolve_op
from compiler.errors import Diagnostic, SpecError, did_you_mean, few_suggestions
from compiler.garbage import collector_paused
from compiler.ir.graph import INPUT, OUTPUT, Attrs, Block, Choice, Graph, Node, Phase, TensorType, attrs_of
from compiler.ir.verify import verify
from compiler.language.dims import Dim, DimError, show_dims
from compiler.language.overrides import Override
from compiler.language.parse import parse
from compiler.language.source import Path
from compiler.language.spec import BlockSpec, NetworkEntry, Spec
from compiler.ops import Channels, TypeMismatchError, explain_attr_errors, infer, op, read_attrs

MAX_NODES = 150_000  # nodes of the elaborated network
_IMAGES = {"1": "grey", "3": "colour"}  # by channels
_OTHER_CHANNELS = frozenset({Channels.JOINED, Channels.FLATTENED, Channels.AVERAGED})  # not as many as are read


@collector_paused()
@few_suggestions()
def load(path: str | os.PathLike[str], overrides: Sequence[Override] = ()) -> tuple[Spec, Graph]:
    """Parse and elaborate a spec file; SpecError with every independent mistake of structure and of meaning.

    RuleError if the graph breaks a rule of the search phase.
    """
    parsed = parse(path, overrides)
    if parsed.spec is None:
        raise SpecError(parsed.diagnostics)
    graph = elaborate(parsed.spec, parsed.diagnostics)
    verify(graph)
    return parsed.spec, graph


@few_suggestions()
@collector_paused()
def elaborate(spec: Spec, problems: Iterable[Diagnostic] = ()) -> Graph:
    """The search graph of a spec, typed; SpecError with every mistake found, after those that parsing found."""
    report = Reporter(spec)
    report.found += problems
    for shorthand in spec.ops.values():
        resolve_op(shorthand, report)
    templates = {name: make_template(block, report) for name, block in spec.blocks.items()}
    builder = _Builder(report, templates)
    builder.run()
    if report.found:
        raise SpecError(report.found)
    return builder.graph


@dataclass
class _Instance:
    """A block where it stands: its id, the network entry that it belongs to and the nodes whose values it takes."""

    block: BlockSpec
    id: str
    entry: NetworkEntry
    sources: tuple[str, ...]
    symbols: dict[str, int]  # and their sizes here
    values: dict[str, str] = field(default_factory=dict)  # names in the template -> ids of nodes
    demands: dict[str, int] = field(default_factory=dict)  # channels that the declared type asks of nodes

    @property
    def gate_scope(self) -> str:
        """What the ids of its gates begin with."""
        if self.block.share == "block":
            return self.block.name
        return f"{self.entry.name}.{self.block.name}" if self.block.share == "stage" else self.id


class _UnfitError(Exception):
    """A block or an entry does not fit where it stands, which has been reported."""


class _Builder:
    def __init__(self, report: Reporter, templates: Mapping[str, Template | None]) -> None:
        self.report, self.spec, self.templates = report, report.spec, templates
        self.graph = Graph(self.spec.name, Phase.SEARCH)
        self.graph.add(Node(INPUT, INPUT, type=TensorType(self.spec.input)))
        self.values = {"in": [INPUT]}  # entry name -> node ids of its values, the last one last
        self.choices: dict[str, dict[str, None]] = {}  # id of a choice -> its gates, once each
        self.gated: dict[str, Gates] = {}  # nodes that have gates on channels, and those gates
        self.gate_places: dict[str, Path] = {}  # and where these nodes are written
        self.failed: set[Path] = set()  # definitions already reported: instances repeat their mistakes

    def run(self) -> None:
        """Build every entry in order, then the output."""
        entries = {entry.name: entry for entry in self.spec.network}
        # what sizes and order follow from must not have been left out by the parser
        is_broken = any(path[0] in ("network", "input", "classes", "symbols") for path in self.spec.broken)
        if not self._entries_are_known(entries) or is_broken or not self._fits():
            return
        try:
            blocks = [block for entry in self._ordered(entries) for block in self._entry(entry)]
        except _UnfitError:
            return  # nothing can be said about what reads it
        if self.report.found or not blocks:
            return
        self.graph.blocks = tuple(blocks)
        self.graph.choices = tuple(Choice(choice, tuple(gates)) for choice, gates in self.choices.items())
        self._connect_output(blocks[-1])
        if self.gated and not self.report.found:
            for node_id, message in place_gates(self.graph, self.gated).items():
                self._report((*self.gate_places[node_id], "gate"), message)

    def _fits(self) -> bool:
        repeats = Counter(dict.fromkeys(self.templates, 0))
        for entry in self.spec.network:
            repeats[entry.block] += entry.repeat or 1
        blocks = [(template, repeats[name]) for name, template in self.templates.items() if template is not None]
        nodes = sum(len(template.nodes) * count for template, count in blocks)
        edges = sum(sum(len(node.sources) for node in template.nodes) * count for template, count in blocks)
        instances = sum(repeats.values())
        fits = max(nodes, instances) <= MAX_NODES and edges <= MAX_EDGES
        if not fits:
            size = f"{instances} blocks, {nodes} nodes and {edges} edges"
            allowed = f"at most {MAX_NODES} nodes and {MAX_EDGES} edges are allowed"
            self.report.error(("network",), f"the network would have {size}; {allowed}")
        return fits

    def _ordered(self, entries: Mapping[str, NetworkEntry]) -> list[NetworkEntry]:
        """Entries after the entries they read, the one that nothing reads last; wrong ones are reported."""
        read = {source for entry in entries.values() for source in entry.inputs}
        unread = [entry for entry in entries.values() if entry.name not in read]
        for entry in unread[:-1]:
            self.report.error(entry.path, f"nothing reads {entry.name!r}; the network's output is {unread[-1].name!r}")
        done: dict[str, NetworkEntry] = {}
        waiting = list(entries.values()) if len(unread) < 2 else []
        while waiting:
            ready = [e for e in waiting if all(s == "in" or s in done for s in e.inputs)]
            if not ready:
                names = ", ".join(repr(e.name) for e in waiting)
                self.report.error(waiting[0].path, f"these network entries read each other in a cycle: {names}")
                return []
            done.update((e.name, e) for e in ready)
            waiting = [e for e in waiting if e.name not in done]
        return list(done.values())

    def _entries_are_known(self, entries: Mapping[str, NetworkEntry]) -> bool:
        before = len(self.report.found)
        known = ["in", *entries]
        for entry in entries.values():
            for source in entry.inputs:
                if source not in known and ("network", source) not in self.spec.broken:
                    hint = did_you_mean(source, known)
                    self.report.error((*entry.path, "from"), f"unknown network entry {source!r}{hint}")
            is_broken = not {("blocks",), ("blocks", entry.block)}.isdisjoint(self.spec.broken)
            if entry.block not in self.spec.blocks and not is_broken:
                hint = did_you_mean(entry.block, self.spec.blocks)
                self.report.error((*entry.path, "block"), f"unknown block {entry.block!r}{hint}")
        return len(self.report.found) == before

    def _entry(self, entry: NetworkEntry) -> list[Block]:
        if entry.block not in self.spec.blocks:
            raise _UnfitError  # left out because of a mistake reported already
        definition = self.spec.blocks[entry.block]
        history = [self.values[name][-1] for name in reversed(entry.inputs)]
        count = len(definition.type.inputs)
        if not entry.repeat and len(history) != count:
            message = f"block {entry.block!r} takes {count} values, but {entry.name!r} reads {len(history)}"
            self.report.error((*entry.path, "from"), message)
            raise _UnfitError
        made = []
        for index in range(entry.repeat or 1):
            block_id = entry.name if entry.repeat is None else f"{entry.name}.block{index}"
            sources = [history[max(len(history) - 1 - i, 0)] for i in range(count)]
            block = self._instance(_Instance(definition, block_id, entry, tuple(sources), dict(self.spec.symbols)))
            made.append(block)
            history.append(block.output)
        self.values[entry.name] = history
        return made

    def _connect_output(self, last: Block) -> None:
        found = self.graph.node(last.output).shape
        if found[0] != self.spec.classes:  # what follows is up to the task
            self.report.error(
                self.spec.network[-1].path,
                f"the network gives {TensorType(found)}, but `classes` asks for {self.spec.classes} values; "
                f"end it with a block of type [C, H, W] -> [classes]",
            )
            return
        self.graph.add(Node(OUTPUT, OUTPUT, type=TensorType(found)))
        self.graph.connect(last.output, OUTPUT)

    def _instance(self, at: _Instance) -> Block:
        block = at.block
        self._bind(at)
        try:
            declared = tuple(dim.evaluate(at.symbols) for dim in block.type.output)
            if min(declared) < 1:
                raise DimError(f"{block.type} gives {TensorType(declared)}: every size must be at least 1")
        except DimError as error:
            self._fail((*block.path, "type"), f"block {block.name!r} in {at.id}: {error}")
        try:
            output = self._fill(at, declared)
        except _UnfitError:  # the declared type stands in, so that the rest of the network is checked too
            output = f"{at.id}.{OUTPUT}"  # no name of a spec
            self.graph.add(Node(output, "identity", type=TensorType(declared)))
        stage = at.entry.name if at.entry.repeat is not None else at.id
        return Block(at.id, block.name, stage, at.sources, output)

    def _fill(self, at: _Instance, declared: tuple[int, ...]) -> str:
        """Add the instance's nodes; the id of its output."""
        block = at.block
        template = self.templates[block.name]
        if template is None:
            raise _UnfitError
        self._take_inputs(template, at)
        at.demands = _demanded_channels(template, declared[0])
        for node in template.nodes:
            self._node(node, at)
        found = self.graph.node(at.values[OUT]).shape
        if found != declared:
            gives = f"its type says it gives {TensorType(declared)}, but {OUT!r} gives {TensorType(found)}"
            self._fail((*block.path, "type"), f"block {block.name!r} in {at.id}: {gives}")
        return at.values[OUT]

    def _take_inputs(self, template: Template, at: _Instance) -> None:
        """Note the block's inputs; a value taken twice passes through an identity, so that edges stay unique."""
        for name, source in zip(template.inputs, at.sources, strict=True):
            if source in at.values.values():
                twin = Node(f"{at.id}.{name}", "identity", type=self.graph.node(source).type)
                self.graph.add(twin)
                self.graph.connect(source, twin.id)
                source = twin.id
            at.values[name] = source

    def _bind(self, at: _Instance) -> None:
        """Solve the symbols of the block's type."""
        for dims, source in zip(at.block.type.inputs, at.sources, strict=True):
            shape = self.graph.node(source).shape
            try:
                if len(dims) != len(shape):
                    raise DimError(f"expected {len(dims)} dimensions, found {len(shape)}")
                for dim, size in zip(dims, shape, strict=True):
                    dim.bind(size, at.symbols)
            except DimError as error:
                found = f"{source!r} gives {show_dims(shape)}"
                wanted, given = _IMAGES.get(dims[0].text), _IMAGES.get(str(shape[0]))
                differ = source == INPUT and wanted and given and given != wanted
                why = f"the block is for {wanted} images, the input is {given}" if differ else error
                self._fail(
                    at.entry.path, f"{at.id}: block {at.block.name!r} takes {show_dims(dims)}, but {found}: {why}"
                )

    def _node(self, node: TemplateNode, at: _Instance) -> None:
        types = [made for s in node.sources if (made := self.graph.node(at.values[s.name]).type) is not None]
        try:
            attrs = _concrete_attrs(node, at, types)
            made = infer(node.op, attrs, types)
        except DimError as error:
            self._fail(node.path, f"{node.name!r} in {at.id}: {error}")
        except ValidationError as error:
            for attr, message in explain_attr_errors(node.op, error):
                self._report((*node.path, attr), f"{node.name!r} in {at.id}: {message}")
            raise _UnfitError from error
        except TypeMismatchError as error:
            self._type_error(node, at.id, types, error)
        node_id = f"{at.id}.{node.name}"
        self.graph.add(Node(node_id, node.op, attrs, made))
        scope = at.gate_scope
        for source in node.sources:
            gate = f"{scope}/{node.name}<{source.name}" if source.gated else None
            self.graph.connect(at.values[source.name], node_id, gate)
            if gate and source.choice:
                self.choices.setdefault(f"{scope}/{node.name}<{source.choice}", {})[gate] = None
        if node.gate or (self.spec.gate_all_channels and op(node.op).sets_channels):
            self.gated[node_id] = Gates(f"{scope}/{node.name}", node.gate)
            self.gate_places[node_id] = node.path
        at.values[node.name] = node_id

    def _type_error(
        self, node: TemplateNode, block_id: str, types: list[TensorType], error: TypeMismatchError
    ) -> NoReturn:
        """Report at the first edge whose type differs from the first one, naming both ends."""
        odd = next((i for i, t in enumerate(types) if t != types[0]), 0)
        ends = ", ".join(f"{node.sources[i].name!r} gives {types[i]}" for i in dict.fromkeys((0, odd)))
        message = f"edge from {node.sources[odd].name!r} to {node.name!r} in {block_id}: {error} ({ends})"
        self._fail(node.sources[odd].path, message)

    def _fail(self, path: Path, message: str) -> NoReturn:
        self._report(path, message)
        raise _UnfitError

    def _report(self, path: Path, message: str) -> None:
        if path not in self.failed:
            self.failed.add(path)
            piece = path[:2] if path[0] == "blocks" else path
            self.report.error(path, message, [piece, ("symbols",), ("input",), ("classes",), ("network",)])


def _demanded_channels(template: Template, channels: int) -> dict[str, int]:
    """Channels that `out`'s declared type asks of nodes: passed back through ops that keep their channels."""
    demands = {OUT: channels}
    for node in reversed(template.nodes):
        if node.name not in demands or op(node.op).sets_channels:
            continue
        if _OTHER_CHANNELS.isdisjoint(traits.channels for traits in node.chain):
            for source in node.sources:
                demands.setdefault(source.name, demands[node.name])
    return demands


def _concrete_attrs(node: TemplateNode, at: _Instance, types: list[TensorType]) -> Attrs:
    """Attributes with sizes evaluated and channels filled in; DimError or ValidationError if they are wrong."""
    attrs: dict[str, Any] = {k: v.evaluate(at.symbols) if isinstance(v, Dim) else v for k, v in node.attrs.items()}
    if op(node.op).sets_channels and attrs.get("channels") is None:
        attrs["channels"] = at.demands.get(node.name, types[0].shape[0])
    made = attrs_of(attrs)
    read_attrs(node.op, made)
    return made
