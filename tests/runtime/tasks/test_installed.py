"""A task of another package, offered as entry point `graphspec.tasks`: from compile to ONNX, and in the report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from runtime.rundir.directory import RunDir
from tests.tiny import TINY
from tests.tiny import graphspec as command

pytestmark = pytest.mark.slow

TOYS = Path(__file__).parent / "installed"
SPEC = (
    TINY.replace("classes: 10", "classes: 2\ntask: acme_regression")
    .replace("{name: digits}", "{name: 'acme_tasks.regression:lights'}")
    .replace("retrain: {epochs: 2, batch_size: 64}", "retrain: {epochs: 8, batch_size: 32}")
)
ENTRY_POINTS = "[graphspec.tasks]\nacme_regression = acme_tasks.regression:Regression\n"


def install(folder: Path) -> Path:
    """A folder with the files that pip would write."""
    site = folder / "site"
    shutil.copytree(TOYS, site / "acme_tasks", ignore=shutil.ignore_patterns("__pycache__"))
    info = site / "acme_tasks-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-tasks\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    return site


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where the whole pipeline has run; tests must not change it."""
    folder = tmp_path_factory.mktemp("acme")
    install(folder)
    (folder / "light.yaml").write_text(SPEC)
    graphspec(folder, "compile", "light.yaml")
    for name, *options in (["search"], ["retrain"], ["export", "--onnx", "--fp16", "--no-latency"], ["report"]):
        trust = [] if name == "report" else ["--trust-code"]
        (folder / f"{name}.log").write_text(graphspec(folder, name, *options, *trust))
    return folder


def graphspec(folder: Path, *arguments: str, code: int = 0) -> str:
    """Run the command line where the task is installed; what it says."""
    done = command(folder, *arguments, code=code, site=folder / "site")
    return done.stdout + done.stderr


def test_the_toy_is_short() -> None:
    assert len((TOYS / "regression.py").read_text().splitlines()) < 100


def test_its_loss_is_trained_and_its_metrics_are_recorded(folder: Path) -> None:
    run = RunDir.open(folder / "runs" / "latest")
    epochs = [json.loads(line) for line in run.retrain.metrics.read_text().splitlines()]
    assert epochs[-1]["loss"] < epochs[0]["loss"]
    assert epochs[-1]["mean_error"] < epochs[0]["mean_error"]
    searched, trained = (json.loads(job.result.read_text()) for job in (run.search, run.retrain))
    assert searched.keys() >= {"mean_error", "close", "full_mean_error"}
    wanted = {"mean_error", "close", "validation_mean_error", "supernet_mean_error", "pruned_mean_error"}
    assert trained.keys() >= wanted
    assert trained["mean_error"] < 0.15  # that of the mean of the targets is about 0.25
    assert "accuracy" not in json.dumps([searched, trained, epochs])
    assert f"test mean absolute error {trained['mean_error']:.3f} on 100 images" in (folder / "retrain.log").read_text()


def test_the_file_gives_what_was_measured(folder: Path) -> None:
    run = RunDir.open(folder / "runs" / "latest")
    trained, checked = (json.loads(p.read_text()) for p in (run.retrain.result, run.export / "parity.json"))
    assert checked["torch_mean_error"] == pytest.approx(trained["mean_error"], rel=1e-5)
    assert [file["kind"] for file in checked["files"]] == ["fp32", "fp16"]
    for file in checked["files"]:
        assert file["mean_error"] == pytest.approx(trained["mean_error"], rel=1e-2)
    assert checked["parity"]["agreement"] == 1.0
    model = onnx.load(run.export / "model.onnx")
    said = {prop.key: prop.value for prop in model.metadata_props}
    assert said["outputs"] == "estimate"
    assert float(said["mean_error"]) == checked["files"][0]["mean_error"]
    session = onnxruntime.InferenceSession(run.export / "model.onnx")
    (given,) = session.run(["estimate"], {"image": np.zeros((3, 1, 8, 8), np.float32)})
    assert given.shape == (3, 2)


def test_the_report_speaks_of_its_metrics(folder: Path) -> None:
    page = (folder / "runs" / "latest" / "report.html").read_text()
    for words in (
        "Validation mean absolute error", "Validation share within a tenth", "test mean absolute error, 100 images",
        "test mean absolute error</th>", "close answer as torch",
    ):  # fmt: skip
        assert words in page
    assert "accuracy" not in page.replace("export.accuracy_tolerance", "")


def test_a_form_that_is_worse_is_refused(folder: Path) -> None:
    options = ("--onnx", "--int8", "--no-latency", "--trust-code", "-o", "small.onnx")
    said = graphspec(folder, "export", *options, "--set", "export.accuracy_tolerance=0.000001", code=1)
    assert "int8 loses too much: test mean absolute error" in said
    assert "% lost, 1e-06 allowed" in said
    assert not (folder / "small.onnx").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("task=acme_regresion", "task: unknown task 'acme_regresion'; did you mean 'acme_regression'?"),
        ("task=x", "unknown task 'x'; there are classification, acme_regression"),
        ("retrain.label_smoothing=0.1", "retrain.label_smoothing means nothing for the task acme_regression"),
        ("retrain.distil.weight=0.5", "retrain.distil means nothing for the task acme_regression"),
        ("export.probabilities=true", "export.probabilities means nothing for the task acme_regression"),
    ],
)
def test_a_task_that_does_not_fit_is_said_when_compiling(folder: Path, setting: str, message: str) -> None:
    said = graphspec(folder, "compile", "light.yaml", "--dry-run", "--set", setting, code=1)
    assert message in said
    assert said.startswith("--set:1:")


def test_targets_that_are_wrong_are_said(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "light.yaml").write_text(SPEC.replace("classes: 2", "classes: 3"))
    shutil.copytree(folder / "site", tmp_path / "site")
    said = graphspec(tmp_path, "search", "light.yaml", "--trust-code", code=1)
    assert "targets are (400, 2), not 3 numbers an image" in said


def test_a_study_sums_up_its_metrics_and_fake_targets_are_its_own(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "light.yaml").write_text(SPEC.replace("'acme_tasks.regression:lights'", "fake"))
    shutil.copytree(folder / "site", tmp_path / "site")
    quick = ("--set", "search.pretrain_epochs=0", "--set", "search.epochs=1", "--json")
    said = graphspec(tmp_path, "search", "light.yaml", "--seeds", "0,1", "-q", *quick)
    found, _ = json.JSONDecoder().raw_decode(said)
    assert found["summary"]["mean_error"]["n"] == 2
    assert found["results"][0]["mean_error"] > 0


def test_a_run_without_its_package_says_what_to_do(folder: Path) -> None:
    done = command(folder, "report", "runs/latest", code=1)
    assert "unknown task 'acme_regression'\n  try: install the package that offers it" in done.stderr
