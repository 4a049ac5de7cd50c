"""The data changes after training: the exported file has the labels and the normalisation of then, or is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from compiler.errors import RunError
from graphspec import api
from runtime.rundir.directory import RunDir
from tests.tiny import TINY, write_spec

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = ("cat", "dog", "owl")
PLAIN = TINY[: TINY.index("blocks:")].replace("[1, 8, 8]", "[3, 8, 8]").replace("classes: 10", "classes: 3")
PLAIN += """\
blocks:
  head:
    type: "[C, H, W] -> [classes]"
    nodes:
      conv: {op: conv, kernel: 3, channels: 4, from: in}
      pool: {op: global_avg_pool, from: conv}
      out: {op: linear, from: pool}
network: [head]
data: {name: folder, root: ../images, validation: 0.2}
retrain: {epochs: 1, batch_size: 8}
"""


def draw(path: Path, colour: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 60, (8, 8, 3), dtype=np.uint8)
    pixels[..., colour] += 120
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def make_set(root: Path, classes: tuple[str, ...] = CLASSES, seed: int = 0) -> None:
    for number, name in enumerate(classes):
        for part, count in (("train", 10), ("test", 4)):
            for index in range(count):
                draw(
                    root / part / name / f"{index}.png", number % 3, seed + 100 * number + index + (part == "test") * 50
                )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `work/runs/latest`, trained from `work` on `images`."""
    folder = tmp_path_factory.mktemp("facts")
    make_set(folder / "images")
    (folder / "work").mkdir()
    with chdir(folder / "work"):
        api.compile(write_spec(folder / "work", PLAIN))
        api.retrain(quiet=True)
    return folder


@pytest.fixture
def images(trained: Path) -> Iterator[Path]:
    """The images, which are as they were again afterwards."""
    root, backup = trained / "images", trained / "backup"
    shutil.copytree(root, backup)
    yield root
    for left in trained.iterdir():
        if left.name not in ("work", "backup"):
            shutil.rmtree(left)
    backup.rename(root)


def both(root: Path, change: Callable[[Path], object]) -> None:
    for part in ("train", "test"):
        change(root / part)


def exchange(folder: Path) -> None:
    (folder / "cat").rename(folder / "tmp")
    (folder / "owl").rename(folder / "cat")
    (folder / "tmp").rename(folder / "owl")


def brighten(folder: Path) -> None:
    for path in folder.rglob("*.png"):
        Image.fromarray(np.minimum(np.asarray(Image.open(path)), 195) + np.uint8(60)).save(path)


def replaced(root: Path, *, seed: int = 9, classes: tuple[str, ...] = CLASSES) -> None:
    shutil.rmtree(root)
    make_set(root, classes, seed)


CHANGES: dict[str, Callable[[Path], object]] = {
    "a class renamed": lambda root: both(root, lambda part: (part / "cat").rename(part / "zebra")),
    "a class renamed, order kept": lambda root: both(root, lambda part: (part / "dog").rename(part / "duck")),
    "renamed in training only": lambda root: (root / "train/cat").rename(root / "train/zebra"),
    "renamed in test only": lambda root: (root / "test/cat").rename(root / "test/zebra"),
    "two classes exchanged": lambda root: both(root, exchange),
    "a class added": lambda root: both(root, lambda part: draw(part / "ant" / "0.png", 0, 7)),
    "a class removed": lambda root: both(root, lambda part: shutil.rmtree(part / "dog")),
    "a class emptied": lambda root: both(root, lambda part: [path.unlink() for path in (part / "dog").iterdir()]),
    "training images added": lambda root: [draw(root / f"train/cat/new{n}.png", 2, n) for n in range(30)],
    "test images added": lambda root: [draw(root / f"test/cat/new{n}.png", 2, n) for n in range(5)],
    "training images removed": lambda root: [(root / f"train/cat/{n}.png").unlink() for n in range(8)],
    "test images removed": lambda root: [(root / f"test/owl/{n}.png").unlink() for n in range(3)],
    "an image in another class": lambda root: (root / "train/cat/1.png").rename(root / "train/owl/from_cat.png"),
    "files renamed": lambda root: [file.rename(file.with_stem(f"x{file.stem}")) for file in [*root.rglob("*.png")]],
    "brighter images": brighten,
    "an unreadable image": lambda root: (root / "train/cat/3.png").write_bytes(b"no image"),
    "an unreadable test image": lambda root: (root / "test/owl/2.png").write_bytes(b"no image"),
    "training and test exchanged": lambda root: [
        (root / "train").rename(root / "x"), (root / "test").rename(root / "train"), (root / "x").rename(root / "test")
    ],
    "test/ called val/": lambda root: (root / "test").rename(root / "val"),
    "another set in its place": replaced,
    "another set of other classes": lambda root: replaced(root, classes=("a", "b", "c")),
    "the set is gone": shutil.rmtree,
    "the set is elsewhere": lambda root: root.rename(root.with_name("moved")),
    "half of it is gone": lambda root: shutil.rmtree(root / "train"),
    "a file in its place": lambda root: (shutil.rmtree(root), root.mkdir(), (root / "train").touch()),
}  # fmt: skip


