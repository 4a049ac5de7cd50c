"""What a job left is read as a model, without torch; damage is named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from compiler.errors import GraphspecError, RunError
from compiler.ir.text import to_json
from compiler.lowering.torch.fx import gate_values, load_gates, lower, lower_model, weights_of
from runtime.jobs.runner import write_network
from runtime.rundir.directory import JobDir
from runtime.rundir.network import read_architecture, read_graph, read_model, read_weights
from tests.graphs import random_gates, random_graph
from tests.tiny import environment


@pytest.fixture
def job(tmp_path: Path) -> JobDir:
    """A job that left a gated network."""
    graph = random_graph(3)
    module = lower(graph)
    load_gates(module, graph, random_gates(graph, 3))
    folder = JobDir(tmp_path / "search")
    write_network(folder, graph, module.state_dict())
    return folder


def test_the_model_is_what_was_written(job: JobDir) -> None:
    model, graph = read_model(job), random_graph(3)
    module = lower(graph)
    load_gates(module, graph, random_gates(graph, 3))
    assert to_json(model.graph) == to_json(graph)
    assert model.gates == gate_values(module, graph)
    wanted = weights_of(module)
    assert set(model.weights) == set(wanted)
    for again in (model.weights, weights_of(lower_model(model))):
        assert all(np.array_equal(again[name], wanted[name]) for name in wanted)
    assert gate_values(lower_model(model), graph) == model.gates


def test_reading_needs_no_torch(job: JobDir) -> None:
    code = f"""
import sys
from pathlib import Path
from runtime.rundir.directory import JobDir
from runtime.rundir.network import read_model
assert read_model(JobDir(Path({str(job.path)!r}))).weights
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], env=environment(), check=True)


def test_damage_is_named(job: JobDir) -> None:
    weights = read_weights(job.weights)
    name, array = next((n, a) for n, a in weights.items() if not n.endswith(".gates"))

    def left(changed: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]) -> None:
        job.weights.write_bytes(safetensors.numpy.save(changed))

    left({n: a for n, a in weights.items() if n != name})
    with pytest.raises(GraphspecError, match=f"weights.safetensors: is damaged: no weight called '{name}'"):
        read_model(job)
    left({**weights, name: np.zeros((2, 1), np.float32)})
    with pytest.raises(GraphspecError, match=rf"'{name}' has shape \(2, 1\), the graph asks for \({array.shape[0]}"):
        read_model(job)
    left({**weights, "blk.gates": weights["blk.gates"][1:]})
    with pytest.raises(RunError, match="it has no gates that fit 'blk'"):
        read_model(job)
    job.weights.write_bytes(job.weights.read_bytes()[:100])
    with pytest.raises(RunError, match=r"weights\.safetensors: is damaged: it holds no tensors that can be read"):
        read_model(job)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="nowhere: cannot read: No such file"):
        read_graph(tmp_path / "nowhere")
    with pytest.raises(RunError, match=r"nowhere: there is no such file\n  try: the search/arch.yaml of a run"):
        read_architecture(tmp_path / "nowhere")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RunError, match="bytes: is damaged: it is no UTF-8 text: invalid start byte at byte 0"):
        read_architecture(tmp_path / "bytes")
    with pytest.raises(RunError, match="nowhere: cannot read: No such file"):
        read_weights(tmp_path / "nowhere")
