"""Retrain: the found network from scratch (or from the search's weights), gates gone, within the budget."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from compiler.analysis.costs import total_cost
from compiler.analysis.weights import weight_shapes
from compiler.errors import RunError
from compiler.ir.graph import Graph, Model
from compiler.ir.text import graph_hash
from compiler.language.config import Configuration
from compiler.lowering.torch.batch_parts import DropPath, share_batches
from compiler.lowering.torch.emit import tensor_name
from compiler.lowering.torch.fx import initialise, load_weights, lower, weights_of
from compiler.passes.training_parts import with_training_parts
from runtime.data.dataset import Dataset, Share, retraining
from runtime.processes.world import ALONE, World
from runtime.rundir.checkpoint import optimizer_state, restore_optimizer_state
from runtime.training.average import Average
from runtime.training.captured import CALLED, Capture, Step
from runtime.training.loop import Job
from runtime.training.mixing import Mixing
from runtime.training.stages import Position, Stage
from runtime.training.step import (
    Batch,
    Feed,
    Scores,
    backward,
    clip_gradients,
    evaluate,
    follow,
    network_of,
    rate_now,
    set_precision,
    set_rate,
    training_loss,
    weight_optimizer,
    weight_parameters,
)
from runtime.training.teacher import Teacher

RETRAIN = "retrain"


@dataclass(frozen=True)
class Best:
    """The epoch, from 0, that was best in validation."""

    epoch: int
    value: float  # of the metric that decides
    loss: float
    weights: Mapping[str, Tensor]  # a state dict, where it is kept


class RetrainJob(Job):
    """The job behind `graphspec retrain`: trains the compact network `graph`, with parts that only training needs."""

    name = "retrain"

    def __init__(
        self,
        graph: Graph,
        config: Configuration,
        dataset: Dataset,
        device: torch.device,
        weights: Mapping[str, Any] | None = None,
        world: World = ALONE,
        teacher: Model | None = None,
        capture: Capture = CALLED,
    ) -> None:
        """`weights` (arrays by `<node>.<param>`, all of `graph`) to start from; None: from scratch.

        `teacher`: what `retrain.distil` learns from. `capture`: how its steps run.
        """
        self.graph, self.config, self.device = graph, config.retrain, device
        self.task, self.world = dataset.task, world
        set_precision(self.config, device)
        drop_path, dropout, auxiliary = self.config.drop_path, self.config.dropout, self.config.auxiliary_weight
        trained = self.trained = with_training_parts(
            graph, drop_path=drop_path, dropout=dropout, auxiliary=auxiliary, classes=self.task.outputs
        )
        self.own = frozenset(weight_shapes(graph))  # tensors of `graph`; all others are of training-only parts
        self.module = self._network(trained, config.seed, weights)
        self.params = weight_parameters(self.module)
        self.paths = [part for part in self.module.modules() if isinstance(part, DropPath)]
        self.network = world.replicated(network_of(self.module, self.config))
        taught = Teacher(teacher, self.task, self.config.distil, device) if teacher else None
        self.loss = training_loss(self.task, trained, self.network, self.config, device, taught)
        self.optimizer = weight_optimizer(self.module, self.config, captured=capture.wanted)
        split, batch = dataset.split(config.search.weight_part), self.config.batch_size
        place = Share(device, world.rank, world.size)
        rows = torch.arange(len(dataset.train.targets)) if self.config.all_images else split.training
        loader = dataset.training_loader(rows, batch, RETRAIN, place, retraining(dataset.augment, self.config))
        self.feed = Feed(loader, self.config.steps_per_epoch)
        follow(self.module, self.config.epochs * self.feed.per_epoch)
        self.mixing = Mixing(self.task, self.config, config.seed, world)
        held = None if self.config.all_images else split.validation
        self.validation = None if held is None else dataset.evaluation_loader(held, self.config.evaluation_batch, place)
        self.average = Average(self.module, self.config.ema) if self.config.ema else None
        self.capture, self._train = capture, Step(self._update, capture)
        self.best: Best | None = None
        self.test = dataset.evaluation_loader(None, self.config.evaluation_batch, place)
        self.stages = (Stage(RETRAIN, self.config.epochs, self.feed.per_epoch, batch),)

    def _network(self, trained: Graph, seed: int, weights: Mapping[str, Any] | None) -> fx.GraphModule:
        # torch's own pools are faster than lean ones, and without gates there are no sums to fuse
        module = lower(trained, lowering="reference", recompute=self.config.recompute, apart=self.config.compile)
        initialise(module, seed)
        if weights is not None:
            fresh = {name: array for name, array in weights_of(module).items() if name not in self.own}
            load_weights(module, {**fresh, **weights})
        share_batches(module, self.world.rank, self.world.size, statistics=self.config.sync_batch_norm)
        module = module.to(self.device).to(memory_format=torch.channels_last)
        return module.train()

    def step(self, stage: Stage, at: Position) -> Mapping[str, Tensor]:
        """One weight step."""
        for part in self.paths:
            part.progress = stage.share(at.epoch, at.step)
        set_rate(self.optimizer, rate_now(self.config.schedule, self.config.lr, stage, at))
        return {"train_loss": self._train(self.batch(at))}

    def _update(self, batch: Batch) -> Tensor:
        loss = self.weight_step(batch)
        if self.average is not None:
            self.average.update_parameters(self.module)
        return loss

    def batch(self, at: Position) -> Batch:
        """What a step trains on."""
        return self.mixing(self.feed.batch(at.epoch, at.step), at.epoch, at.step)

    def weight_step(self, batch: Batch) -> Tensor:
        """Train on a batch; its mean loss."""
        params = list(self.params.values())
        loss = backward(self.loss, batch, params, self.config)
        clip_gradients(params, self.config.clip, self.config.clip_norm)
        self.optimizer.step()
        return loss

    def rates(self, stage: Stage, at: Position) -> Mapping[str, float]:
        """The learning rate of a step."""
        return {"retrain.lr": rate_now(self.config.schedule, self.config.lr, stage, at)}

    @property
    def outcome(self) -> nn.Module:
        """The network that is validated and ends up in the run: the average where there is one."""
        return self.average.module if self.average is not None else self.module

    def scores(self, batches: Iterable[Batch]) -> Scores:
        """Loss and metrics of the outcome over batches, in evaluation mode."""
        return evaluate(self.task, self.outcome, batches, self.world)

    def end_epoch(self, stage: Stage, at: Position, means: Mapping[str, float], seconds: float) -> dict[str, Any]:
        """Validate, unless all images train."""
        if not self.config.sync_batch_norm:
            for module in dict.fromkeys((self.module, self.outcome)):
                self.world.average_statistics(module)
        cost, found = total_cost(self.graph), {}
        if self.validation is not None:
            scores = self.scores(self.validation.batches(0))
            found = {"loss": scores.loss, **scores.metrics}
            self._look(at.epoch, scores)
        rate = rate_now(self.config.schedule, self.config.lr, stage, at)
        return {**means, **found, "params": cost.params, "flops": cost.flops, "lr": rate}

    def _look(self, epoch: int, scores: Scores) -> None:
        """Remember the best epoch: by the metric that decides, of equals the one of less loss."""
        metric, best = self.task.decides, self.best
        value = scores.metrics[metric.name]
        if not math.isfinite(value + scores.loss):
            return
        if best is None or metric.is_better(value, best.value) or (value == best.value and scores.loss < best.loss):
            kept = self.config.keep == "best"
            state = {p: tensor.clone() for p, tensor in self.outcome.state_dict().items()} if kept else {}
            self.best = Best(epoch, value, scores.loss, state)

    def is_over(self, stage: Stage, epochs: int) -> bool:
        """Also where validation has not become better for `patience` epochs."""
        return epochs >= self.epochs

    @property
    def epochs(self) -> int:
        """How many epochs it trains, or has trained when it is over."""
        patience, best = self.config.patience, self.best
        return min(self.config.epochs, best.epoch + 1 + patience) if patience and best else self.config.epochs

    def take_best(self) -> int | None:
        """With `keep: best` let the outcome be the network of the best epoch, whose number from 1 this gives."""
        if self.best is None or self.config.keep == "last":
            return None
        self.outcome.load_state_dict(self.best.weights)
        return self.best.epoch + 1

    def describe(self, record: Mapping[str, Any]) -> str:
        """One line for people; without validation, of the training loss alone."""
        if self.validation is not None:
            return super().describe(record)
        return f"{record['stage']} {record['epoch']:>3}  loss {record['train_loss']:.3f}"

    def parameters(self) -> Iterable[Tensor]:
        """All weights."""
        return self.params.values()

    def tensors(self) -> dict[str, Tensor]:
        """Weights, statistics and momenta by name."""
        found = {f"model/{tensor_name(path)}": tensor for path, tensor in self.module.state_dict().items()}
        momenta = optimizer_state(self.optimizer, self.params.items())
        found |= {f"optimizer/{name}": tensor for name, tensor in momenta.items()}
        average = self.average.state_dict() if self.average is not None else {}
        best = self.best.weights if self.best else {}
        return found | {f"average/{p}": t for p, t in average.items()} | {f"best/{p}": t for p, t in best.items()}

    def state(self) -> dict[str, Any]:
        """Which network is trained, and its best epoch; all else follows from the position."""
        best = {"epoch": self.best.epoch, "value": self.best.value, "loss": self.best.loss} if self.best else None
        return {"graph": graph_hash(self.graph), "best": best}

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Become the job that gave these; RunError if it trained another network."""
        if state["graph"] != graph_hash(self.graph):
            raise RunError(
                "cannot go on: the network that was found is another one than the checkpoint's, so the search has run "
                "again since\n  try: --overwrite to start anew"
            )
        self.module.load_state_dict({p: tensors[f"model/{tensor_name(p)}"] for p in self.module.state_dict()})
        restore_optimizer_state(self.optimizer, self.params.items(), _below(tensors, "optimizer"))
        self._train = Step(self._update, self.capture)  # momenta lie elsewhere now
        if self.average is not None:
            self.average.load_state_dict(_below(tensors, "average"))
        if best := state.get("best"):  # none in checkpoints of earlier versions
            self.best = Best(**best, weights=_below(tensors, "best"))

    def weights(self) -> dict[str, Tensor]:
        """Weights and statistics of the exported network, by `<node>.<param>`."""
        return {n: tensor for path, tensor in self.outcome.state_dict().items() if (n := tensor_name(path)) in self.own}


def _below(tensors: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{kind}/"): tensor for name, tensor in tensors.items() if name.startswith(f"{kind}/")}
