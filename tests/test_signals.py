"""Signals and rectangular images from a spec to an ONNX file, by the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from compiler.errors import GraphspecError
from graphspec import api
from tests.tiny import TINY, graphspec, write_spec

SIGNALS = """\
graphspec: 1
name: signals
input: [3, 50]
classes: 4
blocks:
  stem:
    type: "[C, T] -> [8, T]"
    nodes:
      out: {op: conv, kernel: 5, from: in}
  cell:
    type: "[C, T] -> [C, T]"
    levels:
      count: 2
      ops: [{op: sep_conv, kernel: 3}, {op: sep_conv, kernel: 7, name: wide}, {op: max_pool, kernel: 3}]
    nodes:
      mix: {op: project, from: [levels.*], gated: true}
      squeezed: {op: squeeze_excite, from: mix}
      out: {op: add, from: [squeezed, in]}
  reduce:
    type: "[C, T] -> [2*C, T/2]"
    nodes:
      a: {op: conv, kernel: 1, stride: 2, from: in}
      b: {op: conv, kernel: 4, stride: 2, padding: [[1, 2]], from: in}
      out: {op: add, from: [a, b], gated: true}
  head:
    type: "[C, T] -> [classes]"
    nodes:
      pool: {op: global_avg_pool, from: in}
      out: {op: linear, from: pool}
network: [stem, {cell: 1}, reduce, {cell: 1}, head]
data: {name: fake, fake_size: 64}
search:
  pretrain_epochs: 1
  epochs: 2
  batch_size: 16
  gates: {gamma: 0.05, lr: 0.1}
  prune: {every: 1, patience: 1}
retrain: {epochs: 1, batch_size: 16, auxiliary_weight: 0.4, dropout: 0.1}
"""
RECTANGLES = TINY.replace("input: [1, 8, 8]", "input: [1, 6, 11]").replace("classes: 10", "classes: 4").replace(
    "data: {name: digits}", "data: {name: fake, fake_size: 64}"
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "shape", "layout"),
    [(SIGNALS, (3, 50), "none"), (SIGNALS, (50, 3), "nhwc"), (RECTANGLES, (6, 11, 1), "nhwc")],
)
def test_from_a_spec_to_onnx(tmp_path: Path, text: str, shape: tuple[int, ...], layout: str) -> None:
    spec = write_spec(tmp_path, text)
    graphspec(tmp_path, "compile", str(spec), "--out", "run")
    graphspec(tmp_path, "search", "run")
    graphspec(tmp_path, "retrain", "run")
    graphspec(tmp_path, "export", "run", "--onnx", "--set", f"export.with_preprocessing={layout}")
    parity = json.loads((tmp_path / "run" / "export" / "parity.json").read_text())
    assert parity
    graphspec(tmp_path, "report", "run")
    graphspec(tmp_path, "show", "run", "-o", "found.svg")
    session = onnxruntime.InferenceSession(tmp_path / "run" / "export" / "model.onnx")
    (taken,) = session.get_inputs()
    assert tuple(taken.shape[1:]) == shape
    image = np.zeros((2, *shape), np.float32 if layout == "none" else np.uint8)
    assert session.run(None, {taken.name: image})[0].shape == (2, 4)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("data.name=folder", "image files have 1 or 3 channels, the spec's input is 3x50"),
        ("data.name=imagenet", "image files have 1 or 3 channels, the spec's input is 3x50"),
        ("data.flip=true", "--set:1:11: error: data.flip changes images, and the input is a signal: leave it out"),
        ("data.crop_padding=2", "--set:1:19: error: data.crop_padding changes images"),
        ("retrain.augment=rand", "--set:1:17: error: retrain.augment changes images"),
        ("retrain.cutout=4", "--set:1:16: error: retrain.cutout changes images"),
    ],
)
def test_what_only_images_have_is_refused_by_compile_and_for_a_run(tmp_path: Path, setting: str, message: str) -> None:
    spec = write_spec(tmp_path, SIGNALS)
    run = api.compile(spec, root=tmp_path).run
    for refusing in (lambda: api.compile(spec, overrides=[setting], dry_run=True),
                     lambda: api.search(run, overrides=[setting], quiet=True)):  # fmt: skip
        with pytest.raises(GraphspecError) as caught:
            refusing()
        assert message in str(caught.value)
