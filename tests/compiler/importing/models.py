"""Modules to import, with weights and statistics that are all different, and what they become."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from compiler.elaborate.builder import load
from compiler.importing.calls import Network
from compiler.importing.exported import read_module
from compiler.importing.fuse import fused
from compiler.importing.written import Written, write
from compiler.ir.graph import Graph
from compiler.lowering.torch.fx import load_weights, lower


def trained(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module with other numbers than those it starts with, so that no tensor can be taken for another."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if not tensor.is_floating_point():
                continue
            if "running_var" in name or (name.endswith("weight") and tensor.dim() == 1):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif tensor.dim() == 1:
                tensor.normal_(0, 0.1, generator=generator)
    return module.eval()


def classifier(name: str, **options: Any) -> nn.Module:
    """A classifier of torchvision, its weights drawn from a seed."""
    options |= {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        module = torchvision.models.get_model(name, weights=None, **options)
        if name.startswith(("alexnet", "vgg")):
            narrow(module.classifier)
        return trained(module)


def narrow(layers: nn.Sequential, width: int = 256) -> None:
    """Make the hidden layers narrower, in place: of 4096 channels they have nine tenths of a network's weights."""
    for place, layer in enumerate(layers):
        if isinstance(layer, nn.Linear):
            inputs, outputs = (width if size == 4096 else size for size in (layer.in_features, layer.out_features))
            layers[place] = nn.Linear(inputs, outputs)


def spec_of(
    network: Network, folder: Path, settings: dict[str, Any] | None = None, **options: Any
) -> tuple[Written, Graph, nn.Module]:
    """A network written as a spec, and what is read of that again: the graph, and its module with the weights."""
    written = write(network, "imported", settings or {}, weights="w.safetensors", **options)
    path = folder / "imported.yaml"
    path.write_text(written.text)
    graph = load(path)[1]
    module = lower(graph)
    load_weights(module, written.weights)
    return written, graph, module.eval()


def imported(module: nn.Module, example: Tensor, folder: Path) -> tuple[Written, Graph, nn.Module]:
    """A module as a spec, read again."""
    return spec_of(fused(read_module(module, example)), folder)


def relative(found: Tensor, wanted: Tensor) -> float:
    """The largest difference over the largest of the numbers wanted, which must depend on the image."""
    found, wanted = found.detach(), wanted.detach()
    assert (wanted - wanted.mean(0)).abs().max() > 1e-3 * wanted.abs().max()
    return float((found - wanted).abs().max() / wanted.abs().max())
