"""ONNX files run by onnxruntime on the CPU, and how long that takes beside torch.

Nothing here decides whether a model is right; see `runtime.export.parity`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compiler.errors import RunError

Array = NDArray[Any]
WARM_UP, LEAST_RUNS, SECONDS = 10, 3, 0.3
ERRORS_ONLY = 3  # of onnxruntime's log levels


class OnnxNetwork:
    """An ONNX model with one input and one output, ready to run on `threads` threads (0: all cores)."""

    def __init__(self, path: Path, threads: int = 0) -> None:
        """RunError if onnxruntime refuses the file."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = ERRORS_ONLY
        try:
            self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no base class of their own
            raise RunError(
                f"{path}: onnxruntime {onnxruntime.__version__} cannot load it: {error}\n"
                f"  try: a lower export.opset, or a newer onnxruntime"
            ) from error
        self.input = self.session.get_inputs()[0]

    def __call__(self, image: Array) -> Array:
        """Outputs (N, classes) of images in the model's own type and layout."""
        outputs: Array = self.session.run(None, {self.input.name: image})[0]
        return outputs


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
            f"median {self.median_ms:8.3f} ms, p90 {self.p90_ms:8.3f} ms, {self.images_per_second:10,.0f} images/s"
        )


def seconds_of_runs(run: Callable[[], object], budget: float = SECONDS) -> list[float]:
    """Seconds of each run after warm-up, over about `budget` seconds and at least `LEAST_RUNS` runs."""
    _timed(run, 1, WARM_UP, budget)
    return _timed(run, LEAST_RUNS, None, budget)


def _timed(run: Callable[[], object], least: int, most: int | None, budget: float) -> list[float]:
    """Seconds of each run, until the budget is used up or there are `most` runs, but of `least` runs at least."""
    seconds: list[float] = []
    total = 0.0
    while len(seconds) < least or (total < budget and len(seconds) != most):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
        total += seconds[-1]
    return seconds


def eager_latency(module: nn.Module, x: Tensor, threads: int, budget: float = SECONDS) -> Latency:
    """Of a torch network in evaluation mode on x: (N, C, H, W)."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            return Latency.of("torch", threads, len(x), seconds_of_runs(lambda: module(x), budget))
    finally:
        torch.set_num_threads(before)


def onnx_latency(path: Path, image: Array, threads: int, budget: float = SECONDS, name: str = "onnx") -> Latency:
    """Of an ONNX file on images in its own type and layout; RunError if onnxruntime refuses the file."""
    network = OnnxNetwork(path, threads)
    return Latency.of(name, threads, len(image), seconds_of_runs(lambda: network(image), budget))
