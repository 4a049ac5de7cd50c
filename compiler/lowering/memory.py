"""How much memory a training step takes at its peak, predicted from static shapes without torch.

Counted are weights, their gradients and momenta, gates, the batch, and every value, kept tensor, gradient and piece
of work space that is there at the same time in the forward or backward pass. Not counted are the interpreter, its
libraries and the data set, and what a memory allocator holds back.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from compiler.ir.graph import INPUT, Graph
from compiler.language.config import SearchConfig, TrainingConfig, evaluation_batch
from compiler.lowering.groups import exits
from compiler.lowering.heap import Account, Heap, Memory, Piece
from compiler.lowering.tape import Buffer, Call, Lowering, Plan, Size, StepKind, Tape, Value
from compiler.ops import node_tensors

MOST_IMAGES = 2**20
"""No larger batch is looked for."""
PLANNED_BATCH = 64
"""At which it is decided what to recompute: it does not depend on it, as long as weights are small beside images."""
GATE_NUMBERS = 5
"""For every gate: its value, gradient, velocity, proximal point and sparsity weight."""


# -- playing a tape ---------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Grad:
    """Memory of a gradient, and how many values have their gradient in it."""

    piece: Piece
    users: int = 1


class _Player:
    """Plays calls at a batch size, taking from `memory` and giving back."""

    def __init__(self, batch: int, memory: Memory, accumulates: bool = False) -> None:
        self.batch, self.memory, self.accumulates = batch, memory, accumulates
        self.reads: Counter[Buffer] = Counter()  # still to come
        self.kept: Counter[Buffer] = Counter()
        self.live: dict[Buffer, Piece] = {}
        self.grads: dict[Value, _Grad] = {}

    def step(self, calls: Sequence[Call]) -> int:
        """Forward and, where anything gets a gradient, backward; what is in use between the two.

        All is given back but gradients of weights.
        """
        last = calls[-1].writes[0]
        self.reads[last.buffer] += 1  # by the loss
        self.forward(calls, keep=True)
        kept = self.memory.now
        if calls[-1].tracked:
            self.grads[last] = self._new_grad(last)
            self.backward(calls)
        grads = dict.fromkeys(self.grads.values())  # values may share one
        for piece in (*self.live.values(), *(grad.piece for grad in grads)):
            self.memory.give(piece)
        return kept

    def forward(self, calls: Sequence[Call], keep: bool) -> None:
        """Play the forward pass; with `keep` its backward pass follows."""
        self.reads.update(value.buffer for call in calls for value in (*call.reads, *call.holds))
        for call in calls:
            if call.inside:
                self.forward(call.inside, keep=False)
            for buffer in (*(value.buffer for value in call.writes), *call.makes):
                self._make(buffer)
            self._need(call.work)
            if keep and call.tracked:
                self.kept.update(call.keeps)
            for value in (*call.reads, *call.holds):
                self.reads[value.buffer] -= 1
            for value in (*call.reads, *call.holds, *call.writes):
                self._drop_if_unused(value.buffer)
            for buffer in call.makes:
                self._drop_if_unused(buffer)

    def backward(self, calls: Sequence[Call]) -> None:
        """Play the backward pass of calls that were played forward; the last one's gradient is given."""
        for call in reversed(calls):
            if not call.tracked:
                continue
            if call.inside:
                self.forward(call.inside, keep=True)
                self.backward(call.inside)
            else:
                self._back(call)
            for buffer in call.keeps:
                self.kept[buffer] -= 1
                self._drop_if_unused(buffer)

    def _back(self, call: Call) -> None:
        handed = self.grads.get(call.writes[0]) if call.passes else None
        given = [self.grads.pop(value) for value in call.writes if value in self.grads]
        found: list[tuple[Value, _Grad]] = []
        for value in call.reads:
            if value.grad:
                if handed is None:
                    grad = self._new_grad(value)
                    handed = grad if call.passes else None
                else:
                    handed.users += 1
                    grad = handed
                found.append((value, grad))
        weight_grads = self.memory.take(call.weights)
        if self.accumulates:
            self.memory.give(weight_grads)
        self._need(call.back_work)
        for grad in given:
            self._leave(grad)
        for value, grad in found:
            self._add(value, grad)

    def _add(self, value: Value, grad: _Grad) -> None:
        """Add a gradient to that which the value has; in place if nobody else has that."""
        before = self.grads.get(value)
        if before is None:
            self.grads[value] = grad
            return
        if before.users > 1:
            self.grads[value] = self._new_grad(value)
            self._leave(before)
        self._leave(grad)

    # -- memory -----------------------------------------------------------------------------------------------------

    def _need(self, size: Size) -> None:
        self.memory.give(self.memory.take(size.at(self.batch)))

    def _make(self, buffer: Buffer) -> None:
        if buffer not in self.live:
            self.live[buffer] = self.memory.take(buffer.size.at(self.batch))

    def _drop_if_unused(self, buffer: Buffer) -> None:
        if buffer in self.live and self.reads[buffer] <= 0 and self.kept[buffer] <= 0:
            self.memory.give(self.live.pop(buffer))

    def _new_grad(self, value: Value) -> _Grad:
        return _Grad(self.memory.take(value.size.at(self.batch)))

    def _leave(self, grad: _Grad) -> None:
        grad.users -= 1
        if grad.users == 0:
            self.memory.give(grad.piece)


