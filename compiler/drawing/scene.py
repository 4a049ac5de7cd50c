"""What a drawing shows: cards (nodes or whole stages) and wires (edges), with their labels, without any geometry.

A network is one overview, a card for every stage, then one figure for every distinct block: blocks that agree in
structure, gate values and kept edges are drawn once, with their number.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from compiler.analysis.costs import block_of, node_costs
from compiler.errors import GraphspecError, did_you_mean
from compiler.ir.graph import INPUT, OUTPUT, Block, Edge, Graph, Node
from compiler.ir.text import shown
from compiler.ops import Affine, Cost, Pixels, Reads, chain_of, only_merges, op

TIMES = "\N{MULTIPLICATION SIGN}"


@dataclass(frozen=True, slots=True)
class Wire:
    """An arrow of the drawing."""

    src: str
    dst: str
    tip: str
    gated: bool = False
    value: float | None = None  # of the gate, where gates are given
    pruned: bool = False
    label: str = ""  # the type it carries, shown in overviews

    @property
    def closed(self) -> bool:
        """Whether nothing passes: the gate is zero or the edge was pruned."""
        return self.pruned or self.value == 0.0


@dataclass(frozen=True, slots=True)
class Option:
    """An op of a choice that is drawn as one card, and the edge behind it."""

    id: str
    name: str
    tip: str
    wire: Wire


@dataclass(frozen=True, slots=True)
class Card:
    """A box of the drawing."""

    id: str
    lines: tuple[str, ...]  # the first is its name
    tip: str  # what hovering tells, several lines
    family: str = "plain"  # decides the colour of its edge
    group: str = ""  # heading of its column, where all cards of the column agree
    faint: bool = False  # pruned
    pile: bool = False  # stands for several blocks
    options: tuple[Option, ...] = ()  # of a choice: its ops


@dataclass(frozen=True, slots=True)
class Figure:
    """One drawing: cards in an order of dependency, and wires."""

    name: str
    title: str
    subtitle: str
    cards: tuple[Card, ...]
    wires: tuple[Wire, ...]

    @property
    def largest(self) -> float:
        """The largest gate without its sign; 0 where no gates are given."""
        return max((abs(wire.value or 0.0) for wire in self.wires), default=0.0)


@dataclass(frozen=True)
class View:
    """A graph and what is to be seen on it: gate values, and the part that was kept."""

    graph: Graph
    gates: Mapping[str, float] | None
    kept: Graph | None
    costs: Mapping[str, Cost]
    home: Mapping[str, Block]
    kept_costs: Mapping[str, Cost]

    def lost(self, node_id: str) -> bool:
        """Whether the node was pruned."""
        return self.kept is not None and node_id not in self.kept

    def wire(self, edge: Edge) -> Wire:
        """How an edge is drawn."""
        value = None if edge.gate is None or self.gates is None else self.gates.get(edge.gate)
        kept = self.kept
        pruned = kept is not None and (edge.dst not in kept or all(e.src != edge.src for e in kept.inputs(edge.dst)))
        tip = [f"{edge.src} → {edge.dst}", f"type {self.graph.node(edge.src).type}"]
        if edge.gate is not None:
            tip.append(f"gate {edge.gate}" + ("" if value is None else f" = {value:.4g}"))
        tip += ["pruned"] if pruned else []
        return Wire(edge.src, edge.dst, "\n".join(tip), edge.gate is not None, value, pruned)


def view_of(graph: Graph, gates: Mapping[str, float] | None, kept: Graph | None) -> View:
    """A view of a typed graph."""
    return View(graph, gates, kept, node_costs(graph), block_of(graph), {} if kept is None else node_costs(kept))


def figures(view: View, scope: str | None) -> list[Figure]:
    """The overview and every distinct block, or only the blocks that `scope` (block id, kind or stage) names."""
    if scope is None:
        return [_overview(view), *_distinct(view, view.graph.blocks)]
    blocks = [b for b in view.graph.blocks if b.id == scope] or [
        b for b in view.graph.blocks if scope in (b.kind, b.stage)
    ]
    if not blocks:
        known = list(dict.fromkeys(name for b in view.graph.blocks for name in (b.kind, b.stage, b.id)))
        raise GraphspecError(
            f"{view.graph.name} has no block, kind of block or stage called {scope!r}{did_you_mean(scope, known)}\n"
            f"  try: one of {', '.join(known[:12])}{', ...' if len(known) > 12 else ''}"
        )
    return _distinct(view, blocks)


def counted(number: float, unit: str = "") -> str:
    """`1234567` as `1.23M`: three digits and a prefix."""
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= factor * 0.9995:
            return f"{number / factor:.3g}{prefix}{unit}"
    return f"{number:.4g}{unit}"


def number_of(count: int, what: str) -> str:
    """`1 node`, `2 nodes`."""
    return f"{count:,} {what}" + ("" if count == 1 else "s")


def _distinct(view: View, blocks: Iterable[Block]) -> list[Figure]:
    """One figure for every distinct block."""
    members: dict[str, list[Node]] = {}
    for node in view.graph.nodes():
        if node.id in view.home:
            members.setdefault(view.home[node.id].id, []).append(node)
    alike: dict[object, list[Block]] = {}
    for block in blocks:
        alike.setdefault(_signature(view, block, members.get(block.id, [])), []).append(block)
    return [_block_figure(view, same, members.get(same[0].id, [])) for same in alike.values()]


def _local(block: Block, node_id: str) -> str:
    """A node's name inside a block: `in`, `in0`, ... for what the block takes."""
    if node_id in block.inputs:
        return "in" if len(block.inputs) == 1 else f"in{block.inputs.index(node_id)}"
    return node_id.removeprefix(block.id + ".")


