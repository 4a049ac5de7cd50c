"""Lower a graph to a torch.fx network, and move numbers between it and a `Model`.

The code of a lowered network can be printed and read (`print(module.code)`), is the same for the same graph, and
takes a batch of images `(N, C, H, W)` to logits `(N, classes)`, or to a dict of outputs by name where there are
several. `tensor_name` of its `state_dict` keys is `<node id>.<param>`, and `<scope>.gates` for the gates: one float32
vector per share scope, ordered as `graph.gate_scopes()[scope]`.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, fx, nn

from compiler.analysis.weights import GATES, fitting
from compiler.errors import GraphspecError
from compiler.ir.graph import OUTPUT, Graph, Model
from compiler.lowering.groups import recomputed_blocks
from compiler.lowering.torch.batch_parts import BatchNorm
from compiler.lowering.torch.emit import Emitter, tensor_name
from compiler.lowering.torch.fused import FusedEmitter

Lowering = Literal["fused", "reference"]


def lower(
    graph: Graph,
    *,
    lowering: Lowering = "fused",
    gate_init: float = 1.0,
    recompute: bool = False,
    apart: bool = False,
) -> fx.GraphModule:
    """The network of a typed graph, all gates at `gate_init`; weights as `initialise(module, 0)` sets them.

    `fused` sums gated inputs together and folds output gates into weights, `reference` multiplies and adds edge by
    edge. With `recompute`, the inner activations of all blocks but the last one are computed again in the backward pass
    instead of kept. These blocks and, with `apart`, all that have a single exit are each a `GraphModule` of their own,
    called `<block id>`.
    """
    _check(graph)
    vectors = {
        scope: nn.Parameter(torch.full((len(gates),), gate_init)) for scope, gates in graph.gate_scopes().items()
    }
    emitter = (FusedEmitter if lowering == "fused" else Emitter)(graph, vectors, graph.nodes())
    emitter.emit_network(recomputed_blocks(graph) if recompute else (), apart)
    emitter.code.lint()
    module = fx.GraphModule(emitter.named, emitter.code, class_name=_class_name(graph.name))
    initialise(module, 0)
    return module


def _class_name(name: str) -> str:
    return "".join(word.capitalize() for word in re.findall(r"[^\W_]+", name)) or "Network"


def _check(graph: Graph) -> None:
    for scope in graph.gate_scopes():
        if f"{scope}{GATES}" in graph:
            raise GraphspecError(
                f"the node {scope + GATES!r} has the name of the gate vector of {scope!r}\n"
                f"  try: call the node otherwise"
            )


def lower_model(model: Model) -> fx.GraphModule:
    """The network of a model with its weights and gates; GraphspecError if they do not fit."""
    module = lower(model.graph)
    load_weights(module, model.weights)
    load_gates(module, model.graph, model.gates)
    return module


def outputs_by_name(found: Tensor | dict[str, Tensor]) -> dict[str, Tensor]:
    """What a lowered network gave, by the names of its outputs, the main one first."""
    return found if isinstance(found, dict) else {OUTPUT: found}


def gate_parameters(module: nn.Module, graph: Graph) -> dict[str, nn.Parameter]:
    """The gate vector of every share scope."""
    return {scope: module.get_parameter(scope + GATES) for scope in graph.gate_scopes()}


def gate_values(module: nn.Module, graph: Graph) -> dict[str, float]:
    """The value of every gate."""
    vectors = gate_parameters(module, graph)
    return {
        gate: value
        for scope, gates in graph.gate_scopes().items()
        for gate, value in zip(gates, vectors[scope].tolist(), strict=True)
    }


def load_gates(module: nn.Module, graph: Graph, values: Mapping[str, float]) -> None:
    """Set every gate; KeyError if one is missing."""
    scopes = graph.gate_scopes()
    with torch.no_grad():
        for scope, vector in gate_parameters(module, graph).items():
            vector.copy_(torch.tensor([values[gate] for gate in scopes[scope]], dtype=torch.float64))


def _weights(module: nn.Module) -> dict[str, Tensor]:
    return {tensor_name(n): tensor for n, tensor in module.state_dict().items() if not n.endswith(GATES)}


def weights_of(module: nn.Module) -> dict[str, np.ndarray[Any, Any]]:
    """Copies of all parameters and buffers but the gates, by `<node id>.<param>`."""
    return {name: tensor.cpu().numpy().copy(order="C") for name, tensor in _weights(module).items()}


def load_weights(module: nn.Module, weights: Mapping[str, Any]) -> None:
    """Set all parameters and buffers but the gates from arrays or tensors; weights of other nodes are left aside.

    GraphspecError if one is missing or has another shape.
    """
    own = _weights(module)
    for name, value in fitting(weights, {name: tuple(tensor.shape) for name, tensor in own.items()}).items():
        own[name].copy_(torch.as_tensor(value))


def freeze_norm_scales(module: nn.Module) -> None:
    """Keep the scale of every batch norm as it is (it could undo a gate): 1, or what was trained; biases stay free."""
    for part in module.modules():
        if isinstance(part, BatchNorm):
            part.weight.requires_grad_(False)


def initialise(module: nn.Module, seed: int) -> None:
    """Set every parameter but the gates to its starting value.

    Convolutions: Gaussian of variance 2 / fan-out (He); matrices: Gaussian of deviation 0.01; vectors: 0 if their name
    ends in `bias`, 1/4 in `slope` (as torch), else 1. A parameter's numbers follow from the seed and its name, so that
    the order of nodes does not matter and a smaller graph starts from the same numbers.
    """
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if not name.endswith(GATES):
                parameter.copy_(_starting_value(tensor_name(name), parameter.shape, seed))


VECTORS = {"bias": 0.0, "slope": 0.25}
"""Starting values of vectors by the end of their names; 1 for all others."""


def _starting_value(name: str, shape: torch.Size, seed: int) -> Tensor:
    if len(shape) < 2:
        return torch.full(shape, next((value for end, value in VECTORS.items() if name.endswith(end)), 1.0))
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    deviation = 0.01 if len(shape) == 2 else math.sqrt(2.0 / (shape[0] * math.prod(shape[2:])))
    return torch.randn(shape, generator=generator) * deviation
