"""`classes` and `input` may be left out of a spec where the data says them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from compiler.errors import RunError, SpecError
from graphspec import api
from tests.runtime.data.deep import as_deep_file
from tests.tiny import TINY, environment, write_spec

SHORT = TINY.replace("gamma: 0.05", "gamma: 0")  # the sets here are too small to search
WITHOUT = SHORT.replace("classes: 10\n", "").replace("input: [1, 8, 8]\n", "")


def write_images(root: Path, mode: str, sizes: list[tuple[int, int]]) -> None:
    rng = np.random.default_rng(0)
    for name in ("cat", "dog", "owl"):
        (root / name).mkdir(parents=True)
        for number, (width, height) in enumerate(sizes):
            image = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
            turned, exif = image.transpose(Image.Transpose.ROTATE_90), Image.Exif()
            exif[ExifTags.Base.Orientation] = 6  # upright when it is turned back
            image.convert(mode).save(root / name / f"{number}.png")
            turned.convert(mode).save(root / name / f"{number} turned.png", exif=exif)


def compiled(tmp_path: Path, text: str = WITHOUT, **data: Any) -> api.CompiledSpec:
    overrides = {f"data.{key}": value for key, value in data.items()}
    return api.compile(write_spec(tmp_path, text), overrides=overrides, dry_run=True)


@pytest.mark.parametrize(
    ("mode", "sizes", "wanted"),
    [
        ("L", [(24, 16)] * 9, (1, 16, 24)),
        ("RGB", [(24, 16)] * 9, (3, 16, 24)),
        ("RGBA", [(100, 70), (70, 99), (400, 150)], (3, 64, 64)),
        ("L", [(500, 400)] * 4, (1, 224, 224)),
    ],
)
def test_folders_say_classes_and_input(
    tmp_path: Path, mode: str, sizes: list[tuple[int, int]], wanted: tuple[int, ...]
) -> None:
    write_images(tmp_path / "images", mode, sizes)
    text = WITHOUT.replace('"[1, H, W]', '"[C, H, W]')
    found = compiled(tmp_path, text, name="folder", root=str(tmp_path / "images"))
    assert (found.spec.classes, found.spec.input) == (3, wanted)
    assert found.data.endswith(f"it says classes: 3, input: {list(wanted)}")
    given = compiled(tmp_path, f"{text}input: [auto, 32, 16]\n", name="folder", root=str(tmp_path / "images"))
    assert given.spec.input == (wanted[0], 32, 16)


def test_arrays_and_built_in_sets_say_them_too(tmp_path: Path) -> None:
    x = np.zeros((9, 2, 12, 8), np.float32)
    np.savez(tmp_path / "a.npz", x=x, y=np.array(["b", "a", "c"] * 3))
    text = WITHOUT.replace('"[1, H, W]', '"[C, H, W]')
    found = compiled(tmp_path, text, name="arrays", root=str(tmp_path / "a.npz"))
    assert (found.spec.classes, found.spec.input) == (3, (2, 12, 8))
    digits = compiled(tmp_path)
    assert (digits.spec.classes, digits.spec.input) == (10, (1, 8, 8))
    assert digits.data.endswith("it says classes: 10, input: [1, 8, 8]")
    assert "it says" not in compiled(tmp_path, TINY).data


def test_channels_are_never_guessed(tmp_path: Path) -> None:
    """Neither where Pillow gives fewer than there are, nor of files that cannot be read."""
    files = [tmp_path / "images" / name / "0.tif" for name in ("cat", "dog")]
    for file in files:
        file.parent.mkdir(parents=True)
        file.write_bytes(as_deep_file(np.zeros((8, 8, 4), int), "tiff <", extra=0).read())
    text = WITHOUT.replace('"[1, H, W]', '"[C, H, W]')
    with pytest.raises(RunError, match=r"0\.tif has 4 channels in one page.* the spec's input is 4x8x8\n  try: "):
        compiled(tmp_path, text, name="folder", root=str(tmp_path / "images"))
    for file in files:
        file.write_text("no image")
    with pytest.raises(
        RunError, match=r"none of 2 images that were looked at can be read: .*cat/0\.tif: cannot identify"
    ):
        compiled(tmp_path, text, name="folder", root=str(tmp_path / "images"))


def test_a_run_keeps_what_the_data_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "images", "L", [(8, 8)] * 9)
    overrides = {"data.name": "folder", "data.root": str(tmp_path / "images")}
    run = api.compile(write_spec(tmp_path, WITHOUT), out=tmp_path / "run", overrides=overrides).run
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    opened = api.open_run(run)
    assert (opened.spec.classes, opened.spec.input) == (3, (1, 8, 8))


def test_where_nothing_says_it_the_key_is_missing(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"leaves out classes and input, and the data cannot say it: .*must hold"):
        compiled(tmp_path, name="folder", root=str(tmp_path / "nowhere"))
    for name in ("fake", "mine:images"):
        with pytest.raises(SpecError, match="the spec needs a value for the key 'classes'"):
            compiled(tmp_path, name=name)
    with pytest.raises(SpecError, match="expected one of"):  # other mistakes are told as ever
        compiled(tmp_path, f"{WITHOUT}nonsense: 1\n")


def test_it_is_found_without_torch(tmp_path: Path) -> None:
    write_images(tmp_path / "images", "L", [(8, 8)] * 9)
    spec = write_spec(tmp_path, WITHOUT)
    code = (
        "import sys\nfrom graphspec import api\n"
        f"api.compile({str(spec)!r}, overrides={{'data.name': 'folder', 'data.root': 'images'}}, dry_run=True)\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
