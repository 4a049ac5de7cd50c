"""Running ONNX files and timing them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from compiler.errors import RunError
from runtime.export.bench import (
    Latency,
    eager_latency,
    onnx_latency,
)
from runtime.inference.network import OnnxNetwork
from runtime.strategies.latency import LEAST_RUNS, WARM_UP, seconds_of_runs
from tests.runtime.export.test_quantise import hand_built


def test_percentiles_of_known_times() -> None:
    latency = Latency.of("fp32", 2, 64, [k / 1000 for k in range(1, 102)])
    assert (latency.median_ms, latency.p90_ms, latency.p99_ms) == pytest.approx((51, 91, 100))
    assert latency.images_per_second == pytest.approx(64 / 0.051)
    assert latency.runs == 101


class Clock:
    """A clock that a run moves on by as many seconds as it is told to."""

    def __init__(self, *seconds: float) -> None:
        self.now, self.seconds = 0.0, list(seconds)

    def __call__(self) -> float:
        return self.now

    def run(self) -> None:
        self.now += self.seconds.pop(0) if len(self.seconds) > 1 else self.seconds[0]


def test_warm_up_is_not_counted() -> None:
    clock = Clock(*[7.0], *[0.125] * 100)
    assert seconds_of_runs(clock.run, 2.0, clock) == [0.125] * 16


def test_a_slow_network_is_run_a_few_times_only() -> None:
    clock = Clock(60.0)
    assert seconds_of_runs(clock.run, clock=clock) == [60.0] * LEAST_RUNS
    assert clock.now == 60.0 * (LEAST_RUNS + 1)


def test_a_quick_network_warms_up_for_some_runs() -> None:
    clock = Clock(*[0.5] * WARM_UP, *[0.25] * 100)
    assert set(seconds_of_runs(clock.run, 100.0, clock)) == {0.25}


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(RunError, match=r"model\.onnx: onnxruntime .* cannot load it"):
        OnnxNetwork(path)


def test_both_backends_are_timed_on_the_threads_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(hand_built().SerializeToString())
    latency = onnx_latency(path, np.zeros((3, 3, 8, 8), np.float32), threads=2, budget=0.0)
    assert (latency.network, latency.threads, latency.batch) == ("onnx", 2, 3)
    assert OnnxNetwork(path, 2).session.get_session_options().intra_op_num_threads == 2

    class Spy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            threads.append(torch.get_num_threads())
            return x

    threads: list[int] = []
    before = torch.get_num_threads()
    eager = eager_latency(Spy(), torch.zeros(4, 3, 8, 8), threads=2, budget=0.0)
    assert set(threads) == {2}
    assert torch.get_num_threads() == before
    assert (eager.network, eager.batch) == ("torch", 4)
