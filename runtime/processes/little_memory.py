"""Where `ulimit -v` is set: find out whether torch can be used before it is imported.

Libraries that get no memory while they are loaded or start threads end the process themselves, without a message of
ours; so a child process tries it first.
"""

from __future__ import annotations

import os
import resource
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec

SPARE = 2**29  # bytes that a job gets besides the libraries; larger needs are estimated before it starts


class Trial(MetaPathFinder):
    """Raises MemoryError at the import of torch where a child process cannot import and use it."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """None: it is for the other finders to find a module."""
        if name == "torch":
            sys.meta_path.remove(self)
            child = os.fork()
            if not child:
                _use_libraries()
            if os.waitpid(child, 0)[1]:
                raise MemoryError("torch and onnxruntime cannot be loaded and used in the memory that is left")
        return None


def try_before_torch() -> None:
    """Put a trial before the import of torch, where memory is limited."""
    if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        sys.meta_path.insert(0, Trial())


def _use_libraries() -> None:
    """Exit code 0 if they can be loaded, start their threads and leave something."""
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        import onnxruntime  # noqa: F401
        import torch
        import torchvision  # noqa: F401

        images = torch.zeros(8, 16, 64, 64, requires_grad=True)
        torch.nn.Conv2d(16, 16, 3)(images).sum().backward()
        bytearray(SPARE)
        code = 0
    finally:
        os._exit(code)
