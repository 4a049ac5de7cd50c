"""Measured time of ops on a device, kept in a file so that each is measured once."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from compiler.drawing.scene import number_of
from compiler.ir.graph import Node
from compiler.lowering.torch.modules import torch_module
from runtime.rundir.files import read_json, write_json
from runtime.rundir.records import Times
from runtime.strategies.penalties import OpCall

WARM_UP, REPEATS = 5, 30


def device_name(device: torch.device) -> str:
    """What times hold for: the processor (with its number of threads) and the torch that ran on it."""
    if device.type == "cuda":
        hardware = torch.cuda.get_device_name(device)
    else:
        hardware = f"{_processor()}, {number_of(torch.get_num_threads(), 'thread')}"
    return f"{hardware}, torch {torch.__version__}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def measure(call: OpCall, device: torch.device, batch: int = 1) -> float:
    """Median seconds of one run of an op at inference on `batch` images, after warm-up."""
    node = Node("probe", call.op, call.attrs)
    module = torch_module(node, call.inputs).to(device).eval()
    values = [torch.zeros(batch, *shape, device=device) for shape in call.inputs]
    seconds = []
    with torch.inference_mode():
        for _ in range(WARM_UP + REPEATS):
            _wait_for(device)
            start = time.perf_counter()
            module(*values)
            _wait_for(device)
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[WARM_UP:])


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class OpTimes(dict[OpCall, float]):
    """Seconds by op; `measured` is asked for what is not known yet."""

    def __init__(self, measured: Callable[[OpCall], float]) -> None:
        self._measured = measured

    def __missing__(self, call: OpCall) -> float:
        self[call] = self._measured(call)
        return self[call]


def measured_latencies(
    calls: Iterable[OpCall], device: torch.device, file: Path, batch: int = 1
) -> dict[OpCall, float]:
    """Median seconds of every op: from `file` (by device and op) or measured and added to it; RunError if damaged."""
    table = read_json(file, Times) if file.exists() else {}
    known = table.setdefault(device_name(device), {})
    wanted = {call: f"{call}, batch {batch}" for call in calls}
    missing = [call for call, key in wanted.items() if key not in known]
    for call in missing:
        known[wanted[call]] = measure(call, device, batch)
    if missing:
        write_json(file, table)
    return {call: known[key] for call, key in wanted.items()}
