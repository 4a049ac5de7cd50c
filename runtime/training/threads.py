"""How many threads a job computes with where the user does not say: what the network and the processors are good for.

A function of both and of nothing else, because the number decides about the last digits: what runs beside the job must
not, so nothing is measured. A step of small ops is slower with two threads than with one as soon as anything else runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from compiler.analysis.costs import total_cost
from compiler.drawing.scene import number_of
from compiler.ir.graph import Graph

WORK = 2_000_000  # multiply-adds of an op in a step, on average, from which on threads share them
QUOTA = Path("/sys/fs/cgroup/cpu.max")  # how much of the processors a container may use: microseconds, of how many


def threads_for(graph: Graph, images: int, most: int) -> int:
    """Threads for steps of so many images, `most` at most."""
    if total_cost(graph).flops * images < WORK * len(graph):
        return 1
    with suppress(OSError, ValueError):
        used, period = map(int, QUOTA.read_text().split())
        most = min(most, -(-used // period))
    return most


@contextmanager
def fitting_threads(graph: Graph, images: int, say: Callable[[str], None]) -> Iterator[None]:
    """Have torch compute with the threads that fit, unless OMP_NUM_THREADS is set; says so where they are less."""
    before = torch.get_num_threads()
    chosen = before if "OMP_NUM_THREADS" in os.environ else threads_for(graph, images, before)
    if chosen != before:
        say(f"computing with {number_of(chosen, 'thread')}, not {before}; OMP_NUM_THREADS sets another number")
        torch.set_num_threads(chosen)
    try:
        yield
    finally:
        torch.set_num_threads(before)
