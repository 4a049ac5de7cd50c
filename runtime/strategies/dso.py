"""DSO: after pretraining, weights and gates train in turns; gates are pushed to zero, and zero gates are pruned.

A step of the search is `weight_steps` weight steps and one gate step, each on the next batch of its part of the images.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import Parameter

from compiler.analysis.costs import total_cost
from compiler.analysis.guards import best_channels, kept_by_strength, smallest_closed
from compiler.analysis.limits import budget_share, limits_of
from compiler.analysis.rounding import kept_for_rounding
from compiler.analysis.weights import GATES
from compiler.drawing.scene import number_of
from compiler.ir.graph import Graph
from compiler.ops import only_merges
from compiler.passes.carry import take
from compiler.passes.prune_zero_edges import surviving_edges
from runtime.rundir.checkpoint import optimizer_state, restore_optimizer_state
from runtime.search.supernet import Supernet, below, carried
from runtime.strategies.apgnag import APGNAG
from runtime.strategies.base import Context, Found, ReportSection, TrainingStrategy
from runtime.strategies.latency import OpTimes, measured_latencies, network_latency
from runtime.strategies.limits import RETRIES, Pace, strengths, within_budget
from runtime.strategies.penalties import OpCall, Penalty, set_gammas, zero_gates
from runtime.training.captured import Early, Step
from runtime.training.heap import give_back
from runtime.training.stages import Position, Stage
from runtime.training.step import Batch, rate_now, set_rate, with_tensor_rates

PRETRAIN, SEARCH = "pretrain", "search"
LATENCIES = "latencies.json"  # in the search's part of the run
GATE_STATE = "gate_state"  # first part of the names of saved tensors
LEAST_REOPENED = 1e-3  # what a gate that has to stay is set to at least when it was zero


class Dso(TrainingStrategy):
    """Direct sparse optimization; `search.gates` and `search.prune` are its settings."""

    penalty_type: ClassVar[type[Penalty]] = Penalty
    """Decides the sparsity weight of every gate; it is not recorded, so resuming needs the same one."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.net = context.supernet()
        self._take_gates(gate_optimizer(self.net))
        self.zero_looks: dict[str, int] = {}  # how many looks in a row found a gate at zero
        self.full_score: float | None = None  # the deciding metric at the end of pretraining
        self.unpruned_seconds: float | None = None  # of a step before an epoch that began with a pruning, until it ends
        self.penalty = self._new_penalty()
        self.pace = self._new_pace()

    def _new_pace(self) -> Pace | None:
        """What meets the budget where `search.gates.gamma` is auto."""
        context, search = self.context, self.stages[1]
        if context.search.gates.gamma != "auto":
            return None
        whole = context.world.decided(lambda: self._budgets(context.graph))
        gates, init, steps = context.search.gates, context.gate_init, search.epochs * search.steps_per_epoch
        return Pace.start(whole, gates, init, steps, trained=context.is_trained)

    def _budgets(self, graph: Graph) -> float:
        """How much of its tightest limit a network takes: 1 is just allowed, more is not."""
        budget, file = self.context.config.budget, self.context.folder / LATENCIES
        timed = 0.0 if budget.latency is None else 1e3 * network_latency(graph, file) / budget.latency
        return max(budget_share(graph, budget), timed)

    @property
    def stages(self) -> tuple[Stage, Stage]:
        """Pretraining with all gates fixed, then the search."""
        config, weights, gates = self.context.search, self.context.weights, self.context.gates
        cycles = config.cycles_per_epoch or min(len(weights.loader) // config.weight_steps, len(gates.loader))
        return (
            Stage(PRETRAIN, config.pretrain_epochs, weights.per_epoch, config.batch_size),
            Stage(SEARCH, config.epochs, max(1, cycles), (config.weight_steps + 1) * config.batch_size),
        )

    def _new_penalty(self) -> Penalty:
        gates = self.context.search.gates
        latency = OpTimes(self._measured) if gates.adaptive == "latency" else None
        return self.penalty_type(self.net.graph, self.context.graph, gates, latency)

    def _measured(self, call: OpCall) -> float:
        """Seconds of an op, the same in all processes; kept in a file, so that a resumed search reads the same."""
        context, file = self.context, self.context.folder / LATENCIES
        return context.world.decided(lambda: measured_latencies([call], context.device, file)[call])

    def step(self, stage: Stage, at: Position) -> Mapping[str, Tensor]:
        """A weight step (pretrain), or the weight steps and the gate step of one cycle (search)."""
        if stage.name == PRETRAIN:
            return {"train_loss": self.weight_step(stage, at, at.step)}
        steps, zero = self.context.search.weight_steps, zero_gates(self.gates, self.net.gate_vectors)
        losses = [self.weight_step(stage, at, at.step * steps + i) for i in range(steps)]
        found = {"train_loss": torch.stack(losses).mean(), "gate_loss": self._gate_step(stage, at, zero)}
        if at.step + 1 < stage.steps_per_epoch and self._looks_after(stage, at.epoch, at.step + 1):
            self._look(stage.share(at.epoch, at.step + 1))
        return found

    def _gate_step(self, stage: Stage, at: Position, zero: Early) -> Tensor:
        set_rate(self.gates, self._gate_rate(stage, at))
        times = self.pace.gamma_at(stage.share(at.epoch, at.step)) if self.pace else 1.0
        set_gammas(self.penalty, self.gates, self.net.gate_vectors, times, zero)
        return self._train_gates(self.context.gates.batch(self.data_epoch(at), at.step))

    def _take_gates(self, optimizer: APGNAG) -> None:
        """Train the gates of `net` with this optimizer of theirs."""
        self.gates, self._train_gates = optimizer, Step(self._gate_update, self.net.capture)

    def _gate_update(self, batch: Batch) -> Tensor:
        loss = self.net.gate_gradients(batch)
        self.gates.step()
        return loss

    def _gate_rate(self, stage: Stage, at: Position) -> float:
        gates = self.context.search.gates
        return rate_now(gates.schedule, gates.lr, stage, at)

    def rates(self, stage: Stage, at: Position) -> Mapping[str, float]:
        """Of weights and, in the search stage, gates."""
        gates = {"search.gates.lr": self._gate_rate(stage, at)} if stage.name == SEARCH else {}
        return {**super().rates(stage, at), **gates}

    def end_epoch(self, stage: Stage, at: Position, seconds: float) -> None:
        """In the search stage look for zero gates and prune."""
        last = at.epoch + 1 == stage.epochs
        if stage.name == SEARCH:
            self._tell_gain(seconds)
            if last or self._looks_after(stage, at.epoch + 1, 0):
                self._look(stage.share(at.epoch + 1), seconds)

    def scored(self, stage: Stage, at: Position, metrics: Mapping[str, float]) -> None:
        """Note what the whole supernet reached."""
        if stage.name == PRETRAIN and at.epoch + 1 == stage.epochs:
            self.full_score = next(iter(metrics.values()))

    def closed(self) -> set[str]:
        """The gates that count as zero now."""
        return {gate for gate, is_zero in self._by_gate(self.gates.is_zero).items() if is_zero}

    def _by_gate(self, kept: Callable[[Parameter], Tensor]) -> dict[str, float]:
        """By gate, what the optimizer has for each vector of gates."""
        return self.net.by_gate({scope: kept(vector) for scope, vector in self.net.gate_vectors.items()})

    def _measure(self) -> str:
        """What the budget limits most; multiply-adds where it limits the latency alone."""
        limits = limits_of(self.context.config.budget)
        return max(limits, key=lambda limit: limit.share(self.net.graph)).measure.name if limits else "flops"

    def _looks_after(self, stage: Stage, epochs: int, steps: int) -> bool:
        """Whether zero gates are looked for after so many epochs and steps of the search."""
        every = self.context.search.prune.every
        return is_look(epochs * stage.steps_per_epoch + steps, every * stage.steps_per_epoch)

    def _look(self, done: float, seconds: float | None = None) -> None:
        """Prune the gates that were zero for long enough, at the end all that are.

        `done` is the share of the search that is over, `seconds` what a step took.
        """
        zero, patience = self.closed(), self.context.search.prune.patience
        self.zero_looks = {gate: self.zero_looks.get(gate, 0) + 1 for gate in zero}
        wanted = {gate for gate in zero if done == 1 or self.zero_looks[gate] >= patience}
        closed, kept = map(set, self.context.world.decided(lambda: self._decide(zero, wanted, done)))
        self.zero_looks = {gate: looks for gate, looks in self.zero_looks.items() if gate not in kept}
        if closed:
            self._prune(closed, seconds)
        self._reopen(kept)
        if self.pace and done == 1:
            share = self.context.world.decided(lambda: self._budgets(self.net.graph))
            self.context.console.line(f"found: {share:.3f} times the budget")
            if share > 1:
                self.context.console.warn("even the smallest network is over the budget; raise it")

    def _decide(self, zero: set[str], wanted: set[str], done: float) -> list[list[str]]:
        """The gates to close, and those to open again although they are zero."""
        graph, round_to = self.net.graph, self.context.config.budget.round_to
        if self.pace:
            planned = self.pace.planned(done)
            retries = RETRIES if planned == 1 else 0  # before, the next look would close what is spared
            strength = strengths(graph, self._by_gate(self.gates.use), self._measure())
            closed = within_budget(graph, zero, strength, lambda g: self._budgets(g) / planned, round_to, retries)
            return [sorted(closed), sorted(zero - closed if done == 1 else ())]
        prox = self._by_gate(self.gates.proximal_point)
        kept = self._guarded(wanted, prox)
        closed = wanted - kept
        closed -= kept_for_rounding(graph, closed, prox, round_to)
        return [sorted(closed), sorted(zero - closed if done == 1 else kept)]

    def _guarded(self, closed: set[str], prox: Mapping[str, float]) -> set[str]:
        """Gates to keep although they are zero: the strongest that mend the output's path, and of an op that would lose
        all inputs in one step the best, if its proximal point is positive: momentum can drag all below zero together.
        """
        graph, console = self.net.graph, self.context.console
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
        before = set(best_channels(graph, (), prox.__getitem__))
        last_channels = best_channels(graph, closed, lambda gate: -prox[gate])
        kept |= {gate for node_id, gate in last_channels.items() if prox[gate] > 0 and node_id not in before}
        if kept:
            console.line(f"kept {_listed(kept)} although zero: the last inputs of an op do not go in one step")
        mend = kept_by_strength(graph, closed - kept, prox)
        if mend:
            console.line(f"kept {_listed(mend)} although zero: without it nothing reaches the output")
        return kept | set(mend)

    def _prune(self, closed: set[str], seconds: float | None) -> None:
        before, state = self.net, self.tensors()
        self.net = before.pruned(closed)
        self._take_gates(restored_gates(self.net, state, before.graph))
        give_back()  # what the smaller network will not need
        after = self.net.graph
        self.zero_looks = {g: n for g, n in self.zero_looks.items() if g in set(after.gates())}
        self.penalty = self._new_penalty()
        self.unpruned_seconds = seconds
        took = "" if seconds is None else f"; a step took {seconds:.3f} s"
        self.context.console.line(
            f"pruned {_lost(before.graph, after)}; FLOPs {total_cost(after).flops / 1e6:.2f} M "
            f"(were {total_cost(before.graph).flops / 1e6:.2f} M){took}"
        )
        for block in sorted(_identity_blocks(after) - _identity_blocks(before.graph)):
            self.context.console.line(f"block {block} lost all its edges: it is the identity now")

    def _tell_gain(self, seconds: float) -> None:
        """Say what the last pruning has brought; only an epoch after it has shown how long a step takes now."""
        if self.unpruned_seconds is not None:
            gain = f"since pruning a step takes {seconds:.3f} s (before: {self.unpruned_seconds:.3f} s)"
            self.context.console.line(gain)
            self.unpruned_seconds = None

    @torch.no_grad()
    def _reopen(self, kept: Collection[str]) -> None:
        """Give gates that were kept although zero their proximal point, or at least `LEAST_REOPENED`."""
        scopes = self.net.graph.gate_scopes()
        for scope, vector in self.net.gate_vectors.items():
            prox, is_zero = self.gates.proximal_point(vector), self.gates.is_zero(vector).tolist()
            for row, gate in enumerate(scopes[scope]):
                if gate in kept and is_zero[row]:
                    prox[row] = prox[row].clamp(min=LEAST_REOPENED)
                    vector[row] = prox[row]

    @property
    def full_key(self) -> str:
        """What checkpoints and arch.yaml call `full_score`."""
        return f"full_{self.context.task.decides.name}"

    def tensors(self) -> dict[str, Tensor]:
        """The state of the gates' optimizer."""
        return gate_tensors(self.net, self.gates)

    def state(self) -> dict[str, Any]:
        """The counters."""
        return {"zero_looks": dict(sorted(self.zero_looks.items())), self.full_key: self.full_score}

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Go on with the gates of the restored net."""
        self._take_gates(restored_gates(self.net, tensors, self.net.graph))
        self.zero_looks = {gate: int(looks) for gate, looks in state["zero_looks"].items()}
        self.full_score = None if state[self.full_key] is None else float(state[self.full_key])
        self.penalty = self._new_penalty()

    def found(self) -> Found:
        """What is left of the net."""
        return Found(self.net.gate_values(), self.net, {self.full_key: self.full_score})

    def doubt(self, found: Graph) -> str:
        """Warns where nothing or everything was pruned."""
        full, left, every = self.context.graph, len(found.gates()), len(self.context.graph.gates())
        if left == every and self.pace:
            return "the whole network is within its budget, so nothing was pruned; lower the budget"
        if left == every:
            return (
                "no gate became zero, so nothing was pruned; raise search.gates.gamma, search.gates.lr or search.epochs"
            )
        if left <= every - len(smallest_closed(full)):
            return (
                f"every edge that may go was pruned, {left} of {every} gates are left; "
                f"lower search.gates.gamma, search.gates.lr or search.epochs"
            )
        return ""

    def report(self) -> ReportSection:
        """Which settings have pushed the gates."""
        search, gates = self.context.search, self.context.search.gates
        return ReportSection(
            f"Gates were trained by APG-NAG with a sparsity weight of {gates.gamma} (adaptive: {gates.adaptive}); "
            f"an edge was removed after {search.prune.patience} consecutive checks at zero."
        )


def _lost(before: Graph, after: Graph) -> str:
    """How many edges went and are left, and gates of channels where there were some."""
    edges, left = before.edge_count(), after.edge_count()
    lost = f"{number_of(edges - left, 'edge')}, {left} left"
    if not before.channel_gates:
        return lost
    channels, open_ = (len(graph.gates()) - len(graph.edge_gates()) for graph in (before, after))
    return f"{lost}, and {number_of(channels - open_, 'channel')}, {open_} left"


def gate_optimizer(net: Supernet) -> APGNAG:
    """APG-NAG over the gates of a network, with the settings of its search."""
    settings = net.config.gates.model_dump(include={"lr", "momentum", "clip", "nonnegative"})
    optimizer = APGNAG(net.gate_vectors.values(), **settings, gamma=net.config.gates.written_gamma)
    if net.capture.wanted:
        with_tensor_rates(optimizer)
    return optimizer


def gate_tensors(net: Supernet, optimizer: APGNAG) -> dict[str, Tensor]:
    """The state of the gates' optimizer by name, to be saved."""
    state = optimizer_state(optimizer, net.gate_vectors.items())
    return {f"{GATE_STATE}/{name}": tensor for name, tensor in state.items()}


def restored_gates(net: Supernet, tensors: Mapping[str, Tensor], before: Graph) -> APGNAG:
    """The optimizer of a network's gates, with its part of the `gate_tensors` that were those of the graph `before`."""
    optimizer, plan = gate_optimizer(net), carried(before, net.graph)
    kept = {
        name: take(tensor, plan[scope + GATES])
        for name, tensor in below(tensors, GATE_STATE).items()
        if (scope := name.rpartition("/")[0]) + GATES in plan
    }
    restore_optimizer_state(optimizer, net.gate_vectors.items(), kept)
    return optimizer


def is_look(done: int, stride: float) -> bool:
    """Whether a look follows step number `done`, counted from 1: the n-th comes after n strides (0: none do)."""
    return stride > 0 and done == round(round(done / stride) * stride)


def _listed(gates: Collection[str], most: int = 3) -> str:
    names = sorted(gates)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _identity_blocks(graph: Graph) -> set[str]:
    """Blocks all of whose living nodes only pass on their single input."""
    busy = {n.id for n in graph.nodes() if not only_merges(n.op, n.attrs) or n.attrs or len(graph.inputs(n.id)) > 1}
    return {block.id for block in graph.blocks if not any(block.holds(node_id) for node_id in busy)}
