"""The network being searched: graph, fx module and both optimizers, and how they shrink together.

Weights, batch-norm statistics, momenta and gate states are carried from the larger network to the smaller one by
name (and by slice where a joining op lost an input), so a search goes on after pruning as if nothing had happened.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from compiler.ir.graph import Graph
from compiler.language.config import SearchConfig
from compiler.lowering.torch.batch_parts import share_batches
from compiler.lowering.torch.fx import GATES, freeze_norm_scales, gate_parameters, gate_values, initialise, lower
from compiler.passes.prune_zero_edges import carried_tensors, prune, take
from runtime.processes.world import ALONE, World
from runtime.rundir.checkpoint import optimizer_state, restore_optimizer_state
from runtime.strategies.apgnag import APGNAG
from runtime.training.step import (
    Batch,
    Network,
    backward,
    classification_loss,
    network_of,
    training_only,
    weight_optimizer,
    weight_parameters,
)

MODEL, MOMENTUM, GATE_STATE = "model", "momentum", "gate_state"  # first part of the names of saved tensors


@dataclass
class Supernet:
    """A gated network in training; see `start`."""

    graph: Graph
    config: SearchConfig
    device: torch.device
    module: fx.GraphModule
    world: World
    weight_network: Network  # what weight steps call: the module, compiled or replicated where that is asked for
    gate_network: Network  # and gate steps
    weight_params: dict[str, nn.Parameter]  # by name
    gate_vectors: dict[str, nn.Parameter]  # by share scope
    weights: torch.optim.SGD
    gates: APGNAG

    @classmethod
    def start(
        cls,
        graph: Graph,
        config: SearchConfig,
        device: torch.device,
        seed: int,
        gate_init: float,
        world: World = ALONE,
    ) -> Supernet:
        """A fresh supernet: seeded weights, all gates at `gate_init`, batch-norm scales fixed at 1."""
        module = _lowered(graph, config, gate_init)
        initialise(module, seed)
        return cls._assemble(graph, config, device, module, world)

    @classmethod
    def _assemble(
        cls, graph: Graph, config: SearchConfig, device: torch.device, module: fx.GraphModule, world: World
    ) -> Supernet:
        freeze_norm_scales(module)
        share_batches(module, world.rank, world.size, statistics=config.sync_batch_norm)
        module = module.to(device).to(memory_format=torch.channels_last).train()
        gates, vectors = config.gates, gate_parameters(module, graph)
        network, weights = network_of(module, config), weight_parameters(module)
        with training_only(weights.values(), vectors.values()):
            weight_network = world.replicated(network)
        with training_only(vectors.values(), weights.values()):
            gate_network = world.replicated(network)
        optimizer = APGNAG(
            vectors.values(),
            lr=gates.lr,
            gamma=gates.gamma,
            momentum=gates.momentum,
            clip=gates.clip,
            nonnegative=gates.nonnegative,
        )
        return cls(
            graph=graph,
            config=config,
            device=device,
            module=module,
            world=world,
            weight_network=weight_network,
            gate_network=gate_network,
            weight_params=weights,
            gate_vectors=vectors,
            weights=weight_optimizer(module, config),
            gates=optimizer,
        )

    # -- steps ------------------------------------------------------------------------------------------------------

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
            loss_fn = classification_loss(network, self.config, self.device)
            return backward(loss_fn, batch, list(chosen.values()), self.config)

    def step(self, batch: Batch) -> None:
        """A weight step and a gate step on the same images."""
        self.weight_gradients(batch)
        self.weights.step()
        self.gate_gradients(batch)
        self.gates.step()

    # -- gates ------------------------------------------------------------------------------------------------------

    def gate_values(self) -> dict[str, float]:
        """The value of every gate."""
        return gate_values(self.module, self.graph)

    def _by_gate(self, vectors: Mapping[str, Tensor]) -> dict[str, float]:
        scopes = self.graph.gate_scopes()
        return {g: v for scope, vector in vectors.items() for g, v in zip(scopes[scope], vector.tolist(), strict=True)}

    def proximal_points(self) -> dict[str, float]:
        """S(z) of the last gate step by gate."""
        return self._by_gate({scope: self.gates.proximal_point(p) for scope, p in self.gate_vectors.items()})

    def zero_gates(self) -> set[str]:
        """The gates that count as zero now."""
        zero = self._by_gate({scope: self.gates.is_zero(p) for scope, p in self.gate_vectors.items()})
        return {gate for gate, is_zero in zero.items() if is_zero}

    # -- saved tensors ----------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """Weights, statistics, gates, momenta and gate states by name."""
        momenta = optimizer_state(self.weights, self.weight_params.items())
        gates = optimizer_state(self.gates, self.gate_vectors.items())
        return {
            **{f"{MODEL}/{name}": tensor for name, tensor in self.module.state_dict().items()},
            **{f"{MOMENTUM}/{name}": tensor for name, tensor in momenta.items()},
            **{f"{GATE_STATE}/{name}": tensor for name, tensor in gates.items()},
        }

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `tensors` of a supernet of the same graph gave."""
        self.module.load_state_dict({n: tensors[f"{MODEL}/{n}"] for n in self.module.state_dict()})
        restore_optimizer_state(self.weights, self.weight_params.items(), _below(tensors, MOMENTUM))
        restore_optimizer_state(self.gates, self.gate_vectors.items(), _below(tensors, GATE_STATE))

    @classmethod
    def restore(
        cls,
        graph: Graph,
        config: SearchConfig,
        device: torch.device,
        tensors: Mapping[str, Tensor],
        world: World = ALONE,
    ) -> Supernet:
        """The supernet whose `tensors` these are."""
        module = _lowered(graph, config)
        supernet = cls._assemble(graph, config, device, module, world)
        supernet.load_tensors(tensors)
        return supernet

    # -- shrinking --------------------------------------------------------------------------------------------------

    def pruned(self, closed: Collection[str]) -> Supernet:
        """The supernet without these gates' edges and what only they fed; PassError if nothing would be left."""
        graph = prune(self.graph, closed)
        cuts = carried_tensors(self.graph, graph)
        before, after = self.graph.gate_scopes(), graph.gate_scopes()
        rows = {scope: [before[scope].index(gate) for gate in gates] for scope, gates in after.items()}
        kept: dict[str, Tensor] = {}
        for name, tensor in self.tensors().items():
            kind, _, rest = name.partition("/")
            weight = rest if kind == MODEL else rest.rpartition("/")[0]
            scope = weight.removesuffix(GATES)
            if scope in rows and (kind == GATE_STATE or weight.endswith(GATES)):
                kept[name] = tensor[rows[scope]]
            elif weight in cuts:
                kept[name] = take(tensor, cuts[weight])
        return Supernet.restore(graph, self.config, self.device, kept, self.world)


def _lowered(graph: Graph, config: SearchConfig, gate_init: float = 1.0) -> fx.GraphModule:
    return lower(graph, lowering=config.lowering, gate_init=gate_init, recompute=config.recompute, apart=config.compile)


def _below(tensors: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{kind}/"): t for name, t in tensors.items() if name.startswith(f"{kind}/")}
