"""Measured time of ops on a device, kept in a file so that each is measured once."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch

from compiler.drawing.scene import number_of
from compiler.errors import GraphspecError, RunError
from compiler.ir.graph import INPUT, OUTPUT, Graph, Model, Node, Phase, TensorType, attrs_of
from compiler.ir.text import graph_hash
from compiler.language.config import BudgetConfig
from compiler.lowering.onnx.model import emit
from compiler.lowering.torch.fx import initialise, lower, weights_of
from compiler.lowering.torch.modules import torch_module
from compiler.passes.infer_types import infer_types
from compiler.passes.pipeline import compacted
from runtime.rundir.files import read_json, write_json
from runtime.rundir.records import Times
from runtime.strategies.penalties import OpCall

OP_WARM_UP, OP_REPEATS = 5, 30  # of an op in torch
OP_SECONDS = 0.02  # of an op in onnxruntime
WARM_UP, LEAST_RUNS = 10, 3  # of a whole network
MEASUREMENTS, NETWORK_SECONDS = 3, 0.1  # where a search asks for its latency
EXPORT_SECONDS = 0.3  # for each latency that an export measures


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
    """Median seconds of one run of an op at inference on `batch` images, after warm-up.

    On a CPU in onnxruntime on one thread, as the network will run; on a GPU, and of an op that ONNX has not, in torch.
    """
    if device.type == "cpu":
        try:
            return _seconds_in_onnxruntime(_alone(call), batch, OP_SECONDS)
        except RunError:  # onnxruntime failed, whatever the op
            raise
        except GraphspecError:
            pass
    node = Node("probe", call.op, call.attrs)
    module = torch_module(node, call.inputs).to(device).eval()
    values = [torch.zeros(batch, *shape, device=device) for shape in call.inputs]
    seconds = []
    with torch.inference_mode():
        for _ in range(OP_WARM_UP + OP_REPEATS):
            _wait_for(device)
            start = time.perf_counter()
            module(*values)
            _wait_for(device)
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[OP_WARM_UP:])


def _alone(call: OpCall) -> Graph:
    """A network of this op. What it reads besides one value are channels cut out of the image, which costs little."""
    graph = Graph(call.op, Phase.COMPACT)
    channels, start = [shape[0] for shape in call.inputs], 0
    graph.add(Node(INPUT, INPUT, type=TensorType((sum(channels), *call.inputs[0][1:]))))
    graph.add(Node("op", call.op, call.attrs))
    for number, count in enumerate(channels):
        part = INPUT if len(channels) == 1 else f"part{number}"
        if part != INPUT:
            graph.add(Node(part, "slice", attrs_of({"start": start, "stop": start + count})))
            graph.connect(INPUT, part)
        graph.connect(part, "op")
        start += count
    graph.add(Node(OUTPUT, OUTPUT))
    graph.connect("op", OUTPUT)
    return infer_types(graph)


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
    wanted = {call: f"{call}, batch {batch}" for call in calls}
    by_key = {key: call for call, key in wanted.items()}
    name = runtime_name() if device.type == "cpu" else device_name(device)
    known = _kept(file, name, by_key, lambda key: measure(by_key[key], device, batch))
    return {call: known[key] for call, key in wanted.items()}


def network_latency(graph: Graph, file: Path) -> float:
    """Seconds of one image in onnxruntime on one thread, the median of three measurements; kept in `file` as well."""
    key = f"network {graph_hash(graph)}"
    return _kept(file, runtime_name(), [key], lambda _: _as_exported(graph))[key]


def _as_exported(graph: Graph) -> float:
    compact, _ = compacted(Model(graph, dict.fromkeys(graph.gates(), 1.0)), BudgetConfig())
    return _seconds_in_onnxruntime(compact.graph, 1, NETWORK_SECONDS, MEASUREMENTS)


def runtime_name() -> str:
    """What times in onnxruntime hold for."""
    import onnxruntime  # which searches without latencies do not need

    return f"{_processor()}, 1 thread, onnxruntime {onnxruntime.__version__}"


def _seconds_in_onnxruntime(graph: Graph, batch: int, budget: float, measurements: int = 1) -> float:
    """Of a compact network, CPU time of its one thread, so that other work on the machine does not count.

    Weights count for nothing, as long as they are ordinary numbers.
    """
    import numpy as np

    from runtime.inference.network import OnnxNetwork

    module = lower(graph)
    initialise(module, 0)
    content = emit(Model(graph, {}, weights_of(module))).SerializeToString()
    network, image = OnnxNetwork(Path(graph.name), 1, content), np.ones((batch, *graph.node(INPUT).shape), np.float32)
    return statistics.median(
        statistics.median(seconds_of_runs(lambda: network(image), budget, time.thread_time))
        for _ in range(measurements)
    )


def seconds_of_runs(
    run: Callable[[], object], budget: float = EXPORT_SECONDS, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Seconds of each run after warm-up, over about `budget` seconds and at least `LEAST_RUNS` runs."""
    _timed(run, 1, WARM_UP, budget, clock)
    return _timed(run, LEAST_RUNS, None, budget, clock)


def _timed(
    run: Callable[[], object], least: int, most: int | None, budget: float, clock: Callable[[], float]
) -> list[float]:
    """Seconds of each run, until the budget is used up or there are `most` runs, but of `least` runs at least."""
    seconds: list[float] = []
    total = 0.0
    while len(seconds) < least or (total < budget and len(seconds) != most):
        start = clock()
        run()
        seconds.append(clock() - start)
        total += seconds[-1]
    return seconds


def _kept(file: Path, device: str, keys: Iterable[str], measured: Callable[[str], float]) -> Mapping[str, float]:
    """Seconds by key that `file` knows of a device; what it does not know is measured and added to it."""
    table: dict[str, dict[str, float]] = read_json(file, Times) if file.exists() else {}
    known = table.setdefault(device, {})
    missing = [key for key in keys if key not in known]
    for key in missing:
        known[key] = measured(key)
    if missing:
        write_json(file, table)
    return known
