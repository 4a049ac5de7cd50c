"""Greedy removal by magnitude: weights and gates train in turns, and after every epoch the weakest gates go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from compiler.analysis.guards import kept_by_strength
from compiler.language.config import Section
from compiler.language.values import Positive, Rate
from runtime.rundir.checkpoint import optimizer_state, restore_optimizer_state
from runtime.search.supernet import below
from runtime.strategies.base import Context, ReportSection, TrainingStrategy
from runtime.training.stages import Position, Stage


class Options(Section):
    """Its `search.options`."""

    remove: Positive = 4
    """Gates that go after an epoch."""
    rate: Rate = 0.05
    """Learning rate of the gates."""


class Greedy(TrainingStrategy):
    """One supernet, which shrinks."""

    Options = Options

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.net = context.supernet()
        self.gates = self._optimizer()
        self.removed: list[dict[str, Any]] = []

    def _optimizer(self) -> torch.optim.SGD:
        return torch.optim.SGD(self.net.gate_vectors.values(), lr=self.options.rate, momentum=0.9)

    @property
    def stages(self) -> tuple[Stage, ...]:
        search, steps = self.context.search, min(len(self.context.weights.loader), len(self.context.gates.loader))
        return (Stage("search", search.epochs, steps, 2 * search.batch_size),)

    def step(self, stage: Stage, at: Position) -> Mapping[str, Tensor]:
        loss = self.weight_step(stage, at, at.step)
        gate_loss = self.net.gate_gradients(self.context.gates.batch(self.data_epoch(at), at.step))
        self.gates.step()
        return {"train_loss": loss, "gate_loss": gate_loss}

    def end_epoch(self, stage: Stage, at: Position, seconds: float) -> None:
        strength = {gate: abs(value) for gate, value in self.net.gate_values().items()}
        weakest = set(sorted(strength, key=lambda gate: strength[gate])[: self.options.remove])
        closed = weakest - set(kept_by_strength(self.net.graph, weakest, strength))
        self.net = self.net.pruned(closed)
        self.gates = self._optimizer()
        self.removed.append({"epoch": at.epoch + 1, "removed": len(closed), "left": len(self.net.graph.gates())})

    def tensors(self) -> dict[str, Tensor]:
        return {f"greedy/{n}": t for n, t in optimizer_state(self.gates, self.net.gate_vectors.items()).items()}

    def state(self) -> dict[str, Any]:
        return {"removed": self.removed}

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        self.gates, self.removed = self._optimizer(), list(state["removed"])
        restore_optimizer_state(self.gates, self.net.gate_vectors.items(), below(tensors, "greedy"))

    def report(self) -> ReportSection:
        curves = {"Edges left": {"edges": "edges left"}}
        return ReportSection("After every epoch the weakest gates went.", {"Removals": self.removed}, curves)
