"""What `graphspec data` finds in a set."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from compiler.errors import GraphspecError
from compiler.language.config import Configuration, DataConfig
from graphspec.cli.app import app
from runtime.data.augmented import EPOCHS, IMAGES, augmented
from runtime.data.health import examine
from runtime.data.looks import array_looks, look_at_all, near_duplicates
from tests.runtime.data.awkward import write_images
from tests.runtime.data.test_layouts import make_parts, noise
from tests.tiny import write_spec

SHELL = CliRunner()


def found(*words: object) -> dict[str, object]:
    done = SHELL.invoke(app, ["data", *map(str, words), "--json"], catch_exceptions=False)
    assert done.exit_code == 0
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def test_it_counts_and_names_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    root = make_parts(tmp_path / "set", {"train": 20, "test": 5})
    copy = noise(1).resize((30, 30), Image.Resampling.BICUBIC)  # of the first cat
    copy.save(root / "test" / "dog" / "copy.png")
    (root / "train" / "cat" / "bad.png").write_bytes(b"none")
    (root / "train" / "cat" / "notes.txt").write_text("none")
    files = write_images(tmp_path)
    for name in ("grey_12_of_16_bit.png", "rgba_hidden_red.png"):
        files[name].rename(root / "train" / "dog" / name)
    said = found(root)
    assert said["images"] == 54
    assert said["counts"] == {"cat": {"train": 21, "test": 5}, "dog": {"train": 22, "test": 6}}
    assert said["modes"] == {"RGB": 51, "I;16": 1, "RGBA": 1}
    assert said["sizes"][0] == {"size": [12, 12], "images": 50}  # type: ignore[index]
    assert said["deep"] == {"images": 1, "low": 0, "high": 4080}
    assert said["transparent"] == 1
    assert [Path(name).name for name in said["unreadable"]] == ["bad.png"]  # type: ignore[attr-defined]
    pair = [str(root / "train/cat/000.png"), str(root / "test/dog/copy.png")]
    assert said["near_duplicates"] == said["across_parts"] == said["across_classes"] == [pair]
    assert "1 .txt" in str(said["passed_over"])
    assert not Path("data.html").exists()
    done = SHELL.invoke(app, ["data", str(root)])
    assert "near-duplicates in several parts, 2 images in 1 group: train/cat/000.png = test/dog/copy.png" in done.stderr
    assert "unreadable, 1: train/cat/bad.png: cannot identify" in done.stderr
    assert "uses less than a quarter of its range: the largest value is 4080" in done.stderr
    page = Path("data.html").read_text()
    assert page.count('<img src="data:image/jpeg;base64,') >= 24 + 2
    for text in ("<h2>cat</h2>", "<h2>Near-duplicates: train cat, test dog</h2>", "54 of 2 classes"):
        assert text in page


@pytest.mark.skipif(sys.platform == "darwin", reason="its disks have no such names")
def test_names_that_are_no_text_are_shown_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    root = make_parts(tmp_path / os.fsdecode(b"set\xff"), {"train": 3, "test": 3})
    (root / "train" / "cat").rename(root / "train" / os.fsdecode(b"c\xfe\x1bt"))
    (root / "test" / "cat").rename(root / "test" / os.fsdecode(b"c\xfe\x1bt"))
    assert SHELL.invoke(app, ["data", str(root)], catch_exceptions=False).exit_code == 0
    page = Path("data.html").read_text()
    assert r"<h2>c\udcfe\x1bt</h2>" in page
    assert "\x1b" not in page


def test_it_looks_at_what_a_spec_reads_and_at_arrays(tmp_path: Path) -> None:
    root = make_parts(tmp_path / "set", {"": 12})
    (tmp_path / "a.yaml").write_text(f"graphspec: 1\nname: a\ndata: {{name: folder, root: {root}, nested: true}}\n")
    assert found(tmp_path / "a.yaml")["counts"] == found(root)["counts"] == {"cat": {"": 12}, "dog": {"": 12}}
    rows = [f"{path},{path.parent.name}" for path in root.rglob("*.png")]
    (tmp_path / "T.CSV").write_text("\n".join(["path,label", *rows]))
    assert found(tmp_path / "T.CSV")["counts"] == found(root)["counts"]
    x = np.random.default_rng(0).integers(0, 4096, (20, 9, 12, 1)).astype(np.uint16)
    x[7] = x[3]
    np.savez(tmp_path / "a.npz", x_train=x[:15], y_train=np.arange(15) % 2, x_test=x[15:], y_test=np.arange(5) % 2)
    said = found(tmp_path / "a.npz", "--set", "data.range=4095", "-o", tmp_path / "page.html")
    assert said["modes"] == {"uint16 x 1": 20}
    assert said["sizes"] == [{"size": [12, 9], "images": 20}]
    assert said["near_duplicates"] == [["train 3", "train 7"]]
    assert "<h2>1</h2>" in (tmp_path / "page.html").read_text()


def test_mistakes_end_in_a_message(tmp_path: Path) -> None:
    for words, says in (
        ([tmp_path / "nowhere"], "must hold the folders"),
        ([tmp_path, "--set", "data.nested=3"], "data.nested: expected true or false, found 3"),
        ([tmp_path, "--set", "data.label=[]"], "data.label: classification takes one label column, found 0"),
        ([tmp_path, "--set", "data.name=digits"], "data set 'digits' is not one of files or arrays"),
    ):
        done = SHELL.invoke(app, ["data", *map(str, words)])
        assert isinstance(done.exception, GraphspecError)
        assert says in str(done.exception)


# -- near-duplicates --------------------------------------------------------------------------------------------------


def test_the_page_shows_what_augmentation_makes_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    root = make_parts(tmp_path / "set", {"train": 20, "test": 5})
    spec = [str(write_spec(tmp_path)), "--set", "data.name=folder", "--set", f"data.root={root}", "--set"]
    for words, count in (
        ([str(root)], 0),
        ([str(root), "--set", "data.flip=true"], IMAGES * EPOCHS),
        ([*spec, "data.flip=false"], 0),
        ([*spec, "retrain.augment=trivial"], IMAGES * EPOCHS),
    ):
        assert SHELL.invoke(app, ["data", *words], catch_exceptions=False).exit_code == 0
        assert Path("data.html").read_text().count(', augmented"') == count
    config = Configuration(data=DataConfig(name="folder", root=str(root), flip=True))
    health, mirrored = examine(config.data, lambda images: None, lambda total: None), set()
    shown = list(augmented(health, config, ()))
    assert len(shown) == IMAGES
    for path, images in shown:
        assert "/train/" in path
        whole = np.asarray(Image.open(path).convert("RGB"))
        for image in images:
            pixels = np.asarray(image)
            assert (pixels == whole).all() or (pixels == whole[:, ::-1]).all()
            mirrored.add(bool((pixels == whole).all()))
    assert mirrored == {True, False}
    imagenet = config.model_copy(update={"data": config.data.model_copy(update={"name": "imagenet"})})
    assert {image.size for _, images in augmented(health, imagenet, (6, 9)) for image in images} == {(9, 6)}


def test_pictures_that_differ_are_not_near_duplicates_and_copies_are(tmp_path: Path) -> None:
    paths = []
    for number in range(40):
        image = noise(number, 8).resize((90, 60), Image.Resampling.BICUBIC)
        for ending, copy in (
            (".png", image),
            (" small.jpg", image.resize((45, 30))),
            (" wide.png", image.resize((99, 60))),
        ):
            paths.append(str(tmp_path / f"{number}{ending}"))
            copy.save(paths[-1])
    groups = near_duplicates(look_at_all(paths), 3)
    assert groups.tolist() == [3 * (row // 3) for row in range(len(paths))]
    assert near_duplicates(look_at_all(paths), None).tolist() == list(range(len(paths)))


@pytest.mark.parametrize("white", [255, 4095])
@pytest.mark.parametrize("kind", ["grey.png", "colours.ppm", "stack.npy", "arrays"])
def test_dark_images_of_more_than_8_bits_are_told_apart(tmp_path: Path, kind: str, white: int) -> None:
    """Of 8 or 12 bits in files of 16: as bright as they are all of them look black."""
    channels = {"grey.png": 1, "colours.ppm": 3}.get(kind, 4)
    images = np.stack(
        [np.kron(np.random.default_rng(n).random((8, 8, channels)), np.ones((3, 4, 1))) for n in range(9)]
    )
    numbers = (images * white).astype(np.uint16)[[*range(9), 4]]
    paths = [f"{tmp_path}/{number} {kind}" for number in range(10)]
    for path, values in zip(paths, numbers, strict=True):
        if kind == "grey.png":
            Image.fromarray(values[..., 0]).save(path)
        elif kind == "colours.ppm":
            Path(path).write_bytes(b"P6 32 24 65535\n" + values.astype(">u2").tobytes())
        else:
            np.save(path, values)
    looks = array_looks(numbers) if kind == "arrays" else look_at_all(paths)
    assert near_duplicates(looks, 3).tolist() == [*range(9), 4]
    assert max(look.found.high for look in looks) == numbers.max() / 65535


def test_plain_images_are_told_apart_by_their_colour() -> None:
    colours = np.array([(0, 0, 0), (60, 60, 60), (200, 0, 0), (0, 102, 0), (61, 61, 61)], np.uint8)
    looks = array_looks(np.broadcast_to(colours[:, None, None], (5, 16, 16, 3)).copy())
    assert near_duplicates(looks, 3).tolist() == [0, 1, 2, 3, 1]


def test_the_bound_on_bits_is_kept() -> None:
    """Of images whose thumbnails differ in few grey levels those with too many other bits are not joined."""
    base = np.full((8, 9), 128, np.uint8)
    images = [base]
    for bits in range(1, 9):
        changed = base.copy()
        for bit in range(bits):
            changed[bit, 8] = 131  # brighter than its left neighbour
        images.append(changed)
    looks = array_looks(np.stack(images)[..., None])
    for most in range(9):
        joined = near_duplicates([looks[0], *looks[1:][most : most + 1]], most)
        assert joined.tolist() == [0, 1] if most < 8 else [0]
        assert near_duplicates([looks[0], looks[most]], most).tolist() == [0, 0]
