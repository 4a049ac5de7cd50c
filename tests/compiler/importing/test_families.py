"""Every family of torchvision's convolutional classifiers computes the same as a spec, at several batch sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compiler.errors import GraphspecError
from compiler.importing.equal import require_equal
from compiler.importing.exported import read_module
from compiler.importing.fuse import fused
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
    module = classifier(name)
    network = fused(read_module(module, torch.zeros(2, 3, side, side)))
    _, _, found = spec_of(network, tmp_path)
    assert require_equal(module, found, (3, side, side)) <= 1e-5
    images = torch.randn(5, 3, side, side, generator=torch.Generator().manual_seed(1))
    assert relative(found(images), module(images)) <= 1e-5


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
