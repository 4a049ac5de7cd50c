"""`graphspec export`: what lands where, and what is refused."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from typer.testing import CliRunner

import runtime.export.run_export
from compiler.errors import GraphspecError, RunError
from compiler.ir.graph import Graph, Model
from compiler.ir.text import from_json, graph_hash
from compiler.lowering.torch.fx import initialise, load_gates, load_weights, lower
from compiler.passes.pipeline import TO_COMPACT
from compiler.passes.prune_zero_edges import prune
from graphspec import api
from graphspec.cli.app import app
from runtime.data.dataset import load_dataset
from runtime.export.parity import FileScore, ImageForm, some_pixels
from runtime.export.run_export import ExportOptions, ExportResult, run_export
from runtime.jobs.runner import write_network
from runtime.rundir.directory import RunDir
from runtime.rundir.files import write_json
from runtime.rundir.network import read_weights
from tests.tasks import class_task
from tests.tiny import environment, graphspec, write_spec

SETTINGS = ["data.name=fake", "data.fake_size=200"]
BESIDE = {"parity.json", "labels.txt", "README.md"}


# -- a run with random weights --------------------------------------------------------------------------------------


def lively(graph: Graph, gates: dict[str, float] | None = None) -> torch.nn.Module:
    """The network with weights and statistics as if trained."""
    module = lower(graph)
    initialise(module, 1)
    generator = torch.Generator().manual_seed(2)
    for name, tensor in module.state_dict().items():
        if name.endswith(("running_mean", "norm.bias", "out.bias")):
            tensor.copy_(torch.randn(tensor.shape, generator=generator) / 10)
        elif name.endswith(("running_var", "norm.weight")):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    if gates:
        load_gates(module, graph, gates)
    return module


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory as search and retrain leave it."""
    folder = tmp_path_factory.mktemp("finished")
    compiled = api.compile(write_spec(folder), out=folder / "run", root=folder, overrides=SETTINGS)
    assert compiled.run is not None
    run, rng = compiled.run, random.Random(0)
    gates = [gate for gate in compiled.graph.gates() if not gate.startswith("reduce")]
    found = prune(compiled.graph, rng.sample(gates, len(gates) // 3))
    values = {gate: rng.uniform(0.2, 1.5) for gate in found.gates()}
    write_network(run.search, found, lively(found, values).state_dict())
    compact = TO_COMPACT.run(Model(found)).graph
    write_network(run.retrain, compact, lively(compact).state_dict())
    for job in (run.search, run.retrain):
        write_json(job.path / "config.json", compiled.spec.config.model_dump(mode="json"))
        write_json(job.result, {"accuracy": 0.1})
    return run.path


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> RunDir:
    """A copy of it for each test."""
    return RunDir.open(Path(shutil.copytree(finished, tmp_path / "run")))


def export(run: RunDir, *overrides: str, **options: Any) -> ExportResult:
    return run_export(api.open_run(run, overrides), ExportOptions(**{"latency": False, "quiet": True, **options}))


def listing(run: RunDir) -> dict[str, bytes]:
    """Every file of the export folder; empty where there is none."""
    return {path.name: path.read_bytes() for path in run.export.glob("*")} if run.export.exists() else {}


def metadata(path: Path) -> dict[str, str]:
    return {item.key: item.value for item in onnx.load(path).metadata_props}


# -- what is written ------------------------------------------------------------------------------------------------


def test_the_model_and_its_checks_are_written(run: RunDir, capfd: pytest.CaptureFixture[str]) -> None:
    result = export(run, quiet=False)
    assert set(listing(run)) == {"model.onnx", *BESIDE}
    assert result.path == str(run.export / "model.onnx")
    assert result.parity.max_rel <= result.parity.tolerance == 1e-4
    assert len(result.parity.cases) == 8
    said = metadata(run.export / "model.onnx")
    reading = {"background": [255, 255, 255], "range": None, "margin": 1.0, "resize": "crop"}
    assert json.loads(said["reading"]) == reading
    assert (said["resize"], json.loads(said["input_range"])) == ("crop", [0, 255])
    assert result.torch_accuracy == result.model.accuracy
    assert result.model.agreement == 1.0
    assert result.model.bytes == (run.export / "model.onnx").stat().st_size
    record = json.loads((run.export / "parity.json").read_text())
    assert record["parity"]["max_rel"] == result.parity.max_rel
    assert record["test_images"] == result.test_images
    out, said = capfd.readouterr()
    assert out == ""
    for words in ("random images, batch   7", "test   images, batch  64", "parity with torch", "test accuracy on"):
        assert words in said


def test_the_same_run_gives_the_same_file(run: RunDir) -> None:
    export(run)
    first = listing(run)
    export(run)
    assert listing(run) == first


def test_the_file_says_what_it_is(run: RunDir) -> None:
    result = export(run)
    said = metadata(run.export / "model.onnx")
    assert len(json.loads(said["labels"])) == 10
    assert (run.export / "labels.txt").read_text().splitlines() == json.loads(said["labels"])
    note = (run.export / "README.md").read_text()
    assert "float32 `[N, 1, 8, 8]`" in note
    assert f"mean {json.loads(said['mean'])[0]:.9g}; std {json.loads(said['std'])[0]:.9g}" in note
    assert said["layout"] == "nchw"
    assert len(json.loads(said["mean"])) == len(json.loads(said["std"])) == 1
    assert said["arch_hash"] == graph_hash(from_json(run.retrain.graph_json.read_text()))
    assert len(said["spec_hash"]) == 64
    assert float(said["accuracy"]) == result.model.accuracy
    assert json.loads(said["parity"])["max_rel"] == result.parity.max_rel
    assert json.loads(said["versions"])["torch"] == torch.__version__.partition("+")[0]


def test_latencies_of_torch_and_onnxruntime(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime.export.run_export, "THREADS", (1,))
    result = export(run, latency=True)
    assert [(found.network, found.batch) for found in result.latencies] == [
        ("torch", 1), ("fp32", 1), ("torch", 64), ("fp32", 64),
    ]  # fmt: skip
    record = json.loads((run.export / "latency.json").read_text())
    assert [found["median_ms"] for found in record["latencies"]] == [found.median_ms for found in result.latencies]
    export(run)
    assert "latency.json" not in listing(run), "times of another model are no use"


@pytest.mark.parametrize("opset", [13, 21])
def test_the_opset_is_the_one_asked_for(run: RunDir, opset: int) -> None:
    assert export(run, f"export.opset={opset}").opset == opset
    assert [item.version for item in onnx.load(run.export / "model.onnx").opset_import] == [opset]


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
def test_raw_images_in_and_probabilities_out(run: RunDir, layout: Any) -> None:
    export(run, f"export.with_preprocessing={layout}", "export.probabilities=true")
    path = run.export / "model.onnx"
    proto, said = onnx.load(path), metadata(path)
    assert proto.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8
    assert (said["layout"], said["outputs"]) == (layout, "probabilities")
    opened = api.open_run(run)
    dataset = load_dataset(opened.spec.config.data, (1, 8, 8), class_task(10), seed=0)
    x, image = ImageForm(layout, dataset.normalise).both(some_pixels(dataset.test, 9))
    network = lower(from_json(run.retrain.graph_json.read_text()))
    load_weights(network, read_weights(run.retrain.weights))
    with torch.no_grad():
        wanted = network.eval()(x).softmax(1).numpy()
    found = runtime.export.run_export.OnnxNetwork(path)(image)
    assert np.abs(found - wanted).max() < 1e-5


def test_a_path_of_ones_own(run: RunDir, tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "net.onnx"
    result = export(run, output=str(target), fp16=True)
    written = {path.name for path in target.parent.iterdir()}
    assert written == {"net.fp16.onnx", "net.onnx", "net.labels.txt", "net.README.md"}
    assert result.path == str(target)
    assert set(listing(run)) == {"parity.json"}


@pytest.mark.parametrize(("output", "recorded"), [("net.onnx", "{here}/net.onnx"), (None, "export/model.onnx")])
def test_the_record_names_files_so_that_they_are_found_from_anywhere(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str | None, recorded: str
) -> None:
    monkeypatch.chdir(tmp_path)
    export(run, output=output and Path(output))
    record = json.loads((run.export / "parity.json").read_text())
    assert [record["path"], record["files"][0]["path"]] == [recorded.format(here=tmp_path)] * 2


# -- the network as the search left it ------------------------------------------------------------------------------


def test_from_search_folds_the_gates_and_says_that_statistics_are_new(
    run: RunDir, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(run.retrain.path)
    result = export(run, source="search", quiet=False)
    assert result.source == "search"
    assert result.parity.max_rel <= 1e-4
    assert "batch norm's statistics re-estimated on" in capfd.readouterr().err
    assert metadata(run.export / "model.onnx")["source"] == "search"


def test_a_network_drawn_at_random_has_no_weights(run: RunDir) -> None:
    run.search.weights.unlink()
    with pytest.raises(RunError, match=r"drawn at random and has no weights\n +try: graphspec retrain"):
        export(run, source="search")


# -- small forms ----------------------------------------------------------------------------------------------------


def test_small_forms_lie_beside_the_model(run: RunDir, capfd: pytest.CaptureFixture[str]) -> None:
    result = export(run, "export.accuracy_tolerance=20", fp16=True, int8=True)
    assert "int8 is no smaller than fp32" in capfd.readouterr().err
    assert [file.kind for file in result.files] == ["fp32", "fp16", "int8"]
    assert set(listing(run)) == {"model.onnx", "model.fp16.onnx", "model.int8.onnx", *BESIDE}
    sizes = [file.bytes for file in result.files]
    assert sizes == [Path(file.path).stat().st_size for file in result.files]
    assert sizes[1] < sizes[0]
    assert result.files[1].agreement > 0.9
    for file in result.files:
        assert float(metadata(Path(file.path))["accuracy"]) == file.accuracy
    export(run)
    assert set(listing(run)) == {"model.onnx", *BESIDE}, "small forms of an earlier export are of another network"


def test_a_small_form_that_loses_too_much_is_refused(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    export(run)
    before, score_all = listing(run), runtime.export.run_export.score_all

    def worse(networks: Any, *rest: Any) -> Any:
        scores = score_all(networks, *rest)
        scores["fp32"] = scores["torch"] = FileScore({"accuracy": 0.9}, 1.0, 10)
        return scores | {"fp16": FileScore({"accuracy": 0.88}, 1.0, 10)}

    monkeypatch.setattr(runtime.export.run_export, "score_all", worse)
    with pytest.raises(RunError, match=r"fp16 loses too much: .*88\.00%, .*90\.00%; 2\.00 points lost, 1 allowed"):
        export(run, fp16=True)
    assert listing(run) == before
    export(run, "export.accuracy_tolerance=2", fp16=True)  # exactly as much as allowed


# -- what is missing or does not fit --------------------------------------------------------------------------------


def test_an_opset_that_cannot_be_written_is_refused_before_any_work(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime.export.run_export, "finished_job", lambda *_: 1 / 0)
    with pytest.raises(GraphspecError, match=r"opset 99 cannot be written\n +try: 13 to"):
        export(run, "export.opset=99")


def test_without_retraining_the_next_command_is_said(run: RunDir) -> None:
    run.retrain.result.unlink()
    with pytest.raises(RunError, match=r"retrain is not finished\n +try: graphspec retrain \S+ --resume first"):
        export(run)
    shutil.rmtree(run.retrain.path)
    with pytest.raises(RunError, match=r"retrain has not run\n +try: graphspec retrain \S+ first, or --from search"):
        export(run)
    assert not run.export.exists()


def test_other_data_than_in_training_is_refused_but_may_lie_elsewhere(run: RunDir) -> None:
    with pytest.raises(RunError, match=r"trained with other settings: seed, data\.validation"):
        export(run, "seed=1", "data.validation=0.2")
    export(run, "data.root=elsewhere", "data.workers=0")


@pytest.mark.parametrize("name", ["weights.safetensors", "graph.json", "result.json", "config.json"])
def test_damaged_files_are_named(run: RunDir, name: str) -> None:
    file = run.retrain.path / name
    file.write_bytes(file.read_bytes()[: len(file.read_bytes()) // 2])
    with pytest.raises(GraphspecError, match="weights" if name.startswith("weights") else "damaged|no graphspec-graph"):
        export(run)
    assert not run.export.exists()


def test_gates_that_do_not_fit_are_named(run: RunDir) -> None:
    weights = read_weights(run.search.weights)
    graph = from_json(run.search.graph_json.read_text())
    scope = next(iter(graph.gate_scopes()))
    weights[f"{scope}.gates"] = weights[f"{scope}.gates"][1:]
    write_network(run.search, graph, {name: torch.from_numpy(array) for name, array in weights.items()})
    with pytest.raises(RunError, match="has no gates that fit"):
        export(run, source="search")


def test_accuracy_that_is_not_what_retraining_measured_is_told(run: RunDir, capfd: pytest.CaptureFixture[str]) -> None:
    write_json(run.retrain.result, {"accuracy": 0.99})
    export(run)
    assert "retrain measured 99.00%, the saved network now has" in capfd.readouterr().err.replace("\n", " ")


# -- the command ----------------------------------------------------------------------------------------------------


def test_the_options_of_the_command(run: RunDir, tmp_path: Path) -> None:
    target = tmp_path / "net.onnx"
    options = ["--opset", "17", "--layout", "nchw", "--probabilities", "--fp16", "--no-latency", "-q", "--json"]
    result = CliRunner().invoke(app, ["export", str(run.path), "-o", str(target), *options])
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert (record["path"], record["opset"], record["latencies"]) == (str(target), 17, [])
    assert [file["kind"] for file in record["files"]] == ["fp32", "fp16"]
    assert metadata(target)["layout"] == "nchw"
    assert metadata(target)["outputs"] == "probabilities"


def test_preprocessing_takes_rows_of_pixels_by_default(run: RunDir) -> None:
    arguments = ["export", str(run.path), "--onnx", "--with-preprocessing", "--no-latency", "--from", "search", "-q"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert metadata(run.export / "model.onnx")["layout"] == "nhwc"


def test_a_failure_is_one_message_and_exit_code_1(run: RunDir, tmp_path: Path) -> None:
    shutil.rmtree(run.retrain.path)
    done = graphspec(tmp_path, "export", "run", code=1)
    assert done.stderr.startswith("error: run: retrain has not run\n  try: graphspec retrain run first")


def test_the_command_line_does_not_import_what_export_needs() -> None:
    code = """
import sys, graphspec.api, graphspec.cli.app
assert not {"torch", "onnx", "onnxruntime"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], env=environment(), check=True)


# -- elsewhere ------------------------------------------------------------------------------------------------------

PLAIN = """
import sys
for name in ("torch", "onnx", "graphspec", "compiler", "runtime"):
    sys.modules[name] = None  # importing it is an error
import json
import numpy as np
import onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
x = np.load(sys.argv[2])
outputs = [session.run(None, {session.get_inputs()[0].name: part})[0] for part in (x, x[:1])]
assert len(json.loads(session.get_modelmeta().custom_metadata_map["labels"])) == outputs[0].shape[1]
np.savez(sys.argv[3], whole=outputs[0], first=outputs[1])
"""


def test_the_file_runs_where_torch_and_this_project_are_not(run: RunDir, tmp_path: Path) -> None:
    export(run)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    shutil.copy(run.export / "model.onnx", folder)
    x = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    np.save(folder / "x.npy", x.numpy())
    command = [sys.executable, "-I", "-c", PLAIN, "model.onnx", "x.npy", "found.npz"]
    subprocess.run(command, cwd=folder, check=True)
    network = lower(from_json(run.retrain.graph_json.read_text()))
    load_weights(network, read_weights(run.retrain.weights))
    with torch.no_grad():
        wanted = network.eval()(x).numpy()
    found = np.load(folder / "found.npz")
    assert np.abs(found["whole"] - wanted).max() <= 1e-4 * np.abs(wanted).max()
    assert np.abs(found["first"] - wanted[:1]).max() <= 1e-4 * np.abs(wanted).max()


def test_every_weight_in_the_file_is_used(run: RunDir) -> None:
    export(run)
    graph = onnx.load(run.export / "model.onnx").graph
    read = {name for node in graph.node for name in node.input}
    assert {tensor.name for tensor in graph.initializer} <= read
    assert all(np.isfinite(numpy_helper.to_array(t)).all() for t in graph.initializer)
