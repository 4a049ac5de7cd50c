"""Costs of a graph from its static shapes: per node, block, stage and in total.

The same numbers drive `graphspec compile`'s table, the adaptive penalties, the width multiplier and the report.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from compiler.ir.graph import INPUT, OUTPUT, Block, Graph
from compiler.ir.graph import block_of as block_id_of
from compiler.ops import BYTES, Cost, node_cost


@dataclass(frozen=True)
class CostLine:
    """One line of the cost table."""

    name: str
    kind: str  # block kind; empty for a stage or the total
    nodes: int
    edges: int
    gates: int
    cost: Cost


@dataclass(frozen=True)
class CostTable:
    """Rows per block and per stage, and the whole network."""

    blocks: tuple[CostLine, ...]
    stages: tuple[CostLine, ...]
    total: CostLine


def node_costs(graph: Graph) -> dict[str, Cost]:
    """Cost of every node; the graph must be typed."""
    return {node.id: node_cost(graph, node) for node in graph.nodes()}


def total_cost(graph: Graph) -> Cost:
    """Cost of the whole network per image; parameters are counted once."""
    return sum(node_costs(graph).values(), Cost())


def weight_step_bytes(cost: Cost, images: int) -> int:
    """About what a weight step over so many images takes at its peak, in float32 and with all activations kept.

    It holds parameters, gradients and momenta, and the activations. `python -m benchmarks.memory` compares this with
    what torch allocates: for the specs that ship it is right to within 35 %.
    """
    return 3 * BYTES * cost.params + images * cost.activation_bytes


def block_of(graph: Graph) -> dict[str, Block]:
    """The block every node belongs to."""
    by_id = {block.id: block for block in graph.blocks}
    homes = {node.id: block_id_of(node.id, by_id) for node in graph.nodes()}
    return {node_id: by_id[block] for node_id, block in homes.items() if block}


def cost_table(graph: Graph) -> CostTable:
    """Costs per block, stage and in total. Gates shared by several blocks count once in the total."""
    costs, home = node_costs(graph), block_of(graph)
    members: dict[str, list[str]] = {block.id: [] for block in graph.blocks}
    for node_id, block in home.items():
        members[block.id].append(node_id)
    blocks = tuple(_row(graph, block.id, block.kind, members[block.id], costs) for block in graph.blocks)
    stages: dict[str, list[str]] = {}
    for block in graph.blocks:
        stages.setdefault(block.stage, []).extend(members[block.id])
    everything = [n.id for n in graph.nodes() if n.op not in (INPUT, OUTPUT)]
    return CostTable(
        blocks,
        tuple(_row(graph, stage, "", ids, costs) for stage, ids in stages.items()),
        _row(graph, graph.name, "", everything, costs, extra_edges=len(graph.outputs())),
    )


def _row(
    graph: Graph, name: str, kind: str, ids: list[str], costs: Mapping[str, Cost], extra_edges: int = 0
) -> CostLine:
    edges = [edge for node_id in ids for edge in graph.inputs(node_id)]
    gates = {edge.gate for edge in edges if edge.gate is not None}
    total = sum((costs[node_id] for node_id in ids), Cost())
    return CostLine(name, kind, len(ids), len(edges) + extra_edges, len(gates), total)
