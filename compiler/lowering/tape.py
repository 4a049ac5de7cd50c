"""What a training step does, as memory sees it: a list of calls with sizes, written from static shapes without torch.

`Tape` follows the emitters of `compiler.lowering.torch.emit` and `fused` call by call: which values are computed in
which order, which share memory, and what each call keeps for its backward pass. `compiler.lowering.memory` plays it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from compiler.ir.graph import INPUT, OUTPUT, Block, Graph, Node
from compiler.lowering.groups import Stack, exits, leaves_relu, regions, stacks
from compiler.lowering.kept import Row, Setting, kept_apart, row_of
from compiler.ops import Reads, Shape, input_shapes, op, walk
from compiler.ops.measures import Walked

StepKind = Literal["weight", "gate", "evaluation"]
Lowering = Literal["fused", "reference"]
RANDOM_STATE = 5056  # bytes of the random generator's state, which a recomputed block keeps
HALF = frozenset({"conv", "depthwise_conv", "linear"})  # what autocast runs in bf16


@dataclass(frozen=True, slots=True)
class Size:
    """Bytes that grow with the batch, and bytes that do not."""

    image: float = 0.0
    fixed: float = 0.0

    def at(self, batch: int) -> int:
        """Bytes at this batch size."""
        return round(self.image * batch + self.fixed)


@dataclass(frozen=True, eq=False, slots=True)
class Buffer:
    """One piece of memory."""

    size: Size


@dataclass(frozen=True, eq=False, slots=True)
class Value:
    """A tensor: where it lies, how large it is, and whether it gets a gradient."""

    buffer: Buffer
    numbers: int  # per image
    item: int  # bytes of a number
    grad: bool

    @property
    def size(self) -> Size:
        """Of the tensor; its buffer may be larger."""
        return Size(self.numbers * self.item)


@dataclass(frozen=True, eq=False, slots=True)
class Call:
    """One operation, forward and backward."""

    reads: tuple[Value, ...]
    writes: tuple[Value, ...]
    tracked: bool  # part of the backward pass
    holds: tuple[Value, ...] = ()  # values that the caller still has
    makes: tuple[Buffer, ...] = ()  # memory that is no value, such as the positions of maxima
    keeps: tuple[Buffer, ...] = ()  # for the backward pass
    work: Size = Size()
    back_work: Size = Size()
    weights: int = 0  # bytes of the gradients of its weights
    passes: bool = False  # inputs get the memory of the first output's gradient as theirs
    inside: tuple[Call, ...] = ()  # a block whose calls are made again in the backward pass


@dataclass(frozen=True)
class Plan:
    """How a step is run."""

    kind: StepKind
    lowering: Lowering = "fused"
    half: bool = False  # bf16 autocast
    recompute: frozenset[str] = frozenset()  # the nodes whose blocks are computed again
    frozen_scales: bool = True  # batch norms' scales are not trained: in a search
    on_cpu: bool = True


class Tape:
    """The calls of one step over `nodes`."""

    def __init__(self, graph: Graph, plan: Plan, nodes: Sequence[Node]) -> None:
        self.graph, self.plan, self.nodes = graph, plan, nodes
        self.calls: list[Call] = []
        self.values: dict[str, Value] = {}
        self.fused = plan.lowering == "fused"
        self.trained, self.gates_trained = plan.kind == "weight", plan.kind == "gate"
        groups = [s for region in regions(graph, nodes) for s in stacks(graph, region)] if self.fused else []
        self.stack_of = {node.id: stack for stack in groups for node in stack.readers}
        self.filled: dict[int, Value] = {}  # by identity of the stack, what it is by now
        self.sums: dict[str, Value] = {}

    def write(self) -> tuple[Call, ...]:
        """All calls of the network, in order."""
        blocks = {i: block for i, block in exits(self.graph).items() if i in self.plan.recompute}
        inside = {node.id for nodes, _ in blocks.values() for node in nodes} - blocks.keys()
        for node in self.nodes:
            if node.op == INPUT:
                image = math.prod(node.shape)
                self.values[node.id] = Value(Buffer(Size(4 * image)), image, 4, grad=False)
            elif node.id in blocks:
                self._block(node, *blocks[node.id])
            elif node.op != OUTPUT and node.id not in inside:
                self._node(node)
        return tuple(self.calls)

    def _block(self, exit_node: Node, nodes: list[Node], block: Block) -> None:
        inner = Tape(self.graph, self.plan, nodes)
        edges = [edge for node in nodes for edge in self.graph.inputs(node.id) if not block.holds(edge.src)]
        inner.values = {edge.src: self.values[edge.src] for edge in edges}
        reads = tuple(inner.values.values())
        for node in nodes:
            inner._node(node)
        value = self.values[exit_node.id] = inner.values[exit_node.id]
        random = Buffer(Size(fixed=RANDOM_STATE))
        keeps = (random, *(read.buffer for read in reads)) if value.grad else ()
        self.calls.append(Call(reads, (value,), value.grad, makes=(random,), keeps=keeps, inside=tuple(inner.calls)))

    # -- nodes ------------------------------------------------------------------------------------------------------

    def _node(self, node: Node) -> None:
        edges = self.graph.inputs(node.id)
        gated = any(edge.gate for edge in edges)
        sums = op(node.op).reads is Reads.SUM
        if self.fused and gated and node.op == "project":
            value = self._projected(node)
        elif self.fused and gated and sums:
            value = self._steps(node, [self._gated_total(node)])
        else:
            inputs = [self._times_gate(self.values[e.src]) if e.gate else self.values[e.src] for e in edges]
            value = self._steps(node, [self._total(inputs)] if sums else inputs)
        self.values[node.id] = value

    def _times_gate(self, value: Value) -> Value:
        keeps = (value.buffer,) if self.gates_trained else ()
        out = _fresh(value.numbers, value.item, value.grad or self.gates_trained)
        back = value.size if self.gates_trained else Size()
        self.calls.append(Call((value,), (out,), out.grad, keeps=keeps, back_work=back))
        return out

    def _total(self, values: list[Value]) -> Value:
        total = values[0]
        for index, value in enumerate(values[1:], 2):
            out = _fresh(total.numbers, max(total.item, value.item), total.grad or value.grad)
            self.calls.append(Call((total, value), (out,), out.grad, holds=tuple(values[index:]), passes=True))
            total = out
        return total

    def _steps(self, node: Node, inputs: list[Value]) -> Value:
        """The chain of a node's steps; without the ReLU that its stack does."""
        rows = walk(node.op, node.attrs, input_shapes(self.graph, node))
        if self.fused and leaves_relu(self.graph, node, self.stack_of):
            rows = rows[:-1]
        return self._chain(rows, tuple(inputs), held=tuple(inputs))

    def _chain(
        self, rows: Sequence[Walked], values: tuple[Value, ...], held: tuple[Value, ...] = (), before: str = ""
    ) -> Value:
        """Steps one after the other; `held`: what the caller still has, `before`: the op that gave `values`."""
        for step, row, attrs, shapes, out in rows:
            tensors = {n: math.prod(s) for n, s in row.params(attrs, shapes, out).items()}
            values = (self._step(step.op, attrs, values, shapes, out, tensors, held, before),)
            before = step.op
        return values[0]

    def _step(
        self,
        name: str,
        attrs: object,
        reads: tuple[Value, ...],
        shapes: Sequence[Shape],
        out: Shape,
        tensors: dict[str, int],
        held: tuple[Value, ...],
        before: str,
    ) -> Value:
        weights = 4 * self._trained_numbers(name, tensors)
        setting = Setting(self.fused, weights > 0, math.prod(shapes[0][1:]), self.plan.on_cpu)
        row = row_of(name, attrs, setting)
        if row.hands_on:
            return reads[0]
        half = self.plan.half and name in HALF
        grad = name != "zero" and (weights > 0 or any(read.grad for read in reads))
        item = 2 if half else max(read.item for read in reads)
        value = _fresh(math.prod(out), item, grad)
        if name == "relu" and before in (*HALF, "batch_norm"):
            value = Value(reads[0].buffer, value.numbers, item, grad)
        self.calls.append(_call(row, reads, value, sum(tensors.values()), weights, held, half))
        return value

    def _trained_numbers(self, name: str, tensors: dict[str, int]) -> int:
        """Numbers of a step's weights that get gradients."""
        if not self.trained:
            return 0
        fixed = tensors["weight"] if name == "batch_norm" and self.plan.frozen_scales else 0
        return sum(tensors.values()) - fixed

    # -- stacks -----------------------------------------------------------------------------------------------------

    def _gated_total(self, node: Node) -> Value:
        if node.id in self.stack_of:
            if node.id not in self.sums:
                self._sum_all_ready(self.stack_of[node.id])
            return self.sums[node.id]
        values = tuple(self.values[edge.src] for edge in self.graph.inputs(node.id))
        grad = self.gates_trained or any(value.grad for value in values)
        out = _fresh(values[0].numbers, max(value.item for value in values), grad)
        keeps = tuple(value.buffer for value in values) if self.gates_trained else ()
        self.calls.append(Call(values, (out,), grad, keeps=keeps))
        return out

    def _sum_all_ready(self, stack: Stack) -> None:
        stacked = self._fill(stack)
        ready = stack.ready(self.graph, self.sums)
        grad = stacked.grad or self.gates_trained
        slot = stacked.numbers // len(stack.slots)
        shared = Buffer(Size(len(ready) * slot * stacked.item))
        after = Value(stacked.buffer, stacked.numbers, stacked.item, grad)
        copied = kept_apart(self.graph, ready) if self.trained and stacked.grad else (False,) * len(ready)
        buffers = [Buffer(Size(slot * stacked.item)) if own else shared for own in copied]
        sums = tuple(Value(buffer, slot, stacked.item, grad) for buffer in buffers)
        keeps = (stacked.buffer,) if grad else ()
        self.calls.append(Call((stacked,), (after, *sums), grad, keeps=keeps, back_work=shared.size, passes=True))
        self.filled[id(stack)] = after
        self.sums |= {node.id: value for node, value in zip(ready, sums, strict=True)}

    def _fill(self, stack: Stack) -> Value:
        """Push what has been computed and is not in the stack yet; the stack as it is then."""
        new = stack.fill(self.values)
        below = self.filled.get(id(stack))
        if not new:
            assert below is not None
            return below
        values = tuple(self.values[i] for i in new)
        first = values[0] if below is None else below
        slot = values[0].numbers
        buffer = Buffer(Size(len(stack.sources) * slot * first.item)) if below is None else below.buffer
        grad = any(value.grad for value in (*values, first))
        value = Value(buffer, len(stack.slots) * slot, first.item, grad)
        relu = any(leaves_relu(self.graph, self.graph.node(i), self.stack_of) for i in new)
        reads = values if below is None else (below, *values)
        self.calls.append(Call(reads, (value,), grad, keeps=(buffer,) if relu and grad else (), passes=True))
        self.filled[id(stack)] = value
        return value

    def _projected(self, node: Node) -> Value:
        """A gated projection: a product with the stack, then norm and activation."""
        rows = walk(node.op, node.attrs, input_shapes(self.graph, node))
        _, conv, attrs, shapes, out = rows[1]  # after the step that joins
        tensors = {n: math.prod(s) for n, s in conv.params(attrs, shapes, out).items()}
        values = tuple(self.values[edge.src] for edge in self.graph.inputs(node.id))
        grad = self.trained or self.gates_trained or any(value.grad for value in values)
        stack = self.stack_of.get(node.id)
        if stack is not None:
            value = self._product(self._fill(stack), values, math.prod(out), tensors, grad)
        elif self.plan.on_cpu and not self.plan.half:
            value = self._chained(values, math.prod(out), tensors, grad)
        else:
            value = self._joined(values, math.prod(shapes[0]), math.prod(out), tensors, grad)
        return self._chain(rows[2:], (value,), before=conv.name)

    def _product(
        self, stacked: Value, values: tuple[Value, ...], numbers: int, tensors: dict[str, int], grad: bool
    ) -> Value:
        after = Value(stacked.buffer, stacked.numbers, stacked.item, grad)
        out = _fresh(numbers, stacked.item, grad)
        weight = Buffer(Size(fixed=4 * tensors["weight"]))  # times the gates
        copied = not self.plan.on_cpu or stacked.item < 4
        work = Size(sum(value.numbers for value in values) * stacked.item) if copied else Size()
        weights = 4 * sum(tensors.values()) if self.trained else 0
        keeps = (stacked.buffer, weight) if grad else ()
        call = Call(
            (stacked,), (after, out), grad, makes=(weight,), keeps=keeps, work=work, weights=weights, passes=True
        )
        self.calls.append(call)
        return out

    def _chained(self, values: tuple[Value, ...], numbers: int, tensors: dict[str, int], grad: bool) -> Value:
        """Values that lie apart are projected one by one into the same memory."""
        out = _fresh(numbers, values[0].item, grad)
        weight = Buffer(Size(fixed=4 * tensors["weight"]))  # times the gates
        keeps = (weight, *(value.buffer for value in values)) if grad else ()
        weights = 4 * sum(tensors.values()) if self.trained else 0
        self.calls.append(Call(values, (out,), grad, makes=(weight,), keeps=keeps, weights=weights))
        return out

    def _joined(
        self, values: tuple[Value, ...], inputs: int, numbers: int, tensors: dict[str, int], grad: bool
    ) -> Value:
        """Values are joined; the convolution keeps what was joined."""
        joined = _fresh(inputs, max(value.item for value in values), any(value.grad for value in values))
        self.calls.append(Call(values, (joined,), joined.grad, passes=True))
        out = _fresh(numbers, 2 if self.plan.half else joined.item, grad)
        weights = sum(tensors.values()) if self.trained else 0
        self.calls.append(_call(Row(keeps_in=True), (joined,), out, tensors["weight"], 4 * weights, (), self.plan.half))
        return out


