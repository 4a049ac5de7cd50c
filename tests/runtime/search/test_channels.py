"""Searching for channels within a budget, from the spec to the exported model, as a user does it."""

from __future__ import annotations

import json
import subprocess
from contextlib import chdir
from functools import partial
from pathlib import Path

import onnxruntime
import pytest

from compiler.analysis.costs import total_cost
from compiler.analysis.limits import budget_share
from compiler.analysis.rounding import widths
from compiler.architecture.found import Architecture
from compiler.errors import SpecError
from compiler.ir.graph import Graph
from compiler.ir.text import from_json, graph_hash
from compiler.ops import Reads, op
from graphspec import api
from runtime.strategies.latency import network_latency
from runtime.strategies.limits import within_budget
from tests.runtime.processes.test_processes import torchrun
from tests.runtime.search.test_resume import killed_at_a_prune
from tests.runtime.search.test_search import final_files
from tests.tiny import TINY, environment, write_spec

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

BUDGET = 20_000
SPEC = f"""\
graphspec: 1
name: widths
input: [1, 8, 8]
classes: 10
gates: {{channels: auto}}
blocks:
  stem:
    type: "[1, H, W] -> [16, H/2, W/2]"
    nodes:
      out: {{op: conv, kernel: 3, stride: 2, from: in}}
  residual:
    type: "[C, H, W] -> [C, H, W]"
    nodes:
      a: {{op: conv, kernel: 1, channels: 2*C, act: hard_swish, from: in}}
      b: {{op: depthwise_conv, kernel: 3, act: relu6, from: a}}
      c: {{op: conv, kernel: 1, act: none, from: b}}
      out: {{op: add, from: [{{node: c, gated: true}}, in]}}
  head:
    type: "[C, H, W] -> [classes]"
    nodes:
      pool: {{op: global_avg_pool, from: in}}
      out: {{op: linear, from: pool}}
network: [stem, {{residual: 2}}, head]
data: {{name: digits}}
search:
  pretrain_epochs: 1
  epochs: 5
  batch_size: 32
  gates: {{gamma: auto, adaptive: flops}}
  prune: {{every: 0.5, patience: 1}}
retrain: {{epochs: 2, batch_size: 64}}
budget: {{flops: {BUDGET}, round_to: 4}}
"""


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished search; only the part `retrain` of its run may change."""
    folder = tmp_path_factory.mktemp("channels")
    write_spec(folder, SPEC)
    with chdir(folder):
        api.search("tiny.yaml", quiet=True)
    return folder


def graphs(folder: Path) -> tuple[Graph, Graph]:
    """The whole network and the found one."""
    run = folder / "runs" / "latest"
    full, found = (from_json((part / "graph.json").read_text()) for part in (run, run / "search"))
    return full, found


def test_the_budget_is_met_in_whole_steps(searched: Path) -> None:
    full, found = graphs(searched)
    flops = total_cost(found).flops
    assert total_cost(full).flops > 2 * BUDGET
    assert 0.8 * BUDGET < flops <= BUDGET
    assert all(len(gates) % 4 == 0 or len(gates) in (1, 2) for gates in widths(found).values())
    arch = Architecture.from_yaml((searched / "runs" / "latest" / "search" / "arch.yaml").read_text(), "arch.yaml")
    assert set(arch.kept) == set(found.gates())
    assert arch.model(full).gates.keys() == set(full.gates())


def test_what_closes_is_decided_by_strength_alone(searched: Path) -> None:
    full, found = graphs(searched)
    records = (searched / "runs" / "latest" / "search" / "metrics.jsonl").read_text().splitlines()
    strength = dict(zip(full.gates(), json.loads(records[-1])["gate_values"], strict=True))
    budget = api.open_run(searched / "runs" / "latest").spec.config.budget
    for closed in (set(), set(full.gates()) - set(found.gates())):
        shut = within_budget(full, closed, strength, partial(budget_share, budget=budget), budget.round_to)
        assert shut <= set(full.gates())
        assert not any(op(full.node(e.dst).op).reads is Reads.TOGETHER for e in full.edges() if e.gate in shut)


def test_the_weights_of_the_search_go_to_the_model(searched: Path) -> None:
    run = searched / "runs" / "latest"
    result = api.retrain(run, overrides=["retrain.from=search"], quiet=True)
    assert result.found.flops <= BUDGET
    assert (result.accuracy or 0) > 0.8
    exported = api.export(run, quiet=True)
    session = onnxruntime.InferenceSession(exported.path)
    assert session.get_outputs()[0].shape[-1] == 10


def test_a_killed_search_ends_bit_identical(searched: Path, tmp_path: Path) -> None:
    write_spec(tmp_path, SPEC)
    with chdir(tmp_path):
        api.compile("tiny.yaml")
    killed_at_a_prune(tmp_path)
    assert final_files(tmp_path) == final_files(searched)


def test_two_processes_search_channels_together(tmp_path: Path) -> None:
    write_spec(tmp_path, SPEC)
    with chdir(tmp_path):
        api.compile("tiny.yaml")
    run = str(tmp_path / "runs" / "latest")
    done = subprocess.run(torchrun("search", run), env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert total_cost(graphs(tmp_path)[1]).flops <= BUDGET


@pytest.mark.parametrize(("limit", "left"), [(1e6, "all"), (1e-6, "least")])
def test_a_latency_is_met_by_what_was_measured(tmp_path: Path, limit: float, left: str) -> None:
    write_spec(tmp_path, SPEC.replace(f"flops: {BUDGET}, ", f"latency: {limit}, "))
    with chdir(tmp_path):
        run = api.compile("tiny.yaml").run
        api.search(run, quiet=True)
    full, found = graphs(tmp_path)
    gates, open_ = set(full.gates()), set(found.gates())
    assert (open_ == gates) if left == "all" else len(open_) < 0.5 * len(gates)
    [(device, times)] = json.loads((tmp_path / run.search.path / "latencies.json").read_text()).items()
    assert "1 thread, onnxruntime" in device
    key = f"network {graph_hash(found)}"
    assert times[key] > 0
    (tmp_path / "known.json").write_text(json.dumps({device: {key: 3.5}}))
    assert network_latency(found, tmp_path / "known.json") == 3.5  # what was measured once is not measured again


def test_a_latency_is_for_the_search_to_meet(tmp_path: Path) -> None:
    path = write_spec(tmp_path, TINY + "budget: {latency: 1}\n")
    with pytest.raises(SpecError, match=r"set search\.gates\.gamma to auto"):
        api.compile(path, root=tmp_path / "runs")


def test_a_search_without_a_budget_cannot_find_its_gamma(tmp_path: Path) -> None:
    path = write_spec(tmp_path, SPEC.replace(f"flops: {BUDGET}, ", ""))
    with pytest.raises(SpecError, match="there is no budget to meet"):
        api.compile(path, root=tmp_path / "runs")
