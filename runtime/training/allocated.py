"""What torch allocates at most while something runs, on a GPU or on the CPU; custom ops count too."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Run = Callable[[], object]


class OnCuda:
    """Asks torch's allocator, so what cuDNN and cuBLAS take through it counts too."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.before = device, torch.cuda.memory_allocated(device)

    def peak(self, run: Run) -> int:
        """The most bytes while this runs, beyond those that were taken when the meter was made."""
        torch.cuda.reset_peak_memory_stats(self.device)
        run()
        return torch.cuda.max_memory_allocated(self.device) - self.before


class OnCpu(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it unannotated
    """Counts the memory of what operators give until it is freed; not what an operator needs only while it runs."""

    def __init__(self, there: Iterable[Tensor] = ()) -> None:
        """`there`: tensors that do not count, because they are there already."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = {tensor.untyped_storage().data_ptr() for tensor in there}
        self.now = self.most = 0

    def peak(self, run: Run) -> int:
        """The most bytes while this runs, beyond those that were taken when the meter was made."""
        self.most = self.now
        with self:
            run()
        return self.most

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by torch for every operator."""
        found = func(*args, **(kwargs or {}))
        for value in tree_leaves(found):
            if isinstance(value, Tensor):
                self._count(value.untyped_storage())
        return found

    def _count(self, storage: torch.UntypedStorage) -> None:
        place, size = storage.data_ptr(), storage.nbytes()
        if place not in self.seen:
            self.seen.add(place)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._freed, place, size).atexit = False

    def _freed(self, place: int, size: int) -> None:
        self.seen.discard(place)
        self.now -= size
