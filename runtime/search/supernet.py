"""A gated network in training, and how it shrinks.

All numbers are carried to the smaller network by name and by slice, so a search goes on as if nothing had happened.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from compiler.analysis.weights import GATES
from compiler.ir.graph import Graph
from compiler.language.config import SearchConfig
from compiler.lowering.torch.batch_parts import share_batches
from compiler.lowering.torch.emit import tensor_name
from compiler.lowering.torch.fx import (
    freeze_norm_scales,
    gate_parameters,
    gate_values,
    initialise,
    load_weights,
    lower,
)
from compiler.passes.carry import take
from compiler.passes.prune_channels import Cut
from compiler.passes.prune_zero_edges import prune, pruned_tensors
from runtime.processes.world import ALONE, World
from runtime.rundir.checkpoint import optimizer_state, restore_optimizer_state
from runtime.tasks.base import Task
from runtime.training.captured import CALLED, Capture, Step
from runtime.training.step import (
    Batch,
    Network,
    backward,
    clip_gradients,
    network_of,
    set_rate,
    training_loss,
    training_only,
    weight_optimizer,
    weight_parameters,
)

MODEL, MOMENTUM = "model", "momentum"  # first part of the names of saved tensors


@dataclass
class Supernet:
    """A gated network in training; see `start`."""

    graph: Graph
    task: Task
    config: SearchConfig
    device: torch.device
    module: fx.GraphModule
    world: World = ALONE
    capture: Capture = CALLED
    weight_network: Network = field(init=False)  # what weight steps call: the module, maybe compiled or replicated
    gate_network: Network = field(init=False)  # and gate steps
    weight_params: dict[str, nn.Parameter] = field(init=False)  # by name
    gate_vectors: dict[str, nn.Parameter] = field(init=False)  # by share scope
    weights: torch.optim.Optimizer = field(init=False)

    @classmethod
    def start(
        cls,
        graph: Graph,
        task: Task,
        config: SearchConfig,
        device: torch.device,
        seed: int,
        gate_init: float,
        world: World = ALONE,
        weights: Mapping[str, Any] | None = None,
        capture: Capture = CALLED,
    ) -> Supernet:
        """A fresh supernet, all gates at `gate_init`; the scales of batch norm stay as they are.

        `weights` (arrays by `<node>.<param>`, all of `graph`) to start from; None: seeded ones, scales of 1.
        """
        module = _lowered(graph, config, gate_init)
        initialise(module, seed)
        if weights is not None:
            load_weights(module, weights)
        return cls(graph, task, config, device, module, world, capture)

    def __post_init__(self) -> None:
        freeze_norm_scales(self.module)
        share_batches(self.module, self.world.rank, self.world.size, statistics=self.config.sync_batch_norm)
        self.module = self.module.to(self.device).to(memory_format=torch.channels_last).train()
        self.weight_params, self.gate_vectors = weight_parameters(self.module), gate_parameters(self.module, self.graph)
        network = network_of(self.module, self.config)
        weights, gates = self.weight_params.values(), self.gate_vectors.values()
        with training_only(weights, gates):
            self.weight_network = self.world.replicated(network)
        with training_only(gates, weights):
            self.gate_network = self.world.replicated(network)
        self.weights = weight_optimizer(self.module, self.config, captured=self.capture.wanted)
        self._weight_step = Step(self._weight_update, self.capture)

    def weight_step(self, batch: Batch, rate: float) -> Tensor:
        """One step of the weights at this learning rate; the batch's mean loss as a scalar tensor."""
        set_rate(self.weights, rate)
        return self._weight_step(batch)

    def _weight_update(self, batch: Batch) -> Tensor:
        loss = self.weight_gradients(batch)
        clip_gradients(self.weight_params.values(), self.config.clip, self.config.clip_norm)
        self.weights.step()
        return loss

    def weight_gradients(self, batch: Batch) -> Tensor:
        """Gradients of the batch's mean loss into the weights and nothing else; the loss as a scalar tensor."""
        return self._gradients(self.weight_network, self.weight_params, self.gate_vectors, batch)

    def gate_gradients(self, batch: Batch) -> Tensor:
        """The same into the gates."""
        return self._gradients(self.gate_network, self.gate_vectors, self.weight_params, batch)

    def _gradients(
        self, network: Network, chosen: Mapping[str, nn.Parameter], frozen: Mapping[str, nn.Parameter], batch: Batch
    ) -> Tensor:
        with training_only(chosen.values(), frozen.values()):
            loss_fn = training_loss(self.task, self.graph, network, self.config, self.device)
            return backward(loss_fn, batch, list(chosen.values()), self.config)

    def step(self, batch: Batch) -> None:
        """A weight step, then the gradients of a gate step on the same images: what memory is measured by."""
        self.weight_gradients(batch)
        self.weights.step()
        if self.gate_vectors:
            self.gate_gradients(batch)

    def gate_values(self) -> dict[str, float]:
        """The value of every gate."""
        return gate_values(self.module, self.graph)

    def by_gate(self, vectors: Mapping[str, Tensor]) -> dict[str, float]:
        """The numbers of vectors laid out as the gate vectors are, by gate."""
        scopes = self.graph.gate_scopes()
        return {g: v for scope, vector in vectors.items() for g, v in zip(scopes[scope], vector.tolist(), strict=True)}

    def tensors(self) -> dict[str, Tensor]:
        """Weights, statistics, gates and momenta by name."""
        momenta = optimizer_state(self.weights, self.weight_params.items())
        return {
            **{f"{MODEL}/{tensor_name(path)}": tensor for path, tensor in self.module.state_dict().items()},
            **{f"{MOMENTUM}/{name}": tensor for name, tensor in momenta.items()},
        }

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `tensors` of a supernet of the same graph gave; names of other kinds are left aside."""
        self.module.load_state_dict({p: tensors[f"{MODEL}/{tensor_name(p)}"] for p in self.module.state_dict()})
        restore_optimizer_state(self.weights, self.weight_params.items(), below(tensors, MOMENTUM))
        self._weight_step = Step(self._weight_update, self.capture)  # momenta lie elsewhere now

    @classmethod
    def restore(
        cls,
        graph: Graph,
        task: Task,
        config: SearchConfig,
        device: torch.device,
        tensors: Mapping[str, Tensor],
        world: World = ALONE,
        capture: Capture = CALLED,
    ) -> Supernet:
        """The supernet whose `tensors` these are."""
        supernet = cls(graph, task, config, device, _lowered(graph, config), world, capture)
        supernet.load_tensors(tensors)
        return supernet

    def pruned(self, closed: Collection[str]) -> Supernet:
        """A new supernet, with copies, without these gates' edges and what only they fed; PassError if none is left."""
        graph = prune(self.graph, closed)
        plan, ours = carried(self.graph, graph), self.tensors()
        kept = {
            name: take(tensor, plan[weight_of(name)]) if tensor.ndim else tensor  # AdamW counts its steps
            for name, tensor in ours.items()
            if weight_of(name) in plan
        }
        return Supernet.restore(graph, self.task, self.config, self.device, kept, self.world, self.capture)

    @torch.no_grad()
    def absorb(self, sample: Supernet) -> None:
        """Take over the numbers of a network that `pruned` gave and that was trained since; all others stay."""
        plan, ours = carried(self.graph, sample.graph), self.tensors()
        for name, tensor in sample.tensors().items():
            weight = weight_of(name)
            if not tensor.ndim:
                ours[name] = tensor
                continue
            if name not in ours:  # a momentum that had not begun
                ours[name] = torch.zeros_like(self.weight_params[weight])
            ours[name][_places(plan[weight], ours[name].shape)] = tensor
        if isinstance(self.weights, torch.optim.SGD):  # fused steps need momenta of all weights; one of 0 has not begun
            for weight, parameter in self.weight_params.items():
                ours.setdefault(f"{MOMENTUM}/{weight}/momentum_buffer", torch.zeros_like(parameter))
        self.load_tensors(ours)


