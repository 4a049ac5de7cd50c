"""Latency, throughput and peak memory of exported models in onnxruntime, and of torch eager beside them.

In a bench every figure comes from a process of its own, forked from a server that has run nothing.
"""

from __future__ import annotations

import itertools
import multiprocessing
import resource
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import external_data_helper
from torch import Tensor, nn

from compiler.errors import RunError
from compiler.ir.graph import INPUT
from compiler.lowering.torch.fx import lower_model
from runtime.data.dataset import HERE
from runtime.data.workers import refuse_few_files
from runtime.inference.model import MODEL, filled, said_size
from runtime.inference.network import OnnxNetwork
from runtime.jobs.logs import Console
from runtime.rundir.directory import JobDir, RunDir
from runtime.rundir.files import MOST_TENSORS, damaged, guarded, names_in, read_bytes
from runtime.rundir.network import read_model, read_weights
from runtime.rundir.study import rendered
from runtime.strategies.latency import EXPORT_SECONDS, device_name, seconds_of_runs

Array = NDArray[Any]
T = TypeVar("T")
Kind = Literal["fp32", "fp16", "int8"]
KINDS: tuple[Kind, ...] = ("fp32", "fp16", "int8")
THREADS, BATCHES, SECONDS = (1, 2), (1, 64), 2.0
NUMPY: dict[str, Any] = {
    "tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8, "tensor(int8)": np.int8, "tensor(int32)": np.int32, "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}  # fmt: skip
PEAK_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes in the unit that `getrusage` counts memory in
MIB = 2**20
LIMIT = 120.0  # seconds that a case may take, and ten times as long as it is to be measured


def path_of(kind: Kind, target: Path) -> Path:
    """Of a form of the float32 model at `target`."""
    return target if kind == "fp32" else target.with_name(f"{target.stem}.{kind}{target.suffix}")


@dataclass(frozen=True)
class Latency:
    """How long one run takes, over `runs` runs after warm-up."""

    network: str  # `torch`, or what the ONNX file is called
    threads: int
    batch: int
    median_ms: float
    p90_ms: float
    p99_ms: float
    images_per_second: float  # at the median
    runs: int

    @classmethod
    def of(cls, network: str, threads: int, batch: int, seconds: Sequence[float]) -> Latency:
        """From the seconds of each run."""
        median = statistics.median(seconds)
        p90, p99 = np.percentile(seconds, (90, 99)).tolist()
        return cls(network, threads, batch, median * 1e3, p90 * 1e3, p99 * 1e3, batch / median, len(seconds))

    def line(self) -> str:
        """For people."""
        return (
            f"{self.network:<5} {self.threads} thread{'s' if self.threads > 1 else ' '} batch {self.batch:>3}: "
            f"median {self.median_ms:7.3f} ms, p90 {self.p90_ms:7.3f} ms, {self.images_per_second:9,.0f} images/s"
        )


def eager_latency(module: nn.Module, x: Tensor, threads: int, budget: float = EXPORT_SECONDS) -> Latency:
    """Of a torch network in evaluation mode on x: (N, C, H, W)."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            return Latency.of("torch", threads, len(x), seconds_of_runs(lambda: module(x), budget))
    finally:
        torch.set_num_threads(before)


def onnx_latency(path: Path, image: Array, threads: int, budget: float = EXPORT_SECONDS, name: str = "onnx") -> Latency:
    """Of an ONNX file on images in its own type and layout; RunError if onnxruntime refuses the file."""
    network = OnnxNetwork(path, threads)
    return Latency.of(name, threads, len(image), seconds_of_runs(lambda: network(image), budget))


@dataclass(frozen=True)
class Measured:
    """One network on so many threads with batches of one size."""

    latency: Latency
    peak_mib: float  # by how much the process grew at most, from before the network was loaded


@dataclass(frozen=True)
class BenchResult:
    """What was measured of one model."""

    model: str  # the run or the file
    device: str
    bytes: dict[str, int]  # size by network: of the file, or of torch's weights in memory
    rows: tuple[Measured, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain data; one flat object a row."""
        rows = [{**asdict(row.latency), "peak_mib": row.peak_mib} for row in self.rows]
        return {"model": self.model, "device": self.device, "bytes": self.bytes, "rows": rows}

    def render(self) -> str:
        """A table for people."""
        table: list[tuple[str, ...]] = [
            ("network", "bytes", "threads", "batch", "p50 ms", "p90", "p99", "images/s", "MiB", "runs")
        ]
        for row in self.rows:
            found = row.latency
            times = (f"{ms:.3f}" for ms in (found.median_ms, found.p90_ms, found.p99_ms))
            counts = (f"{self.bytes[found.network]:,}", str(found.threads), str(found.batch))
            rest = (f"{found.images_per_second:,.0f}", f"{row.peak_mib:.1f}", f"{found.runs:,}")
            table.append((found.network, *counts, *times, *rest))
        return f"{self.model}\n{self.device}\n{rendered(table, numbers=True)}"