def _signature(view: View, block: Block, members: list[Node]) -> object:
    rows: list[object] = [block.kind]
    for node in members:
        attrs = tuple(pair for pair in node.attrs if pair[0] != "channels")
        wires = [(_local(block, e.src), view.wire(e)) for e in view.graph.inputs(node.id)]
        reads = tuple((name, w.gated, w.value, w.pruned) for name, w in wires)
        rows.append((_local(block, node.id), node.op, attrs, view.lost(node.id), reads))
    return tuple(rows)


def _block_figure(view: View, alike: list[Block], members: list[Node]) -> Figure:
    block = alike[0]
    edges = [edge for node in members for edge in view.graph.inputs(node.id)]
    inside = {node.id for node in members}
    taken = [i for i in dict.fromkeys([*block.inputs, *(e.src for e in edges)]) if i not in inside]
    cards = [_port(view, block, node_id) for node_id in taken]
    cards += [_node_card(view, block, node) for node in members]
    wires = [view.wire(edge) for edge in edges]
    return Figure(
        block.id, _block_title(alike), _block_subtitle(view, block, members, wires), tuple(cards), tuple(wires)
    )


def _block_title(alike: list[Block]) -> str:
    block = alike[0]
    if len(alike) == 1:
        return block.id if block.id == block.kind else f"{block.id} ({block.kind})"
    names = [b.id for b in alike]
    listed = ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])}, ... {names[-1]}"
    return f"{block.kind} {TIMES} {len(alike)}: {listed}"


def _block_subtitle(view: View, block: Block, members: list[Node], wires: list[Wire]) -> str:
    graph = view.graph
    types = " and ".join(str(graph.node(i).type) for i in block.inputs if i in graph)
    arrow = f"{types} → {graph.node(block.output).type}" if block.output in graph else types
    gated = sum(wire.gated for wire in wires)
    nodes, edges, *costs = _tally(view.costs, [n.id for n in members], len(wires))
    parts = [arrow, nodes, edges + (f" ({gated} gated)" if gated else ""), *costs]
    if view.kept is not None:
        left = [n.id for n in members if not view.lost(n.id)]
        kept = _tally(view.kept_costs, left, sum(not wire.pruned for wire in wires))
        parts.append("kept: " + ", ".join(kept))
    return " · ".join(parts)


def _tally(costs: Mapping[str, Cost], nodes: Sequence[str], edges: int) -> tuple[str, ...]:
    """What a block consists of, in words."""
    cost = sum((costs[node_id] for node_id in nodes), Cost())
    counts = number_of(len(nodes), "node"), number_of(edges, "edge")
    return *counts, f"{counted(cost.params)} params", f"{counted(cost.flops)} FLOPs"


def _port(view: View, block: Block, node_id: str) -> Card:
    kind = view.graph.node(node_id).type
    return Card(node_id, (_local(block, node_id), str(kind)), f"{node_id}\ntype {kind}", "port")


def _node_card(view: View, block: Block, node: Node) -> Card:
    group, _, name = _local(block, node.id).rpartition(".")
    second = str(node.type) if name.startswith(node.op) else op_text(node)
    return Card(node.id, (name, second), _node_tip(view, node), family(view, node), group, view.lost(node.id))


