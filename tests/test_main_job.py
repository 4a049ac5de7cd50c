"""The main job, whole: from the shipped digits spec to a checked ONNX file, on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.tiny import graphspec

pytestmark = pytest.mark.slow

SPEC = Path(__file__).parent.parent / "specs" / "digits.yaml"


def test_digits_from_spec_to_onnx(tmp_path: Path) -> None:
    graphspec(tmp_path, "compile", str(SPEC))
    for command in (["search"], ["retrain"], ["export"]):
        graphspec(tmp_path, *command)
    summary = graphspec(tmp_path, "report").stdout.splitlines()
    assert [line.split()[0] for line in summary] == ["supernet", "retrained", "params", "FLOPs", "latency", "parity"]
    run = tmp_path / "runs" / "latest"
    searched, retrained = (json.loads((run / job / "result.json").read_text()) for job in ("search", "retrain"))
    assert searched["kept_edges"] <= searched["edges"] / 2
    assert searched["accuracy"] >= searched["full_accuracy"] - 0.015
    assert retrained["accuracy"] >= 0.97
    for cost in ("params", "flops"):
        assert retrained["found"][cost] <= retrained["full"][cost] / 2
    checked = json.loads((run / "export" / "parity.json").read_text())
    assert checked["parity"]["max_rel"] <= checked["parity"]["tolerance"] == 1e-4
    assert checked["files"][0]["accuracy"] == checked["torch_accuracy"] == retrained["accuracy"]
    assert (run / "export" / "model.onnx").stat().st_size == checked["files"][0]["bytes"]
