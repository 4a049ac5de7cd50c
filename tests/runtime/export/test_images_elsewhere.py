"""The example that runs an exported file reads images as training does, whatever they are like."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from examples.use_onnx import batch, main
from runtime.data.augment import Normalise
from runtime.data.dataset import Loader
from runtime.data.decode import TEST_MARGIN
from runtime.data.pixels import Reading
from runtime.data.sources import FileImages
from tests.runtime.data.awkward import write_images

NORMALISE = Normalise((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))


def write_model(path: Path, layout: str, reading: Reading, shape: tuple[int, ...]) -> None:
    """An ONNX file that gives what it gets, with the metadata of an exported one."""
    raw, last = layout != "none", layout == "nhwc"
    kind = TensorProto.UINT8 if raw else TensorProto.FLOAT
    sizes = ["N", *(shape[1:] + shape[:1] if last else shape)]
    ends = [helper.make_tensor_value_info(name, kind, sizes) for name in ("image", "out")]
    graph = helper.make_graph([helper.make_node("Identity", ["image"], ["out"])], "same", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    said = {"mean": NORMALISE.mean, "std": NORMALISE.std, "labels": ["cat"], "reading": asdict(reading)}
    said |= {"input_range": [0, 255]}
    properties = {name: json.dumps(value) for name, value in said.items()}
    properties |= {"preprocessing": "raw uint8 images"} if raw else {}
    helper.set_model_props(model, {**properties, "layout": "nchw" if layout == "none" else layout})
    onnx.save(model, path)


RESIZED = [Reading((9, 9, 90), resize=resize) for resize in ("squash", "letterbox")]


@pytest.mark.parametrize("layout", ["none", "nchw", "nhwc"])
@pytest.mark.parametrize(
    "reading", [Reading(), Reading((0, 30, 200), 4080), Reading(margin=TEST_MARGIN), *RESIZED], ids=str
)
def test_the_example_gives_the_model_what_training_saw(tmp_path: Path, reading: Reading, layout: str) -> None:
    shape = (3, 16, 12)
    (tmp_path / "images").mkdir()
    paths = sorted(write_images(tmp_path / "images").values())
    write_model(tmp_path / "model.onnx", layout, reading, shape)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"image": np.ascontiguousarray(batch(session, paths))})
    images = FileImages(list(map(str, paths)), torch.zeros(len(paths), dtype=torch.int64), shape, reading=reading)
    loader = Loader(images, torch.arange(len(paths)), NORMALISE, len(paths), training=False)
    (x, _), *_ = loader.batches(0)
    if layout == "none":
        assert np.abs(got - x.numpy()).max() < 1e-5
        return
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (NORMALISE.mean, NORMALISE.std))
    seen = (x.numpy() * std + mean) * 255
    assert got.dtype == np.uint8
    assert np.abs((got.transpose(0, 3, 1, 2) if layout == "nhwc" else got) - seen).max() < 0.501


def test_the_example_ends_with_one_message(tmp_path: Path) -> None:
    write_images(tmp_path)
    write_model(tmp_path / "images.onnx", "none", Reading(), (3, 16, 12))
    write_model(tmp_path / "signals.onnx", "none", Reading(), (3, 16))
    (tmp_path / "cut.png").write_bytes((tmp_path / "plain.bmp").read_bytes()[:99])
    (tmp_path / "text.onnx").write_text("no model")
    for model, image, says in (
        ("images", "cut.png", r"cut\.png: cannot be read: "),
        ("images", "nowhere.png", r"nowhere\.png: cannot be read: .*No such file"),
        ("signals", "plain.bmp", "takes signals .*, and this example reads images"),
        ("text", "plain.bmp", r"text\.onnx: is no ONNX file that graphspec has exported"),
        ("nowhere", "plain.bmp", r"nowhere\.onnx: is no ONNX file that graphspec has exported .*exist"),
    ):
        with pytest.raises(SystemExit, match=says):
            main(tmp_path / f"{model}.onnx", [tmp_path / "plain.tif", tmp_path / image])