@dataclass(frozen=True)
class OnnxFile:
    """A model file; `path` may have been made by anything."""

    name: str
    path: Path

    def proto(self) -> onnx.ModelProto:
        """What the file holds, without weights beside it; RunError if it is no ONNX model."""
        content = read_bytes(self.path, MOST_TENSORS)
        try:
            return onnx.load_from_string(content)
        except Exception as error:  # protobuf's exceptions have no base class that is not private
            raise RunError(f"{self.path}: is no ONNX model, or a damaged one: {error}\n  try: write it anew") from error

    def bytes(self) -> int:
        """Size of the file and of the weights that it keeps beside it; RunError if they are not there."""
        outside = filter(external_data_helper.uses_external_data, self.proto().graph.initializer)
        names = {external_data_helper.ExternalDataInfo(tensor).location for tensor in outside}
        return sum(_size(self.path.parent / name) for name in {self.path.name, *names})

    def runner(self, threads: int, batch: int) -> Callable[[], object]:
        """Runs one batch; RunError if the file takes no such batch or onnxruntime refuses it."""
        network = OnnxNetwork(self.path, threads)
        feed = self.feed(network, batch)
        return lambda: network.run(feed)

    def feed(self, network: OnnxNetwork, batch: int) -> dict[str, Array]:
        """Made-up inputs for one batch; RunError if the file takes no such batch."""
        return {item.name: self._values(item, batch) for item in network.inputs}

    def _values(self, item: Any, batch: int) -> Array:
        """Normal floats, any bytes, and zeros for other whole numbers, which may be indices."""
        place = f"{self.path}: input {item.name!r}"
        if item.type not in NUMPY:
            raise RunError(f"{place} is a {item.type}, which this cannot make up\n  try: a model that takes images")
        said = said_size({each.key: each.value for each in self.proto().metadata_props})
        shape = [*item.shape[:1], *filled(item.shape[1:], said)]
        if any(not isinstance(size, int) for size in shape[1:]):
            raise RunError(f"{place} has free sizes besides the batch: {item.shape}\n  try: fix them in the file")
        if item.shape and isinstance(item.shape[0], int) and item.shape[0] != batch:
            raise RunError(f"{place} takes batches of {item.shape[0]} only\n  try: --batch {item.shape[0]}")
        sizes, kind = [batch, *shape[1:]] if shape else [], np.dtype(NUMPY[item.type])
        rng = np.random.default_rng(0)
        if kind.kind == "f":
            return np.asarray(rng.standard_normal(sizes), kind)
        return rng.integers(0, 256, sizes, np.uint8) if kind == np.uint8 else np.zeros(sizes, kind)


@dataclass(frozen=True)
class TorchNetwork:
    """The network that a job left, in torch eager."""

    job: JobDir
    name: str = "torch"

    def bytes(self) -> int:
        """Size of its weights and statistics in memory."""
        return sum(array.nbytes for array in read_weights(self.job.weights).values())

    def runner(self, threads: int, batch: int) -> Callable[[], object]:
        """Runs one batch."""
        torch.set_num_threads(threads)
        model = read_model(self.job)
        x = torch.randn(batch, *model.graph.node(INPUT).shape, generator=torch.Generator().manual_seed(0))
        return torch.inference_mode()(partial(lower_model(model).eval(), x))


