"""The exported run that these tests share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from runtime.rundir.directory import RunDir
from tests.runtime.inference.exported import export, make_run, write_images


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `images` and an exported `run` on them; 318 test images are more than one batch."""
    folder = tmp_path_factory.mktemp("exported")
    write_images(folder / "images", train=4, test=106)
    export(make_run(folder))
    return folder


@pytest.fixture
def exported(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """A copy of the run, in the working folder, with the images where they were."""
    monkeypatch.chdir(tmp_path)
    return RunDir.open(Path(shutil.copytree(made / "run", tmp_path / "run")))
