"""What a search strategy is: it decides which gates of a space stay open, and may train networks to find out.

One that trains nothing is a `Strategy`, one that trains a `TrainingStrategy`; docs/strategies.md shows how.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from compiler.analysis.costs import total_cost
from compiler.ir.graph import Graph
from compiler.language.config import Configuration, Section
from compiler.passes.carry import take
from compiler.passes.prune_zero_edges import pruned_tensors, surviving_edges
from runtime.data.dataset import Dataset, Share
from runtime.jobs.logs import Console
from runtime.processes.world import ALONE, World
from runtime.search.supernet import Supernet
from runtime.seeds import mix
from runtime.training.captured import Capture
from runtime.training.stages import Position, Stage
from runtime.training.step import Feed, Scores, evaluate, rate_now, recalibrate, set_precision


@dataclass
class Space:
    """What is decided about (the gates of `graph`) and with which settings."""

    graph: Graph
    config: Configuration
    console: Console


class Context(Space):
    """What a training strategy works with; making it also sets the process's precision.

    The `task` says which network is better. `weights` and `gates` are batches of two parts of the training images;
    `validation` is a third one. `folder` is the search's part of the run. Of several processes, `world.decided` gives
    all of them the main one's word.
    """

    def __init__(
        self,
        graph: Graph,
        config: Configuration,
        dataset: Dataset,
        device: torch.device,
        gate_init: float,
        console: Console,
        folder: Path,
        world: World = ALONE,
        start: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(graph, config, console)
        self._start = start  # weights by name that networks start from; None: seeded ones
        search, place = config.search, Share(device, world.rank, world.size)
        set_precision(search, device)
        self.search, self.device, self.gate_init, self.folder, self.world = search, device, gate_init, folder, world
        self.task, self.capture = dataset.task, Capture.on(device, search, world.size, console.line)
        self.split = dataset.split(search.weight_part)
        weights, gates = (
            dataset.training_loader(rows, search.batch_size, purpose, place)
            for rows, purpose in ((self.split.weights, "weights"), (self.split.gates, "gates"))
        )
        self.weights, self.gates = Feed(weights, search.steps_per_epoch), Feed(gates, search.cycles_per_epoch)
        self.validation = dataset.evaluation_loader(self.split.validation, search.evaluation_batch, place)

    @property
    def is_trained(self) -> bool:
        """Whether networks start from weights that were trained."""
        return self._start is not None

    def supernet(self, graph: Graph | None = None) -> Supernet:
        """A fresh network of the whole space, or of a graph that `prune` made of it: a sampled one."""
        wanted, start, seed = graph or self.graph, self._start, self.config.seed
        if start is not None and graph is not None:
            start = {name: take(start[name], cut) for name, cut in pruned_tensors(self.graph, graph).items()}
        gate_init, world = self.gate_init, self.world
        return Supernet.start(wanted, self.task, self.search, self.device, seed, gate_init, world, start, self.capture)

    def restored(self, graph: Graph, tensors: Mapping[str, Tensor]) -> Supernet:
        """The network of this graph whose `tensors` these are."""
        return Supernet.restore(graph, self.task, self.search, self.device, tensors, self.world, self.capture)

    def scores(self, net: Supernet) -> Scores:
        """Validation scores of a network, batch norm's statistics re-estimated on the weight part first."""
        recalibrate(net.module, islice(self.weights.loader.batches(0), self.search.recalibrate_batches))
        if not self.search.sync_batch_norm:
            self.world.average_statistics(net.module)
        return evaluate(self.task, net.module, self.validation.batches(0), self.world)


@dataclass(frozen=True)
class Found:
    """The decisions taken: the gates that stay, with their values; all others are closed."""

    gates: Mapping[str, float]
    net: Supernet | None = None  # the network of exactly these gates; its weights are kept
    figures: Mapping[str, float | int | None] = field(default_factory=dict)  # what arch.yaml says beside the scores


