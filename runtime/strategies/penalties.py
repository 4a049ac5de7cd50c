"""How much each gate is penalised: its sparsity weight gamma, from costs and from which gates are closed."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import compress

import torch
from torch.nn import Parameter

from compiler import ops
from compiler.analysis.costs import node_costs
from compiler.analysis.coupling import couple
from compiler.ir.graph import INPUT, OUTPUT, Attrs, Edge, Graph, Node, block_of
from compiler.language.config import GateConfig
from compiler.ops import Scale
from compiler.passes.prune_zero_edges import prune, surviving_edges
from runtime.strategies.apgnag import APGNAG
from runtime.training.captured import Early

MIN_FACTOR = 0.04  # of gamma in the modes flops and memory_access: the least that the method's settings lead to
LATENCY_FACTORS = (0.5, 1.0)  # of gamma for the fastest and for the slowest op


@dataclass(frozen=True, slots=True)
class OpCall:
    """An op, its attributes and the shapes it reads: what a cost or a measured time belongs to."""

    op: str
    attrs: Attrs
    inputs: tuple[ops.Shape, ...]

    def __str__(self) -> str:
        attrs = "".join(f" {key}={value}" for key, value in self.attrs)
        return f"{self.op}{attrs} on {', '.join('x'.join(map(str, shape)) for shape in self.inputs)}"

    @property
    def mac_bytes(self) -> int:
        """Memory access cost in bytes of this op on one summed value; joining a single value moves nothing."""
        moved = ops.cost(self.op, self.attrs, self.inputs, 1).mac_bytes
        steps = ops.parts(self.op, self.attrs)
        if steps and ops.op(steps[0].op).reads is ops.Reads.APART:
            moved -= ops.cost(steps[0].op, steps[0].attrs, self.inputs, 1).mac_bytes
        return moved


def priced_call(graph: Graph, edge: Edge) -> OpCall:
    """The work that a gate on this edge decides about.

    That is the op the edge leads into (of one that reads its inputs apart, the part that this input causes); before an
    op that only brings values together (`add`, `concat`), the op the edge comes from, so that the candidates of a
    choice are weighed by their own cost. Behind the image there is no op, and the join's own work counts.
    """
    node = graph.node(edge.dst)
    if ops.only_merges(node.op, node.attrs) and graph.inputs(edge.src):
        node = graph.node(edge.src)
        return OpCall(node.op, node.attrs, ops.input_shapes(graph, node))
    return OpCall(node.op, node.attrs, (graph.node(edge.src).shape,))


class Penalty:
    """The sparsity weight of every gate of one graph, as a function of the gates that are closed.

    `full` is the completely connected graph, from which FLOPs_block comes when `graph` has been pruned already;
    `latency` maps the `priced_call` of every gated edge, here and in what closed gates leave, to seconds; adaptive
    latency alone needs it.
    Adaptive modes scale gamma per edge; a gate that several edges share gets the mean over its edges.

    - flops (equation 9): the multiply-adds of the block that the edge leads into, FLOPs_t / FLOPs_block: what is alive
      now over what the completely connected block has. Nodes outside of all blocks count as one block; a block without
      multiply-adds counts 1.
    - memory_access (equation 10): MAC_(m,n) / MAC_max, where MAC is the memory access cost of the op, and MAC_max the
      largest of the living gated edges of the network.
    - latency: 0.5 for the fastest to 1 for the slowest of the living gated edges of the network.

    Factors lie in [MIN_FACTOR, 1], so that no block goes unpenalised.

    With `exempt_last_input` the last living input of an op gets gamma 0 where all that comes behind undoes its scale:
    its own norm, or those of ops that read it and nothing else (`compiler.ops.scale_after`). A norm undoes the scale
    of all inputs together, so a lone input's gate gets no gradient from the loss: gamma alone would close it after
    (1 - momentum) / (lr * gamma) steps, useful or not. The gates on the op's outputs decide instead; once they close,
    its inputs live no longer and are penalised again. A shared gate is exempt when that holds for all its living edges.
    """

    def __init__(
        self, graph: Graph, full: Graph, config: GateConfig, latency: Mapping[OpCall, float] | None = None
    ) -> None:
        if config.adaptive == "latency" and latency is None:
            raise ValueError("adaptive latency needs measured times")
        self._graph, self._config = graph, config
        self._edges = graph.edges()
        self._gated: list[Edge] = []
        self._sharing: dict[str, list[int]] = {}  # places in `_gated` by gate
        for edge in self._edges:
            if edge.gate is not None:
                self._sharing.setdefault(edge.gate, []).append(len(self._gated))
                self._gated.append(edge)
        self.scopes = graph.gate_scopes()
        self._computed = lru_cache(maxsize=1)(self._compute)
        self._block_ids = frozenset(block.id for block in full.blocks)
        self._blocks = [block_of(edge.dst, self._block_ids) for edge in self._gated]
        self._full_flops = self._block_flops(full, full.edges()) if config.adaptive == "flops" else {}
        apart = (node for node in graph.nodes() if ops.op(node.op).reads is ops.Reads.APART)
        narrows = not all(ops.joins_into_weight(node.op, node.attrs) for node in apart)  # a closed gate takes channels
        self._narrows = narrows and config.adaptive != "none"
        priced = self._gated if config.adaptive in ("memory_access", "latency") else []
        self._price = latency.__getitem__ if latency is not None else lambda call: float(call.mac_bytes)
        self._prices = [self._price(priced_call(graph, edge)) for edge in priced]
        self._costs = self._node_prices() if graph.channel_gates else {}

    def _node_prices(self) -> dict[str, float]:
        """What each node costs, as the adaptive mode counts."""
        if self._config.adaptive == "latency":
            computed = (node for node in self._graph.nodes() if node.op not in (INPUT, OUTPUT))
            return {node.id: self._price(call_of(self._graph, node)) for node in computed}
        measure = "flops" if self._config.adaptive == "flops" else "mac_bytes"
        return {node_id: float(getattr(cost, measure)) for node_id, cost in node_costs(self._graph).items()}

    def gammas(self, closed: Collection[str]) -> Mapping[str, float]:
        """gamma by gate id when the gates in `closed` are zero; a call with the same gates again costs nothing."""
        return self._computed(frozenset(closed))

    def _compute(self, closed: frozenset[str]) -> dict[str, float]:
        living = surviving_edges(self._graph, closed)
        alive = [edge in living for edge in self._gated]
        left = prune(self._graph, closed) if self._narrows and living else self._graph
        factors = self._factors(left, living, alive)
        exempt = self._exempt(living, alive) if self._config.exempt_last_input else frozenset()
        gamma = 1.0 if self._config.gamma == "auto" else self._config.gamma
        edges = {
            gate: 0.0 if gate in exempt else gamma * sum(factors[n] for n in numbers) / len(numbers)
            for gate, numbers in self._sharing.items()
        }
        return edges | {gate: gamma * factor for gate, factor in self._channel_factors(closed).items()}

    def _channel_factors(self, closed: frozenset[str]) -> dict[str, float]:
        """What gamma is multiplied by for the gates of channels: what closing one would save of what is alive now."""
        if not self._graph.channel_gates:
            return {}
        prices = channel_prices(self._graph, self._costs, closed)
        if self._config.adaptive == "none":
            return dict.fromkeys(prices, 1.0)
        lasting = [price for gate, price in prices.items() if gate not in closed] or list(prices.values())
        if self._config.adaptive == "latency":
            return dict(zip(prices, _latency_factors(list(prices.values()), lasting), strict=True))
        most = max(lasting, default=0.0) or 1.0
        return {gate: _within(price / most, MIN_FACTOR, 1.0) for gate, price in prices.items()}

    def _factors(self, left: Graph, living: Collection[Edge], alive: list[bool]) -> list[float]:
        """What gamma is multiplied by for every gated edge: `alive` says which live, `left` is what they leave."""
        prices = self._prices
        if prices and left is not self._graph:
            priced = zip(self._gated, prices, alive, strict=True)
            prices = [self._price(priced_call(left, edge)) if lives else price for edge, price, lives in priced]
        lasting = list(compress(prices, alive)) or prices
        match self._config.adaptive:
            case "none":
                return [1.0] * len(self._gated)
            case "flops":
                now = self._block_flops(left, (e for e in self._edges if e in living))
                share = {b: _within(now[b] / f, MIN_FACTOR, 1.0) if f else 1.0 for b, f in self._full_flops.items()}
                return [share[block] for block in self._blocks]
            case "memory_access":
                most = max(lasting, default=0.0) or 1.0
                return [_within(price / most, MIN_FACTOR, 1.0) for price in prices]
            case "latency":
                return _latency_factors(prices, lasting)

    def _block_flops(self, graph: Graph, living: Iterable[Edge]) -> dict[str, int]:
        """Multiply-adds by block id of the nodes that living edges lead into, each reading its living inputs only."""
        inputs: dict[str, list[ops.Shape]] = {}
        for edge in living:
            inputs.setdefault(edge.dst, []).append(graph.node(edge.src).shape)
        flops: Counter[str] = Counter()
        for node_id, shapes in inputs.items():
            node: Node = graph.node(node_id)
            reads = shapes[:1] if ops.op(node.op).reads is ops.Reads.SUM else shapes
            flops[block_of(node_id, self._block_ids)] += ops.cost(node.op, node.attrs, tuple(reads), len(shapes)).flops
        return flops

    def _exempt(self, living: Collection[Edge], alive: list[bool]) -> frozenset[str]:
        """Gates whose living edges are each the last living input of an op, and norms undo their scale."""
        count, readers = Counter(edge.dst for edge in living), defaultdict(list)
        for edge in living:
            readers[edge.src].append(self._graph.node(edge.dst))
        undone: set[tuple[str, Scale]] = set()  # values that have a factor, which all that read them undo

        def undoes(node: Node, scale: Scale = Scale.KEPT) -> bool:
            after = ops.scale_after(node.op, node.attrs, scale)
            return count[node.id] == 1 and (after is Scale.GONE or (node.id, after) in undone)

        for i in (node.id for node in reversed(self._graph.nodes()) if node.id in readers):
            undone |= {(i, s) for s in (Scale.KEPT, Scale.SHIFTED) if all(undoes(each, s) for each in readers[i])}
        exempt = set()
        for gate, numbers in self._sharing.items():
            fed = [self._graph.node(self._gated[n].dst) for n in numbers if alive[n]]
            if fed and all(map(undoes, fed)):
                exempt.add(gate)
        return frozenset(exempt)


def _within(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def _latency_factors(prices: list[float], living: list[float]) -> list[float]:
    """0.5 at the lowest of the living prices, 1 at the highest; 1 for all if they are equal."""
    low, high = LATENCY_FACTORS
    fastest, slowest = min(living, default=0.0), max(living, default=0.0)
    if fastest == slowest:
        return [high] * len(prices)
    scale = (high - low) / (slowest - fastest)
    return [_within(low + scale * (price - fastest), low, high) for price in prices]


def channel_prices(graph: Graph, costs: Mapping[str, float], closed: Collection[str]) -> dict[str, float]:
    """What closing each gate of channels would save, of costs by node; `closed` ones are taken to be gone.

    A node's cost is in proportion to the channels it gives and, where a weight reads them, to those it reads.
    """
    coupling = couple(graph)
    gone, saved = coupling.closed_by(closed), defaultdict[int, float](float)
    for node_id, cost in costs.items():
        read, given = coupling.steps[node_id][0], coupling.of(node_id)
        sides = [given] if read == given else [read, given]
        left = [sum(found not in gone for found in side) / len(side) for side in sides]
        for k, side in enumerate(sides):
            each = cost / len(side) * math.prod(left[:k] + left[k + 1 :])
            for found in side:
                saved[found] += each
    return {gate: saved[found] for found, gates in coupling.gates.items() for gate in gates}


def call_of(graph: Graph, node: Node) -> OpCall:
    """The work of a node where it stands."""
    return OpCall(node.op, node.attrs, ops.input_shapes(graph, node))


def zero_gates(optimizer: APGNAG, vectors: Mapping[str, Parameter]) -> Early:
    """Which gates (`vectors` as in `Graph.gate_scopes`) are zero now, for `set_gammas`."""
    found = [optimizer.is_zero(vector) for vector in vectors.values()]
    return Early(torch.cat(found) if found else torch.empty(0))


def set_gammas(
    penalty: Penalty,
    optimizer: APGNAG,
    vectors: Mapping[str, Parameter],
    times: float = 1.0,
    zero: Early | None = None,
) -> None:
    """Penalise the gates as their values ask for, so many times as hard: before every gate step.

    `zero`: what `zero_gates` has given since they changed. Asked for before the weight steps, it is there by now, and
    the device has those to do meanwhile.
    """
    if not penalty.scopes:
        return
    found = (zero or zero_gates(optimizer, vectors)).read()
    gates = [gate for scope in penalty.scopes.values() for gate in scope]
    gammas = penalty.gammas(list(compress(gates, found)))
    for scope, members in penalty.scopes.items():
        vector = vectors[scope]
        optimizer.set_gamma(vector, times * torch.tensor([gammas[g] for g in members], dtype=vector.dtype))
