"""`graphspec bench`: what is measured of a run and of any ONNX file, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from compiler.errors import RunError
from compiler.ir.graph import Model, Phase
from compiler.lowering.onnx.model import emit, save
from compiler.lowering.torch.fx import initialise, lower
from graphspec import api
from graphspec.cli.app import app
from runtime.export.bench import MODEL, OnnxFile, TorchNetwork, measure, run_bench, subjects_of
from runtime.export.op_times import OF_RUNTIME, run_op_times
from runtime.jobs.runner import write_network
from runtime.rundir.directory import RunDir
from runtime.rundir.files import write_json
from tests.graphs import graph_of
from tests.interpreter import random_weights
from tests.tiny import write_spec

GRAPH = graph_of({"c": ("conv", {"kernel": 3, "channels": 8}, ["input"])}, phase=Phase.COMPACT)


def model_file(path: Path, **metadata: str) -> Path:
    proto = emit(Model(GRAPH, {}, random_weights(GRAPH, 0, np.float32)))
    helper.set_model_props(proto, metadata)
    save(proto, path)
    return path


def identity_file(path: Path, sizes: list[Any], kind: int = TensorProto.FLOAT) -> Path:
    """A model by somebody else: one node, an input of these sizes."""
    image, same = (helper.make_tensor_value_info(name, kind, sizes) for name in ("x", "y"))
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "foreign", [image], [same])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run as retraining and export leave it, as far as bench reads it."""
    run = api.compile(write_spec(tmp_path), out=tmp_path / "run", root=tmp_path).run
    assert run is not None
    run.export.mkdir()
    module = lower(GRAPH)
    initialise(module, 0)
    write_network(run.retrain, GRAPH, module.state_dict())
    model_file(run.export / "model.onnx", source="retrain")
    return run


# -- what is measured -------------------------------------------------------------------------------------------------


def test_every_case_has_its_row(run: RunDir) -> None:
    result = run_bench(run.path, batches=(1, 3), threads=(1,), seconds=0.01, quiet=True)
    assert [(row.latency.network, row.latency.threads, row.latency.batch) for row in result.rows] == [
        ("torch", 1, 1), ("fp32", 1, 1), ("torch", 1, 3), ("fp32", 1, 3),
    ]  # fmt: skip
    assert result.bytes["fp32"] == (run.export / "model.onnx").stat().st_size
    assert result.bytes["torch"] == sum(array.nbytes for array in random_weights(GRAPH, 0, np.float32).values())
    for row in result.rows:
        assert 0 < row.latency.median_ms <= row.latency.p90_ms <= row.latency.p99_ms
        assert row.latency.runs >= 3
        assert row.peak_mib >= 0
    table = result.render().splitlines()
    assert len(table) == 3 + len(result.rows)
    assert table[2].startswith("network  ")
    assert all(word in table[2] for word in ("bytes", "p50 ms", "p90", "p99", "images/s", "MiB"))


def test_peak_memory_is_what_the_network_needs(tmp_path: Path) -> None:
    """The model adds 64 MiB of weights to an image of 64 MiB; another 64 MiB hold the sum."""
    sizes = [16, 2**20]
    weights = numpy_helper.from_array(np.ones(sizes, np.float32), "w")
    image, total = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *sizes]) for name in ("x", "y"))
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "large", [image], [total], [weights])
    path = tmp_path / "large.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    row = run_bench(path, batches=(1,), threads=(1,), seconds=0.01, quiet=True).rows[0]
    assert 3 * 64 <= row.peak_mib <= 8 * 64


def test_any_onnx_file_is_measured_without_torch(tmp_path: Path) -> None:
    path = model_file(tmp_path / "net.onnx")
    result = run_bench(path, batches=(2,), threads=(1,), seconds=0.01, quiet=True)
    assert [row.latency.network for row in result.rows] == ["onnx"]
    found = json.loads(json.dumps(result.as_json()))
    assert found["model"] == str(path)
    assert found["bytes"] == {"onnx": path.stat().st_size}
    assert found["rows"][0]["images_per_second"] == pytest.approx(2000 / found["rows"][0]["median_ms"])


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.UINT8, TensorProto.INT64])
def test_inputs_of_other_types(tmp_path: Path, kind: int) -> None:
    path = identity_file(tmp_path / "net.onnx", ["N", 3], kind)
    assert measure(OnnxFile("onnx", path), 1, 2, 0.0).latency.runs >= 3


