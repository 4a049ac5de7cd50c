"""Trials: networks drawn at random are trained from scratch one after another, and the best one is kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from compiler.analysis.guards import kept_by_strength
from compiler.ir.text import from_json, to_json
from compiler.language.config import Section
from compiler.language.values import Fraction, Positive
from compiler.passes.prune_zero_edges import prune
from runtime.search.supernet import Supernet, below
from runtime.strategies.base import Context, Found, ReportSection, TrainingStrategy
from runtime.training.stages import Position, Stage


class Options(Section):
    """Its `search.options`."""

    trials: Positive = 3
    """Networks to train."""
    closed: Fraction = 0.5
    """Share of the gates to close, as far as the output stays reachable."""


class Trials(TrainingStrategy):
    """No supernet; every trial is a stage of `search.epochs`."""

    Options = Options

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.net = self.best = self._drawn()
        self.scores: list[dict[str, Any]] = []

    def _drawn(self) -> Supernet:
        graph = self.context.graph
        ranks = dict(zip(graph.gates(), torch.rand(len(graph.gates())).tolist(), strict=True))
        closed = {gate for gate, rank in ranks.items() if rank < self.options.closed}
        return self.context.supernet(prune(graph, closed - set(kept_by_strength(graph, closed, ranks))))

    @property
    def stages(self) -> tuple[Stage, ...]:
        search, steps = self.context.search, len(self.context.weights.loader)
        return tuple(
            Stage(f"trial {number + 1}", search.epochs, steps, search.batch_size)
            for number in range(self.options.trials)
        )

    def step(self, stage: Stage, at: Position) -> Mapping[str, Tensor]:
        return {"train_loss": self.weight_step(stage, at, at.step)}

    def scored(self, stage: Stage, at: Position, metrics: Mapping[str, float]) -> None:
        if at.epoch + 1 == stage.epochs:
            score = next(iter(metrics.values()))
            if score > max((trial["score"] for trial in self.scores), default=-1.0):
                self.best = self.net
            self.scores.append({"trial": stage.name, "edges": self.net.graph.edge_count(), "score": score})
            self.net = self._drawn() if at.stage + 1 < len(self.stages) else self.best

    def tensors(self) -> dict[str, Tensor]:
        return {f"best/{name}": tensor for name, tensor in self.best.tensors().items()}

    def state(self) -> dict[str, Any]:
        return {"best": to_json(self.best.graph), "scores": self.scores}

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        self.best = self.context.restored(from_json(state["best"]), below(tensors, "best"))
        self.scores = list(state["scores"])

    def found(self) -> Found:
        return Found(self.best.gate_values(), self.best)

    def report(self) -> ReportSection:
        return ReportSection("Networks drawn at random, trained from scratch.", {"Trials": self.scores})
