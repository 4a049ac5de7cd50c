"""Models of images of more than 8 bits take the numbers that the files have, and keep them all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from runtime.data.pixels import Pixels
from runtime.inference.evaluate import run_evaluate
from runtime.inference.model import ExportedModel
from runtime.inference.predict import predict
from tests.runtime.data.deep import as_deep_file
from tests.runtime.inference.exported import CLASSES, export, make_run


def images_of(root: Path, kind: str, white: int) -> dict[Path, Pixels]:
    """Test files and their numbers (H, W, 3): colours of 16 bits, or arrays of floats."""
    rng, found = np.random.default_rng(5), {}
    for part, count in (("train", 4), ("test", 6)):
        for number, name in enumerate(CLASSES):
            (root / part / name).mkdir(parents=True)
            for index in range(count):
                values = rng.integers(0, white // 2, (12, 16, 3)) + (np.arange(3) == number) * (white // 2)
                path = root / part / name / f"{index}{'.npy' if kind == 'float32' else '.png'}"
                if kind == "float32":
                    np.save(path, values := (values / white).astype(np.float32))
                else:
                    path.write_bytes(as_deep_file(values := values.astype(np.uint16), "png").getvalue())
                found |= {path: values} if part == "test" else {}
    return found


@pytest.mark.parametrize(
    ("kind", "white", "layout", "any_size"),
    [("uint16", 65535, "nhwc", True), ("uint16", 4095, "nchw", False), ("float32", 65535, "nhwc", True)],
)
def test_a_model_takes_the_numbers_of_the_files(
    tmp_path: Path, kind: str, white: int, layout: str, any_size: bool
) -> None:
    files = images_of(tmp_path / "images", kind, white)
    own = [f"data.range={white}"] * (white == 4095)
    settings = (f"export.with_preprocessing={layout}", f"export.any_size={str(any_size).lower()}", *own)
    run = make_run(tmp_path, *settings, "export.probabilities=true")
    result = export(run)
    assert result.parity.max_rel < 1e-4
    assert (result.on_files is not None) == any_size
    session = onnxruntime.InferenceSession(result.path, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].type == {"uint16": "tensor(uint16)", "float32": "tensor(float)"}[kind]
    assert f"{kind} `[N, " in (run.export / "README.md").read_text()
    model, paths = ExportedModel.open(Path(result.path)), [*map(str, files)]
    given = np.stack([*files.values()])
    outputs = session.run(None, {"image": given if layout == "nhwc" else np.moveaxis(given, -1, 1)})[0]
    said = np.array(
        [[{g.label: g.score for g in one.classes}[name] for name in CLASSES] for one in predict(model, paths, top=3)]
    )
    assert np.abs(said - outputs).max() < 1e-4
    low = given // 257 * 257 if kind == "uint16" else (given * 255).round() / 255  # what 8 bits keep
    fed = low.astype(given.dtype) if layout == "nhwc" else np.moveaxis(low.astype(given.dtype), -1, 1)
    assert np.abs(session.run(None, {"image": fed})[0] - outputs).max() > 2e-4
    assert run_evaluate(run).accuracy == result.model.metrics["accuracy"]