@dataclass(frozen=True)
class Played:
    """What playing one step has shown, in bytes."""

    kept: int  # for the backward pass, at the end of the forward pass; the output is counted too
    peak: int  # of everything that comes and goes, and of the weights' gradients where they come


def play(calls: Sequence[Call], batch: int, accumulates: bool = False) -> Played:
    """Forward and, where anything gets a gradient, backward; `accumulates`: weight gradients are there already."""
    memory = Account()
    kept = _Player(batch, memory, accumulates).step(calls)
    return Played(kept, memory.peak)


def _weight_bytes(calls: Sequence[Call]) -> int:
    """Of all gradients of weights."""
    return sum(call.weights + _weight_bytes(call.inside) for call in calls)


def recomputed_blocks(graph: Graph, lowering: Lowering) -> frozenset[str]:
    """The blocks, by the node that gives their value, to compute again in the backward pass.

    All but those at the end of the network that can be kept without a higher peak: the peak comes when the largest
    block, which stands further in front, has been computed again, and by then the memory of the last ones is free.
    """
    position = {node.id: index for index, node in enumerate(graph.nodes())}
    chosen = sorted(exits(graph), key=lambda node_id: position[node_id])
    least = _peaks(graph, lowering, chosen)
    while chosen and all(now <= most for now, most in zip(_peaks(graph, lowering, chosen[:-1]), least, strict=True)):
        chosen.pop()
    return frozenset(chosen)


def _peaks(graph: Graph, lowering: Lowering, recomputed: Sequence[str]) -> list[int]:
    """Of a weight step and a gate step, at any batch size that makes the weights small beside the images."""
    kinds: tuple[StepKind, ...] = ("weight", "gate") if graph.gates() else ("weight",)
    plans = [Plan(kind, lowering, recompute=frozenset(recomputed)) for kind in kinds]
    return [play(Tape(graph, plan, graph.nodes()).write(), PLANNED_BATCH).peak for plan in plans]


# -- a training step --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Training:
    """How a network is trained, as far as memory depends on it."""

    lowering: Lowering = "fused"
    half: bool = False  # bf16 autocast
    recompute: bool = False
    accumulate: int = 1
    searching: bool = True  # gates are trained too, and batch norms' scales are not
    on_cpu: bool = True

    @classmethod
    def of(cls, config: TrainingConfig, on_cpu: bool = True) -> Training:
        """From the settings of a search or a retraining."""
        half = config.precision == "bf16"
        lowering: Lowering = config.lowering if isinstance(config, SearchConfig) else "fused"
        searching = isinstance(config, SearchConfig)
        return cls(lowering, half, config.recompute, config.accumulate, searching, on_cpu)

    def plan(self, kind: StepKind, recompute: frozenset[str]) -> Plan:
        """The plan of one kind of step; what is only evaluated is neither recomputed nor run in bf16."""
        if kind == "evaluation":
            return Plan(kind, self.lowering, on_cpu=self.on_cpu)
        return Plan(kind, self.lowering, self.half, recompute, self.searching, self.on_cpu)


