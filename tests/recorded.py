"""CUDA graphs on the CPU: what a step does is recorded operator by operator and done again from the same tensors.

As with CUDA's graphs, numbers that Python handed over stay those of the recording, and reading one while recording is
an error. Unlike there, recording does the step, so the first replay does nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Run = Callable[[], Tensor]


class _Recording(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it unannotated
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("a number is read while recording")
        found = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, found))
        return found

    @torch.no_grad()
    def again(self) -> None:
        for func, args, kwargs, found in self.calls:
            for place, value in zip(tree_leaves(found), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(place, Tensor) and place.data_ptr() != value.data_ptr():
                    place.detach().copy_(value)


class Recorder:
    """Stands for `runtime.training.captured.CudaGraphs`."""

    def __init__(self, fails: str = "") -> None:
        self.fails, self.captures, self.replays, self.warmed = fails, 0, 0, 0

    def warm(self, run: Run) -> Tensor:
        self.warmed += 1
        return run()

    def captured(self, run: Run) -> Run:
        self.captures += 1
        if self.fails:
            raise RuntimeError(self.fails)
        with _Recording() as recording:
            found = run()
        done = False

        def replay() -> Tensor:
            nonlocal done
            if done:
                recording.again()
            done, self.replays = True, self.replays + 1
            return found.detach().clone()

        return replay
