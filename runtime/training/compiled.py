"""torch.compile for networks in training, block by block; equal blocks share what was compiled for one.

A weight step and a gate step are compiled apart, because they need other gradients.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._dynamo.exc import TorchDynamoException

from compiler.errors import RunError


class CompiledByBlock(nn.Module):
    """`module`, whose tensors it shares, with each block that was lowered apart compiled, anew for each batch size."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__()
        parts: dict[str, Any] = {}
        for node in module.graph.nodes:
            if node.op in ("call_module", "get_attr"):
                part = attrgetter(node.target)(module)
                parts[node.target] = torch.compile(part, dynamic=False) if isinstance(part, fx.GraphModule) else part
        self.network = fx.GraphModule(parts, module.graph)

    def forward(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        """What the network gives for `x: (N, C, H, W)`; RunError if torch cannot compile a block."""
        try:
            found: Tensor | dict[str, Tensor] = self.network(x)
        except TorchDynamoException as error:
            cause: Exception = getattr(error, "inner_exception", error)  # what a backend raised
            raise RunError(
                f"torch.compile failed: {type(cause).__name__}: {str(cause).strip().partition(chr(10))[0]}\n"
                "  try: without --compile (or the setting `compile`); on a CPU it needs a C++ compiler"
            ) from error
        return found