@dataclass(frozen=True)
class TrainingMemory:
    """Predicted peaks in bytes: of a weight step, of a gate step (0 where there are no gates) and of validating."""

    weight_step: int
    gate_step: int
    validation: int

    @property
    def peak(self) -> int:
        """The largest."""
        return max(self.weight_step, self.gate_step, self.validation)


class MemoryModel:
    """Predicts the memory of training a typed graph, at any batch size."""

    def __init__(self, graph: Graph, training: Training = Training()) -> None:
        self.training = training
        self.image = 4 * math.prod(graph.node(INPUT).shape)
        tensors = [node_tensors(graph, node) for node in graph.nodes()]
        self.params = 4 * sum(math.prod(shape) for own in tensors for shape in own.params.values())
        buffers = 4 * sum(math.prod(shape) for own in tensors for shape in own.buffers.values())
        gates = 4 * len(graph.gates())
        self.always = 2 * self.params + buffers + GATE_NUMBERS * gates  # momenta are as large as weights
        kinds: list[StepKind] = ["weight", "evaluation"]
        kinds += ["gate"] if training.searching and graph.gates() else []
        again = recomputed_blocks(graph, training.lowering) if training.recompute else frozenset()
        self.tapes = {kind: Tape(graph, training.plan(kind, again), graph.nodes()).write() for kind in kinds}
        self.weight_grads = _weight_bytes(self.tapes["weight"])

    def at(self, batch: int, validation_images: int | None = None) -> TrainingMemory:
        """The peaks at a batch size; `validation_images`: how many there are, if that is known."""
        part, parts = self._parts(batch)
        validated = self._validated(batch, validation_images)
        grads, always = self.weight_grads, self.always + batch * self.image
        weight = play(self.tapes["weight"], part, accumulates=parts > 1).peak + (grads if parts > 1 else 0)
        optimizer = grads if self.training.on_cpu else grads + 2 * self.params  # works on all weights at once there
        gate = play(self.tapes["gate"], part).peak + grads + always if "gate" in self.tapes else 0
        evaluation = play(self.tapes["evaluation"], validated).peak + grads + self.always + validated * self.image
        return TrainingMemory(weight_step=always + max(weight, optimizer), gate_step=gate, validation=evaluation)

    def growth(self, heap: Heap, batch: int, validation_images: int | None = None) -> int:
        """By how many bytes a process with this heap grows in one step of each kind; further ones find room in that.

        What is free is given back before validation and after it, so they do not add up.
        """
        part, parts = self._parts(batch)
        validated = self._validated(batch, validation_images)
        steps = self._grown(heap, ("weight", "gate"), part, batch, parts > 1)
        return max(steps, self._grown(Heap(heap.pinned), ("evaluation",), validated, validated, accumulates=True))

    def _grown(self, heap: Heap, kinds: Sequence[StepKind], played: int, loaded: int, accumulates: bool) -> int:
        """How far the heap reaches when these steps have been played; `loaded`: images that are there meanwhile,
        `accumulates`: so are gradients of weights, from the beginning.
        """
        heap.take(self.always + (self.weight_grads if accumulates else 0))
        for tape in (self.tapes[kind] for kind in kinds if kind in self.tapes):
            images = heap.take(loaded * self.image)
            _Player(played, heap, accumulates).step(tape)
            heap.give(images)
        return heap.peak

    def _parts(self, batch: int) -> tuple[int, int]:
        """Images of the largest part of a batch, and how many parts there are."""
        parts = min(self.training.accumulate, batch)
        return math.ceil(batch / parts), parts

    def _validated(self, batch: int, images: int | None) -> int:
        """How many images are evaluated at a time."""
        most = evaluation_batch(batch, self.training.accumulate, self.training.recompute)
        return most if images is None else min(most, images)

    def largest_batch(self, fits: Callable[[int], bool]) -> int:
        """The largest batch size that fits, up to `MOST_IMAGES`; 0 if not even one image does."""
        low, high = 0, MOST_IMAGES + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low
