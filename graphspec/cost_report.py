"""What `graphspec compile` prints: the cost table and the reach of the space, as data and as text."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from compiler.analysis.costs import CostLine, CostTable, cost_table, total_cost, weight_step_bytes
from compiler.analysis.guards import smallest_closed
from compiler.analysis.limits import listed
from compiler.ir.graph import Graph
from compiler.language.config import SearchConfig
from compiler.ops import Cost
from compiler.passes.prune_zero_edges import prune
from runtime.rundir.study import rendered

HEADS = ("", "nodes", "edges", "gates", "params", "FLOPs", "bytes moved")


@dataclass(frozen=True)
class CostReport:
    """Costs of a compiled graph."""

    table: CostTable
    gates: int  # gate parameters: a shared gate counts once
    smallest: Cost  # of the cheapest network of the space
    memory: int  # about how many bytes a weight step of the search takes over `step_images`
    step_images: int  # that a step holds at a time
    graph_hash: str

    def as_json(self) -> dict[str, Any]:
        """The figures that `compile --json` prints."""
        total = self.table.total
        return {
            "nodes": total.nodes,
            "edges": total.edges,
            "gates": self.gates,
            **asdict(total.cost),
            "smallest": asdict(self.smallest),
            "largest": asdict(total.cost),
            "search_memory_bytes": self.memory,
            "graph_hash": self.graph_hash,
            "blocks": [_row_json(row) for row in self.table.blocks],
            "stages": [_row_json(row) for row in self.table.stages],
        }

    def render(self) -> str:
        """The table for people: blocks under their stage, totals, reach and memory."""
        rows: list[tuple[str, ...]] = [HEADS]
        stages = {row.name: row for row in self.table.stages}
        for block in self.table.blocks:
            stage, inside, number = block.name.partition(".block")
            if inside and stage in stages:
                rows.append(_cells(stages.pop(stage), ""))
            rows.append(_cells(block, "  " * bool(inside), f"block{number}" if inside else None))
        rows.append(_cells(self.table.total, "", "total"))
        smallest, largest, mib = self.smallest, self.table.total.cost, self.memory / 2**20
        return "\n".join(
            [
                rendered(rows, numbers=True),
                "",
                f"gates      {self.gates:,} parameters (shared gates count once)",
                f"smallest   {listed(asdict(smallest))} (all gates closed that may be)",
                f"largest    {listed(asdict(largest))} (multiply-adds per image)",
                f"memory     about {mib:,.0f} MiB in a weight step of the search over {self.step_images} images",
                f"graph      {self.graph_hash[:16]}",
            ]
        )


def cost_report(graph: Graph, search: SearchConfig, graph_hash: str) -> CostReport:
    """All costs of a search graph."""
    smallest = total_cost(prune(graph, smallest_closed(graph)))
    table, images = cost_table(graph), -(-search.batch_size // search.accumulate)
    memory = weight_step_bytes(table.total.cost, images)
    return CostReport(table, len(graph.gates()), smallest, memory, images, graph_hash)


def _row_json(row: CostLine) -> dict[str, Any]:
    record = asdict(row)
    cost = record.pop("cost")
    return {**record, **cost}


def _cells(row: CostLine, indent: str, name: str | None = None) -> tuple[str, ...]:
    label = indent + (name or row.name) + (f" ({row.kind})" if row.kind and row.kind != row.name else "")
    numbers = (row.nodes, row.edges, row.gates, row.cost.params, row.cost.flops, row.cost.mac_bytes)
    return (label, *(f"{n:,}" for n in numbers))