def _places(cut: Cut, shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    """The places in a tensor of this shape that a cut keeps, as an index for each dimension."""
    kept = dict(cut)
    rows = [torch.tensor(kept.get(dim, range(size))) for dim, size in enumerate(shape)]
    return torch.meshgrid(*rows, indexing="ij")


def carried(before: Graph, after: Graph) -> dict[str, Cut]:
    """For every tensor of the network of `after`, a pruned `before`: the slice it keeps."""
    places = {gate: place for gates in before.gate_scopes().values() for place, gate in enumerate(gates)}
    rows = {scope: tuple(places[gate] for gate in gates) for scope, gates in after.gate_scopes().items()}
    return pruned_tensors(before, after) | {scope + GATES: ((0, kept),) for scope, kept in rows.items()}


def weight_of(name: str) -> str:
    """The weight that a saved tensor is or belongs to: of `momentum/<weight>/<key>` and of `model/<weight>`."""
    kind, _, rest = name.partition("/")
    return rest if kind == MODEL else rest.rpartition("/")[0]


def _lowered(graph: Graph, config: SearchConfig, gate_init: float = 1.0) -> fx.GraphModule:
    return lower(graph, lowering=config.lowering, gate_init=gate_init, recompute=config.recompute, apart=config.compile)


def below(tensors: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """The saved tensors of a kind, by what follows `<kind>/`."""
    return {name.removeprefix(f"{kind}/"): t for name, t in tensors.items() if name.startswith(f"{kind}/")}
