"""`prune-zero-edges`: remove every edge that cannot carry a non-zero value to the output, from both ends.

1. An edge whose gate is exactly zero goes, and so does every edge out of a node that gives zeros.
2. A node that reaches no output goes.
3. A node that nothing reaches goes, and closes the edges it feeds; so does a product that lacks one of its inputs. (A
   starved node is not silent by itself: conv, batch norm and relu of zeros give relu(bias). So the compact graph equals
   the supernet with these edges closed as well.)
These repeat until nothing changes. The fixed point is what lies both downstream of the input and upstream of the
output over open edges, because removing a dead node starves nobody and removing a starved node feeds nobody: one sweep
each way finds it.

A `concat` or `project` that loses an input loses its channels, with the slice of the weight that read them
(`compiler.passes.carry`). Where no weight can take up the loss exactly, a `zero` node keeps the channels.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from compiler.analysis.coupling import couple
from compiler.errors import PassError
from compiler.ir.graph import INPUT, Edge, Graph, Model, Node, attrs_of
from compiler.ops import Reads, gives_zeros, infer, op
from compiler.passes.base import Pass
from compiler.passes.carry import can_lose_channels, carried_tensors, joined_cuts, take
from compiler.passes.draft import Draft, Source, free_id, living_blocks, sources_of
from compiler.passes.prune_channels import Cut, channel_cuts, without_channels


def surviving_edges(graph: Graph, closed: Collection[str]) -> set[Edge]:
    """The edges left after closing these gates, at the fixed point; empty if nothing reaches the output.

    Linear in the number of edges, but for sorting the nodes.
    """
    edges = _fed_edges(graph, closed)
    needed = {node.id for node in graph.outputs().values()}
    for edge in reversed(edges):
        if edge.dst in needed:
            needed.add(edge.src)
    return {e for e in edges if e.dst in needed}


def _fed_edges(graph: Graph, closed: Collection[str]) -> list[Edge]:
    """The edges that carry something from the input, in the order of the nodes they feed."""
    shut = frozenset(closed)
    silent = _silent(graph, shut)
    reached, edges = {INPUT}, list[Edge]()
    for node in graph.nodes():
        read = graph.inputs(node.id)
        fed = [edge for edge in read if edge.gate not in shut and edge.src in reached]
        if fed and (len(fed) == len(read) or op(node.op).reads is not Reads.TOGETHER):
            edges += fed
            if node.id not in silent and not gives_zeros(node.op, node.attrs):
                reached.add(node.id)
    return edges


def _silent(graph: Graph, closed: Collection[str]) -> set[str]:
    """The nodes all of whose channels are closed."""
    return couple(graph).silent(closed) if graph.channel_gates else set()


def prune(graph: Graph, closed: Collection[str]) -> Graph:
    """The typed graph that is left after closing these gates; PassError if nothing reaches an output."""
    return without_channels(_without_edges(graph, closed), closed)


def pruned_tensors(before: Graph, after: Graph) -> dict[str, Cut]:
    """For every parameter and buffer of `after`, which `prune` made of `before`, the slice that it takes."""
    if not before.channel_gates:
        return carried_tensors(before, after)[0]
    closed = {*before.gates()} - {*after.gates()}
    between = _without_edges(before, closed)
    cuts = dict(channel_cuts(between, after, closed))
    return {name: joined_cuts(cut, cuts.get(name, ())) for name, cut in carried_tensors(before, between)[0].items()}


def _without_edges(graph: Graph, closed: Collection[str]) -> Graph:
    """The graph without the edges that carry nothing."""
    kept = surviving_edges(graph, closed)
    if not {node.id for node in graph.outputs().values()} <= {edge.dst for edge in kept}:
        raise _nothing_left(graph, closed)
    pruned = _feed_zeros(graph, graph.restricted_to(kept), _silent(graph, closed))
    pruned.blocks = living_blocks(graph.blocks, pruned, {})
    pruned = _retyped(pruned)
    shrunk = carried_tensors(graph, pruned)[1] if pruned.channel_gates else {}
    for node_id in shrunk.keys() & pruned.channel_gates.keys():
        ids = pruned.channel_gates[node_id]
        pruned.channel_gates[node_id] = tuple(ids[i] for i in shrunk[node_id])
    pruned.drop_lost_choices()
    return pruned


def _nothing_left(graph: Graph, closed: Collection[str]) -> PassError:
    """Names where the last path was cut: the first block (in network order) whose output nothing reaches."""
    reached = {edge.dst for edge in _fed_edges(graph, closed)}
    cut = next((block.id for block in graph.blocks if block.output not in reached), graph.name)
    return PassError(
        PruneZeroEdges.name,
        cut,
        f"no path from the input to the output survives: {len(closed)} of {len(graph.gates())} gates are zero",
        "lower the sparsity weight `search.gates.gamma` (or search for fewer epochs): the penalty on the gates is too "
        "high for this network",
    )


def _retyped(graph: Graph) -> Graph:
    """Infer types again; where output channels would follow lost input channels, the old number is written down."""
    for node in graph.nodes():
        if node.op == INPUT:
            continue
        types = [t for edge in graph.inputs(node.id) if (t := graph.node(edge.src).type) is not None]
        found = infer(node.op, node.attrs, types)
        if found != node.type and op(node.op).sets_channels:
            graph.replace(replace(node, attrs=attrs_of(dict(node.attrs) | {"channels": node.shape[0]})))
        else:
            graph.replace(replace(node, type=found))
    return graph


def _feed_zeros(graph: Graph, pruned: Graph, silent: Collection[str]) -> Graph:
    """`pruned` with a `zero` node for every lost input whose channels no weight can give up.

    Zeros in the place of channels that gates have closed stand behind these gates, and go with the channels.
    """
    may_lose, short = can_lose_channels(pruned), dict[str, list[Edge]]()
    for node in pruned.nodes():
        if op(node.op).reads is Reads.APART and not may_lose[node.id]:
            left = {edge.src for edge in pruned.inputs(node.id)}
            lost = [edge for edge in graph.inputs(node.id) if edge.src not in left]
            short |= {node.id: lost} if lost else {}
    if not short:
        return pruned
    draft, taken = Draft(pruned, empty=True), {node.id for node in pruned.nodes()}
    for node in pruned.nodes():
        if node.id in short:
            draft.add(node, _padded(graph, node, short[node.id], silent, draft, taken))
        else:
            draft.add(node, sources_of(pruned, node.id))
    return draft.graph()


def _padded(
    graph: Graph, node: Node, lost: list[Edge], silent: Collection[str], draft: Draft, taken: set[str]
) -> list[Source]:
    """What `node` reads and has `lost` of what it read in `graph`, the latter as zeros that are added to the draft.

    They stand beside the node, not below it, because modules below a module are taken for its parts.
    """
    sources: list[Source] = []
    left = sources_of(draft.origin, node.id)
    for edge in graph.inputs(node.id):
        if edge not in lost:
            sources += [(edge.src, edge.gate)] if (edge.src, edge.gate) in left else []
            continue
        name = free_id(taken, f"{node.id}_zero{edge.slot}")
        zero = Node(name, "zero", attrs_of({"channels": graph.node(edge.src).shape[0]}))
        draft.add(zero, [(left[0][0], None)])  # any living source has the right size, only the channels differ
        if edge.src in silent:
            coupling = couple(graph)
            draft.origin.channel_gates[name] = tuple(min(coupling.gates[c]) for c in coupling.of(edge.src))
        sources.append((zero.id, None))
    return sources


@dataclass(frozen=True)
class PruneZeroEdges(Pass):
    """Remove every edge that cannot carry a non-zero value to the output."""

    def run(self, model: Model) -> Model:
        """The model without its zero gates and what only they fed; weights of joining ops lose the slices they read."""
        graph = prune(model.graph, {gate for gate, value in model.gates.items() if value == 0.0})
        gates = {gate: model.gates[gate] for gate in graph.gates() if gate in model.gates}
        if not model.weights:
            return Model(graph, gates)
        plan = pruned_tensors(model.graph, graph)
        return Model(graph, gates, {name: take(model.weights[name], cut) for name, cut in plan.items()})
