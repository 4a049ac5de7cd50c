"""Costs against independent counts: torch modules written by hand, torch's flop counter and sums over the table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from compiler.analysis.costs import block_of, cost_table, node_costs, total_cost
from compiler.elaborate.builder import load
from compiler.ir.graph import INPUT, OUTPUT, Graph, attrs_of
from compiler.ops import Cost, cost
from tests.graphs import graph_of, random_graph
from tests.tiny import write_spec

ROOT = Path(__file__).parents[3]
SHAPE = (8, 9, 7)


def counted(module: nn.Module, *shapes: tuple[int, ...]) -> tuple[int, int]:
    """Parameters and multiply-adds of a module for inputs of these shapes; torch counts 2 for a multiply-add."""
    module.eval()
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        module(*(torch.zeros(1, *shape) for shape in shapes))
    flops = counter.get_total_flops()
    assert flops % 2 == 0
    return sum(p.numel() for p in module.parameters()), flops // 2


def conv(
    cin: int, cout: int, kernel: int, stride: int = 1, dilation: int = 1, groups: int = 1, bias: bool = False
) -> Any:
    padding = dilation * (kernel - 1) // 2
    return nn.Conv2d(cin, cout, kernel, stride, padding, dilation, groups, bias=bias)


def conv_bn(cin: int, cout: int, kernel: int, stride: int = 1, **rest: Any) -> nn.Module:
    return nn.Sequential(conv(cin, cout, kernel, stride, **rest), nn.BatchNorm2d(cout), nn.ReLU())


def sep_conv(cin: int, cout: int, kernel: int, stride: int = 1) -> nn.Module:
    depthwise = conv(cin, cin, kernel, stride, groups=cin)
    return nn.Sequential(depthwise, conv(cin, cout, 1), nn.BatchNorm2d(cout), nn.ReLU())


class Joined(nn.Module):
    """Convolution over the inputs joined along the channels."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, *values: Tensor) -> Tensor:
        joined: Tensor = self.body(torch.cat(values, 1))
        return joined


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.a, self.b = conv(channels, inner, 1, bias=True), conv(inner, channels, 1, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        gate: Tensor = torch.sigmoid(self.b(torch.relu(self.a(x.mean((2, 3), keepdim=True)))))
        return x * gate


def test_projections_cost_what_torch_counts() -> None:
    shapes = ((8, 9, 7), (3, 9, 7), (5, 9, 7))
    found = cost("project", attrs_of({"channels": 6}), shapes, 3)
    assert (found.params, found.flops) == counted(Joined(conv_bn(16, 6, 1)), *shapes)
    assert cost("concat", (), shapes, 3) == Cost(0, 0, 2 * 16 * 63 * 4, 16 * 63 * 4)


class HandWritten(nn.Module):
    """The network of `tests.tiny.TINY`, written by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(1, 8, 3, 2)
        self.blocks = nn.ModuleList(self.block(c) for c in (8, 8, 16))
        self.a, self.b = conv_bn(8, 16, 1, 2), conv_bn(8, 16, 3, 2)
        self.head = nn.Linear(16, 10)

    @staticmethod
    def block(c: int) -> nn.ModuleList:
        pool = [nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.BatchNorm2d(c), nn.ReLU()) for _ in range(2)]
        return nn.ModuleList([sep_conv(c, c, 3), pool[0], sep_conv(c, c, 3), pool[1], conv_bn(4 * c, c, 1)])

    @staticmethod
    def run_block(block: Any, x: Tensor) -> Tensor:
        first = [block[0](x), block[1](x)]
        level = x + first[0] + first[1]
        mixed: Tensor = block[4](torch.cat([*first, block[2](level), block[3](level)], 1))
        return mixed + x

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.run_block(self.blocks[1], self.run_block(self.blocks[0], x))
        x = self.run_block(self.blocks[2], self.a(x) + self.b(x))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def test_a_whole_network_costs_what_torch_counts(tmp_path: Path) -> None:
    found = total_cost(load(write_spec(tmp_path))[1])
    assert (found.params, found.flops) == counted(HandWritten(), (1, 8, 8))


class Branches(nn.Module):
    """The network of the next test, written by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv_bn(4, 4, 3), nn.Sequential(conv(4, 4, 5, groups=4), nn.BatchNorm2d(4), nn.ReLU())
        self.se, self.fit = SqueezeExcite(4, 2), nn.Sequential(conv(12, 6, 1), nn.BatchNorm2d(6), nn.ReLU())
        self.head = nn.Linear(6 * 36, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        logits: Tensor = self.head(self.fit(torch.cat([a, self.se(a + b), x], 1)).flatten(1))
        return logits


def test_a_branching_network_costs_what_torch_counts() -> None:
    graph = graph_of(
        {
            "a": ("conv", {"kernel": 3}, [INPUT]),
            "b": ("depthwise_conv", {"kernel": 5}, [INPUT]),
            "se": ("squeeze_excite", {"reduction": 2}, [("a", "s/se<a"), ("b", "s/se<b")]),
            "fit": ("project", {"channels": 6}, ["a", "se", INPUT]),
            "flat": ("flatten", {}, ["fit"]),
            "logits": ("linear", {"channels": 3}, ["flat"]),
        }
    )
    found = total_cost(graph)
    assert (found.params, found.flops) == counted(Branches(), (4, 6, 6))


def test_memory_access_has_the_published_ratios() -> None:
    """Reads + writes + weights at 16x16x96: sep 3x3, sep 5x5, pool as 0.986 : 1.0 : 0.447."""
    shape = (96, 16, 16)
    finish = {"norm": "batch", "act": "relu"}
    sep3, sep5 = (cost("sep_conv", attrs_of({"kernel": k}), (shape,), 1).mac_bytes for k in (3, 5))
    pools = [cost(op, attrs_of({"kernel": 3, **finish}), (shape,), 1).mac_bytes for op in ("max_pool", "avg_pool")]
    assert sep5 == 4 * (4 * 256 * 96 + 25 * 96 + 96 * 96)
    assert [round(sep3 / sep5, 3), *(round(pool / sep5, 3) for pool in pools)] == [0.986, 0.447, 0.447]
    mix = cost("project", attrs_of({}), (shape,), 1).mac_bytes
    assert round((mix - 2 * 256 * 96 * 4) / sep5, 3) == 0.531  # the 1x1 itself; joining moves the values once more


def test_a_sum_reads_all_its_inputs() -> None:
    one, three = (cost("relu", (), (SHAPE,), reads) for reads in (1, 3))
    size = 8 * 9 * 7 * 4
    assert (one.mac_bytes, three.mac_bytes) == (2 * size, 4 * size)
    assert one.activation_bytes == three.activation_bytes == size


@settings(max_examples=40)
@given(st.integers(0, 10_000))
def test_rows_add_up(seed: int) -> None:
    check_sums(random_graph(seed))


@pytest.mark.parametrize("name", ["dso_nas_cifar10_full", "dso_nas_cifar10_share", "hand_wired", "darts_cell"])
def test_rows_of_shipped_specs_add_up(name: str) -> None:
    check_sums(load(ROOT / "specs" / f"{name}.yaml")[1])


def check_sums(graph: Graph) -> None:
    table, costs, home = cost_table(graph), node_costs(graph), block_of(graph)
    assert table.total.cost == total_cost(graph) == sum(costs.values(), Cost())
    assert table.total.nodes == len(graph) - 2
    assert table.total.edges == graph.edge_count()
    assert table.total.gates == len(graph.gates())
    outside = [costs[node.id] for node in graph.nodes() if node.id not in home]
    assert sum((row.cost for row in table.blocks), sum(outside, Cost())) == table.total.cost
    assert sum((row.cost for row in table.stages), sum(outside, Cost())) == table.total.cost
    stage_of = {block.id: block.stage for block in graph.blocks}
    for stage in table.stages:
        mine = [row for row in table.blocks if stage_of[row.name] == stage.name]
        assert sum((row.cost for row in mine), Cost()) == stage.cost
        assert sum(row.nodes for row in mine) == stage.nodes
        assert sum(row.edges for row in mine) == stage.edges
    for block in graph.blocks:
        assert all(home[node.id] is block for node in graph.nodes() if block.holds(node.id))


def test_shared_gates_count_once() -> None:
    _, graph = load(ROOT / "specs" / "dso_nas_cifar10_share.yaml")
    table = cost_table(graph)
    stage = next(row for row in table.stages if row.name == "stage0")
    assert {row.gates for row in table.blocks if row.kind == "normal"} == {124}
    assert (stage.gates, table.total.gates) == (124, 128)


def test_ends_cost_nothing() -> None:
    graph = graph_of({"a": ("relu", {}, [INPUT])})
    costs = node_costs(graph)
    assert costs[INPUT] == costs[OUTPUT] == Cost()
