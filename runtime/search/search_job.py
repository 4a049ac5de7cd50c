"""Search: runs a strategy in the training loop, validates the network that it trains, and saves both."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from compiler.errors import RunError
from compiler.ir.text import from_json, to_json
from runtime.search.supernet import Supernet
from runtime.seeds import mix
from runtime.strategies.base import TrainingStrategy
from runtime.training.loop import Job
from runtime.training.stages import Position, Stage


class SearchJob(Job):
    """The job behind `graphspec search`; a checkpoint holds the strategy's `net`, and what it saves of its own."""

    name = "search"

    def __init__(self, strategy: TrainingStrategy) -> None:
        self.strategy, self.context = strategy, strategy.context
        self.stages, self.task = strategy.stages, strategy.context.task

    @property
    def net(self) -> Supernet:
        """The network in training."""
        return self.strategy.net

    def step(self, stage: Stage, at: Position) -> Mapping[str, Tensor]:
        """A step of the strategy."""
        return self.strategy.step(stage, at)

    def rates(self, stage: Stage, at: Position) -> Mapping[str, float]:
        """The learning rates of a step, each by the key of its setting."""
        return self.strategy.rates(stage, at)

    def end_epoch(self, stage: Stage, at: Position, means: Mapping[str, float], seconds: float) -> dict[str, Any]:
        """Validate, with the strategy's part before and after."""
        torch.manual_seed(mix(self.context.config.seed, "search.end", at.stage, at.epoch))
        self.strategy.end_epoch(stage, at, seconds)
        scores, rate = self.context.scores(self.net), next(iter(self.rates(stage, at).values()))
        values = self.net.gate_values()
        record = {
            **means,
            "loss": scores.loss,
            **scores.metrics,
            **self.strategy.record(),
            "lr": rate,
            # every gate of the whole space in its order, those that are gone at 0: the report's heat map
            "gate_values": [round(values.get(gate, 0.0), 4) for gate in self.context.graph.gates()],
        }
        self.strategy.scored(stage, at, scores.metrics)
        return record

    def histograms(self) -> Mapping[str, Tensor]:
        """All gates still there."""
        vectors = [vector.detach() for vector in self.net.gate_vectors.values()]
        return {"gates": torch.cat(vectors)} if vectors else {}

    def describe(self, record: Mapping[str, Any]) -> str:
        """The epoch's line, and what the strategy has to say."""
        return f"{super().describe(record)}  {self.strategy.describe(record)}"

    def parameters(self) -> Iterable[Tensor]:
        """Weights and gates."""
        return (*self.net.weight_params.values(), *self.net.gate_vectors.values())

    def tensors(self) -> dict[str, Tensor]:
        """All numbers of the network and of the strategy."""
        return {**self.strategy.tensors(), **self.net.tensors()}

    def state(self) -> dict[str, Any]:
        """The graph of the network, and the strategy's state."""
        return {**self.strategy.state(), "graph": to_json(self.net.graph), "split": self.context.split.digest}

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Become the search that gave these; RunError if it had other images."""
        if state["split"] != self.context.split.digest:
            raise RunError(
                "the training images are not those that the search began with\n"
                "  try: the data set as it was (data.root), or --overwrite to start anew"
            )
        self.strategy.net = self.context.restored(from_json(state["graph"]), tensors)
        self.strategy.restore(tensors, state)