def op_text(node: Node) -> str:
    """The op with what matters most of its attributes: `conv 3x3 /2`."""
    attrs = dict(node.attrs)
    kernel, stride = attrs.get("kernel"), attrs.get("stride", 1)
    if isinstance(kernel, int) and len(node.shape) == 3:
        kernel = (kernel, kernel)
    return node.op + (f" {shown(kernel)}" if kernel else "") + (f" /{shown(stride)}" if stride != 1 else "")


def family(view: View, node: Node) -> str:
    """Which sort of op: decides a card's colour."""
    if node.id in (INPUT, OUTPUT):
        return "port"
    sums = only_merges(node.op, node.attrs) and len(view.graph.inputs(node.id)) > 1
    if sums or op(node.op).reads is not Reads.SUM:
        return "merge"
    first = chain_of(node.op, node.attrs)[0]
    if first.pixels is Pixels.WINDOW and first.affine is Affine.NO:
        return "pool"
    return "weights" if view.costs[node.id].params else "plain"


def _node_tip(view: View, node: Node) -> str:
    cost = view.costs[node.id]
    attrs = " ".join(f"{key}={value}" for key, value in node.attrs)
    wires = [view.wire(edge) for edge in view.graph.inputs(node.id)]
    lines = [node.id, f"{node.op} {attrs}".rstrip(), f"type {node.type}", _cost_line(cost)]
    lines += [f"reads {sum(not w.closed for w in wires)} of {len(wires)}"] if any(w.closed for w in wires) else []
    return "\n".join(lines + ["pruned"] * view.lost(node.id))


def _cost_line(cost: Cost) -> str:
    return f"{cost.params:,} params, {counted(cost.flops)} FLOPs, {counted(cost.mac_bytes, 'B')} moved"


def _overview(view: View) -> Figure:
    """Stages (and what stands alone) as cards, the types they hand on as labels."""
    unit_of = {n.id: view.home[n.id].stage if n.id in view.home else n.id for n in view.graph.nodes()}
    units: dict[str, list[Node]] = {}
    for node in view.graph.nodes():
        units.setdefault(unit_of[node.id], []).append(node)
    wires: dict[tuple[str, str], Wire] = {}
    for edge in view.graph.edges():
        src, dst = unit_of[edge.src], unit_of[edge.dst]
        if src != dst and (src, dst) not in wires:
            carried = str(view.graph.node(edge.src).type)
            wires[src, dst] = Wire(src, dst, f"{src} → {dst}\ntype {carried}", label=carried)
    cards = tuple(_unit_card(view, unit, nodes) for unit, nodes in units.items())
    graph = view.graph
    counts = {"node": len(graph), "edge": graph.edge_count(), "gate": len(graph.gates())}
    parts = [*(number_of(count, what) for what, count in counts.items()), *_costs(view, view.costs)]
    return Figure(graph.name, graph.name, " · ".join(parts), cards, tuple(wires.values()))


def _costs(view: View, ids: Collection[str]) -> list[str]:
    """Parameters and FLOPs of these nodes, each before and after where a kept graph is given and has others."""
    before, after = (sum((costs[i] for i in ids if i in costs), Cost()) for costs in (view.costs, view.kept_costs))
    pairs = ((before.params, after.params, "params"), (before.flops, after.flops, "FLOPs"))
    differs = view.kept is not None
    return [counted(a) + (f" → {counted(b)}" if differs and a != b else "") + f" {unit}" for a, b, unit in pairs]


def _unit_card(view: View, unit: str, nodes: list[Node]) -> Card:
    blocks = list(dict.fromkeys(view.home[n.id] for n in nodes if n.id in view.home))
    ids = [n.id for n in nodes]
    cost = sum((view.costs[i] for i in ids), Cost())
    tip = f"{unit}\n{_cost_line(cost)}"
    if not blocks:
        return Card(unit, (unit, str(nodes[0].type)), tip, family(view, nodes[0]))
    kinds = list(dict.fromkeys(b.kind for b in blocks))
    what = " + ".join(f"{k} {TIMES} {n}" if (n := sum(b.kind == k for b in blocks)) > 1 else k for k in kinds)
    lines = (unit, *([what] if what != unit else []), *_costs(view, ids))
    return Card(unit, lines, tip, pile=len(blocks) > 1)
