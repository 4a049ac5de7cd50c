"""Random networks with gates on channels: sums, joins, depthwise, groups, shuffles, slices, products, flatten."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compiler.elaborate.builder import load
from compiler.ir.graph import Graph

KINDS = ("conv", "conv", "depthwise", "grouped", "sum", "sum", "join", "norm", "shuffle", "slice", "excite", "pool")
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

    def grow(self, kind: str) -> None:
        rng, a = self.rng, self.source()
        channels, finish = self.channels[a], rng.choice(FINISHES)
        match kind:
            case "conv":
                out = rng.choice((2, 4, 6, 8))
                self.add(f"conv, kernel: {rng.choice((1, 3))}, channels: {out}, {finish}{self.gate()}", [a], out)
            case "depthwise":
                bias = rng.choice((", bias: true", ""))
                self.add(f"depthwise_conv, kernel: 3, {finish}{bias}", [a], channels)
            case "grouped" if channels % 2 == 0:
                gate = self.gate(rng.choice(("channels", "groups")))
                self.add(f"conv, kernel: 3, groups: 2, channels: {2 * channels}, {finish}{gate}", [a], 2 * channels)
            case "sum":
                others = [n for n, c in self.channels.items() if c == channels and n != a]
                if others:
                    b, end = rng.choice(others), rng.choice(("", ", act: relu", ", norm: batch, act: relu"))
                    self.add(f"add{end}", [a, b], channels)
            case "join":
                b = self.source()
                if a != b:
                    self.add(rng.choice(("concat", "concat, norm: batch, act: relu")), [a, b], channels + self.channels[b])
            case "norm":
                self.add(rng.choice(("batch_norm, act: relu", "relu", "prelu", "instance_norm")), [a], channels)
            case "shuffle" if channels % 2 == 0:
                self.add("channel_shuffle, groups: 2", [a], channels)
            case "slice" if channels > 2:
                self.add(f"slice, start: 1, stop: {channels - 1}", [a], channels - 2)
            case "excite":
                pool = self.add("global_avg_pool", [a], channels)
                inner = self.add(f"linear, channels: 3, act: relu{self.gate()}", [pool], 3)
                weight = self.add(f"linear, channels: {channels}, act: sigmoid", [inner], channels)
                for name in (pool, inner, weight):
                    del self.channels[name]
                order = [a, weight] if rng.random() < 0.5 else [weight, a]
                self.add("multiply", order, channels)
            case "pool":
                self.add(f"{rng.choice(('max_pool', 'avg_pool'))}, kernel: 3", [a], channels)


def spec_of(seed: int, *, declared: float = 0.8, share: str = "none") -> str:
    """The spec of a random network whose convolutions have gates with this probability (0: `channels: auto`)."""
    rng = random.Random(seed)
    body = _Body(rng, declared)
    for _ in range(rng.randint(3, 9)):
        body.grow(rng.choice(KINDS))
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


Make = Callable[[int], Graph]
