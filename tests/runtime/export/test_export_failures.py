"""Exports that fail leave everything as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest

import runtime.export.run_export
from compiler.errors import RunError
from compiler.ir.graph import Model
from runtime.rundir.directory import RunDir
from tests.runtime.export.test_export import BESIDE, export, finished, listing, run

__all__ = ["finished", "run"]  # fixtures


def break_weights(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    """Let the emitted model have other weights than the network."""
    emit = runtime.export.run_export.emit

    def broken(model: Model, **options: Any) -> onnx.ModelProto:
        weights = {name: value * factor if name.endswith("weight") else value for name, value in model.weights.items()}
        return emit(Model(model.graph, model.gates, weights), **options)

    monkeypatch.setattr(runtime.export.run_export, "emit", broken)


def test_a_model_that_differs_from_torch_is_not_written(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    break_weights(monkeypatch, 1.001)
    with pytest.raises(RunError, match=r"largest error \S+ absolute, \S+ relative .*allowed 1\.0e-04"):
        export(run)
    assert not run.export.exists()


def test_an_older_model_stays_as_it_was(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    export(run)
    before = listing(run)
    break_weights(monkeypatch, float("nan"))
    with pytest.raises(RunError, match="nan absolute, nan relative"):
        export(run)
    assert listing(run) == before


def test_the_tolerance_is_a_setting(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    break_weights(monkeypatch, 1.001)
    assert export(run, "export.tolerance=0.1").parity.max_rel > 1e-4


def test_a_crash_leaves_nothing_and_the_next_export_works(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(runtime.export.run_export, "score_all", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            export(run)
    assert not run.export.exists()
    leftover = run.export / ".model.onnx.tmp"  # what SIGKILL leaves
    leftover.mkdir(parents=True)
    (leftover / "model.int8.onnx").write_bytes(b"half written")
    export(run)
    assert set(listing(run)) == {"model.onnx", *BESIDE}


def test_a_target_that_cannot_be_written_is_refused_before_any_work(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime.export.run_export, "training_data", lambda *_, **__: 1 / 0)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match="cannot write"):
        export(run, output=tmp_path / "file" / "model.onnx")
    with pytest.raises(RunError, match="no regular file"):
        export(run, output=tmp_path)
    with pytest.raises(RunError, match="no regular file"):
        export(run, output=Path("/dev/null"))
    assert (tmp_path / "file").read_text() == "mine"