def _fresh(numbers: int, item: int, grad: bool) -> Value:
    return Value(Buffer(Size(numbers * item)), numbers, item, grad)


def _call(
    row: Row, reads: tuple[Value, ...], value: Value, tensors: int, weights: int, held: tuple[Value, ...], half: bool
) -> Call:
    """The call that a row describes; `tensors` and `weights`: numbers of all weights, bytes of trained ones."""
    makes, keeps = [], [value.buffer] if row.keeps_out else []
    extra = row.kept_bytes * value.numbers + row.kept_values * value.size.image
    if extra:
        makes.append(Buffer(Size(extra)))
    if half:
        makes.append(Buffer(Size(fixed=2 * tensors)))  # weights in bf16
    for read in reads:
        cast = half and read.item > 2
        if cast:
            makes.append(Buffer(Size(2 * read.numbers)))
        elif row.keeps_in:
            keeps.append(read.buffer)
    inputs = sum(read.size.image for read in reads)
    return Call(
        reads,
        (value,),
        value.grad,
        holds=held,
        makes=tuple(makes),
        keeps=(*keeps, *makes) if value.grad else (),
        work=Size(row.work_bytes * value.numbers),
        back_work=Size(row.back_values * inputs + row.back_bytes * value.numbers),
        weights=weights,
        passes=row.passes_grad,
    )
