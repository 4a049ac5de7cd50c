"""What the spec of an imported network looks like: blocks, names, short names for ops, gates, another head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from compiler.analysis.weights import weight_shapes
from compiler.errors import GraphspecError
from compiler.importing.exported import read_module
from compiler.importing.fuse import fused
from compiler.importing.head import with_classes
from compiler.importing.written import as_name
from compiler.language.names import name_problem
from tests.compiler.importing.models import classifier, relative, spec_of, trained


def spec(module: nn.Module, folder: Path, shape: tuple[int, ...] = (3, 64, 64), **options: Any) -> dict[str, Any]:
    """The spec of a module, as data."""
    network = fused(read_module(module, torch.zeros(2, *shape)))
    return dict(yaml.safe_load(spec_of(network, folder, **options)[0].text))


def test_a_resnet_is_written_as_people_would(tmp_path: Path) -> None:
    found = spec(classifier("resnet18"), tmp_path)
    assert list(found) == ["graphspec", "name", "input", "classes", "weights", "ops", "blocks", "network"]
    assert found["ops"]["conv_3x3_relu"] == {"op": "conv", "kernel": 3, "eps": "1e-05"}
    assert found["blocks"]["layer1_0"] == {
        "type": "[64, 16, 16] -> [64, 16, 16]",
        "nodes": {
            "conv1": {"op": "conv_3x3_relu", "channels": 64, "from": "in"},
            "conv2": {"op": "conv_3x3_norm", "channels": 64, "from": "conv1"},
            "out": {"op": "add", "act": "relu", "from": ["conv2", "in"]},
        },
    }
    assert found["network"]["layer1_1"] == {"block": "layer1_0", "from": "layer1_0"}  # equal blocks are written once
    assert found["blocks"]["head"]["type"] == "[512, 2, 2] -> [classes]"
    assert list(found["network"])[:2] == ["stem", "layer1_0"]


def test_weights_are_called_as_the_nodes_are(tmp_path: Path) -> None:
    module = classifier("resnet18")
    written, graph, _ = spec_of(fused(read_module(module, torch.zeros(2, 3, 64, 64))), tmp_path)
    assert written.weights.keys() == weight_shapes(graph).keys()
    state = module.state_dict()
    for ours, theirs in {
        "layer1_0.conv1.conv.weight": "layer1.0.conv1.weight",
        "layer4_1.conv2.norm.running_var": "layer4.1.bn2.running_var",
        "layer2_0.downsample.norm.bias": "layer2.0.downsample.1.bias",
        "head.out.bias": "fc.bias",
    }.items():
        np.testing.assert_array_equal(written.weights[ours], state[theirs])


@pytest.mark.parametrize(("name", "kinds", "entries"), [("mobilenet_v3_small", 12, 14), ("shufflenet_v2_x0_5", 8, 18)])
def test_modules_are_blocks(name: str, kinds: int, entries: int, tmp_path: Path) -> None:
    found = spec(classifier(name), tmp_path)
    assert (len(found["blocks"]), len(found["network"])) == (kinds, entries)


def test_gates_stand_on_residual_branches_only(tmp_path: Path) -> None:
    network = fused(read_module(classifier("resnet18"), torch.zeros(2, 3, 64, 64)))
    gates = spec_of(network, tmp_path, gated=True)[1].gates()
    same = ("layer1_0", "layer1_1", "layer2_1", "layer3_1", "layer4_1")
    assert gates == [f"{block}/out<conv2" for block in same]


class Flat(nn.Module):
    """A residual network without modules for its blocks, and with every layer used once more."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.layers = nn.ModuleList(nn.Conv2d(6, 6, 3, padding=1) for _ in range(4))
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in [*self.layers, *self.layers]:
            x = x + layer(x).relu()
        return self.head(x.mean((2, 3)))


def test_code_without_modules_is_cut_where_one_value_goes_on(tmp_path: Path) -> None:
    module = trained(Flat())
    network = fused(read_module(module, torch.zeros(2, 3, 9, 9)))
    written, graph, found = spec_of(network, tmp_path)
    assert [block.kind for block in graph.blocks] == ["stem", *["layers_0"] * 8, "head"]
    assert sum(name.endswith("weight") for name in written.weights) == 10  # a layer used twice has two copies
    images = torch.randn(3, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    assert relative(found(images), module(images)) < 1e-6


class Tangled(nn.Module):
    """Two modules that read each other's parts, so that neither can be a block."""

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            return self.a(x), self.b(y)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = self.Pair(), self.Pair(), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.first(x, x.relu())
        c, d = self.second(b.tanh(), a)
        return self.head(c + d * a).mean((2, 3))


def test_modules_with_several_results_are_dissolved(tmp_path: Path) -> None:
    module = trained(Tangled())
    found = spec_of(fused(read_module(module, torch.zeros(2, 4, 5, 5))), tmp_path)[2]
    images = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    assert relative(found(images), module(images)) < 1e-6


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "mobilenet_v3_small"])
def test_another_head_leaves_the_rest_as_it_is(name: str, tmp_path: Path) -> None:
    network = fused(read_module(classifier(name), torch.zeros(2, 3, 64, 64)))
    before, _, _ = spec_of(network, tmp_path)
    after, graph, module = spec_of(with_classes(network, 7), tmp_path)
    assert module(torch.zeros(1, 3, 64, 64)).shape == (1, 7)
    changed = {n for n in after.weights if not np.array_equal(after.weights[n], before.weights[n])}
    (layer,) = {n.rpartition(".")[0].removesuffix(".conv").removesuffix(".linear") for n in changed}
    assert [after.weights[n].shape[0] for n in sorted(changed)] == [7, 7]
    assert graph.node(layer).shape[0] == 7


def test_a_head_that_cannot_be_replaced_is_said(tmp_path: Path) -> None:
    module = trained(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    with pytest.raises(GraphspecError, match="no last layer"):
        with_classes(fused(read_module(module, torch.zeros(2, 3, 4, 4))), 5)


@given(st.lists(st.text(min_size=1, max_size=80), min_size=1, max_size=4))
def test_every_path_gives_a_name(path: list[str]) -> None:
    assert not name_problem(as_name(tuple(path), "conv"))
