"""How many threads a job computes with where the user does not say.

A step of small ops has one thread: with two it is slower as soon as anything else runs. Of larger ops it is measured
when the job begins, because beside busy programs threads wait for each other. The number decides about the last digits
of a result, so the job says it, records it, and goes on with it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from torch.nn.functional import conv2d

from compiler.analysis.costs import total_cost
from compiler.drawing.scene import number_of
from compiler.ir.graph import Graph

WORK = 2_000_000  # multiply-adds of an op in a step, on average, from which on threads can share them
QUOTA = Path("/sys/fs/cgroup/cpu.max")  # how much of the processors a container may use: microseconds, of how many
SECONDS = 0.4  # that measuring takes
CHANNELS, SIDE = 32, 128  # of the convolution that is measured; at most so high and wide


def threads_for(work: float, most: int) -> int:
    """Threads that could share ops of so many multiply-adds, `most` at most."""
    if work < WORK:
        return 1
    with suppress(OSError, ValueError):
        used, period = map(int, QUOTA.read_text().split())
        most = min(most, -(-used // period))
    return most


def faster(work: float, most: int) -> int:
    """`most` or 1: with which a convolution of so many multiply-adds, forwards and back, takes less time just now."""
    side = min(SIDE, math.ceil(math.sqrt(work / (9 * CHANNELS**2))))
    x, weights = torch.ones(1, CHANNELS, side, side), torch.ones(CHANNELS, CHANNELS, 3, 3, requires_grad=True)
    spent, end = dict.fromkeys((most, 1), 0.0), time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        for threads in spent:
            torch.set_num_threads(threads)
            for counts in (False, True):  # the first time wakes the threads
                begun = time.perf_counter()
                conv2d(x, weights, padding=1).sum().backward()  # type: ignore[no-untyped-call]
                spent[threads] += counts * (time.perf_counter() - begun)
    return min(spent, key=spent.__getitem__)


def fitting_threads(graph: Graph, images: int, say: Callable[[str], None]) -> int:
    """The number for steps of so many images, at most torch's number of now; it is said, unless that is 1."""
    now, work = torch.get_num_threads(), total_cost(graph).flops * images / len(graph)
    chosen, measured = threads_for(work, now), ""
    if chosen > 1:
        chosen, measured = faster(work, chosen), ", as measured just now"
        torch.set_num_threads(now)
    if now > 1:
        say(f"computing with {number_of(chosen, 'thread')} of {now}{measured}; OMP_NUM_THREADS sets another number")
    return chosen
