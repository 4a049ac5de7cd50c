"""CUDA tensors on a machine without a GPU: torch's fake tensors, which have a device, a type and a shape, no numbers.

Every operator that mixes devices raises as it would on a GPU. What torch refuses without a GPU is done here: moving a
module, and autograd's engine.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.function import BackwardCFunction

CUDA = torch.device("cuda:0")


@contextmanager
def fake_cuda(patch: pytest.MonkeyPatch) -> Iterator[FakeTensorMode]:
    """Within, tensors are fake and `backward` works for those on CUDA."""
    patch.setattr(Tensor, "backward", _backward)
    with FakeTensorMode() as mode:
        yield mode


def to_cuda(module: nn.Module, mode: FakeTensorMode) -> None:
    """Give a real module, in place, fake CUDA tensors for its own, which `Module.to` cannot move again."""
    mode.allow_non_fake_inputs = True
    nn.Module.to(module, CUDA)
    mode.allow_non_fake_inputs = False


@torch.no_grad()
def _backward(loss: Tensor) -> None:
    """Gradients of a scalar into the leaves: nodes later made come first, as in autograd's engine."""
    assert loss.grad_fn is not None
    waiting: dict[Any, dict[int, Tensor]] = {loss.grad_fn: {0: torch.ones_like(loss)}}
    queue = [(-loss.grad_fn._sequence_nr(), 0, loss.grad_fn)]  # type: ignore[attr-defined]
    count = 0
    while queue:
        _, _, node = heapq.heappop(queue)
        given = waiting.pop(node)
        if not node.next_functions:  # the node of a leaf
            node.variable.grad = given[0]
            continue
        for (after, slot), grad in _grads(node, given):
            if after not in waiting:
                waiting[after], count = {}, count + 1
                heapq.heappush(queue, (-after._sequence_nr(), count, after))
            expected, sums = after._input_metadata[slot], waiting[after]
            assert grad.device == expected.device, f"{node.name()} gives {grad.device}, {after.name()} is on CUDA"
            grad = grad.sum_to_size(expected.shape).to(expected.dtype)
            sums[slot] = sums[slot] + grad if slot in sums else grad


def _grads(node: Any, given: dict[int, Tensor]) -> Iterator[tuple[tuple[Any, int], Tensor]]:
    """What a node gives for its inputs, with the nodes that these come from."""
    grads = [given.get(index) for index in range(len(node._input_metadata))]
    if isinstance(node, BackwardCFunction):  # answers for all arguments; only tensors have a node
        found = node.apply(*grads)
        found = [grad for grad, needed in zip(found, node.needs_input_grad, strict=True) if needed]
        nodes = [after for after in node.next_functions if after[0] is not None]
    else:
        found, nodes = node(*grads), node.next_functions
        found = found if isinstance(found, tuple) else (found,)
    for after, grad in zip(nodes, found, strict=True):
        if after[0] is not None and grad is not None:
            yield after, grad
