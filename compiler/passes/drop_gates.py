"""`drop-gates`: a pruned graph without gates, to be trained from scratch (every surviving edge weighs 1)."""

from __future__ import annotations

from dataclasses import dataclass

from compiler.errors import PassError
from compiler.ir.graph import Model, Phase
from compiler.passes.base import Pass
from compiler.passes.draft import Draft


@dataclass(frozen=True)
class DropGates(Pass):
    """Take the gates off every edge: the compact graph, to be trained from scratch."""

    def run(self, model: Model) -> Model:
        """The model in the compact phase, without gates; PassError if a gate is zero, since dropping it revives it."""
        zeros = [gate for gate in model.graph.gates() if model.gates.get(gate) == 0.0]
        if zeros:
            raise PassError(self.name, model.graph.name, f"gate {zeros[0]!r} is zero", "run prune-zero-edges first")
        draft = Draft(model.graph)
        draft.reads = {dst: [(src, None) for src, _ in sources] for dst, sources in draft.reads.items()}
        graph = draft.graph(Phase.COMPACT)
        graph.channel_gates = {}
        return Model(graph, {}, model.weights)
