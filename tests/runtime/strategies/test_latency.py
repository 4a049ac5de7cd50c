"""Measured times: what is asked for, what the file keeps, what a damaged file does. No time itself is judged."""

from __future__ import annotations

import json
import time
from itertools import count
from pathlib import Path

import pytest
import torch

from compiler.errors import GraphspecError, RunError
from compiler.ir.graph import attrs_of
from compiler.language.config import GateConfig
from runtime.strategies import latency
from runtime.strategies.latency import device_name, measure, measured_latencies, runtime_name
from runtime.strategies.penalties import LATENCY_FACTORS, OpCall, Penalty, priced_call
from tests.graphs import random_graph

CPU = torch.device("cpu")
SEP = OpCall("sep_conv", attrs_of({"kernel": 3}), ((4, 6, 6),))
POOL = OpCall("max_pool", attrs_of({"kernel": 3, "norm": "batch", "act": "relu"}), ((4, 6, 6),))
JOINED = OpCall("concat", (), ((4, 6, 6), (2, 6, 6)))


def test_every_kind_of_op_can_be_measured() -> None:
    for call in (SEP, POOL, JOINED):
        assert 0 < measure(call, CPU) < 60


def test_on_a_cpu_ops_run_in_onnxruntime_if_they_can(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise GraphspecError("no ONNX row")

    monkeypatch.setattr(latency, "torch_module", lambda *_: 1 / 0)
    for call in (SEP, POOL, JOINED):
        measure(call, CPU, 2)
    monkeypatch.setattr(latency, "emit", refused)
    with pytest.raises(ZeroDivisionError):
        measure(SEP, CPU)


def test_what_else_runs_on_the_machine_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a network in onnxruntime the clock is that of its thread."""
    monkeypatch.setattr(time, "thread_time", count().__next__)
    assert measure(POOL, CPU) == 1


def test_each_op_is_measured_once_per_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "cache" / "latency.json"
    asked: list[OpCall] = []

    def count(call: OpCall, device: torch.device, batch: int) -> float:
        asked.append(call)
        return measure(call, device, batch)

    monkeypatch.setattr(latency, "measure", count)
    first = measured_latencies([SEP, POOL, SEP], CPU, file)
    assert asked == [SEP, POOL]
    kept = json.loads(file.read_text())
    assert list(kept) == [runtime_name()]
    assert measured_latencies([SEP, POOL], CPU, file) == first
    measured_latencies([SEP], CPU, file, batch=2)
    assert asked == [SEP, POOL, SEP]
    here = runtime_name()
    monkeypatch.setattr(latency, "runtime_name", lambda: "another device")
    measured_latencies([SEP], CPU, file)
    assert asked == [SEP, POOL, SEP, SEP]
    assert list(json.loads(file.read_text())) == [here, "another device"]


def test_file_says_what_was_measured(tmp_path: Path) -> None:
    file = tmp_path / "latency.json"
    measured_latencies([SEP], CPU, file)
    (key,) = json.loads(file.read_text())[runtime_name()]
    assert key == "sep_conv kernel=3 on 4x6x6, batch 1"


@pytest.mark.parametrize(("threads", "words"), [(1, ", 1 thread,"), (2, ", 2 threads,")])
def test_a_device_says_its_threads_in_words(threads: int, words: str) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert words in device_name(CPU)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("text", ["{", '{"cpu": {"relu": "fast"}}', '{"cpu": {"relu": -1.0}}', "[]"])
def test_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "latency.json"
    (tmp_path / "run.json").touch()  # it is a file of a run
    file.write_text(text)
    with pytest.raises(RunError, match=r"latency\.json: is damaged: (.|\n)*try: graphspec"):
        measured_latencies([SEP], CPU, file)
    assert file.read_text() == text


def test_times_of_a_network_drive_the_penalty(tmp_path: Path) -> None:
    graph = random_graph(5)
    calls = [priced_call(graph, edge) for edge in graph.edges() if edge.gate is not None]
    table = measured_latencies(calls, CPU, tmp_path / "latency.json")
    config = GateConfig(gamma=1.0, adaptive="latency", exempt_last_input=False)
    gammas = Penalty(graph, graph, config, table).gammas([])
    assert list(gammas) == graph.gates()
    assert (min(gammas.values()), max(gammas.values())) == pytest.approx(LATENCY_FACTORS)
