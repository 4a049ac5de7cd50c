"""An exported model gets what the checks of the export gave it, to the bit, and others are refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from compiler.errors import RunError
from runtime.data.augment import Normalise
from runtime.export.parity import ImageForm, Layout
from runtime.inference.model import ExportedModel, open_model
from runtime.rundir.directory import RunDir
from tests.runtime.inference.exported import export

FORMS: dict[str, tuple[str, ...]] = {
    "none": (),
    "nchw": ("export.with_preprocessing=nchw",),
    "nhwc": ("export.with_preprocessing=nhwc", "export.probabilities=true"),
}


@pytest.mark.parametrize("deep", [False, True], ids=["bytes", "floats"])
@pytest.mark.parametrize("layout", ["none", "nchw", "nhwc"])
def test_the_model_computes_what_the_export_has_checked(exported: RunDir, layout: Layout, deep: bool) -> None:
    export(exported, *FORMS[layout])
    model = ExportedModel.open(exported.export / "model.onnx")
    pixels = torch.randint(0, 256, (7, 12, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    pixels = pixels * 0.73 if deep else pixels
    form = ImageForm(layout, Normalise(tuple(model.metadata.mean), tuple(model.metadata.std)))
    wanted = model.network(form.both(pixels)[1])
    outputs = model.outputs(pixels.numpy())
    assert np.array_equal(outputs, wanted)
    as_torch = torch.from_numpy(wanted).double()
    as_torch = as_torch if layout == "nhwc" else as_torch.softmax(1)
    assert np.abs(model.probabilities(outputs) - as_torch.numpy()).max() < 1e-12
    assert model.shape == (3, 12, 16)


def with_metadata(path: Path, **changes: str | None) -> Path:
    """A copy of a model that says something else; None: nothing."""
    proto = onnx.load(path)
    said = {item.key: item.value for item in proto.metadata_props} | changes
    del proto.metadata_props[:]
    helper.set_model_props(proto, {key: value for key, value in said.items() if value is not None})
    copy = path.with_name("changed.onnx")
    onnx.save(proto, copy)
    return copy


@pytest.mark.parametrize(("changes", "says"), [
    ({"labels": None, "std": None}, "no model that graphspec can use: its metadata lacks labels, std\n  try: a file"),
    ({"labels": json.dumps(["cat", "dog"])}, "its metadata does not fit its input"),
    ({"mean": "[0.5]"}, "its metadata does not fit its input"),
    ({"std": "[0.5]"}, "its metadata does not fit its input"),
    ({"outputs": "logit"}, "its metadata does not fit its input"),
    ({"mean": "[0.5, "}, "its metadata is damaged: mean: invalid JSON"),
    ({"layout": "chw"}, "its metadata is damaged: layout"),
    ({"reading": '{"colour": 3}'}, "the metadata `reading` is of another version"),
    ({"task": "regression"}, "is a network for the task regression, and only classes can be read here\n  try: "),
], ids=str)  # fmt: skip
def test_metadata_that_is_not_ours_is_refused(exported: RunDir, changes: dict[str, str | None], says: str) -> None:
    with pytest.raises(RunError, match=says):
        ExportedModel.open(with_metadata(exported.export / "model.onnx", **changes))


def test_what_is_no_exported_model_is_refused(exported: RunDir, tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no model")
    for target, says in (
        ("text.onnx", r"text\.onnx: onnxruntime .* cannot load it"),
        ("nowhere.onnx", r"nowhere\.onnx: cannot read: No such file"),
        ("nowhere", "nowhere: no such run directory"),
    ):
        with pytest.raises(RunError, match=says):
            open_model(Path(target))
    (exported.export / "model.onnx").unlink()
    with pytest.raises(RunError, match=r"was not exported to run/export/model\.onnx\n  try: graphspec export run"):
        open_model(Path("run"))


def test_a_study_names_the_run_of_a_seed(exported: RunDir) -> None:
    study = exported.path / "seeds" / "3"
    study.mkdir(parents=True)
    for job in (exported.search, exported.retrain):
        job.clear()
    with pytest.raises(RunError, match=r"run: holds the runs of seed 3\n  try: one of them, such as run/seeds/3"):
        open_model(exported)


def test_values_that_are_no_numbers_are_refused(exported: RunDir) -> None:
    model = ExportedModel.open(with_metadata(exported.export / "model.onnx", std="[0.1, 0.1, 1e-45]"))
    with np.errstate(all="ignore"), pytest.raises(RunError, match="gives values that are no numbers"):
        model.outputs(np.full((2, 12, 16, 3), 200, np.uint8))
