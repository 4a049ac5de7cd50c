"""`reuse-sums`: a sum that contains another one reads that one.

    s = a + b;  t = a + b + c   ->   s = a + b;  t = s + c

Each sum takes the largest other sums that it contains, as long as they do not overlap: fewer additions, no more nodes.
A later level of a searched block often reads all that an earlier one reads. Rounding may differ in the last bit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from compiler.ir import Model
from compiler.passes.base import Pass
from compiler.passes.draft import Draft


@dataclass(frozen=True)
class ReuseSums(Pass):
    """Let a sum that contains another one read that one."""

    name = "reuse-sums"

    def run(self, model: Model) -> Model:
        """The model with fewer additions; only `add` nodes without gates and activation take part."""
        draft = Draft(model.graph)
        sums = {
            node.id: frozenset(src for src, _ in draft.reads[node.id])
            for node in draft.nodes.values()
            if node.op == "add" and not node.attrs and all(gate is None for _, gate in draft.reads[node.id])
        }
        by_size = sorted(sums, key=lambda s: -len(sums[s]))  # stable: ties in the order of the graph
        for total, left in sums.items():
            parts: list[str] = []
            for part in by_size:
                if 1 < len(sums[part]) < len(sums[total]) and sums[part] <= left:
                    parts.append(part)
                    left -= sums[part]
            kept = [source for source in draft.reads[total] if source[0] in left and source[0] not in parts]
            draft.reads[total] = [(part, None) for part in parts] + kept
        return replace(model, graph=draft.graph())
