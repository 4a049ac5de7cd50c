"""Export of weights that are damaged or of no use, onto disks that fail, and of two at a time."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from compiler.errors import RunError
from runtime.rundir.directory import RunDir
from runtime.rundir.network import read_weights
from tests.runtime.export.test_export import export, finished, listing, run

__all__ = ["finished", "run"]  # fixtures
WRITTEN = {"m.onnx", "m.labels.txt", "m.README.md"}


def change_weights(run: RunDir, change: object) -> None:
    """Write other weights; the result tells of those, as if they had been trained."""
    weights = {name: change(name, array.copy()) for name, array in read_weights(run.retrain.weights).items()}  # type: ignore[operator]
    content = safetensors.numpy.save(weights)
    run.retrain.weights.write_bytes(content)
    result = json.loads(run.retrain.result.read_text()) | {"weights": hashlib.sha256(content).hexdigest()}
    run.retrain.result.write_text(json.dumps(result))


def test_weights_that_the_result_does_not_tell_of_are_refused(run: RunDir) -> None:
    change_weights(run, lambda name, array: array)
    export(run)
    weights = read_weights(run.retrain.weights)
    run.retrain.weights.write_bytes(safetensors.numpy.save({name: array * 2 for name, array in weights.items()}))
    with pytest.raises(RunError, match=r"weights.safetensors: is damaged: .*result.json tells of\n  try: "):
        export(run)


def test_weights_that_are_not_finite_are_refused(run: RunDir) -> None:
    name = next(iter(read_weights(run.retrain.weights)))
    change_weights(run, lambda n, array: np.full_like(array, np.nan) if n == name else array)
    with pytest.raises(RunError, match=f"is damaged: {name} holds numbers that are not finite"):
        export(run)
    assert not run.export.exists()


def test_variances_below_0_are_refused(run: RunDir) -> None:
    change_weights(run, lambda name, array: -np.ones_like(array) if name.endswith("running_var") else array)
    with pytest.raises(RunError, match="running_var holds variances below 0"):
        export(run)
    assert not run.export.exists()


def test_outputs_that_are_not_finite_are_refused(run: RunDir) -> None:
    change_weights(run, lambda name, array: np.full_like(array, 1e38) if name.endswith("weight") else array)
    with pytest.raises(RunError, match="random and test images is not finite\n  nothing was written"):
        export(run)
    assert not run.export.exists()


def test_a_network_that_says_the_same_of_all_images_is_warned_of(
    run: RunDir, capfd: pytest.CaptureFixture[str]
) -> None:
    export(run)
    assert "gives the same for all images" not in capfd.readouterr().err
    change_weights(run, lambda name, array: np.zeros_like(array) if name == "head.out.weight" else array)
    export(run)
    assert "gives the same for all images: it has learned nothing or is damaged" in capfd.readouterr().err


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_under_the_model_is_one_error(
    run: RunDir, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, opening = listing(run), io.open

    def failing(file: object, mode: str = "r", *more: object, **options: object) -> object:
        if "onnx" in str(file) and "w" in mode:
            raise OSError(code, os.strerror(code))
        return opening(file, mode, *more, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(io, "open", failing)
    with pytest.raises(RunError, match=f"model.onnx: cannot write: {os.strerror(code)}"):
        export(run)
    assert listing(run) == before


def test_an_export_leaves_the_files_of_another_at_work_alone(run: RunDir, tmp_path: Path) -> None:
    from runtime.export.run_export import _staging

    target = tmp_path / "models" / "m.onnx"
    with _staging(target) as other:
        (other / "m.onnx").write_bytes(b"half of i")
        export(run, output=target)
        assert (other / "m.onnx").read_bytes() == b"half of i"
    assert {path.name for path in target.parent.iterdir()} == WRITTEN


def test_what_a_killed_export_left_is_removed(run: RunDir, tmp_path: Path) -> None:
    left = tmp_path / "models" / ".m.onnx.0123abcd.tmp"
    left.mkdir(parents=True)
    export(run, output=tmp_path / "models" / "m.onnx")
    assert {path.name for path in left.parent.iterdir()} == WRITTEN
