"""Retrain: the found network from scratch (or from the search's weights), gates gone, within the budget."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from compiler.passes.training_parts import with_training_parts
from torch import Tensor, nn

from compiler.costs import total_cost
from compiler.ir import Graph
from compiler.lowering.fx import initialise, lower
from compiler.lowering.torch_ops import DropPath
from graphspec.config import Configuration
from runtime.checkpoint import optimizer_state, restore_optimizer_state
from runtime.data import Dataset
from runtime.stages import Position, Stage
from runtime.training import (
    Feed,
    LossFn,
    Scores,
    autocast,
    backward,
    clip_gradients,
    evaluate,
    network_of,
    rate_now,
    recalibrate,
    weight_optimizer,
    weight_parameters,
)

RETRAIN = "retrain"


class RetrainJob:
    """The job behind `graphspec retrain`.

    `graph` is the compact network that will be exported. What only training needs (drop path, dropout, auxiliary
    head) is added to the graph that is trained; weights go back to `graph` by name.
    """

    name = "retrain"

    def __init__(
        self,
        graph: Graph,
        config: Configuration,
        dataset: Dataset,
        device: torch.device,
        classes: int,
        weights: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.graph, self.config, self.device, self.classes = graph, config.retrain, device, classes
        trained = with_training_parts(
            graph,
            drop_path=self.config.drop_path,
            dropout=self.config.dropout,
            auxiliary=self.config.auxiliary_weight > 0,
            classes=classes,
        )
        self.module = self._network(trained, config.seed, weights)
        self.network = network_of(self.module, self.config)
        self.optimizer = weight_optimizer(self.module, self.config)
        rows = dataset.split(config.search.weight_part).training
        batch = self.config.batch_size
        loader = dataset.training_loader(rows, batch, RETRAIN, cutout=self.config.cutout, device=device)
        self.feed = Feed(loader)
        self.validation = dataset.evaluation_loader(
            dataset.split(config.search.weight_part).validation, max(batch, 256), device=device
        )
        self.stages = (Stage(RETRAIN, self.config.epochs, len(loader), batch),)

    def _network(self, trained: Graph, seed: int, weights: Mapping[str, Tensor] | None) -> nn.Module:
        module = lower(trained, recompute=self.config.recompute)
        initialise(module, seed)
        if weights is not None:
            module.load_state_dict(dict(weights), strict=False)
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
        params = list(weight_parameters(self.module).values())
        loss = backward(self._loss(), self.feed.batch(at.epoch, at.step), params, self.config)
        clip_gradients(params, self.config.clip)
        self.optimizer.step()
        return {"train_loss": loss}

    def _loss(self) -> LossFn:
        smoothing, weight = self.config.label_smoothing, self.config.auxiliary_weight

        def loss(x: Tensor, y: Tensor) -> Tensor:
            with autocast(self.config, self.device):
                logits = self.network(x).flatten(1)
            heads = torch.split(logits.float(), self.classes, dim=1)  # the auxiliary head's logits follow, if it is there
            main = F.cross_entropy(heads[0], y, label_smoothing=smoothing)
            if len(heads) == 1:
                return main
            return main + weight * F.cross_entropy(heads[1], y, label_smoothing=smoothing)

        return loss

    def predict(self, x: Tensor) -> Tensor:
        """Logits (N, classes) of x: (N, C, H, W), the auxiliary head's left out."""
        logits: Tensor = self.module(x).flatten(1)
        return logits[:, : self.classes]

    def scores(self, loader_batches: Any) -> Scores:
        """Loss and accuracy over batches, in evaluation mode."""
        return evaluate(self.module, loader_batches, self.predict)

    def end_epoch(self, stage: Stage, at: Position, means: Mapping[str, float], seconds: float) -> dict[str, Any]:
        """Validate."""
        scores = self.scores(self.validation.batches(0))
        cost = total_cost(self.graph)
        return {
            **means,
            "loss": scores.loss,
            "accuracy": scores.accuracy,
            "params": cost.params,
            "flops": cost.flops,
            "lr": rate_now(self.config.schedule, self.config.lr, stage, at),
        }

    def histograms(self) -> Mapping[str, Tensor]:
        """None."""
        return {}

    def describe(self, record: Mapping[str, Any]) -> str:
        """The epoch's line."""
        return (
            f"{record['stage']} {record['epoch']:>3}  loss {record['train_loss']:.3f}  "
            f"validation {record['loss']:.3f} accuracy {record['accuracy']:.2%}"
        )

    def recalibrate(self, batches: int) -> None:
        """Re-estimate batch norm's statistics on training batches."""
        recalibrate(self.module, islice(self.feed.loader.batches(0), batches))

    def tensors(self) -> dict[str, Tensor]:
        """Weights, statistics and momenta by name."""
        found = {f"model/{name}": tensor for name, tensor in self.module.state_dict().items()}
        momenta = optimizer_state(self.optimizer, weight_parameters(self.module).items())
        return found | {f"optimizer/{name}": tensor for name, tensor in momenta.items()}

    def state(self) -> dict[str, Any]:
        """Nothing besides: all else follows from the position."""
        return {}

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Become the job that gave these."""
        self.module.load_state_dict({name: tensors[f"model/{name}"] for name in self.module.state_dict()})
        momenta = {n.removeprefix("optimizer/"): t for n, t in tensors.items() if n.startswith("optimizer/")}
        restore_optimizer_state(self.optimizer, weight_parameters(self.module).items(), momenta)

    def weights(self) -> dict[str, Tensor]:
        """Weights and statistics of the exported network, by `<node>.<param>`."""
        names = set(lower(self.graph).state_dict())
        return {name: tensor for name, tensor in self.module.state_dict().items() if name in names}
