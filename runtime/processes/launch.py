"""What torchrun says through the environment to each process of a job. It must not import torch: the API uses it."""

from __future__ import annotations

import os
from dataclasses import dataclass

from compiler.errors import RunError


@dataclass(frozen=True)
class Launch:
    """Which process of a job this is; a program started by itself is the only one."""

    rank: int = 0  # among all processes of the job
    size: int = 1  # how many these are
    local_rank: int = 0  # among those of this machine
    local_size: int = 1  # how many run on this machine

    @classmethod
    def here(cls) -> Launch:
        """This process's place."""
        defaults = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
        return cls(*(int(os.environ.get(name, default)) for name, default in defaults.items()))

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    @property
    def prefix(self) -> tuple[str, ...]:
        """What a command line begins with that starts as many processes on this machine."""
        return ("torchrun", "--nproc-per-node", str(self.local_size), "-m") if self.size > 1 else ()


def refuse_processes(what: str, instead: str) -> None:
    """RunError where several processes were started for something that one does."""
    size = Launch.here().size
    if size > 1:
        raise RunError(f"{what} runs in one process, and torchrun has started {size}\n  try: {instead}")