def test_weights_beside_the_file_count(tmp_path: Path) -> None:
    whole = OnnxFile("onnx", model_file(tmp_path / "whole.onnx")).bytes()
    proto = onnx.load(tmp_path / "whole.onnx")
    onnx.save_model(proto, tmp_path / "split.onnx", save_as_external_data=True, location="w", size_threshold=0)
    split = OnnxFile("onnx", tmp_path / "split.onnx").bytes()
    assert split == (tmp_path / "split.onnx").stat().st_size + (tmp_path / "w").stat().st_size
    assert abs(split - whole) < 1000
    (tmp_path / "w").unlink()
    with pytest.raises(RunError, match="/w: cannot read"):
        OnnxFile("onnx", tmp_path / "split.onnx").bytes()


def test_a_run_may_have_moved(run: RunDir) -> None:
    moved = run.path.with_name("moved")
    shutil.move(run.path, moved)
    name, subjects = subjects_of(moved)
    assert name == str(moved)
    assert subjects == (TorchNetwork(RunDir(moved).retrain), OnnxFile("fp32", moved / "export" / "model.onnx"))


# -- what is refused --------------------------------------------------------------------------------------------------


def test_files_that_cannot_be_run_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("graphspec: 1")
    with pytest.raises(RunError, match=r"no ONNX model|cannot load"):
        run_bench(tmp_path / "text.onnx", quiet=True)
    for sizes, kind, said in (
        (["N", "length"], TensorProto.FLOAT, "free sizes besides the batch"),
        ([4, 3], TensorProto.FLOAT, r"batches of 4 only\n +try: --batch 4"),
        (["N", 3], TensorProto.STRING, r"tensor\(string\)"),
    ):
        path = identity_file(tmp_path / "net.onnx", sizes, kind)
        with pytest.raises(RunError, match=said):
            measure(OnnxFile("onnx", path), 1, 2, 0.0)


@pytest.mark.parametrize("said", ["", "?", "8", '{"a": 1}', '["a"]', "[8, 8]", "[" * 100_000])
def test_sizes_that_metadata_says_are_anyones_words(tmp_path: Path, said: str) -> None:
    for sizes, message in ((["N", "length"], "free sizes besides the batch"), (["N", 3], "")):
        model = onnx.load(identity_file(tmp_path / "net.onnx", sizes, TensorProto.FLOAT))
        model.metadata_props.add(key="size", value=said)
        onnx.save(model, tmp_path / "net.onnx")
        with pytest.raises(RunError, match=message) if message else nullcontext():
            measure(OnnxFile("onnx", tmp_path / "net.onnx"), 1, 2, 0.0)


def test_a_model_that_reads_nothing_has_no_images_per_second(tmp_path: Path) -> None:
    value = numpy_helper.from_array(np.zeros((1, 3), np.float32))
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])
    graph = helper.make_graph([helper.make_node("Constant", [], ["y"], value=value)], "g", [], [output])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), tmp_path / "m.onnx")
    with pytest.raises(RunError, match=r"m.onnx: the model reads nothing\n  try: a model that takes images"):
        measure(OnnxFile("onnx", tmp_path / "m.onnx"), 1, 2, 0.0)


def test_a_model_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"lost.onnx: cannot read: No such file or directory\n  try: another path"):
        run_bench(tmp_path / "lost.onnx", quiet=True)