@dataclass(frozen=True)
class ReportSection:
    """A strategy's section of the report; it is written as JSON, so a report needs neither strategy nor torch."""

    text: str = ""
    tables: Mapping[str, Any] = field(default_factory=dict)  # by title: a map, or a list of maps as rows
    curves: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # by title: keys of records, their names


class Strategy(ABC):
    """Decides from the graph and settings alone. It gets no images and runs in one process."""

    Options: ClassVar[type[Section]] = Section
    """The model of `search.options`; by default there are none."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self.options: Any = self.Options.model_validate(space.config.search.options)

    @abstractmethod
    def found(self) -> Found:
        """The decisions; asked for once, at the end. GraphspecError if there are none."""

    def doubt(self, found: Graph) -> str:
        """A warning about what was found; the empty string if there is none."""
        return ""

    def report(self) -> ReportSection:
        """Its section of the report of the finished search."""
        return ReportSection()


class TrainingStrategy(Strategy):
    """Trains `net`, which the job validates and saves: a supernet, pruned or not, or one sampled network after another.

    Before the constructor, each step and the end of an epoch, torch's random numbers are set by the seed and the
    position. A strategy that draws from them alone, and saves what it has learned, resumes bit-identical.
    """

    net: Supernet

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.context = context
        torch.manual_seed(mix(context.config.seed, "search.start"))

    @property
    @abstractmethod
    def stages(self) -> tuple[Stage, ...]:
        """Its stages in order; always the same."""

    @abstractmethod
    def step(self, stage: Stage, at: Position) -> Mapping[str, Tensor]:
        """One step; scalars to average over the epoch, `train_loss` among them."""

    def end_epoch(self, stage: Stage, at: Position, seconds: float) -> None:
        """After the last step of an epoch and before validation. `seconds` that a step took: for messages only."""

    def scored(self, stage: Stage, at: Position, metrics: Mapping[str, float]) -> None:
        """After validation of `net`, the metric that decides being the first; `net` may become another one now."""

    def rates(self, stage: Stage, at: Position) -> Mapping[str, float]:
        """The learning rates of a step, each by the key of its setting; that of the weights is the first."""
        return {"search.lr": rate_now(self.context.search.schedule, self.context.search.lr, stage, at)}

    def weight_step(self, stage: Stage, at: Position, index: int) -> Tensor:
        """A step of the net's weights on batch number `index` of the epoch; the loss."""
        batch = self.context.weights.batch(self.data_epoch(at), index)
        return self.net.weight_step(batch, next(iter(self.rates(stage, at).values())))

    def data_epoch(self, at: Position) -> int:
        """The epoch's number over all stages: loaders shuffle by it, and no two epochs may see the same order."""
        return at.epoch + sum(stage.epochs for stage in self.stages[: at.stage])

    def closed(self) -> set[str]:
        """The gates of `net` that count as zero now."""
        return {gate for gate, value in self.net.gate_values().items() if value == 0}

    def record(self) -> dict[str, Any]:
        """What an epoch's record says besides losses, scores and gates. No times in it: it must be repeatable."""
        full, graph, closed = self.context.graph.gates(), self.net.graph, self.closed()
        cost = total_cost(graph)
        return {
            "zero_gates": len(full) - len(graph.gates()) + len(closed),
            "gates": len(full),
            "edges": len(surviving_edges(graph, closed)),
            "params": cost.params,
            "flops": cost.flops,
        }

    def describe(self, record: Mapping[str, Any]) -> str:
        """What the epoch's line ends with, from its record."""
        return f"zero gates {record['zero_gates']}/{record['gates']}  FLOPs {record['flops'] / 1e6:.2f} M"

    def tensors(self) -> dict[str, Tensor]:
        """What it has learned besides `net`, by name; names below model/ and momentum/ are the job's own."""
        return {}

    def state(self) -> dict[str, Any]:
        """All else that it needs to go on, as JSON; the keys graph and split are the job's own."""
        return {}

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Become the strategy that gave these; `net` is there already, and others' tensors and keys are among them."""

    def found(self) -> Found:
        """The gates of `net` as they are."""
        return Found(self.net.gate_values(), self.net)
