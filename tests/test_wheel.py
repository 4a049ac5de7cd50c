"""What is built for others is whole: a wheel that works outside the checkout, and a source archive that gives it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.tiny import environment, write_spec

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
PACKAGES = ("graphspec", "compiler", "runtime")
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"


def build(source: Path, what: str, into: Path) -> Path:
    """Build as pip would, with the installed setuptools."""
    into.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", BUILD, what, str(into)], cwd=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return into / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What git has of the checkout, as far as building looks at it."""
    folder = tmp_path_factory.mktemp("source")
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in (*PACKAGES, "specs"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(source, "build_wheel", tmp_path_factory.mktemp("wheel") / "dist")


def files_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_the_wheel_holds_every_file_of_the_packages(source: Path, wheel: Path) -> None:
    parts = [(path, path) for name in PACKAGES for path in (source / name).rglob("*")]
    parts += [(path, source / "graphspec/specs" / path.name) for path in (source / "specs").iterdir()]
    assert files_in(wheel) == {str(place.relative_to(source)) for path, place in parts if path.is_file()}


def test_the_source_archive_gives_the_same_wheel(source: Path, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(build(source, "build_sdist", tmp_path / "dist")) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    assert files_in(build(unpacked, "build_wheel", tmp_path / "again")) == files_in(wheel)


def test_the_wheel_works_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    """From another folder and with nothing of the checkout on the path."""
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    here = tmp_path / "here"
    here.mkdir()
    write_spec(here)

    def run(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, *words], cwd=here, env=environment() | {"PYTHONPATH": str(site)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    code = "import compiler, graphspec, runtime; print([m.__file__ for m in (compiler, graphspec, runtime)])"
    assert run("-c", code).count(str(site)) == 3
    assert "digits" in run("-m", "graphspec", "init")
    run("-m", "graphspec", "init", "digits")
    assert json.loads(run("-m", "graphspec", "compile", "digits.yaml", "--json"))["name"] == "digits"
    run("-m", "graphspec", "show", "-o", "space.html")
    run("-m", "graphspec", "report")
    run("-m", "graphspec", "search", "tiny.yaml", "--smoke")
    assert {path.name for path in here.iterdir()} == {
        "digits.yaml", "graphspec.schema.json", "runs", "space.html", "tiny.yaml",
    }  # fmt: skip