Subject = OnnxFile | TorchNetwork


def subjects_of(target: Path | None) -> tuple[str, tuple[Subject, ...]]:
    """Name and networks of a run (default: the latest) or model file; RunError if there is none, or no export.

    Of a run they are the models in its own folder, of which the first says itself which job they are of.
    """
    if target is not None and (target.suffix == ".onnx" or target.is_file()):
        return str(target), (OnnxFile("onnx", target),)
    run = RunDir.latest() if target is None else RunDir.open(target)
    paths, there = {kind: path_of(kind, run.export / MODEL) for kind in KINDS}, names_in(run.export)
    models = [OnnxFile(kind, path) for kind, path in paths.items() if path.name in there]
    if MODEL not in there:
        raise RunError(
            f"{run.path}: nothing was exported into the run\n"
            f"  try: graphspec export {run.path} first, or graphspec bench FILE for a model elsewhere"
        )
    source = {item.key: item.value for item in models[0].proto().metadata_props}.get("source")
    if source not in ("search", "retrain"):
        raise damaged(models[0].path, "it does not say which job's network it is")
    return str(run.path), (TorchNetwork(JobDir(run.path / source)), *models)


def run_bench(
    target: Path | None = None,
    *,
    batches: Sequence[int] = BATCHES,
    threads: Sequence[int] = THREADS,
    seconds: float = SECONDS,
    quiet: bool = False,
) -> BenchResult:
    """Measure every network of a run or model file for about `seconds` each; RunError if one cannot be run."""
    name, subjects = subjects_of(target)
    console = Console(quiet)
    sizes = {subject.name: subject.bytes() for subject in subjects}
    rows = []
    for row in _measured(subjects, batches, threads, seconds):
        console.line(row.latency.line())
        rows.append(row)
    return BenchResult(name, f"{device_name(HERE.device)}, onnxruntime {onnxruntime.__version__}", sizes, tuple(rows))


def _measured(
    subjects: Sequence[Subject], batches: Sequence[int], threads: Sequence[int], seconds: float
) -> Iterator[Measured]:
    for count, batch, subject in itertools.product(threads, batches, subjects):
        yield apart(measure, subject, count, batch, seconds)


def apart(measured: Callable[..., T], subject: Subject, threads: int, batch: int, seconds: float) -> T:
    """`measured(subject, threads, batch, seconds, limit)` in a process of its own; RunError if that ends early."""
    refuse_few_files(1)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    # the parent hears Ctrl-C; the child would print a traceback
    with ProcessPoolExecutor(1, context, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as process:
        started, limit = time.monotonic(), LIMIT + 10 * seconds
        try:
            return process.submit(measured, subject, threads, batch, seconds, limit).result()
        except BrokenProcessPool as error:
            late = time.monotonic() - started > limit
            why = f"took longer than {limit:.0f} s" if late else "was killed, perhaps for its memory"
            raise RunError(f"{subject.name} with batches of {batch} {why}\n  try: a smaller --batch") from error


def measure(subject: Subject, threads: int, batch: int, seconds: float, limit: float = 0) -> Measured:
    """One case, in a process that has measured nothing before, and that ends after `limit` seconds (0: none)."""
    signal.setitimer(signal.ITIMER_REAL, limit)  # SIGALRM ends it, wherever onnxruntime may be
    before = _peak_bytes()
    times = seconds_of_runs(subject.runner(threads, batch), seconds)
    return Measured(Latency.of(subject.name, threads, batch, times), (_peak_bytes() - before) / MIB)


def _size(path: Path) -> int:
    with guarded(path, "read"):
        return path.stat().st_size


def _peak_bytes() -> int:
    """The most memory that this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * PEAK_UNIT
