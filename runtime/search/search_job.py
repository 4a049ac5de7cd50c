"""Search: pretrain the supernet, then train weights and gates in alternating steps and prune what became zero."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compiler.analysis.costs import total_cost
from compiler.analysis.guards import kept_by_strength
from compiler.errors import RunError
from compiler.ir.graph import Graph
from compiler.ir.text import from_json, to_json
from compiler.language.config import Configuration
from compiler.ops import only_merges
from compiler.passes.prune_zero_edges import surviving_edges
from runtime.data.dataset import Dataset, Place
from runtime.jobs.logs import Console
from runtime.processes.world import ALONE, World
from runtime.search.supernet import Supernet
from runtime.strategies.latency import measured_latencies
from runtime.strategies.penalties import Penalty, priced_call, set_gammas
from runtime.training.heap import give_back
from runtime.training.stages import Position, Stage
from runtime.training.step import Feed, Scores, clip_gradients, evaluate, rate_now, recalibrate, set_precision

PRETRAIN, SEARCH = "pretrain", "search"
LEAST_REOPENED = 1e-3
"""What a gate that has to stay is set to at least when it was zero."""


class SearchJob:
    """The job behind `graphspec search`; `full` is the graph of the whole space.

    Step number s of a search epoch is `weight_steps` weight steps, each on the next batch of the weight part, and one
    gate step on the next batch of the gate part; an epoch ends when either part is used up. Validation uses a third
    part that neither sees, after re-estimating batch norm's statistics on the weight part.
    """

    name = "search"

    def __init__(
        self,
        full: Graph,
        config: Configuration,
        dataset: Dataset,
        device: torch.device,
        gate_init: float,
        console: Console,
        latencies: Path,
        penalty_type: type[Penalty] = Penalty,
        world: World = ALONE,
    ) -> None:
        self.full, self.config, self.console, self.device, self.world = full, config.search, console, device, world
        self.penalty_type = penalty_type
        self.latencies = latencies  # file of measured times; beside the run, so that a resumed search reads the same
        set_precision(self.config, device)
        self.split = dataset.split(self.config.weight_part)
        batch = self.config.batch_size
        place = Place(device, world.rank, world.size)
        self.weight_feed = Feed(dataset.training_loader(self.split.weights, batch, "weights", place))
        self.gate_feed = Feed(dataset.training_loader(self.split.gates, batch, "gates", place))
        self.validation = dataset.evaluation_loader(self.split.validation, self.config.evaluation_batch, place)
        self.supernet = Supernet.start(full, self.config, device, config.seed, gate_init, world)
        self.zero_looks: dict[str, int] = {}  # how many looks in a row found a gate at zero
        self.full_accuracy: float | None = None  # validation accuracy at the end of pretraining
        self.unpruned_seconds: float | None = None  # of a step before an epoch that began with a pruning, until it ends
        self.penalty = self._new_penalty()
        self.stages = self._stages()

    def _stages(self) -> tuple[Stage, Stage]:
        config, weight_batches = self.config, len(self.weight_feed.loader)
        cycles = min(weight_batches // config.weight_steps, len(self.gate_feed.loader))
        return (
            Stage(PRETRAIN, config.pretrain_epochs, weight_batches, config.batch_size),
            Stage(SEARCH, config.epochs, max(1, cycles), (config.weight_steps + 1) * config.batch_size),
        )

    def _new_penalty(self) -> Penalty:
        latency = None
        if self.config.gates.adaptive == "latency":
            graph = self.supernet.graph
            calls = sorted({priced_call(graph, e) for e in graph.edges() if e.gate is not None}, key=str)
            seconds = self.world.decided(lambda: list(measured_latencies(calls, self.device, self.latencies).values()))
            latency = dict(zip(calls, seconds, strict=True))
        return self.penalty_type(self.supernet.graph, self.full, self.config.gates, latency)

    # -- steps ------------------------------------------------------------------------------------------------------

    def step(self, stage: Stage, at: Position) -> Mapping[str, Tensor]:
        """A weight step (pretrain), or the weight steps and the gate step of one cycle (search)."""
        if stage.name == PRETRAIN:
            return {"train_loss": self._weight_step(stage, at, at.step)}
        steps = self.config.weight_steps
        losses = [self._weight_step(stage, at, at.step * steps + i) for i in range(steps)]
        found = {"train_loss": torch.stack(losses).mean(), "gate_loss": self._gate_step(stage, at)}
        if at.step + 1 < stage.steps_per_epoch and self._looks_after(stage, at.epoch, at.step + 1):
            self._look(last=False)
        return found

    def _weight_step(self, stage: Stage, at: Position, index: int) -> Tensor:
        net = self.supernet
        for group in net.weights.param_groups:
            group["lr"] = self._weight_rate(stage, at)
        loss = net.weight_gradients(self.weight_feed.batch(self._epoch(stage, at), index))
        clip_gradients(net.weight_params.values(), self.config.clip)
        net.weights.step()
        return loss

    def _gate_step(self, stage: Stage, at: Position) -> Tensor:
        net = self.supernet
        for group in net.gates.param_groups:
            group["lr"] = self._gate_rate(stage, at)
        set_gammas(self.penalty, net.gates, net.gate_vectors)
        loss = net.gate_gradients(self.gate_feed.batch(self._epoch(stage, at), at.step))
        net.gates.step()
        return loss

    def _epoch(self, stage: Stage, at: Position) -> int:
        """The epoch's number over both stages: loaders shuffle by it, and no two epochs may see the same order."""
        return at.epoch + (self.config.pretrain_epochs if stage.name == SEARCH else 0)

    def _weight_rate(self, stage: Stage, at: Position) -> float:
        return rate_now(self.config.schedule, self.config.lr, stage, at)

    def _gate_rate(self, stage: Stage, at: Position) -> float:
        return rate_now(self.config.gates.schedule, self.config.gates.lr, stage, at)

    def rates(self, stage: Stage, at: Position) -> Mapping[str, float]:
        """The learning rates of a step, each by the key of its setting."""
        rates = {"search.lr": self._weight_rate(stage, at)}
        return rates | ({"search.gates.lr": self._gate_rate(stage, at)} if stage.name == SEARCH else {})

    # -- epochs -----------------------------------------------------------------------------------------------------

    def end_epoch(self, stage: Stage, at: Position, means: Mapping[str, float], seconds: float) -> dict[str, Any]:
        """Validate; in the search stage also look for zero gates and prune."""
        last = at.epoch + 1 == stage.epochs
        if stage.name == SEARCH:
            self._tell_gain(seconds)
            if last or self._looks_after(stage, at.epoch + 1, 0):
                self._look(last, seconds)
        scores = self.validate()
        if stage.name == PRETRAIN and last:
            self.full_accuracy = scores.accuracy
        closed = self.supernet.zero_gates()
        cost = total_cost(self.supernet.graph)
        return {
            **means,
            "loss": scores.loss,
            "accuracy": scores.accuracy,
            "zero_gates": len(self.full.gates()) - len(self.supernet.graph.gates()) + len(closed),
            "gates": len(self.full.gates()),
            "edges": len(surviving_edges(self.supernet.graph, closed)),
            "params": cost.params,
            "flops": cost.flops,
            "lr": self._weight_rate(stage, at),
            "gate_values": self.all_gate_values(),
        }

    def histograms(self) -> Mapping[str, Tensor]:
        """All gates still there."""
        return {"gates": torch.cat([vector.detach() for vector in self.supernet.gate_vectors.values()])}

    def describe(self, record: Mapping[str, Any]) -> str:
        """The epoch's line."""
        return (
            f"{record['stage']} {record['epoch']:>3}  loss {record['train_loss']:.3f}  validation {record['loss']:.3f} "
            f"accuracy {record['accuracy']:.2%}  zero gates {record['zero_gates']}/{record['gates']}  "
            f"FLOPs {record['flops'] / 1e6:.2f} M"
        )

    def all_gate_values(self) -> list[float]:
        """Every gate of the whole space in its order, pruned ones at 0, to 4 digits: the report's heat map."""
        values = self.supernet.gate_values()
        return [round(values.get(gate, 0.0), 4) for gate in self.full.gates()]

    def validate(self) -> Scores:
        """Validation scores with batch norm's statistics re-estimated first."""
        self.recalibrate()
        return evaluate(self.supernet.module, self.validation.batches(0), world=self.world)

    def recalibrate(self) -> None:
        """Re-estimate batch norm's statistics on the first batches of the weight part."""
        recalibrate(self.supernet.module, islice(self.weight_feed.loader.batches(0), self.config.recalibrate_batches))
        if not self.config.sync_batch_norm:
            self.world.average_statistics(self.supernet.module)

    def _looks_after(self, stage: Stage, epochs: int, steps: int) -> bool:
        """Whether zero gates are looked for after so many epochs and steps of the search."""
        return is_look(epochs * stage.steps_per_epoch + steps, self.config.prune.every * stage.steps_per_epoch)

    def _look(self, last: bool, seconds: float | None = None) -> None:
        """Count gates at zero, and prune those that were for long enough (at the end: all that are zero).

        What goes is decided by the main process; others wait for its word. `seconds`: of a step in the epoch that ends.
        """
        zero = self.supernet.zero_gates()
        self.zero_looks = {gate: self.zero_looks.get(gate, 0) + 1 for gate in zero}
        wanted = {gate for gate in zero if last or self.zero_looks[gate] >= self.config.prune.patience}
        decision = self.world.decided(lambda: [sorted(wanted), sorted(self._guarded(wanted))])
        closed, kept = map(set, decision)
        self.zero_looks = {gate: looks for gate, looks in self.zero_looks.items() if gate not in kept}
        if closed - kept:
            self._prune(closed - kept, seconds)
        self._reopen(kept)

    def _guarded(self, closed: set[str]) -> set[str]:
        """Gates to keep although they are zero: an op must not lose all inputs in one step, nor the output its path.

        Momentum can drag an op's last inputs below zero together although the proximal point of one is positive; that
        one stays. If the output would be cut off, the strongest gates that mend it stay.
        """
        graph, prox = self.supernet.graph, self.supernet.proximal_points()
        kept: set[str] = set()
        living = {e.dst for e in surviving_edges(graph, closed)}
        for node in graph.nodes():
            gates = [e.gate for e in graph.inputs(node.id)]
            if not gates or not all(gate is not None and gate in closed for gate in gates):
                continue
            best = max((gate for gate in gates if gate is not None), key=lambda gate: prox[gate])
            feeds_living = any(e.dst in living and e.gate not in closed for e in graph.users(node.id))
            if prox[best] > 0 and feeds_living:
                kept.add(best)
        if kept:
            self.console.line(f"kept {_listed(kept)} although zero: the last inputs of an op do not go in one step")
        mend = kept_by_strength(graph, closed - kept, prox)
        if mend:
            self.console.line(f"kept {_listed(mend)} although zero: without it nothing reaches the output")
        return kept | set(mend)

    def _prune(self, closed: set[str], seconds: float | None) -> None:
        before = self.supernet
        self.supernet = before.pruned(closed)
        give_back()  # what the smaller network will not need
        self.zero_looks = {g: n for g, n in self.zero_looks.items() if g in set(self.supernet.graph.gates())}
        self.penalty = self._new_penalty()
        after = self.supernet
        self.unpruned_seconds = seconds
        took = "" if seconds is None else f"; a step took {seconds:.3f} s"
        self.console.line(
            f"pruned {before.graph.edge_count() - after.graph.edge_count()} edges, "
            f"{after.graph.edge_count()} left; FLOPs {total_cost(after.graph).flops / 1e6:.2f} M "
            f"(were {total_cost(before.graph).flops / 1e6:.2f} M){took}"
        )
        for block in emptied_blocks(before.graph, after.graph):
            self.console.line(f"block {block} lost all its edges: it is the identity now")

    def _tell_gain(self, seconds: float) -> None:
        """Say what the last pruning has brought; only an epoch after it has shown how long a step takes now."""
        if self.unpruned_seconds is not None:
            self.console.line(f"since pruning a step takes {seconds:.3f} s (before: {self.unpruned_seconds:.3f} s)")
            self.unpruned_seconds = None

    @torch.no_grad()
    def _reopen(self, kept: Collection[str]) -> None:
        """Give gates that were kept although zero their proximal point, or at least `LEAST_REOPENED`."""
        net, scopes = self.supernet, self.supernet.graph.gate_scopes()
        for scope, vector in net.gate_vectors.items():
            prox, is_zero = net.gates.proximal_point(vector), net.gates.is_zero(vector).tolist()
            for row, gate in enumerate(scopes[scope]):
                if gate in kept and is_zero[row]:
                    prox[row] = prox[row].clamp(min=LEAST_REOPENED)
                    vector[row] = prox[row]

    # -- resume -----------------------------------------------------------------------------------------------------

    def parameters(self) -> Iterable[Tensor]:
        """Weights and gates."""
        return (*self.supernet.weight_params.values(), *self.supernet.gate_vectors.values())

    def tensors(self) -> dict[str, Tensor]:
        """All numbers of the supernet and its optimizers."""
        return self.supernet.tensors()

    def state(self) -> dict[str, Any]:
        """The graph as pruned so far, and the counters."""
        return {
            "graph": to_json(self.supernet.graph),
            "zero_looks": dict(sorted(self.zero_looks.items())),
            "full_accuracy": self.full_accuracy,
            "split": self.split.digest,
        }

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Become the search that gave these; RunError if it had other images."""
        if state["split"] != self.split.digest:
            raise RunError(
                "the training images are not those that the search began with\n"
                "  try: the data set as it was (data.root), or --overwrite to start anew"
            )
        graph = from_json(state["graph"])
        self.supernet = Supernet.restore(graph, self.config, self.device, tensors, self.world)
        self.zero_looks = dict(state["zero_looks"])
        self.full_accuracy = state["full_accuracy"]
        self.penalty = self._new_penalty()


def is_look(done: int, stride: float) -> bool:
    """Whether a look follows step number `done`, counted from 1: the n-th comes after n strides (0: none do)."""
    return stride > 0 and done == round(round(done / stride) * stride)


def emptied_blocks(before: Graph, after: Graph) -> list[str]:
    """Blocks that became the identity between the two graphs."""
    return sorted(_identity_blocks(after) - _identity_blocks(before))


def _listed(gates: Collection[str], most: int = 3) -> str:
    names = sorted(gates)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _identity_blocks(graph: Graph) -> set[str]:
    """Blocks all of whose living nodes only pass on their single input."""
    busy = {n.id for n in graph.nodes() if not only_merges(n.op, n.attrs) or n.attrs or len(graph.inputs(n.id)) > 1}
    return {block.id for block in graph.blocks if not any(block.holds(node_id) for node_id in busy)}
