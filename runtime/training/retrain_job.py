"""Retrain: the found network from scratch (or from the search's weights), gates gone, within the budget."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

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
from runtime.data.dataset import Dataset, Share
from runtime.processes.world import ALONE, World
from runtime.rundir.checkpoint import optimizer_state, restore_optimizer_state
from runtime.training.loop import Job
from runtime.training.stages import Position, Stage
from runtime.training.step import (
    Batch,
    Feed,
    Scores,
    backward,
    clip_gradients,
    evaluate,
    network_of,
    rate_now,
    set_precision,
    training_loss,
    weight_optimizer,
    weight_parameters,
)
from runtime.training.teacher import Teacher

RETRAIN = "retrain"


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
    ) -> None:
        """`weights` (arrays by `<node>.<param>`, all of `graph`) to start from; None: from scratch.

        `teacher`: what `retrain.distil` learns from.
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
        self.network = world.replicated(network_of(self.module, self.config))
        taught = Teacher(teacher, self.task, self.config.distil, device) if teacher else None
        self.loss = training_loss(self.task, trained, self.network, self.config, device, taught)
        self.optimizer = weight_optimizer(self.module, self.config)
        split, batch = dataset.split(config.search.weight_part), self.config.batch_size
        place = Share(device, world.rank, world.size)
        loader = dataset.training_loader(split.training, batch, RETRAIN, place, cutout=self.config.cutout)
        self.feed = Feed(loader)
        self.validation = dataset.evaluation_loader(split.validation, self.config.evaluation_batch, place)
        self.test = dataset.evaluation_loader(None, self.config.evaluation_batch, place)
        self.stages = (Stage(RETRAIN, self.config.epochs, len(loader), batch),)

    def _network(self, trained: Graph, seed: int, weights: Mapping[str, Any] | None) -> fx.GraphModule:
        module = lower(trained, recompute=self.config.recompute, apart=self.config.compile)
        initialise(module, seed)
        if weights is not None:
            fresh = {name: array for name, array in weights_of(module).items() if name not in self.own}
            load_weights(module, {**fresh, **weights})
        share_batches(module, self.world.rank, self.world.size, statistics=self.config.sync_batch_norm)
        module = module.to(self.device).to(memory_format=torch.channels_last)
        return module.train()

    def step(self, stage: Stage, at: Position) -> Mapping[str, Tensor]:
        """One weight step."""
        done = (at.epoch * stage.steps_per_epoch + at.step) / (stage.epochs * stage.steps_per_epoch)
        for part in self.module.modules():
            if isinstance(part, DropPath):
                part.progress = done
        for group in self.optimizer.param_groups:
            group["lr"] = rate_now(self.config.schedule, self.config.lr, stage, at)
        return {"train_loss": self.weight_step(self.feed.batch(at.epoch, at.step))}

    def weight_step(self, batch: Batch) -> Tensor:
        """Train on a batch; its mean loss."""
        params = list(weight_parameters(self.module).values())
        loss = backward(self.loss, batch, params, self.config)
        clip_gradients(params, self.config.clip)
        self.optimizer.step()
        return loss

    def rates(self, stage: Stage, at: Position) -> Mapping[str, float]:
        """The learning rate of a step."""
        return {"retrain.lr": rate_now(self.config.schedule, self.config.lr, stage, at)}

    def scores(self, batches: Iterable[Batch]) -> Scores:
        """Loss and metrics over batches, in evaluation mode."""
        return evaluate(self.task, self.module, batches, self.world)

    def end_epoch(self, stage: Stage, at: Position, means: Mapping[str, float], seconds: float) -> dict[str, Any]:
        """Validate."""
        if not self.config.sync_batch_norm:
            self.world.average_statistics(self.module)
        scores = self.scores(self.validation.batches(0))
        cost = total_cost(self.graph)
        return {
            **means,
            "loss": scores.loss,
            **scores.metrics,
            "params": cost.params,
            "flops": cost.flops,
            "lr": rate_now(self.config.schedule, self.config.lr, stage, at),
        }

    def parameters(self) -> Iterable[Tensor]:
        """All weights."""
        return weight_parameters(self.module).values()

    def tensors(self) -> dict[str, Tensor]:
        """Weights, statistics and momenta by name."""
        found = {f"model/{tensor_name(path)}": tensor for path, tensor in self.module.state_dict().items()}
        momenta = optimizer_state(self.optimizer, weight_parameters(self.module).items())
        return found | {f"optimizer/{name}": tensor for name, tensor in momenta.items()}

    def state(self) -> dict[str, Any]:
        """Which network is trained; all else follows from the position."""
        return {"graph": graph_hash(self.graph)}

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Become the job that gave these; RunError if it trained another network."""
        if state["graph"] != graph_hash(self.graph):
            raise RunError(
                "cannot go on: the network that was found is another one than the checkpoint's, so the search has run "
                "again since\n  try: --overwrite to start anew"
            )
        self.module.load_state_dict({p: tensors[f"model/{tensor_name(p)}"] for p in self.module.state_dict()})
        momenta = {n.removeprefix("optimizer/"): t for n, t in tensors.items() if n.startswith("optimizer/")}
        restore_optimizer_state(self.optimizer, weight_parameters(self.module).items(), momenta)

    def weights(self) -> dict[str, Tensor]:
        """Weights and statistics of the exported network, by `<node>.<param>`."""
        return {n: tensor for path, tensor in self.module.state_dict().items() if (n := tensor_name(path)) in self.own}