def said(trained: Path) -> dict[str, object]:
    """What an exported file says of labels and normalisation."""
    model = onnx.load(trained / "work/runs/latest/export/model.onnx")
    found = {item.key: item.value for item in model.metadata_props}
    return {key: json.loads(found[key]) for key in ("labels", "mean", "std")}


def export(trained: Path, *overrides: str, cwd: str = "work") -> dict[str, object]:
    shutil.rmtree(trained / "work/runs/latest/export", ignore_errors=True)
    with chdir(trained / cwd):
        api.export(trained / "work/runs/latest", overrides=overrides, latency=False, quiet=True)
    return said(trained)


def facts(trained: Path) -> dict[str, object]:
    known = json.loads((trained / "work/runs/latest/retrain/data.json").read_text())
    return {key: known[key] for key in ("labels", "mean", "std")}


@pytest.mark.parametrize("name", CHANGES)
def test_labels_and_normalisation_are_those_of_training(
    trained: Path, images: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    unchanged = export(trained)
    assert unchanged == facts(trained)
    assert unchanged["labels"] == list(CLASSES)
    capfd.readouterr()
    CHANGES[name](images)
    assert export(trained) == unchanged
    warnings = " ".join(capfd.readouterr().err.split())
    assert ("data of the training is not there" in warnings) != ("data has changed since the training" in warnings)
    assert "labels and normalisation are those of then" in warnings
    assert "graphspec compile SPEC, for a run that is trained on what is there now" in warnings
    assert "`classes: " not in warnings  # the spec is right
    if path := {"an unreadable image": "train/cat/3.png", "an unreadable test image": "test/owl/2.png"}.get(name):
        assert f"{path}: cannot identify image file" in warnings
        assert export(trained, "data.skip_corrupt=true") == unchanged
        assert f"{'test' if 'test' in name else 'train'} has" in capfd.readouterr().err


@contextmanager
def unfinished(run: RunDir) -> Iterator[RunDir]:
    """The retraining of a run has not been finished, for as long as the block lasts."""
    result = run.retrain.result.read_bytes()
    run.retrain.result.unlink()
    yield run
    run.retrain.result.write_bytes(result)


@pytest.mark.parametrize("name", CHANGES)
def test_training_does_not_go_on_with_other_data(trained: Path, images: Path, name: str) -> None:
    CHANGES[name](images)
    with chdir(trained / "work"), unfinished(RunDir.latest()) as run, pytest.raises(RunError) as caught:
        api.retrain(run, resume=True, quiet=True)
    assert "images" in str(caught.value) or "other" in str(caught.value)


@pytest.mark.parametrize("folder", ["moved", "work/moved"])
def test_the_set_may_lie_elsewhere(trained: Path, images: Path, folder: str) -> None:
    unchanged = export(trained)
    images.rename(trained / folder)
    try:
        root = f"data.root={trained / folder}"
        assert export(trained, root) == unchanged
        assert export(trained) == unchanged  # it has been said once
        with chdir(trained / "work"), unfinished(RunDir.latest()) as run:
            api.retrain(run, resume=True, quiet=True, overrides=[root])
        with pytest.raises(RunError, match=r"nowhere must hold the folders"):
            export(trained, "data.root=nowhere")
    finally:
        (trained / folder).rename(images)
        export(trained, f"data.root={images}")


def test_a_relative_root_is_found_from_another_folder(
    trained: Path, images: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (trained / "other/deep").mkdir(parents=True)
    assert export(trained, cwd="other/deep") == facts(trained)
    assert "warning" not in capfd.readouterr().err
    with chdir(trained / "other/deep"), unfinished(RunDir.open(trained / "work/runs/latest")) as run:
        api.retrain(run, resume=True, quiet=True)


def test_what_needs_training_images_is_refused_without_them(trained: Path, images: Path) -> None:
    shutil.rmtree(images)
    with chdir(trained / "work"), pytest.raises(RunError, match=r"--int8 needs the images of the training"):
        api.export(int8=True, latency=False, quiet=True)


def test_a_run_without_the_record_makes_it(trained: Path, images: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = RunDir.open(trained / "work/runs/latest")
    before = json.loads(run.retrain.data.read_text())
    run.retrain.data.unlink()
    run.retrain.samples.unlink()
    with chdir(trained / "work"):
        api.export(run, latency=False, quiet=True)
        assert "did not say what its data was" in capfd.readouterr().err
        api.export(run, latency=False, quiet=True)
    assert "warning" not in capfd.readouterr().err
    after = json.loads(run.retrain.data.read_text())
    assert Path(after.pop("root")).samefile(before.pop("root"))
    assert after == before
