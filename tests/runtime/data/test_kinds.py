"""Files that are more than a picture: stacks of channels, arrays, HEIC, and archives that are compressed as a whole."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
import tarfile
import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from compiler.errors import RunError
from compiler.language.config import DataConfig
from graphspec import api
from runtime.data.archives import Member, remove_left
from runtime.data.dataset import load_dataset
from runtime.data.folders import ENDINGS, kind_of
from runtime.data.health import examine
from runtime.data.layouts import find_parts
from runtime.data.pixels import READING, Pixels, Reading, UnreadableError, read_pixels
from runtime.inference.model import ExportedModel
from runtime.inference.predict import predict
from tests.runtime.inference.exported import SPEC, export, make_run
from tests.tasks import class_task

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"  # how a file begins that is one
KINDS = {"uint8": 255, "uint16": 65535, "float32": 1}


def values(channels: int, kind: str, size: tuple[int, int] = (12, 16), seed: int = 0) -> Pixels:
    """An array (H, W, C)."""
    shares = np.random.default_rng(seed).random((*size, channels))
    return (shares * KINDS[kind]).astype(kind)


def as_file(array: Pixels, form: str) -> io.BytesIO:
    """As an array with its channels last or first, or as pages."""
    file = io.BytesIO()
    if form == "pages":
        first, *rest = (Image.fromarray(np.ascontiguousarray(page)) for page in np.moveaxis(array, -1, 0))
        first.save(file, "tiff", save_all=True, append_images=rest)
    else:
        np.save(file, np.moveaxis(array, -1, 0) if form == "first" else array)
    file.seek(0)
    return file


@settings(max_examples=60, deadline=None)
@given(
    channels=st.integers(2, 11),
    kind=st.sampled_from(list(KINDS)),
    form=st.sampled_from(["last", "first", "pages"]),
    resize=st.sampled_from(["crop", "squash", "letterbox"]),
    seed=st.integers(0, 99),
)
def test_every_channel_of_a_stack_is_read_as_an_image_of_its_own(
    channels: int, kind: str, form: str, resize: str, seed: int
) -> None:
    array, reading = values(channels, kind, seed=seed), Reading(resize=resize)
    for shape in ((channels, 12, 16), (channels, 7, 5)):
        pixels, found = read_pixels(as_file(array, form), shape, reading)
        assert pixels.shape == (*shape[1:], channels)
        assert found.deep == (kind != "uint8")
        for channel in range(channels):
            alone = read_pixels(as_file(array[..., channel : channel + 1], "last"), (1, *shape[1:]), reading)[0]
            assert (pixels[..., channel] == alone[..., 0]).all()
    if kind != "uint8":  # all its bits are there
        whole = read_pixels(as_file(array, form), (channels, 12, 16), reading)[0]
        assert np.abs(whole / 255 - array / KINDS[kind]).max() < 1e-6


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (values(4, "uint8"), r"has shape \(12, 16, 4\), the network reads 6 channels"),
        (np.zeros((4, 4), object), "pickle"),
        (np.zeros((4, 4, 4, 6), np.uint8), r"is \(4, 4, 4, 6\) uint8, not"),
        (np.zeros((4, 4, 6), np.int64), "int64, not"),
        (np.full((4, 4, 6), np.nan, np.float32), "no numbers"),
    ],
)
def test_other_arrays_are_refused_with_what_they_are(array: Pixels, reason: str) -> None:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    file.seek(0)
    with pytest.raises(UnreadableError, match=reason):
        read_pixels(file, (6, 4, 4), READING)


def stacks(root: Path, ending: str, channels: int = 5) -> Path:
    """Two classes of deep stacks, divided into parts."""
    for part, count in (("train", 12), ("test", 4)):
        for number, name in enumerate(("cat", "dog")):
            (root / part / name).mkdir(parents=True)
            for index in range(count):
                array = values(channels, "uint16", seed=index) // 2 + np.uint16(number * 30000)
                file = as_file(array, "pages" if ending == ".tif" else "last")
                (root / part / name / f"{index}{ending}").write_bytes(file.read())
    return root


@pytest.mark.parametrize("ending", [".npy", ".tif"])
def test_stacks_go_from_folders_to_an_exported_model(tmp_path: Path, ending: str) -> None:
    root = stacks(tmp_path / "images", ending)
    spec = SPEC.replace("input: [3, 12, 16]\n", "").replace("classes: 3\n", "").replace('"[3, H, W]', '"[5, H, W]')
    run = make_run(tmp_path, "export.probabilities=true", spec=spec)
    assert api.open_run(run).spec.input == (5, 12, 16)
    (mode,) = examine(DataConfig(name="folder", root=str(root)), print, print).as_json()["modes"]
    assert mode == ("I;16 x 5 pages" if ending == ".tif" else "uint16 x 5")
    result = export(run)
    assert "Take its 5 channels or pages" in (run.export / "README.md").read_text()
    model = ExportedModel.open(Path(result.path))
    paths = [str(path) for path in sorted(root.glob("test/*/*"))]
    said = predict(model, paths, top=2)
    mean, std = (np.array(each)[:, None, None] for each in (model.metadata.mean, model.metadata.std))
    for one, path in zip(said, paths, strict=True):
        exact = read_pixels(path, (5, 12, 16), READING)[0].astype(np.float64) / 255  # 16 bits, which 8 would not keep
        scores = model.network(((np.moveaxis(exact, -1, 0) - mean) / std)[None].astype(np.float32))[0]
        assert {guess.label: guess.score for guess in one.classes} == pytest.approx(
            dict(zip(("cat", "dog"), scores.tolist(), strict=True)), abs=1e-5
        )


def test_files_of_other_channels_than_the_input_are_refused_at_once(tmp_path: Path) -> None:
    root = stacks(tmp_path / "images", ".npy")
    with pytest.raises(RunError, match=r"0\.npy has shape \(12, 16, 5\), the network reads 4 channels"):
        load_dataset(DataConfig(name="folder", root=str(root)), (4, 12, 16), class_task(2), seed=0)


def test_heic_is_read_with_its_package_and_says_which_it_is_without(tmp_path: Path) -> None:
    path = tmp_path / "photo.heic"
    if find_spec("pillow_heif"):
        import pillow_heif

        pillow_heif.from_pillow(Image.new("RGB", (16, 12), (200, 40, 40))).save(path)
        assert np.abs(read_pixels(path, (3, 12, 16), READING)[0] - np.array([200, 40, 40])).max() < 8
        assert kind_of(path.name) == ""
    else:
        path.write_bytes(HEIC)
        with pytest.raises(UnreadableError, match="pip install pillow-heif"):
            read_pixels(path, (3, 12, 16), READING)
        assert "pip install pillow-heif" in kind_of(path.name)


@pytest.mark.parametrize("ending", sorted({*ENDINGS} - {".npy", ".heic", ".heif", ".pbm", ".pfm"}))
def test_files_of_every_ending_are_read(tmp_path: Path, ending: str) -> None:
    shades = np.arange(192, dtype=np.uint8).reshape(12, 16)
    grey = ending in (".pgm", ".pnm")
    image = Image.fromarray(shades if grey else np.stack([shades, shades[::-1], shades + 60], axis=-1))
    image.save(tmp_path / f"a{ending.upper()}")  # of the kind that Pillow takes the ending for
    pixels = read_pixels(tmp_path / f"a{ending.upper()}", (1 if grey else 3, 12, 16), READING)[0]
    palette = 40 if ending == ".gif" else 12  # and what compression leaves
    assert np.abs(pixels.astype(int) - np.atleast_3d(np.asarray(image))).mean() < palette


@pytest.mark.parametrize("name", ["images.tar.gz", "images.tgz"])
def test_a_tar_file_that_is_compressed_is_read_as_the_folder_is(name: str, tmp_path: Path) -> None:
    root = tmp_path / "images"
    for label in ("cat", "dog"):
        (root / label).mkdir(parents=True)
        for index in range(20):
            Image.fromarray(values(3, "uint8", seed=index + 50 * (label == "dog"))).save(root / label / f"{index}.png")
    with tarfile.open(tmp_path / name, "w:gz") as archive:
        archive.add(root, "images")
    whole, packed = (DataConfig(name="folder", root=str(path)) for path in (root, tmp_path / name))
    wanted, found = (load_dataset(config, (3, 12, 16), class_task(2), seed=0) for config in (whole, packed))
    assert (wanted.train.in_memory().images == found.train.in_memory().images).all()
    member = find_parts(packed).train.paths[0]
    assert isinstance(member, Member)
    assert pickle.loads(pickle.dumps(member)).read() == (root / "cat" / "0.png").read_bytes()  # noqa: S301
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-900])
    with pytest.raises(RunError, match="cannot be read as a zip or tar file"):
        find_parts(packed)


def test_the_copy_of_a_killed_process_goes_and_that_of_a_live_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "images"
    for label in ("cat", "dog"):
        (root / label).mkdir(parents=True)
        Image.fromarray(values(3, "uint8")).save(root / label / "0.png")
    with tarfile.open(tmp_path / "images.tar.gz", "w:gz") as archive:
        archive.add(root, "images")
    (copies := tmp_path / "temporary").mkdir()
    code = (
        "import os, signal, sys; from pathlib import Path; from runtime.data.archives import files_in;"
        "from runtime.data.folders import Passed; list(files_in(Path(sys.argv[1]), Passed()));"
        "print(flush=True); signal.pause()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "images.tar.gz")]
    at_work = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "TMPDIR": str(copies)})
    assert at_work.stdout is not None
    at_work.stdout.readline()
    monkeypatch.setattr(tempfile, "tempdir", str(copies))
    (copy,) = copies.iterdir()
    remove_left()
    assert copy.exists()
    at_work.kill()
    at_work.communicate()
    assert copy.exists()
    remove_left()
    assert not copy.exists()