def test_what_onnxruntime_raises_is_an_error_of_ours(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A number of images may be fixed inside a model whose input says that any will do."""
    shape = numpy_helper.from_array(np.array([2, 3], np.int64), "shape")
    node = helper.make_node("Reshape", ["x", "shape"], ["y"])
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3]) for name in ("x", "y")]
    graph = helper.make_graph([node], "g", [values[0]], [values[1]], [shape])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, tmp_path / "m.onnx")
    assert measure(OnnxFile("onnx", tmp_path / "m.onnx"), 1, 2, 0.0).latency.runs >= 3
    with pytest.raises(RunError, match=r"m.onnx: onnxruntime cannot run it on x \(4, 3\).*\S\n  try: another --batch"):
        measure(OnnxFile("onnx", tmp_path / "m.onnx"), 1, 4, 0.0)
    assert not capfd.readouterr().err  # it would say the same in its own words and colours


@pytest.mark.slow
def test_a_case_has_a_time_limit(tmp_path: Path) -> None:
    path = identity_file(tmp_path / "net.onnx", ["N", 3])
    with pytest.raises(RunError, match="took longer than 1 s"), patch("runtime.export.bench.LIMIT", -599.0):
        run_bench(path, batches=(2,), threads=(1,), seconds=60.0, quiet=True)


def test_an_error_of_the_measuring_process_is_the_users_message(tmp_path: Path) -> None:
    path = identity_file(tmp_path / "net.onnx", [4, 3])
    with pytest.raises(RunError, match="batches of 4 only"):
        run_bench(path, batches=(2,), threads=(1,), quiet=True)


def test_a_run_without_an_export_says_what_to_do(run: RunDir) -> None:
    model_file(run.export / MODEL)
    with pytest.raises(RunError, match=r"does not say which job's network it is\n +try: graphspec export"):
        subjects_of(run.path)
    (run.export / MODEL).unlink()
    with pytest.raises(RunError, match=r"nothing was exported into the run\n +try: graphspec export"):
        subjects_of(run.path)


def test_only_the_files_of_the_run_are_measured(run: RunDir, tmp_path: Path) -> None:
    """Whatever a record of a stranger says, and wherever a link leads."""
    other = str(model_file(tmp_path / "other.onnx", source="retrain"))
    write_json(run.export / "parity.json", {"source": "retrain", "files": [{"kind": "fp32", "path": other}]})
    model_file(run.export / "model.int8.onnx")
    kept = subjects_of(run.path)[1]
    assert [one.path for one in kept if isinstance(one, OnnxFile)] == [
        run.export / "model.onnx", run.export / "model.int8.onnx"
    ]  # fmt: skip
    (run.export / "model.int8.onnx").unlink()
    (run.export / "model.int8.onnx").symlink_to(other)
    with pytest.raises(RunError, match=r"model.int8.onnx: cannot read: it is reached through a link"):
        run_bench(run.path, quiet=True)


def test_a_pipe_is_refused_where_a_model_should_be(run: RunDir, tmp_path: Path) -> None:
    (run.export / MODEL).unlink()
    for path in (run.export / MODEL, tmp_path / "model.onnx"):
        os.mkfifo(path)
    for target in (run.path, tmp_path / "model.onnx"):
        with pytest.raises(RunError, match=r"model.onnx: is a pipe and no regular file"):
            run_bench(target, quiet=True)


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_command(tmp_path: Path) -> None:
    path = model_file(tmp_path / "net.onnx")
    line = ["bench", str(path), "--batch", "1,2", "--threads", "1", "--seconds", "0.01", "-q"]
    done = CliRunner().invoke(app, line, catch_exceptions=False)
    assert done.exit_code == 0
    assert "p99" in done.stdout
    done = CliRunner().invoke(app, [*line, "--json"], catch_exceptions=False)
    assert [(row["threads"], row["batch"]) for row in json.loads(done.stdout)["rows"]] == [(1, 1), (1, 2)]
    for option, value in (("--batch", "0"), ("--threads", "one"), ("--batch", "1,,2")):
        done = CliRunner().invoke(app, ["bench", str(path), option, value])
        assert done.exit_code == 2


# -- where the time goes ---------------------------------------------------------------------------------------------


def test_the_nodes_of_a_run_stand_in_their_blocks(run: RunDir) -> None:
    model_file(run.export / "model.onnx", source="retrain", blocks=json.dumps(["c", "other"]))
    done = CliRunner().invoke(app, ["bench", str(run.path), "--ops", "--seconds", "0.05", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["nodes"][0]["ms"] >= found["nodes"][-1]["ms"] > 0
    assert sum(node["share"] for node in found["nodes"]) == pytest.approx(1)
    assert sum(block["ms"] for block in found["blocks"]) == pytest.approx(sum(op["ms"] for op in found["ops"]))
    convolution = next(node for node in found["nodes"] if node["op"] == "Conv")
    assert (convolution["node"], convolution["block"]) == ("c.act", "c")
    assert "Conv" in {op["op"] for op in found["ops"]}
    assert (found["batch"], found["threads"]) == (1, 1)


def test_the_nodes_of_any_file_stand_under_the_first_part_of_their_names(tmp_path: Path) -> None:
    path = model_file(tmp_path / "model.onnx", blocks="not JSON")
    found = run_op_times(path, batch=3, threads=2, seconds=0.05)
    assert {node.block for node in found.nodes} <= {"c", OF_RUNTIME}
    text = found.render()
    assert text.startswith(f"{path}: ")
    assert "batch 3, threads 2" in text
    assert "c.act (Conv)" in text


def test_a_file_that_cannot_be_run_is_refused_with_ops_too(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="free sizes besides the batch"):
        run_op_times(identity_file(tmp_path / "free.onnx", ["N", "C"]), seconds=0.05)
