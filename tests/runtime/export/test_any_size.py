"""Models that take images of any size: they see in a file what the reference reader sees in it."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from PIL import Image, ImageOps

import runtime.export.run_export
from compiler.errors import GraphspecError, RunError, SpecError
from compiler.lowering.onnx.model import OLDEST_OPSET, check
from compiler.lowering.onnx.resize import any_size
from runtime.data.pixels import Pixels, Reading, read_pixels
from runtime.export.on_files import ORIENTATION, resize_of
from runtime.inference.model import ExportedModel
from runtime.inference.predict import predict
from tests.runtime.inference.exported import CLASSES, export, make_run, write_images

HEIGHT, WIDTH = 12, 16
ANY = ("export.with_preprocessing=nhwc", "export.any_size=true")


def seen(layout: Any, channels: int, reading: Reading) -> onnxruntime.InferenceSession:
    """A model that gives back what it makes of an image."""
    sizes = ["N", channels, HEIGHT, WIDTH] if layout == "nchw" else ["N", HEIGHT, WIDTH, channels]
    image, same = (helper.make_tensor_value_info(name, TensorProto.UINT8, sizes) for name in ("image", "same"))
    graph = helper.make_graph([helper.make_node("Identity", ["image"], ["same"])], "same", [image], [same])
    opsets = [helper.make_opsetid("", OLDEST_OPSET)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=helper.find_min_ir_version_for(opsets))
    whole = any_size(proto, resize_of(reading, channels), layout)
    check(whole)
    return onnxruntime.InferenceSession(whole.SerializeToString(), providers=["CPUExecutionProvider"])


@settings(max_examples=60, deadline=None)
@given(
    rule=st.sampled_from(["crop", "squash", "letterbox"]),
    layout=st.sampled_from(["nchw", "nhwc"]),
    channels=st.sampled_from([1, 3]),
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    margin=st.sampled_from([1.0, 256 / 224]),
    seed=st.integers(0, 999),
)
def test_the_model_scales_as_the_reference_reader_does(
    rule: str, layout: str, channels: int, size: tuple[int, int], margin: float, seed: int
) -> None:
    reading = Reading((250, 120, 3), None, margin, rule)
    # newer versions of Pillow take the height of tall images first, which matters where values are cut off in between
    width_first = size[1] - WIDTH >= size[0] - HEIGHT
    span, allowed = ((0, 256), 1) if width_first else ((64, 192), 2)
    pixels = np.random.default_rng(seed).integers(*span, (*size, channels), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels if channels == 3 else pixels[..., 0]).save(file, "png")
    wanted = read_pixels(file, (channels, HEIGHT, WIDTH), reading)[0].astype(int)
    fed = pixels if layout == "nhwc" else np.ascontiguousarray(np.moveaxis(pixels, -1, 0))
    (found,) = seen(layout, channels, reading).run(None, {"image": np.stack([fed, fed])})
    assert (found[0] == found[1]).all()
    off = np.abs(wanted - (found[0] if layout == "nhwc" else np.moveaxis(found[0], 0, -1)))
    assert off.max() <= allowed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("any_size")
    write_images(made / "images", train=4, test=12)
    return made


def photo(path: Path, size: tuple[int, int], orientation: int) -> Path:
    """A photograph, brighter to one side, as a phone writes it."""
    width, height = size
    ramp = np.linspace(0, 255, width)[None, :, None] * np.ones((height, 1, 3)) * (1.0, 0.5, 0.2)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(ramp.astype(np.uint8)).save(path, exif=exif, quality=95)
    return path


def of_whole_file(path: Path, model: Path) -> Pixels:
    """What onnxruntime says of a file that Pillow has opened and turned, and nothing else was done with."""
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    outputs: Pixels = session.run(None, {"image": np.asarray(image)[None]})[0][0]
    return outputs


@pytest.mark.parametrize("resize", ["crop", "squash", "letterbox"])
def test_a_phone_photo_goes_in_whole_and_gets_the_answer_that_predict_gives(folder: Path, resize: str) -> None:
    settings = (*ANY, f"data.resize={resize}", "export.probabilities=true", "export.opset=13")
    run = make_run(folder, *settings, out=f"run {resize}")
    result = export(run)
    assert result.on_files is not None
    assert result.on_files.max_rel < 0.02
    model, path = ExportedModel.open(Path(result.path)), folder / "photo.jpg"
    for orientation in (1, 3, 6, 8):
        said = predict(model, [str(photo(path, (61, 45), orientation))], top=3)[0]
        scores = dict(zip(CLASSES, of_whole_file(path, model.path).tolist(), strict=True))
        assert {guess.label: guess.score for guess in said.classes} == pytest.approx(scores, abs=0.005)
    note = (run.export / "README.md").read_text()
    assert "uint8 `[N, height, width, 3]`" in note
    assert "EXIF orientation" in note
    assert "model scales" in note
    assert "Scale it" not in note
    assert "EXIF" in {item.key: item.value for item in onnx.load(result.path).metadata_props}["orientation"]


def test_small_forms_take_any_size_too(folder: Path) -> None:
    run = make_run(folder, *ANY, "export.probabilities=true", "export.accuracy_tolerance=100", out="small")
    result = export(run, fp16=True, int8=True)
    path = photo(folder / "wide.jpg", (70, 30), 1)
    for file in result.files:
        said = predict(ExportedModel.open(Path(file.path)), [str(path)], top=3)[0]
        scores = dict(zip(CLASSES, of_whole_file(path, Path(file.path)).tolist(), strict=True))
        assert {guess.label: guess.score for guess in said.classes} == pytest.approx(scores, abs=0.02), file.kind


def test_a_model_that_scales_in_another_way_is_not_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(folder, *ANY, out="other")
    shifted = lambda *given: replace(resize_of(*given), rule="squash")  # noqa: E731
    monkeypatch.setattr(runtime.export.run_export, "resize_of", shifted)
    with pytest.raises(RunError, match="does not compute what the torch network does"):
        export(run)
    assert not run.export.exists()


def test_floats_are_not_resized(folder: Path) -> None:
    with pytest.raises(SpecError, match="any_size needs"):
        make_run(folder, "export.any_size=true", out="floats")


def test_signals_have_no_size_to_change() -> None:
    signal = helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 1, 16])
    proto = helper.make_model(helper.make_graph([], "none", [signal], [signal]))
    with pytest.raises(GraphspecError, match="the network reads signals"):
        any_size(proto, resize_of(Reading(), 1), "nchw")
