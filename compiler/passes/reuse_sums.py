"""`reuse-sums`: what several sums have in common is added up once.

    s = a + b;          t = a + b + c       ->   s = a + b;      t = s + c
    s = a + b + c + d;  t = a + b + c + e   ->   p = a + b + c;  s = p + d;  t = p + e

A sum inside another one is read by it, which costs nothing. Any other common part becomes a sum of its own where this
node saves two additions or more: an addition reads and writes whole images, but a node has a cost too. The part that
saves most goes first. Levels of a searched block often read much the same. Rounding may differ in the last bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations

from compiler.ir.graph import Graph, Model, Node
from compiler.passes.base import Pass
from compiler.passes.draft import Draft, free_id, sources_of, taken_paths

LEAST_SAVED = 2  # additions, for one more node

Sums = dict[str, list[str]]  # sum -> what it adds up


@dataclass(frozen=True)
class ReuseSums(Pass):
    """Add up once what several sums have in common."""

    def run(self, model: Model) -> Model:
        """The model with fewer additions; only `add` nodes without gates and activation take part."""
        graph = model.graph
        sums = {n.id: [src for src, _ in sources_of(graph, n.id)] for n in graph.nodes() if _is_plain_sum(graph, n)}
        taken = taken_paths(node.id for node in graph.nodes())
        for group in _related(sums):
            _share(group, taken)
            sums |= group
        parts = {part: reads for part, reads in sums.items() if part not in graph}
        draft = Draft(graph, empty=True)
        for node in graph.nodes():
            for part in [p for p in parts if p in sums.get(node.id, ())]:  # before the first that reads it
                draft.add(Node(part, "add", type=node.type), [(src, None) for src in parts.pop(part)])
            draft.add(node, [(src, None) for src in sums[node.id]] if node.id in sums else sources_of(graph, node.id))
        return replace(model, graph=draft.graph())


def _is_plain_sum(graph: Graph, node: Node) -> bool:
    return node.op == "add" and not node.attrs and all(gate is None for _, gate in sources_of(graph, node.id))


def _related(sums: Sums) -> Iterator[Sums]:
    """The sums in groups, those with a source in common in one."""
    group_of: dict[str, Sums] = {}  # by source
    for total, reads in sums.items():
        merged: Sums = {}
        for group in {id(group_of[src]): group_of[src] for src in reads if src in group_of}.values():
            merged |= group
        merged[total] = reads
        group_of |= {src: merged for group in merged.values() for src in group}
    yield from {id(group): group for group in group_of.values()}.values()


def _share(sums: Sums, taken: set[str]) -> None:
    """Rewrite related sums until no part is worth sharing; parts that no sum was are added."""
    while (part := _best_part(sums)) is not None:
        owner = next((total for total, reads in sums.items() if set(reads) == part), None)
        readers = _readers(sums, part)
        if owner is None:
            owner = free_id(taken, f"{readers[0]}_part")
            taken.add(owner)
            sums[owner] = [src for src in sums[readers[0]] if src in part]
        for total in readers:
            if total != owner:
                first = next(src for src in sums[total] if src in part)
                sums[total] = [owner if src == first else src for src in sums[total] if src == first or src not in part]


def _best_part(sums: Sums) -> frozenset[str] | None:
    """What to share next: the common part of two sums that saves most additions, if that is enough."""
    whole = {frozenset(reads) for reads in sums.values()}
    common = dict.fromkeys(frozenset(a) & frozenset(b) for a, b in combinations(sums.values(), 2))
    saved = {part: (len(_readers(sums, part)) - 1) * (len(part) - 1) for part in common if len(part) > 1}
    worth = [part for part, count in saved.items() if count >= (1 if part in whole else LEAST_SAVED)]
    return max(worth, key=saved.__getitem__, default=None)


def _readers(sums: Sums, part: frozenset[str]) -> list[str]:
    """The sums that contain the part and do not read it as a value besides."""
    found = [total for total, reads in sums.items() if part.issubset(reads)]
    owners = [total for total in found if len(sums[total]) == len(part)]
    return [total for total in found if not set(owners) & set(sums[total])]
