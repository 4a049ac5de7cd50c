"""The Python API of exported models: measured, asked, judged. `predict` and `evaluate` leave torch out."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.rundir.directory import RunDir

if TYPE_CHECKING:
    from runtime.export.bench import BenchResult
    from runtime.inference.figures import Evaluation
    from runtime.inference.predict import Prediction

Target = RunDir | str | os.PathLike[str] | None


def bench(target: Target = None, **options: Any) -> BenchResult:
    """Measure an exported run (None: the latest) or any ONNX file; `options`: see `runtime.export.bench.run_bench`."""
    from runtime.export.bench import run_bench

    path = target.path if isinstance(target, RunDir) else target
    return run_bench(None if path is None else Path(path), **options)


def predict(target: Target, images: Iterable[str | os.PathLike[str]], **options: Any) -> list[Prediction]:
    """What an exported run (None: the latest) or ONNX file says of image files, folders or patterns of them.

    An image that cannot be read comes with its `error`. `options`: see `runtime.inference.predict.predict`.
    """
    from runtime.inference.images import find_images
    from runtime.inference.model import open_model
    from runtime.inference.predict import predict

    model, _ = open_model(_path(target))
    return predict(model, find_images([os.fspath(each) for each in images]), **options)


def evaluate(target: Target = None, data: str | os.PathLike[str] | None = None, **options: Any) -> Evaluation:
    """How an exported run (None: the latest) or ONNX file does on images with classes (a folder, an archive, a table,
    arrays), a run on its test images.

    `options`: see `runtime.inference.evaluate.run_evaluate`.
    """
    from runtime.inference.evaluate import run_evaluate

    return run_evaluate(_path(target), None if data is None else Path(data), **options)


def _path(target: Target) -> RunDir | Path | None:
    return target if target is None or isinstance(target, RunDir) else Path(target)
