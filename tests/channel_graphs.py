"""Random networks with gates on channels: sums, joins, groups, shuffles, slices, products, squeeze-excite, flatten."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compiler.elaborate.builder import load
from compiler.ir.graph import Graph

FINISHES = ("norm: none, act: none", "norm: batch, act: relu", "norm: none, act: sigmoid", "norm: batch, act: silu")


class _Body:
    """A block's nodes as YAML, each with its channels."""

    def __init__(self, rng: random.Random, declared: float) -> None:
        self.rng, self.declared = rng, declared
        self.channels = {"in": 4}
        self.lines: list[str] = []
        self.unread: dict[str, None] = {}

    def source(self, channels: int | None = None) -> str:
        fits = [n for n, c in self.channels.items() if channels in (None, c)]
        return self.rng.choice(fits)

    def add(self, op: str, sources: list[str], channels: int, name: str = "") -> str:
        name = name or f"n{len(self.lines)}"
        self.lines.append(f"      {name}: {{op: {op}, from: [{', '.join(sources)}]}}")
        self.unread = {n: None for n in self.unread if n not in sources} | {name: None}
        self.channels[name] = channels
        return name

    def gate(self, kind: str = "channels") -> str:
        return f", gate: {kind}" if self.rng.random() < self.declared else ""

    def grow(self) -> None:
        """One more op, over random values that are there."""
        self.rng.choice(KINDS)(self, self.source())

    def finish(self) -> str:
        return self.rng.choice(FINISHES)

    def conv(self, a: str) -> None:
        out = self.rng.choice((2, 4, 6, 8))
        kernel = self.rng.choice((1, 3))
        self.add(f"conv, kernel: {kernel}, channels: {out}, {self.finish()}{self.gate()}", [a], out)

    def depthwise(self, a: str) -> None:
        bias = self.rng.choice((", bias: true", ""))
        self.add(f"depthwise_conv, kernel: 3, {self.finish()}{bias}", [a], self.channels[a])

    def grouped(self, a: str) -> None:
        out = 2 * self.channels[a]
        if out % 4 == 0:
            gate = self.gate(self.rng.choice(("channels", "groups")))
            self.add(f"conv, kernel: 3, groups: 2, channels: {out}, {self.finish()}{gate}", [a], out)

    def sum(self, a: str) -> None:
        others = [n for n, c in self.channels.items() if c == self.channels[a] and n != a]
        if others:
            end = self.rng.choice(("", ", act: relu", ", norm: batch, act: relu"))
            self.add(f"add{end}", [a, self.rng.choice(others)], self.channels[a])

    def join(self, a: str) -> None:
        b = self.source()
        if a != b:
            end = self.rng.choice(("", ", norm: batch, act: relu"))
            self.add(f"concat{end}", [a, b], self.channels[a] + self.channels[b])

    def norm(self, a: str) -> None:
        op = self.rng.choice(("batch_norm, act: relu", "relu", "prelu", "instance_norm", "layer_norm"))
        self.add(op, [a], self.channels[a])

    def shuffle(self, a: str) -> None:
        if self.channels[a] % 2 == 0:
            self.add("channel_shuffle, groups: 2", [a], self.channels[a])

    def slice(self, a: str) -> None:
        if self.channels[a] > 2:
            self.add(f"slice, start: 1, stop: {self.channels[a] - 1}", [a], self.channels[a] - 2)

    def excite(self, a: str) -> None:
        channels = self.channels[a]
        pool = self.add("global_avg_pool", [a], channels)
        inner = self.add(f"linear, channels: 3, act: relu{self.gate()}", [pool], 3)
        weight = self.add(f"linear, channels: {channels}, act: sigmoid", [inner], channels)
        for name in (pool, inner, weight):
            del self.channels[name]
        self.add("multiply", self.rng.sample([a, weight], 2), channels)

    def squeeze(self, a: str) -> None:
        self.add(f"squeeze_excite, reduction: {self.rng.choice((1, 2, 4))}", [a], self.channels[a])

    def pool(self, a: str) -> None:
        self.add(f"{self.rng.choice(('max_pool', 'avg_pool'))}, kernel: 3", [a], self.channels[a])


KINDS: tuple[Callable[[_Body, str], None], ...] = (
    _Body.conv, _Body.conv, _Body.depthwise, _Body.grouped, _Body.sum, _Body.sum, _Body.join, _Body.norm,
    _Body.shuffle, _Body.slice, _Body.excite, _Body.squeeze, _Body.pool,
)  # fmt: skip


def spec_of(seed: int, *, declared: float = 0.8, share: str = "none") -> str:
    """The spec of a random network whose convolutions have gates with this probability (0: `channels: auto`)."""
    rng = random.Random(seed)
    body = _Body(rng, declared)
    for _ in range(rng.randint(3, 9)):
        body.grow()
    ends = [n for n in body.unread if n in body.channels] or ["in"]
    body.add(f"project, channels: 4, norm: batch, act: relu{body.gate()}", ends, 4, "out")
    head = rng.choice(("flatten", "global_avg_pool"))
    auto = "" if declared else ", channels: auto"
    nodes = "\n".join(body.lines)
    return f"""\
graphspec: 1
name: random{seed}
input: [4, 5, 5]
classes: 3
gates: {{share: {share}{auto}}}
blocks:
  body:
    type: "[4, H, W] -> [4, H, W]"
    nodes:
{nodes}
  head:
    type: "[C, H, W] -> [classes]"
    nodes:
      vector: {{op: {head}, from: in}}
      out: {{op: linear, from: vector}}
network: [{{body: 2}}, head]
"""


def loaded(folder: Path, text: str, **more: Any) -> Graph:
    """The graph of a spec."""
    path = folder / "spec.yaml"
    path.write_text(text)
    return load(str(path), **more)[1]
