"""A run on image files of three classes whose network has random weights, exported in several forms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from typer.testing import CliRunner

from compiler.ir.graph import Model
from compiler.passes.pipeline import TO_COMPACT
from graphspec import api
from graphspec.cli.app import app
from runtime.export.run_export import ExportOptions, ExportResult, run_export
from runtime.jobs.runner import write_network
from runtime.rundir.directory import RunDir
from runtime.rundir.files import write_json
from tests.runtime.export.test_export import lively
from tests.tiny import TINY

CLASSES = ("cat", "dog", "owl")


def printed(*arguments: str, stdin: str = "") -> str:
    """What a command prints to stdout; its error if it fails."""
    done = CliRunner().invoke(app, arguments, input=stdin)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


SPEC = (
    TINY.replace("input: [1, 8, 8]", "input: [3, 12, 16]")
    .replace("classes: 10", "classes: 3")
    .replace('"[1, H, W]', '"[3, H, W]')
    .replace("{name: digits}", "{name: folder, root: images}")
    .replace("gamma: 0.05", "gamma: 1")
)


def write_images(root: Path, *, train: int, test: int) -> None:
    """Noise, whose colours say little about the class, of several sizes and kinds."""
    rng = np.random.default_rng(5)
    for part, count in (("train", train), ("test", test)):
        for number, name in enumerate(CLASSES):
            (root / part / name).mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 256, (12 + index % 5, 17, 3)).astype(np.uint8)
                pixels[..., number] |= 64
                Image.fromarray(pixels).save(root / part / name / f"{index:03d}.{('png', 'jpg', 'bmp')[index % 3]}")


def make_run(folder: Path, *settings: str, spec: str = SPEC, out: str = "run") -> RunDir:
    """A run in `folder` as retraining leaves it; its images lie in `folder/images` already, or need no place."""
    (folder / "spec.yaml").write_text(spec)
    overrides = [f"data.root={folder / 'images'}"] if "name: folder" in spec else []
    compiled = api.compile(folder / "spec.yaml", out=folder / out, root=folder, overrides=[*overrides, *settings])
    assert compiled.run is not None
    compact = TO_COMPACT.run(Model(compiled.graph)).graph
    write_network(compiled.run.retrain, compact, lively(compact).state_dict())
    write_json(compiled.run.retrain.config, compiled.spec.config.model_dump(mode="json"))
    write_json(compiled.run.retrain.result, {"accuracy": 0.3})
    return compiled.run


def export(run: RunDir, *overrides: str, **options: Any) -> ExportResult:
    return run_export(api.open_run(run, overrides), ExportOptions(**{"latency": False, "quiet": True, **options}))
