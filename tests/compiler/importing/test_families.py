"""Every family of torchvision's convolutional classifiers computes the same as a spec, at several batch sizes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.imports import settled
from compiler.analysis.costs import total_cost
from compiler.analysis.guards import best_channels
from compiler.errors import GraphspecError
from compiler.importing.equal import require_equal
from compiler.importing.exported import read_module
from compiler.importing.fuse import fused
from compiler.ir.graph import Model
from compiler.lowering.torch.fx import load_gates, load_weights, lower
from compiler.passes.prune_zero_edges import PruneZeroEdges
from tests.compiler.importing.models import classifier, relative, spec_of

SIDE = {"inception_v3": 96, "alexnet": 80}
QUICK = ("resnet18", "squeezenet1_1", "mobilenet_v3_small", "shufflenet_v2_x0_5")
SLOW = (
    "alexnet", "vgg11_bn", "resnext50_32x4d", "wide_resnet50_2", "densenet121", "googlenet", "inception_v3",
    "mobilenet_v2", "mnasnet0_5", "efficientnet_b0", "efficientnet_v2_s", "regnet_x_400mf", "regnet_y_400mf",
    "convnext_tiny",
)  # fmt: skip
FAMILIES = (*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_classifier_is_the_same_as_a_spec(name: str, tmp_path: Path) -> None:
    side = SIDE.get(name, 64)
    module = settled(classifier(name), noise(4, side))
    network = fused(read_module(module, torch.zeros(2, 3, side, side)))
    _, _, found = spec_of(network, tmp_path)
    assert require_equal(module, found, (3, side, side)).difference <= 1e-5
    images = noise(5, side, seed=1).double()
    assert relative(found.double()(images), module.double()(images)) <= 1e-9


def noise(count: int, side: int, seed: int = 0) -> Tensor:
    """Images `(count, 3, side, side)`."""
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def computed(model: Model, images: Tensor) -> Tensor:
    """What the network of a model gives, in float64."""
    module = lower(model.graph).double()
    load_weights(module, model.weights)
    load_gates(module, model.graph, model.gates)
    with torch.no_grad():
        found: Tensor = module.eval()(images)
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_without_closed_channels_a_classifier_is_the_one_with_gates_at_zero(name: str, tmp_path: Path) -> None:
    side = SIDE.get(name, 64)
    network = fused(read_module(settled(classifier(name), noise(4, side)), torch.zeros(2, 3, side, side)))
    written, graph, _ = spec_of(network, tmp_path, {"gates": {"channels": "auto"}})
    rng = random.Random(0)
    gates = {gate: 0.0 if rng.random() < 0.5 else rng.uniform(0.9, 1.4) for gate in graph.gates()}  # 1 on average
    opened = best_channels(graph, [gate for gate, value in gates.items() if value == 0], lambda gate: 1.0)
    gates |= dict.fromkeys(opened.values(), 1.0)  # no value loses all of its channels
    model = Model(graph, gates, {key: value.astype("float64") for key, value in written.weights.items()})
    pruned = PruneZeroEdges().run(model)
    assert total_cost(pruned.graph).flops < 0.6 * total_cost(graph).flops
    images = noise(2, side, seed=1).double()
    found, expected = (computed(each, images) for each in (pruned, model))
    assert relative(found, expected) <= 1e-9


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), [("swin_t", "roll"), ("vit_b_32", "scaled_dot_product_attention")])
def test_what_cannot_be_taken_apart_is_listed_at_once(name: str, kind: str) -> None:
    side = 224 if name == "vit_b_32" else 64
    with pytest.raises(GraphspecError) as caught:
        read_module(classifier(name), torch.zeros(2, 3, side, side))
    lines = str(caught.value).splitlines()
    assert "of the multiply-adds" in lines[0]
    assert sum(kind in line for line in lines) >= 1
    assert sum("torchvision/models" in line for line in lines) >= 5
